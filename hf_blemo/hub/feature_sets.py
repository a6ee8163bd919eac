"""Data sets of features on the Hub: Parquet files, what their labels are, where the features come from, and a card."""

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from huggingface_hub import DatasetCardData, HfApi
from huggingface_hub.errors import RepositoryNotFoundError

from hf_blemo import blemore, feature_sets
from hf_blemo.feature_sets.label_spaces import LABEL_SPACE_FILE, check_same_labels, space_entry, space_from_entry
from hf_blemo.files import read_json
from hf_blemo.loading import load_dataset
from hf_blemo.rank_aware_fusion.label_space_rank_aware_fusion import BLEMORE_SPACE, LabelSpace

from .card import merge_card, render_template
from .encoder_models import PROVENANCE_FILE, encoder_rows, file_on_hub
from .uploads import upload

if TYPE_CHECKING:
    import datasets

_SPLIT_FILE = re.compile(r"data/(?P<split>.+)-\d{5}-of-\d{5}\.parquet")


def load_hub_features(repo_id: str, where: str | None = None, split: str = "train") -> "datasets.Dataset":
    """Load a data set of features from the Hub, with what its `label_space.json` says of the labels.

    Args:
        repo_id: `owner/name` of a data set on the Hub.
        where: what messages call it; `repo_id` by default.
        split: its name there.

    Returns:
        The data set, for which `feature_sets.label_space` knows the label space.

    Raises:
        FileNotFoundError: there is no such data set, or the Hub cannot be reached.
        ValueError: `label_space.json` is damaged or does not fit the labels.
    """
    where = where or repo_id
    dataset = load_dataset(repo_id, where, split=split)
    found = _space_on_hub(repo_id)
    return dataset if found is None else feature_sets.with_label_space(dataset, *found)


def _space_on_hub(repo_id: str, token: str | None = None) -> tuple[LabelSpace, str] | None:
    path = file_on_hub(repo_id, LABEL_SPACE_FILE, token=token)
    return None if path is None else space_from_entry(read_json(path), f"{repo_id}, {LABEL_SPACE_FILE}")


def push_features(
    dataset: "datasets.Dataset",
    repo_id: str,
    split: str = "train",
    private: bool = True,
    token: str | None = None,
    encoders: Mapping[str, Mapping[str, Any]] | None = None,
) -> str:
    """Upload a data set of features as Parquet, with a card.

    The licence of features of BlEmoRE is not known to us, so a new repository is private by default. A card that
    people wrote keeps their text.

    Args:
        dataset: columns `clip` and `features`, and `labels` and `fold` where known.
        repo_id: `owner/name` of a data set on the Hub.
        split: its name there; others stay.
        private: whether a repository that is created is private.
        token: a Hub token; the one stored by `hf auth login` by default.
        encoders: name -> where its features come from, as in `encoders.json`; uploaded beside the data, so that models
            trained on it know, and shown in the card.

    Returns:
        The address of the last commit.

    Raises:
        ValueError: another split there has labels of another space, or the card on the Hub has metadata that cannot
            be read.
    """
    space = feature_sets.label_space(dataset)
    others = _other_splits(repo_id, split, token)
    if others:
        there = _space_on_hub(repo_id, token) or (BLEMORE_SPACE, "valid")
        check_same_labels(space, there, f"the data set to upload as split {split}", f"{repo_id}, split {others[0]},")
    dataset.push_to_hub(repo_id, split=split, private=private, token=token)
    card = _card(dataset, repo_id, encoders)
    contents: dict[str, Any] = {LABEL_SPACE_FILE: space_entry(*space)}
    if encoders is not None:
        contents[PROVENANCE_FILE] = encoders
    return upload(
        repo_id,
        {name: (json.dumps(content, indent=2) + "\n").encode() for name, content in contents.items()},
        "Bring the card up to date",
        lambda on_hub: merge_card(on_hub, card),
        repo_type="dataset",
        private=private,
        token=token,
    )[0]


def _other_splits(repo_id: str, split: str, token: str | None) -> list[str]:
    try:
        files = HfApi(token=token).list_repo_files(repo_id, repo_type="dataset")
    except RepositoryNotFoundError:
        return []
    found = {match["split"] for name in files if (match := _SPLIT_FILE.fullmatch(name))}
    return sorted(found - {split})


def _labels(dataset: "datasets.Dataset") -> np.ndarray:
    has_labels = "labels" in dataset.column_names
    return np.array(dataset["labels"][:]) if has_labels else np.full((len(dataset), 1), blemore.UNLABELLED)


def _card(dataset: "datasets.Dataset", repo_id: str, encoders: Mapping[str, Mapping[str, Any]] | None) -> str:
    found = feature_sets.describe(dataset)
    is_blemore = found.space == BLEMORE_SPACE and blemore.named_by_labels(dataset["clip"][:], _labels(dataset))
    # No licence: it is not known here.
    data = DatasetCardData(
        tags=["hf_blemo", *(["blemore", "blended-emotion-recognition"] if is_blemore else [])],
        task_categories=["video-classification"] if is_blemore else None,
    )
    return render_template(
        "feature_set",
        data,
        repo_id=repo_id,
        found=found,
        is_blemore=is_blemore,
        widths=feature_sets.encoder_widths(dataset),
        encoders=None if encoders is None else {row["name"]: row for row in encoder_rows({"encoders": encoders})},
    )
