"""What the cards of all families share: how numbers and settings are written, and what must not be published."""

import re
from collections.abc import Mapping
from typing import Any

_LOCAL_PATH = re.compile(r"(?<![\w:/.~])(?:~|[A-Za-z]:)?[\\/](?:[^\s\\/'\"]+[\\/])+[^\s\\/'\"]*")


def without_local_paths(value: Any) -> Any:
    """Cut the folders off every absolute path in a tree of settings, so that publishing it tells nothing of a machine.

    Args:
        value: nested mappings, lists and texts.

    Returns:
        The same tree, absolute paths replaced by their last component; web addresses and relative paths stay.

    Source:
        This project's choice.
    """
    if isinstance(value, str):
        return _LOCAL_PATH.sub(lambda match: re.split(r"[\\/]", match[0].rstrip("\\/"))[-1], value)
    if isinstance(value, Mapping):
        return {key: without_local_paths(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_local_paths(item) for item in value]
    return value


def known(**arguments: Any) -> dict[str, Any] | None:
    """Leave out what was not recorded.

    Args:
        **arguments: values, None where one was not recorded.

    Returns:
        The others, or None where nothing was recorded.

    Source:
        This project's choice.
    """
    return {key: value for key, value in arguments.items() if value is not None} or None


def _table_cell(value: Any) -> str:
    return " ".join(str(value).replace("|", "\\|").split())


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _counted(plural: str, runs: list[Mapping[str, Any]]) -> str:
    """Say how many different folds or seeds the runs have."""
    key = plural.removesuffix("s")
    count = len({run[key] for run in runs})
    return f"{count} {key if count == 1 else plural}"


def _measure(value: Any) -> str:
    """Write a metric as mean ± standard deviation where both are known."""
    if value is None:
        return "–"
    if isinstance(value, Mapping):
        mean, std = value.get("mean"), value.get("std")
        return _measure(mean) if mean is None or std is None else f"{mean:.4f} ± {std:.4f}"
    return f"{value:.4f}"


FILTERS = {"cell": _table_cell, "measure": _measure, "share": _share, "counted": _counted}
