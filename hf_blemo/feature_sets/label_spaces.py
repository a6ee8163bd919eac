"""What a data set of features says of its labels: their names, their blends and their kind."""

import copy
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hf_blemo.rank_aware_fusion.label_space_rank_aware_fusion import (
    BLEMORE_SPACE,
    LABEL_KINDS,
    LabelSpace,
    same_space,
)  # fmt: skip

if TYPE_CHECKING:
    import datasets

# The file on the Hub that says what the info of a data set says on disk, which Parquet does not keep.
LABEL_SPACE_FILE = "label_space.json"

_KEY = "label_space"


def label_space(dataset: "datasets.Dataset") -> tuple[LabelSpace, str]:
    """What a data set of features says of its labels.

    The description in its info has a line of JSON that says it: `with_label_space` writes it, and it survives saving,
    selecting, filtering, mapping and concatenating (`concatenate` also checks parts that say nothing); Parquet and
    `to_iterable_dataset` lose it.

    Args:
        dataset: of features.

    Returns:
        The label space, and the kind of the labels, `valid` or `soft`; BlEmoRE's and `valid` where the data set says
        nothing and its `labels` are 6 wide or missing.

    Raises:
        ValueError: it says nothing and `labels` are not 6 wide, or of another width than it says, or it was put
            together of two spaces.
    """
    lines = [line for line in _lines(dataset) if _is_entry(line)]
    spaces = [space_from_entry(json.loads(line)[_KEY], "the info of the data set") for line in lines]
    width = _width(dataset)
    if not spaces:
        if width in (None, len(BLEMORE_SPACE.names)):
            return BLEMORE_SPACE, LABEL_KINDS[0]
        raise ValueError(
            f"found labels of {width or 'no'} shares and no names of them in the data set, expected the names: build "
            "it with hf-blemo dataset build --label-column or --label-prefix, or name them by "
            "feature_sets.with_label_space"
        )
    for found in spaces[1:]:
        check_same_labels(found, spaces[0], "a part of the data set", "another part")
    _check_width(spaces[0][0], width)
    return spaces[0]


def with_label_space(dataset: "datasets.Dataset", space: LabelSpace, kind: str = "valid") -> "datasets.Dataset":
    """A data set of features that says what its labels are.

    Args:
        dataset: of features; it stays as it is.
        space: names and blends of its `labels`.
        kind: `valid` or `soft`.

    Returns:
        The same rows, for which `label_space` gives the two.

    Raises:
        ValueError: `labels` are of another width than the space, or `kind` is unknown.
    """
    if kind not in LABEL_KINDS:
        raise ValueError(f"label_kind: found {kind!r}, expected one of {', '.join(LABEL_KINDS)}")
    _check_width(space, _width(dataset))
    lines = [line for line in _lines(dataset) if not _is_entry(line)]
    # BlEmoRE's need not be said.
    if (space, kind) != (BLEMORE_SPACE, LABEL_KINDS[0]):
        lines.append(json.dumps({_KEY: space_entry(space, kind)}))
    named = copy.deepcopy(dataset)
    named.info.description = "\n".join(lines)
    return named


def concatenate(parts: Sequence["datasets.Dataset"], names: Sequence[str] | None = None) -> "datasets.Dataset":
    """Puts data sets of one label space together.

    Args:
        parts: with the same columns, at least one.
        names: what messages call them.

    Returns:
        The rows of all.

    Raises:
        ValueError: two label spaces, or the kinds of two, differ; the message lists both.
    """
    import datasets

    names = names or [f"part {number}" for number in range(len(parts))]
    spaces = [label_space(part) for part in parts]
    for found, name in zip(spaces, names, strict=True):
        check_same_labels(found, spaces[0], name, names[0])
    return with_label_space(datasets.concatenate_datasets(list(parts)), *spaces[0])


def space_entry(space: LabelSpace, kind: str) -> dict[str, Any]:
    """A label space and a kind as JSON values, the content of `label_space.json`."""
    return {
        "names": list(space.names),
        "blend_percents": [list(split) for split in space.blend_percents],
        "unblended": list(space.unblended),
        "label_kind": kind,
    }


def space_from_entry(entry: Any, where: str) -> tuple[LabelSpace, str]:
    """Reads what `space_entry` wrote; `where` it was found is for messages."""
    try:
        space = LabelSpace(entry["names"], entry.get("blend_percents", ()), entry.get("unblended", ()))
        kind = entry.get("label_kind", LABEL_KINDS[0])
        if kind not in LABEL_KINDS:
            raise ValueError(f"label_kind is {kind!r}, expected one of {', '.join(LABEL_KINDS)}")
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{where}: found {entry!r} ({error}), expected the names of a label space") from None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return space, kind


def check_same_labels(found: tuple[LabelSpace, str], expected: tuple[LabelSpace, str], one: str, other: str) -> None:
    """Refuses two label spaces, or kinds of labels, that differ; the message lists both."""
    same_space(found[0], expected[0], one, other)
    if found[1] != expected[1]:
        raise ValueError(f"the kinds of labels differ: {one} has {found[1]} labels, {other} has {expected[1]} ones")


def _check_width(space: LabelSpace, width: int | None) -> None:
    if width not in (None, 0, len(space.names)):
        raise ValueError(f"found labels of {width} shares, expected {len(space.names)} as there are names of {space}")


def _width(dataset: "datasets.Dataset") -> int | None:
    """How many shares a label has: 0 for single values, None where there are no labels or nobody knows."""
    feature = (dataset.features or {}).get("labels")
    if feature is None:
        return None
    declared = getattr(feature, "length", None)
    if declared is None:
        return 0
    if declared > 0 or not hasattr(dataset, "__len__") or not len(dataset):
        return declared if declared > 0 else None
    first = dataset["labels"][0]
    return None if first is None else len(first)


def _lines(dataset: "datasets.Dataset") -> list[str]:
    # Putting together joins the descriptions by empty lines.
    return [line for line in (dataset.info.description or "").splitlines() if line.strip()]


def _is_entry(line: str) -> bool:
    return line.startswith(f'{{"{_KEY}"')
