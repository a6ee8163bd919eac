"""What a fusion predicts: names, how they blend, and the valid labels that follow from both."""

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import cached_property
from itertools import combinations
from math import comb
from typing import Any

import numpy as np

# The defaults, those of BlEmoRE (arXiv 2601.13225).
EMOTIONS = ("ang", "disg", "fea", "hap", "sad", "neu")
BLEND_PERCENTS = ((70, 30), (50, 50), (30, 70))
UNBLENDED = ("neu",)

LABEL_KINDS = ("valid", "soft")
UNLABELLED = -100.0
MAX_LABELS = 4096
# What a share may be off by: float16 needs that much.
TOLERANCE = 1e-3

Blend = list[dict[str, str | float]]


def default_decoding(label_kind: str | None) -> str:
    """How the processor of a kind of labels decodes unless told otherwise."""
    return "soft" if label_kind == "soft" else "expected_score"


class LabelSpace:
    """Names in order, the splits that a blend can have, and the names that never blend.

    The valid labels are the single names in order, then every set of blending names, by size and then in
    lexicographic order of their places, each with every split of its size.

    Args:
        names: different words, at least two.
        blend_percents: splits of a blend in whole per cent, such as `[[70, 30], [50, 50], [30, 70]]`; the parts belong
            to the names of a set in order. Splits of three make blends of three. Without any, labels are single.
        unblended: names that are no part of a blend.

    Raises:
        ValueError: a name is not a word or comes twice, a split does not sum to 100 or comes twice, or there are too
            many valid labels; the message says what was found.
    """

    def __init__(
        self,
        names: Iterable[str],
        blend_percents: Iterable[Sequence[int]] = (),
        unblended: Iterable[str] = (),
    ):
        self.names = tuple(names)
        self.blend_percents = tuple(tuple(split) for split in blend_percents)
        self.unblended = tuple(unblended)
        self._check_names()
        self._check_splits()
        blending = [place for place, name in enumerate(self.names) if name not in self.unblended]
        sizes = sorted({len(split) for split in self.blend_percents})
        self._splits = {size: [split for split in self.blend_percents if len(split) == size] for size in sizes}
        # Size of a blend -> how many sets of that size there are.
        self.num_sets = {size: comb(len(blending), size) for size in sizes}
        count = len(self.names) + sum(self.num_sets[size] * len(self._splits[size]) for size in sizes)
        if count > MAX_LABELS:
            raise ValueError(
                f"found {count:,} valid labels ({len(self.names)} names, {len(blending)} of them blending, with the "
                f"splits {_listed(self.blend_percents)}), expected at most {MAX_LABELS:,}: shorten blend_percents, or "
                "name more of the names in unblended"
            )
        if sizes and sizes[-1] > len(blending):
            raise ValueError(
                f"blend_percents has splits of {sizes[-1]}, but only {len(blending)} of the names "
                f"{_listed(self.names)} blend"
            )
        sets: list[tuple[tuple[int, ...], tuple[int, ...]]] = [((p,), (100,)) for p in range(len(self.names))]
        for size in sizes:
            sets += [(places, split) for places in combinations(blending, size) for split in self._splits[size]]
        self._labels = sets
        self._index = {label: index for index, label in enumerate(sets)}

    def _check_names(self) -> None:
        for name in self.names:
            if not isinstance(name, str) or not name.strip():
                raise ValueError(f"found the name {name!r} among the names of the labels, expected words")
        if len(set(self.names)) != len(self.names):
            twice = next(name for name in self.names if self.names.count(name) > 1)
            raise ValueError(f"the name {twice!r} comes twice among {_listed(self.names)}, expected different names")
        if len(self.names) < 2:
            raise ValueError(f"found the names [{_listed(self.names)}], expected at least two classes")
        for name in self.unblended:
            if name not in self.names:
                raise ValueError(f"unblended has {name!r}, expected some of the names {_listed(self.names)}")

    def _check_splits(self) -> None:
        for split in self.blend_percents:
            whole = all(isinstance(part, int) and not isinstance(part, bool) and part > 0 for part in split)
            if len(split) < 2 or not whole or sum(split) != 100:
                raise ValueError(
                    f"blend_percents has {list(split)}, expected two or more whole numbers above 0 that sum to 100"
                )
            if self.blend_percents.count(split) > 1:
                raise ValueError(f"blend_percents has {list(split)} twice, expected different splits")

    def __len__(self) -> int:
        """Number of valid labels."""
        return len(self._labels)

    def _key(self) -> tuple:
        return self.names, self.blend_percents, tuple(sorted(self.unblended)) if self.blend_percents else ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LabelSpace) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        splits = ", ".join("/".join(map(str, split)) for split in self.blend_percents)
        text = f"{len(self.names)} names ({', '.join(self.names)}), " + (f"blends of {splits}" if splits else "single")
        return text + (f", {', '.join(self.unblended)} unblended" if self.unblended and splits else "")

    @cached_property
    def percent(self) -> np.ndarray:
        """The valid labels in per cent, (L, C) int64."""
        table = np.zeros((len(self), len(self.names)), dtype=np.int64)
        for row, (places, split) in enumerate(self._labels):
            table[row, list(places)] = split
        table.flags.writeable = False
        return table

    @cached_property
    def sets(self) -> list[tuple[str, ...]]:
        """The sets of names that a label can have, in the order of the labels."""
        return list(dict.fromkeys(tuple(self.names[place] for place in places) for places, _ in self._labels))

    @cached_property
    def set_of_label(self) -> np.ndarray:
        """For each label the number of its set, (L,) int64; labels of a set stand together."""
        numbers = {names: number for number, names in enumerate(self.sets)}
        return np.array([numbers[tuple(self.names[place] for place in places)] for places, _ in self._labels])

    @cached_property
    def is_blend(self) -> np.ndarray:
        """Which labels are blends, (L,) bool."""
        return (self.percent > 0).sum(1) > 1

    @property
    def largest_set(self) -> int:
        """Names in the largest set."""
        return max(self._splits, default=1)

    def splits(self, size: int) -> list[tuple[int, ...]]:
        """The splits of a set of `size` names; `[(100,)]` for one."""
        return [(100,)] if size == 1 else self._splits.get(size, [])

    def blend(self, index: int) -> Blend:
        """A valid label as `[{"emotion": name, "salience": per cent}, ...]`, made anew."""
        places, split = self._labels[index]
        return [{"emotion": self.names[p], "salience": float(part)} for p, part in zip(places, split, strict=True)]

    def index(self, places: Sequence[int], split: Sequence[int]) -> int:
        """Number of the valid label that gives the names at `places` (rising) the shares of `split`."""
        return self._index[tuple(places), tuple(split)]

    def nearest(self, shares: np.ndarray) -> np.ndarray:
        """(N, C) rows that sum to 1 -> (N,) int64, the valid labels nearest to them by absolute difference, the
        first on a tie."""
        # In whole thousandths of a per cent, so that a tie is one in float32 too.
        return np.abs(np.rint(shares * 1e5)[:, None, :] - self.percent * 1000).sum(-1).argmin(-1)

    def shares(self, label: Any, kind: str = "valid") -> np.ndarray:
        """Reads the label of one sample as (C,) float64 shares, or -100 everywhere without a label.

        Args:
            label: a name; a class index; a set or list of names, which share equally; a mapping of names to shares; a
                blend as `blend` returns it; a row of C shares that sum to 1; None or C times -100 for none.
            kind: `valid`: it must be a valid label; `soft`: it may be any distribution.

        Raises:
            ValueError: it is none of these.
        """
        if label is None:
            return np.full(len(self.names), UNLABELLED)
        row = self._row(label)
        if (row == UNLABELLED).all():
            return row
        if not np.isfinite(row).all():
            raise ValueError(f"found the shares {_numbers(row)}, expected finite numbers")
        if (row < 0).any():
            raise ValueError(f"found a share below 0 in {_numbers(row)}, expected shares from 0 to 1")
        if abs(row.sum() - 1) > TOLERANCE:
            raise ValueError(f"found the shares {_numbers(row)}, which sum to {row.sum():.4g}, expected 1")
        if kind == "valid":
            index = self.nearest(row[None])[0]
            if np.abs(self.percent[index] / 100 - row).max() >= TOLERANCE:
                raise ValueError(f"found the shares {_numbers(row)}, expected one of the valid labels of {self}")
            return self.percent[index] / 100
        return row / row.sum()

    def _row(self, label: Any) -> np.ndarray:
        row = np.zeros(len(self.names))
        if isinstance(label, str):
            row[self._place(label)] = 1
        elif isinstance(label, int | np.integer) and not isinstance(label, bool):
            if not 0 <= label < len(self.names):
                raise ValueError(f"found the class {label}, expected 0 to {len(self.names) - 1}")
            row[label] = 1
        elif isinstance(label, Mapping):
            for name, share in label.items():
                row[self._place(name)] = share
        elif isinstance(label, set | frozenset | list | tuple) and label and all(isinstance(p, str) for p in label):
            for name in label:
                row[self._place(name)] = 1 / len(label)
        elif isinstance(label, list | tuple) and label and all(isinstance(part, Mapping) for part in label):
            for part in label:
                try:
                    row[self._place(part["emotion"])] += part["salience"] / 100
                except (KeyError, TypeError):
                    raise ValueError(
                        f"found the part {part!r} of a blend, expected {{'emotion': name, 'salience': per cent}}"
                    ) from None
        else:
            try:
                row = np.asarray(label, dtype=np.float64)
            except (TypeError, ValueError):
                row = np.empty(0)
            if row.shape != (len(self.names),):
                raise ValueError(
                    f"found the label {label!r}, expected a name, a class index, a set of names, or "
                    f"{len(self.names)} shares ({_listed(self.names)})"
                )
        return row

    def _place(self, name: str) -> int:
        if name not in self.names:
            nearest = get_close_matches(str(name), self.names, 1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
            raise ValueError(f"found the name {name!r}, expected one of {_listed(self.names)}{hint}")
        return self.names.index(name)


def same_space(found: LabelSpace, expected: LabelSpace, found_in: str, expected_in: str) -> None:
    """Refuses two spaces that differ in names, their order or number, or blends; the message lists both."""
    if found == expected:
        return
    what = "blends differ"
    if found.names != expected.names:
        same = sorted(found.names) == sorted(expected.names)
        what = "order of the names differs" if same else "names differ"
    raise ValueError(f"the {what}: {found_in} has {found}, {expected_in} has {expected}")


BLEMORE_SPACE = LabelSpace(EMOTIONS, BLEND_PERCENTS, UNBLENDED)


def label_names(id2label: Any) -> list[str]:
    """The names of `id2label` in order of their places 0, 1, 2, ..., which may be words, as they are in files."""
    try:
        names = {int(place): name for place, name in id2label.items()}
    except (AttributeError, TypeError, ValueError):
        names = {}
    if not names or sorted(names) != list(range(len(names))):
        raise ValueError(f"id2label must map 0, 1, 2, ... to the names, found {id2label!r}")
    return [names[place] for place in range(len(names))]


def space_of(config: Mapping[str, Any]) -> LabelSpace:
    """The label space that the content of a config's file states; what it does not state is as by default."""
    names = EMOTIONS if config.get("id2label") is None else tuple(label_names(config["id2label"]))
    percents, unblended = (BLEND_PERCENTS, UNBLENDED) if names == EMOTIONS else ((), ())
    given = [config.get(name) for name in ("blend_percents", "unblended")]
    return LabelSpace(names, percents if given[0] is None else given[0], unblended if given[1] is None else given[1])


def _listed(values: Iterable[Any]) -> str:
    return ", ".join("/".join(map(str, value)) if isinstance(value, tuple) else str(value) for value in values)


def _numbers(row: np.ndarray) -> str:
    return "[" + ", ".join(f"{value:.4g}" for value in row) + "]"
