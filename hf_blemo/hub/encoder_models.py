"""The pre-trained models behind a fusion's features: kept beside a data set, named in a config and shown in cards."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from hf_blemo.errors import without_paths
from hf_blemo.files import read_json
from hf_blemo.loading import OPENSMILE, is_hub_id
from hf_blemo.programs.markdown import code

PROVENANCE_FILE = "encoders.json"

_PROVENANCE_KEYS = ("feature_size", "modality", "model_id", "revision", "extraction")
_COMMIT_DIGITS = 40
_OPENSMILE = "https://github.com/audeering/opensmile-python"
_SHOWN_DIGITS = 7


def read_provenance(source: str) -> dict[str, dict[str, Any]]:
    """Reads which encoders made the features of a data set (folder or Hub id), from the file `encoders.json` beside
    it.

    Returns:
        Encoder -> entry of `config.encoders`; empty where there is no `encoders.json`.
    """
    path = file_on_hub(source, PROVENANCE_FILE) if is_hub_id(source) else Path(source) / PROVENANCE_FILE
    if path is None or not path.is_file():
        return {}
    entries = read_json(path)
    for name, entry in entries.items():
        if not isinstance(entry, dict):
            raise ValueError(f"{path}: encoder {name!r}: expected an object, found {type(entry).__name__}")
    return {name: {key: entry[key] for key in _PROVENANCE_KEYS if key in entry} for name, entry in entries.items()}


def encoder_rows(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The models behind the features of a fusion, by its config.json, for a card.

    Returns:
        For each encoder with a known model its `name` and `model_id`; in Markdown its `model` (a link, or the name of
        a folder), `revision` and extraction `options`; and `published`, whether others can load it.
    """
    encoders = config.get("encoders")
    if not isinstance(encoders, Mapping):
        return []
    rows = []
    # A config file is saved with sorted keys.
    for name in config.get("encoder_order") or encoders:
        entry = encoders.get(name)
        if not isinstance(entry, Mapping) or not entry.get("model_id"):
            continue
        model, revision = entry["model_id"], str(entry.get("revision") or "")
        published = is_hub_id(model)
        link = Markup(f"[{model}](https://huggingface.co/{model})")
        if model.startswith(OPENSMILE):
            published, link = True, Markup(f"{code(model)} of [openSMILE]({_OPENSMILE}), licensed for research only")
        shown = revision[:_SHOWN_DIGITS] if len(revision) == _COMMIT_DIGITS else revision
        extraction = (entry.get("extraction") or {}).items()
        options = ", ".join(f"{key} {without_paths(str(value))}" for key, value in extraction)
        rows.append(
            {
                "name": name,
                "model_id": model,
                "model": link if published else Markup(f"{code(Path(model).name)}, a folder that is not published"),
                "revision": code(shown) if shown else "–",
                "options": options or "–",
                "published": published,
            }
        )
    return rows


def file_on_hub(
    repo_id: str, name: str, repo_type: str = "dataset", must_reach: bool = False, **options: Any
) -> Path | None:
    """Downloads a file of a repository; None where there is no such file or repository, or the Hub is out of reach.

    With `must_reach`, a Hub out of reach is an error.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(hf_hub_download(repo_id, name, repo_type=repo_type, **options))
    except (EntryNotFoundError, RepositoryNotFoundError) as error:
        if must_reach and isinstance(error, LocalEntryNotFoundError):
            raise
        return None
