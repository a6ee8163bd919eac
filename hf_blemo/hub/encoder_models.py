"""Which pre-trained models the encoders of a fusion are, as its config says, and which of them others can load."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_blemo.loading import is_hub_id

_COMMIT_DIGITS = 40
_SHOWN_DIGITS = 7


def is_local(model_id: str) -> bool:
    """Whether a `model_id` is a folder of this machine, or in any case no id of a Hub repository.

    Args:
        model_id: of an encoder.
    """
    return not is_hub_id(model_id)


def local_encoders(config: Mapping[str, Any]) -> dict[str, str]:
    """The encoders of a fusion that others cannot load.

    Args:
        config: content of its config.json.

    Returns:
        Name -> folder.
    """
    return {name: entry["model_id"] for name, entry in _known(config).items() if is_local(entry["model_id"])}


def without_folders(content: Mapping[str, Any]) -> dict[str, Any]:
    """Content of config.json or processor_config.json in which encoders of this machine have the name of their folder
    alone, so that publishing it tells nothing of a machine.

    Args:
        content: with `encoders`.
    """
    encoders = dict(content["encoders"])
    for name, folder in local_encoders(content).items():
        encoders[name] = {**encoders[name], "model_id": Path(folder).name}
    return {**content, "encoders": encoders}


def encoder_rows(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a card says of the models behind the features.

    Args:
        config: content of the fusion's config.json.

    Returns:
        For each encoder whose model is known `name`, `model` (a link, or the name of a folder), `revision` and
        `options` of the extraction in Markdown; `published`, whether others can load it.
    """
    rows = []
    for name, entry in _known(config).items():
        model, revision = entry["model_id"], str(entry.get("revision") or "")
        link = f"[{model}](https://huggingface.co/{model})"
        shown = revision[:_SHOWN_DIGITS] if len(revision) == _COMMIT_DIGITS else revision
        options = ", ".join(f"{key} {value}" for key, value in (entry.get("extraction") or {}).items())
        rows.append(
            {
                "name": name,
                "model": f"`{Path(model).name}`, a folder that is not published" if is_local(model) else link,
                "revision": f"`{shown}`" if shown else "–",
                "options": options or "–",
                "published": not is_local(model),
            }
        )
    return rows


def _known(config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    encoders = config.get("encoders")
    if not isinstance(encoders, Mapping):
        return {}
    # A config file is saved with sorted keys.
    ordered = {name: encoders[name] for name in config.get("encoder_order") or encoders if name in encoders}
    return {name: entry for name, entry in ordered.items() if isinstance(entry, Mapping) and entry.get("model_id")}
