"""The card of a data set of features, and its upload as Parquet."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from huggingface_hub import DatasetCardData, HfApi
from huggingface_hub.errors import EntryNotFoundError

from hf_blemo import blemore
from hf_blemo.hub.provenance import PROVENANCE_FILE

from .card import merge_card
from .encoder_models import encoder_rows, without_folders

if TYPE_CHECKING:
    import datasets

CARD_FILE = "README.md"


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
        encoders: name -> where its features come from, as of `write_provenance`; goes beside the data, so that models
            trained on it know, and into the card.

    Returns:
        The address of the last commit.

    Raises:
        ValueError: the card on the Hub has metadata that is none.

    Source: this project's choice.
    """
    dataset.push_to_hub(repo_id, split=split, private=private, token=token)
    if encoders is not None:
        HfApi(token=token).upload_file(
            path_or_fileobj=(
                json.dumps(without_folders({"encoders": encoders})["encoders"], indent=2) + "\n"
            ).encode(),
            path_in_repo=PROVENANCE_FILE,
            repo_id=repo_id,
            repo_type="dataset",
            commit_message="Say where the features come from",
        )
    return push_dataset_card(repo_id, features_card(dataset, repo_id, encoders), token)


def push_dataset_card(repo_id: str, generated: str, token: str | None = None) -> str:
    """Bring the card of a data set on the Hub up to date, without losing what people changed in it.

    Args:
        repo_id: `owner/name`.
        generated: the card as rendered now, what may change between markers.
        token: a Hub token.

    Returns:
        The address of the commit.

    Raises:
        ValueError: as in `merge_card`.

    Source: this project's choice.
    """
    api = HfApi(token=token)
    parent = api.dataset_info(repo_id).sha
    card = generated
    try:
        path = api.hf_hub_download(repo_id, CARD_FILE, repo_type="dataset", revision=parent)
        card = merge_card(Path(path).read_text(encoding="utf-8-sig"), generated)
    except EntryNotFoundError:
        pass
    commit = api.upload_file(
        path_or_fileobj=card.encode(),
        path_in_repo=CARD_FILE,
        repo_id=repo_id,
        repo_type="dataset",
        commit_message="Bring the card up to date",
        parent_commit=parent,
    )
    return commit.commit_url


def features_card(
    dataset: "datasets.Dataset", repo_id: str, encoders: Mapping[str, Mapping[str, Any]] | None = None
) -> str:
    """Render the card of a data set of features.

    Args:
        dataset, encoders: as in [`push_features`].
        repo_id: `owner/name` on the Hub.

    Returns:
        Metadata and text; no licence, as it is not known here.

    Source: this project's choice.
    """
    data = DatasetCardData(
        tags=["hf_blemo", "blemore", "blended-emotion-recognition"], task_categories=["video-classification"]
    )
    labelled = blends = 0
    if "labels" in dataset.column_names:
        indices = blemore.label_indices(np.array(dataset["labels"][:], dtype=np.float64))
        labelled, blends = int((indices >= 0).sum()), int((indices >= len(blemore.EMOTIONS)).sum())
    folds = sorted(set(dataset["fold"])) if "fold" in dataset.column_names else []
    lines = [
        f"---\n{data.to_yaml()}\n---",
        f"# {repo_id.split('/')[-1]}",
        "Features of clips by pre-trained video and audio encoders, for the recognition of blended emotions. The",
        "clips themselves are not in here.",
        "",
        "<!-- hf_blemo:begin results -->",
        f"{len(dataset):,} clips in the split that was uploaded last, {labelled:,} of them labelled, {blends:,} of",
        f"those blends; folds: {', '.join(map(str, folds)) or 'none'}.",
        "",
        *_encoder_table(blemore.encoder_widths(dataset), encoders),
        "<!-- hf_blemo:end results -->",
        "",
        "Columns: `clip` (name), `features` (encoder -> (time, width), null where absent), `labels` (six saliences in",
        f"the order {', '.join(blemore.EMOTIONS)}; -100 where unlabelled) and `fold`.",
        "",
        "```python",
        "import datasets",
        "",
        f'dataset = datasets.load_dataset("{repo_id}", split="train")',
        "```",
        "",
        "**Licence: not stated.** It is that of the recordings and of the encoders; whoever publishes this has to say",
        "it. Features of people's faces and voices can identify them.",
    ]
    return "\n".join(lines) + "\n"


def _encoder_table(widths: Mapping[str, int], encoders: Mapping[str, Mapping[str, Any]] | None) -> list[str]:
    if encoders is None:
        return ["| encoder | width |", "|---|---:|", *(f"| `{name}` | {width} |" for name, width in widths.items())]
    known = {row["name"]: row for row in encoder_rows({"encoders": encoders})}
    lines = ["| encoder | width | model | revision | options |", "|---|---:|---|---|---|"]
    for name, width in widths.items():
        cells = [known.get(name, {}).get(key, "–") for key in ("model", "revision", "options")]
        lines.append(f"| `{name}` | {width} | {' | '.join(cells)} |")
    return lines
