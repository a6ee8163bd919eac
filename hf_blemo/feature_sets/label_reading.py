"""The one reader of labels: classes, sets of names, blends, shares and votes, into shares of a label space."""

import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_blemo.errors import did_you_mean
from hf_blemo.rank_aware_fusion.label_space_rank_aware_fusion import LABEL_KINDS, TOLERANCE, UNLABELLED, LabelSpace

logger = logging.getLogger(__name__)

_JOINED = re.compile(r"[+|]")
# Whole is not "01", which is a word; "3.0" is what pandas makes of a class beside empty cells.
_DECIMAL = re.compile(r"[-+]?[0-9]*\.[0-9]+([eE][-+]?[0-9]+)?")
_WHOLE = re.compile(r"(-?[1-9][0-9]*|0)(\.0+)?")


@dataclass(frozen=True)
class LabelOptions:
    """Where a table has its labels, and how to read them.

    Args:
        column: of labels: class names; class indices; sets of names (a list, or words joined by `+` or `|`), which
            share equally; lists of `{"emotion", "salience"}`; mappings of names to shares; or rows of C shares,
            percentages or counts.
        prefix: of the columns with shares or votes, each named after what follows the prefix.
        names: of the classes, in order; by default those of a `ClassLabel`, else of the prefixed columns as they
            stand, else sorted.
        kind: `valid`: every label is one of the space's valid labels; `soft`: any distribution.
        blend_percents: splits that a blend can have, such as (70, 30) or "70/30". By default none, or with sets of
            names and the kind `valid` the even one of each size that comes.
        unblended: names that never blend.
    """

    column: str | None = None
    prefix: str | None = None
    names: Sequence[str] | None = None
    kind: str = "valid"
    blend_percents: Sequence[Sequence[int] | str] | None = None
    unblended: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.column is not None and self.prefix is not None:
            raise ValueError("found a column of labels and a prefix of columns, expected one of the two")
        if self.kind not in LABEL_KINDS:
            raise ValueError(f"label_kind: found {self.kind!r}, expected one of {', '.join(LABEL_KINDS)}")
        if not self.given:
            for name in ("names", "blend_percents", "unblended"):
                if getattr(self, name):
                    raise ValueError(f"{name} needs a column of labels (--label-column) or a prefix (--label-prefix)")
            if self.kind != LABEL_KINDS[0]:
                raise ValueError("label_kind needs a column of labels (--label-column) or a prefix (--label-prefix)")

    def splits(self) -> list[tuple[int, ...]] | None:
        """The splits that were given, as numbers."""
        if self.blend_percents is None:
            return None
        try:
            return [
                tuple(map(int, split.split("/"))) if isinstance(split, str) else tuple(split)
                for split in self.blend_percents
            ]
        except ValueError:
            raise ValueError(
                f"blend_percents: found {', '.join(map(str, self.blend_percents))}, expected whole numbers such "
                "as 70/30"
            ) from None

    @property
    def given(self) -> bool:
        """Whether labels are in columns that were named."""
        return self.column is not None or self.prefix is not None


def read_labels(
    values: Sequence[Any],
    clips: Sequence[str],
    options: LabelOptions,
    where: str,
    classes: Sequence[str] | None = None,
) -> tuple[LabelSpace, np.ndarray]:
    """Reads the labels of some clips, whatever their form; one that is not understood is refused with the name of its
    clip.

    Args:
        values: N labels, each in a form of `LabelOptions.column`; None, an empty text or NaN for none.
        classes: names of the class indices, of a `ClassLabel`.

    Returns:
        The label space, and (N, C) shares, -100 in unlabelled rows.
    """
    found = [_located(_parsed, value, clip, where) for value, clip in zip(values, clips, strict=True)]
    names, found = _named(found, clips, options, where, classes)
    if all(value is None for value in found):
        raise ValueError(f"{where}: none of {len(found)} rows carries a label, expected labels")
    splits = options.splits()
    if splits is None:
        sizes = set(map(_set_size, found)) - {0, 1}
        splits = [even_split(size) for size in sorted(sizes)] if options.kind == LABEL_KINDS[0] else []
    try:
        space = LabelSpace(names, splits, options.unblended)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    labels = np.full((len(found), len(space.names)), UNLABELLED)
    for row, (value, clip) in enumerate(zip(found, clips, strict=True)):
        if value is not None:
            labels[row] = _located(_shares, value, clip, where, space, options)
    say_unlabelled(labels, clips, where)
    return space, labels


def read_votes(
    columns: Mapping[str, Sequence[Any]], clips: Sequence[str], options: LabelOptions, where: str
) -> tuple[LabelSpace, np.ndarray]:
    """Reads labels, as [`read_labels`], from one column of shares or votes per name; every row is made to sum to 1.

    Args:
        columns: name -> N numbers, at least one column; a row of None everywhere has no label.
    """
    names = list(columns) if options.names is None else list(options.names)
    _check_names(columns, names, f"{where}, columns with the prefix {options.prefix!r}")
    rows: list[Any] = []
    for clip, cells in zip(clips, zip(*columns.values(), strict=True), strict=True):
        if all(cell is None for cell in cells):
            rows.append(None)
            continue
        for name, cell in zip(columns, cells, strict=True):
            if not _is_number(cell):
                raise ValueError(
                    f"{where}, clip {clip!r}: found {cell!r} in {options.prefix}{name}, expected a number"
                )
        rows.append(_located(_normalised, dict(zip(columns, map(float, cells), strict=True)), clip, where))
    return read_labels(rows, clips, LabelOptions(**{**vars(options), "names": names}), where)


def say_unlabelled(labels: np.ndarray, clips: Sequence[str], where: str) -> None:
    """Logs how many rows carry no label, and two of them."""
    without = [clip for clip, row in zip(clips, labels, strict=True) if (row == UNLABELLED).all()]
    if without:
        shown = ", ".join(repr(clip) for clip in without[:2])
        logger.warning("%s: %d of %d rows carry no label, such as %s", where, len(without), len(clips), shown)


def even_split(size: int) -> tuple[int, ...]:
    """The split of a set in whole per cent that is as even as can be: 50/50, 34/33/33, 25/25/25/25."""
    return tuple(100 // size + (place < 100 % size) for place in range(size))


def _located(read: Any, value: Any, clip: str, where: str, *rest: Any) -> Any:
    try:
        return read(value, *rest)
    except ValueError as error:
        raise ValueError(f"{where}, clip {clip!r}: {error}") from None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _parsed(value: Any) -> Any:
    """A label as None, a name, an index, a set of names (tuple), shares by name (dict) or a row of numbers (array)."""
    if isinstance(value, np.ndarray):
        value = value.reshape(-1).tolist() if value.ndim < 2 or len(value) == 1 else value.tolist()
    if isinstance(value, bool | np.bool_):
        return str(value)
    if _is_number(value):
        if math.isnan(value):
            return None
        if not float(value).is_integer():
            raise ValueError(f"found the label {value!r}, expected a class, a name or a whole number from 0")
        return int(value)
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, Mapping):
        value = [value] if {"emotion", "salience"} <= set(value) else value
    if isinstance(value, Mapping):
        shares = {name: share for name, share in value.items() if share is not None}
        if not shares:
            return None
        if not all(map(_is_number, shares.values())):
            raise ValueError(f"found the label {value!r}, expected numbers of its names")
        return shares
    if isinstance(value, list | tuple | set | frozenset):
        parts = list(value)
        if not parts or all(part is None for part in parts):
            return None
        if all(isinstance(part, str) for part in parts):
            return tuple(dict.fromkeys(part.strip() for part in parts))
        if all(isinstance(part, Mapping) and {"emotion", "salience"} <= set(part) for part in parts):
            value = {part["emotion"]: part["salience"] for part in parts}
            if all(isinstance(name, str) for name in value) and all(map(_is_number, value.values())):
                return value
        if all(map(_is_number, parts)):
            row = np.array(parts, dtype=np.float64)
            return None if (row == UNLABELLED).all() else row
    if value is None:
        return None
    raise ValueError(
        f"found the label {value!r}, expected a name, a class index, names, shares, or "
        "emotions with their saliences; a cell without a label is empty"
    )


def _named(
    found: list[Any],
    clips: Sequence[str],
    options: LabelOptions,
    where: str,
    classes: Sequence[str] | None,
) -> tuple[list[str], list[Any]]:
    """The names of the classes, and the labels by name: a set (tuple), shares (dict), a row (array) or None."""
    names = list(classes) if options.names is None and classes is not None else options.names
    texts = [value for value in found if isinstance(value, str)]
    if texts and all(_WHOLE.fullmatch(text) and text not in (names or ()) for text in texts):
        found = [int(float(value)) if isinstance(value, str) else value for value in found]
    if classes is not None:
        # What `datasets` writes where a class is not known.
        found = [None if isinstance(value, int) and value == -1 else value for value in found]
    of_class = names if classes is None else classes
    whole = [value for value in found if isinstance(value, int)]
    if names is None and whole and len(whole) == sum(value is not None for value in found):
        names = [str(value) for value in sorted(set(whole))]
    named = [
        _located(_name_of_index, value, clip, where, of_class)
        if isinstance(value, int)
        else _located(_split, value, clip, where, names)
        if isinstance(value, str)
        else value
        for value, clip in zip(found, clips, strict=True)
    ]
    if names is None:
        rows = next((value for value in named if isinstance(value, np.ndarray)), None)
        if rows is not None:
            raise ValueError(
                f"{where}: found rows of {len(rows)} shares, expected the names of the {len(rows)} classes (--names)"
            )
        shares = [value for value in named if isinstance(value, dict)]
        if shares and all(list(value) == list(shares[0]) for value in shares) and len(shares[0]) > 2:
            # As the fields of a column stand.
            names = list(shares[0])
        else:
            names = sorted({name for value in named if value is not None for name in value})
    return list(names), named


def _set_size(value: Any) -> int:
    """How many names a label is a set of; 0 for one that is no set of names."""
    if isinstance(value, tuple):
        return len(value)
    return int(value.sum()) if isinstance(value, np.ndarray) and np.isin(value, (0, 1)).all() else 0


def _name_of_index(index: int, classes: Sequence[str] | None) -> tuple[str]:
    if index < 0 or (classes is not None and index >= len(classes)):
        expected = "a whole number from 0" if classes is None else f"0 to {len(classes) - 1} ({', '.join(classes)})"
        raise ValueError(f"found the class {index}, expected {expected}; a cell without a label is empty")
    return (str(index) if classes is None else classes[index],)


def _split(text: str, names: Sequence[str] | None) -> tuple[str, ...]:
    if names is not None and text in names:
        return (text,)
    if _DECIMAL.fullmatch(text):
        raise ValueError(f"found the label {text!r}, expected a class, a name or a whole number from 0")
    parts = [part.strip() for part in _JOINED.split(text)]
    if not all(parts):
        raise ValueError(f"found the label {text!r}, expected names, joined by + or | where there are several")
    return tuple(dict.fromkeys(parts))


def _shares(value: Any, space: LabelSpace, options: LabelOptions) -> np.ndarray:
    if isinstance(value, tuple):
        value = dict.fromkeys(value, 1.0)
    if isinstance(value, dict):
        # Names are checked before their numbers.
        space.shares({name: 1 / len(value) for name in value}, LABEL_KINDS[1])
        row = np.zeros(len(space.names))
        for name, share in value.items():
            row[space.names.index(name)] = share
        value = row
    if len(value) != len(space.names):
        raise ValueError(
            f"found {len(value)} shares, expected {len(space.names)}, one for each of {', '.join(space.names)}"
        )
    row = _normalised(value)
    if options.kind == LABEL_KINDS[0]:
        places = np.flatnonzero(row > 0)
        split = even_split(len(places))
        if np.abs(row[places] - 1 / len(places)).max() < TOLERANCE and split in space.splits(len(places)):
            row[places] = np.array(split) / 100
    try:
        return space.shares(row, options.kind)
    except ValueError as error:
        raise ValueError(f"{error}; --blend-percents adds splits, --label-kind soft takes any distribution") from None


def _normalised(value: Any) -> Any:
    """Shares that sum to 1, of shares, percentages or counts; votes by name may have any positive sum."""
    row = np.array(list(value.values()) if isinstance(value, dict) else value, dtype=np.float64)
    shown = "[" + ", ".join(f"{number:.4g}" for number in row) + "]"
    if not np.isfinite(row).all():
        raise ValueError(f"found NaN or infinity in {shown}, expected finite shares or votes")
    if (row < 0).any():
        raise ValueError(f"found a share below 0 in {shown}, expected shares or votes from 0")
    total = row.sum()
    if total <= 0:
        raise ValueError(f"found only zeros in {shown}, expected shares or votes; a row without a label is empty")
    if isinstance(value, dict):
        return {name: share / total for name, share in zip(value, row, strict=True)}
    whole = (row == np.round(row)).all()
    if not whole and abs(total - 1) > TOLERANCE and abs(total - 100) > 100 * TOLERANCE:
        raise ValueError(
            f"found {shown}, which sums to {total:.4g}, expected shares that sum to 1, percentages that sum to 100, "
            "or counts of votes in whole numbers"
        )
    return row / total


def columns_with_prefix(names: Iterable[str], prefix: str) -> dict[str, str]:
    """Column -> what follows the prefix, for those of some columns that have it."""
    return {name: name[len(prefix) :] for name in names if name.startswith(prefix) and name != prefix}


def _check_names(found: Iterable[str], names: Sequence[str], where: str) -> None:
    for name in found:
        if name not in names:
            near = did_you_mean(name, names)
            raise ValueError(f"{where}: found the name {name!r}, expected one of {', '.join(names)}{near}")
