"""Which encoders made the features of a data set, kept beside it so that models trained on it know."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_blemo.files import read_json, write_json
from hf_blemo.loading import is_hub_id

PROVENANCE_FILE = "encoders.json"
PROVENANCE_KEYS = ("feature_size", "modality", "model_id", "revision", "extraction")


def write_provenance(folder: Path, entries: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes `encoders.json`.

    Args:
        folder: of the data set.
        entries: encoder -> `feature_size`, `modality` and, where known, `model_id`, `revision`, `extraction`.
    """
    write_json({folder / PROVENANCE_FILE: {name: dict(entry) for name, entry in entries.items()}})


def read_provenance(source: str) -> dict[str, dict[str, Any]]:
    """Reads what is known of the encoders of a data set.

    Args:
        source: folder or Hub id of the data set, or anything else features come from.

    Returns:
        Encoder -> entries as of `config.encoders`; nothing where there is no `encoders.json`.

    Raises:
        ValueError: the file is damaged.

    Source: this project's choice.
    """
    path = _download(source) if is_hub_id(source) else Path(source) / PROVENANCE_FILE
    if path is None or not path.is_file():
        return {}
    entries = read_json(path)
    for name, entry in entries.items():
        if not isinstance(entry, dict):
            raise ValueError(f"{path}: encoder {name!r}: expected an object, found {type(entry).__name__}")
    return {name: {key: entry[key] for key in PROVENANCE_KEYS if key in entry} for name, entry in entries.items()}


def _download(repo_id: str) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(hf_hub_download(repo_id, PROVENANCE_FILE, repo_type="dataset"))
    except (EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError):
        return None
