"""Stores of teacher embeddings on the Hub: a data set with a card."""

import json
from dataclasses import asdict
from pathlib import Path

from huggingface_hub import DatasetCardData

from hf_blemo.hub.card import merge_card, render_template, without_local_paths
from hf_blemo.hub.uploads import upload
from hf_blemo.pairs.teacher_store import SHARD_FOLDER, STORE_FILE, TOKENIZERS, StoreDescription


def store_card(folder: Path) -> str:
    """Metadata and text of a store's README.md, without folders of this machine."""
    # No licence: the pairs' and the teachers' own decide, and neither is known here.
    data = DatasetCardData(
        tags=["hf_blemo", "clip", "embeddings", "distillation"],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}],
    )
    description = without_local_paths(asdict(StoreDescription.load(folder)))
    description["augmentation"] = json.dumps(description["augmentation"])
    return render_template("teacher_store", data, **description)


def push_store(folder: Path, repo_id: str, token: str | None = None) -> str:
    """Uploads a store in one commit to a data set; a new one is private. Returns the address of the commit.

    Manual edits of the card on the Hub stay; shards that this store does not have are removed there.
    """
    paths = [folder / STORE_FILE, *(folder / SHARD_FOLDER).glob("*.parquet"), *(folder / TOKENIZERS).rglob("*")]
    card = store_card(folder)
    return upload(
        repo_id,
        {path.relative_to(folder).as_posix(): path for path in sorted(paths) if path.is_file()},
        "Upload teacher embeddings",
        lambda on_hub: merge_card(on_hub, card),
        repo_type="dataset",
        token=token,
        replaced=SHARD_FOLDER,
    )[0]
