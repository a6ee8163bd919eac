"""What a data set of features holds: labels, folds and groups, for the command line and for cards."""

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hf_blemo.blemore.labels import parse_clip_name
from hf_blemo.rank_aware_fusion.label_space_rank_aware_fusion import UNLABELLED, LabelSpace

from .folds import group_in_two_folds
from .label_spaces import label_space

if TYPE_CHECKING:
    import datasets


class Description(NamedTuple):
    """Counts of a data set of features.

    Args:
        clips, labelled, blends: numbers of clips; blends are labelled with several names.
        space, kind: of the labels.
        names: name -> its share of all labels, and for how many clips it has the largest share (the first on a tie).
        folds: fold -> number of clips.
        groups: what is known of groups, as words.
    """

    clips: int
    labelled: int
    blends: int
    space: LabelSpace
    kind: str
    names: dict[str, tuple[float, int]]
    folds: dict[int, int]
    groups: str


def describe(dataset: "datasets.Dataset") -> Description:
    """Counts what a data set of features holds; a ValueError where it does not say what its labels are."""
    space, kind = label_space(dataset)
    columns = dataset.column_names
    rows = np.array(dataset["labels"][:], dtype=np.float64) if "labels" in columns else np.empty((0, len(space.names)))
    rows = rows[(rows != UNLABELLED).any(1)]
    top = Counter(rows.argmax(1).tolist())
    means = rows.mean(0) if len(rows) else np.zeros(len(space.names))
    names = {
        name: (float(share), top[place]) for place, (name, share) in enumerate(zip(space.names, means, strict=True))
    }
    folds = dataset["fold"][:] if "fold" in columns else []
    counts = Counter(fold for fold in folds if fold is not None and fold >= 0)
    return Description(
        clips=len(dataset),
        labelled=len(rows),
        blends=int(((rows > 0).sum(1) > 1).sum()),
        space=space,
        kind=kind,
        names=names,
        folds=dict(sorted(counts.items())),
        groups=_groups(dataset, np.array([-1 if fold is None else fold for fold in folds])),
    )


def _groups(dataset: "datasets.Dataset", folds: np.ndarray) -> str:
    if "group" in dataset.column_names:
        groups = dataset["group"][:]
    else:
        try:
            groups = [parse_clip_name(clip).actor for clip in dataset["clip"][:]]
        except ValueError:
            groups = []
    known = {group for group in groups if group is not None}
    if not known:
        return "unknown" + (", so the folds may not be group-disjoint" if (folds >= 0).any() else "")
    if not (folds >= 0).any():
        return str(len(known))
    split = group_in_two_folds(groups, folds)
    if split is not None:
        return f"{len(known)}, {split[0]} in several folds, so these are not group-disjoint"
    return f"{len(known)}, none in two folds"
