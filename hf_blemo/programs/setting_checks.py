"""Checks that settings of several programs share, each with the one message for its kind of mistake."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


def check_choices(settings: Any, choices: Mapping[str, Collection[str]]) -> None:
    """Refuses a value that is none of its setting's.

    Args:
        settings: with these attributes.
        choices: name -> values.
    """
    for name, values in choices.items():
        if getattr(settings, name) not in values:
            raise ValueError(f"{name} {getattr(settings, name)!r} is not one of {', '.join(values)}")


def check_at_least_one(settings: Any, names: Iterable[str]) -> None:
    """Refuses numbers below 1."""
    for name in names:
        if getattr(settings, name) < 1:
            raise ValueError(f"{name} must be at least 1, found {getattr(settings, name)}")


def check_not_negative(settings: Any, names: Iterable[str]) -> None:
    """Refuses numbers below 0."""
    for name in names:
        if getattr(settings, name) < 0:
            raise ValueError(f"{name} must not be negative, found {getattr(settings, name)}")


def check_seeds(seeds: Sequence[int]) -> None:
    """Refuses an empty list, a repeated seed and a negative one."""
    if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise ValueError(f"seeds must be different non-negative integers, at least one, found {seeds}")


def check_repository(name: str, value: str | None) -> None:
    """Refuses what is no id of a repository on the Hub."""
    if value is not None and value.count("/") != 1:
        raise ValueError(f"{name}: expected owner/name, found {value!r}")


def check_output_folder(folder: str) -> Path:
    """Refuses a file in the place of the folder to write; returns its path."""
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"output_dir {folder!r}: found a file, expected a folder")
    return path
