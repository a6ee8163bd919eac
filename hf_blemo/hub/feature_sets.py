"""Data sets of features on the Hub: Parquet files, where the features come from, and a card."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from huggingface_hub import DatasetCardData

from hf_blemo import blemore, feature_sets

from .card import merge_card, render_template, without_local_paths
from .encoder_models import PROVENANCE_FILE, encoder_rows
from .uploads import upload

if TYPE_CHECKING:
    import datasets


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
        ValueError: the card on the Hub has metadata that cannot be read.
    """
    dataset.push_to_hub(repo_id, split=split, private=private, token=token)
    card = _card(dataset, repo_id, encoders)
    provenance = json.dumps(without_local_paths(encoders), indent=2) + "\n"
    return upload(
        repo_id,
        {} if encoders is None else {PROVENANCE_FILE: provenance.encode()},
        "Bring the card up to date",
        lambda on_hub: merge_card(on_hub, card),
        repo_type="dataset",
        private=private,
        token=token,
    )[0]


def _card(dataset: "datasets.Dataset", repo_id: str, encoders: Mapping[str, Mapping[str, Any]] | None) -> str:
    # No licence: it is not known here.
    data = DatasetCardData(
        tags=["hf_blemo", "blemore", "blended-emotion-recognition"], task_categories=["video-classification"]
    )
    labelled = blends = 0
    if "labels" in dataset.column_names:
        indices = blemore.label_indices(np.array(dataset["labels"][:], dtype=np.float64))
        labelled, blends = int((indices >= 0).sum()), int((indices >= len(blemore.EMOTIONS)).sum())
    return render_template(
        "feature_set",
        data,
        repo_id=repo_id,
        clips=len(dataset),
        labelled=labelled,
        blends=blends,
        folds=sorted(set(dataset["fold"])) if "fold" in dataset.column_names else [],
        emotions=blemore.EMOTIONS,
        widths=feature_sets.encoder_widths(dataset),
        encoders=None if encoders is None else {row["name"]: row for row in encoder_rows({"encoders": encoders})},
    )
