"""Folds of a data set: dealing them, and refusing those that no honest score can come from."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from hf_blemo.blemore.labels import is_test_clip, parse_clip_name, soft_label

if TYPE_CHECKING:
    import datasets

MAX_FOLDS = 127


def deal_folds(labels: np.ndarray, groups: Sequence[str] | None, num_folds: int, seed: int = 0) -> np.ndarray:
    """Deals clips into 2 to 127 folds that are even in size and in their mix of labels.

    Groups go one by one, those with most of a rare class first, to the fold that leaves sizes and classes most even.
    Ties fall by the seed.

    Args:
        labels: (N, C) shares, all below 0 where unlabelled.
        groups: N names, such as actors, that each stay within one fold; without them every clip goes by itself.

    Returns:
        (N,) folds from 0, -1 for unlabelled clips.
    """
    if not 2 <= num_folds <= MAX_FOLDS:
        raise ValueError(f"--folds {num_folds}: expected 2 to {MAX_FOLDS}")
    rows = np.flatnonzero((labels >= 0).all(1))
    keys = [str(row) for row in rows] if groups is None else [groups[row] for row in rows.tolist()]
    members, of_row = np.unique(keys, return_inverse=True)
    if num_folds > len(members):
        what = "labelled clips" if groups is None else "groups of labelled clips"
        raise ValueError(f"--folds {num_folds}: found {len(members)} {what}, expected at least as many as folds")
    # A column for the size, for the mass of each name, and for each different label: what is to be even.
    kinds, of_kind = np.unique(np.round(labels[rows], 2), axis=0, return_inverse=True)
    parts = [np.ones((len(rows), 1)), labels[rows]]
    if len(kinds) <= max(64, labels.shape[1]):
        parts.append(np.eye(len(kinds))[of_kind.reshape(-1)])
    weights = np.zeros((len(members), sum(part.shape[1] for part in parts)))
    np.add.at(weights, of_row, np.concatenate(parts, axis=1))
    weights /= np.maximum(weights.sum(0), 1e-12)
    shuffled = np.random.default_rng(seed).permutation(len(members))
    order = shuffled[np.argsort(-weights[shuffled].max(1).round(9), kind="stable")]
    totals = np.zeros((num_folds, weights.shape[1]))
    chosen = np.zeros(len(members), dtype=np.int64)
    used: set[int] = set()
    for done, member in enumerate(order):
        # The rise of the sum of squares of every column, of which the size counts as much as the classes together.
        rise = (weights[member] * (2 * totals + weights[member])).round(12)
        cost = rise[:, 0] + rise[:, 1:].mean(1)
        if len(order) - done <= num_folds - len(used):
            cost[list(used)] = np.inf
        fold = int(np.argmin(cost))
        used.add(fold)
        chosen[member] = fold
        totals[fold] += weights[member]
    folds = np.full(len(labels), -1)
    folds[rows] = chosen[of_row]
    return folds


def deal_by_names(
    clips: Sequence[str], num_folds: int, seed: int, where: str
) -> tuple[np.ndarray, np.ndarray, list[str | None]]:
    """Deals clips into folds by BlEmoRE's names, which carry label and actor; every actor stays in one fold.

    Returns:
        (N, 6) soft labels, (N,) folds, -1 for test clips, and N actors.
    """
    parsed, wrong = [], []
    for clip in clips:
        try:
            parsed.append(None if is_test_clip(clip) else parse_clip_name(clip))
        except ValueError:
            wrong.append(repr(clip))
    if wrong:
        raise ValueError(
            f"{where}: --folds reads label and actor of names such as A102_mix_ang_hap_30_70_ver1, found {len(wrong)} "
            f"of {len(clips)} clips without: {', '.join(wrong)}; rename them, or give a table with columns of labels "
            "and groups"
        )
    labels = np.stack([soft_label(clip, required=False) for clip in clips])
    actors = [None if name is None else name.actor for name in parsed]
    try:
        return labels, deal_folds(labels, [actor or "" for actor in actors], num_folds, seed), actors
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def with_folds(
    dataset: "datasets.Dataset", num_folds: int, seed: int = 0, where: str = "data set"
) -> "datasets.Dataset":
    """A data set of features whose clips are dealt into folds anew, by its groups, or else by BlEmoRE's names.

    Args:
        dataset: of features; it stays as it is.
        num_folds, seed: as in [`deal_folds`].
        where: it is from, for messages.

    Returns:
        The same rows with other `fold`s, and with `group`, the actor, where it had none.

    Raises:
        ValueError: it has no groups and its names carry none; or as in [`deal_folds`].
    """
    from datasets import Value

    if "group" in dataset.column_names:
        groups = dataset["group"][:]
        folds = deal_folds(
            np.array(dataset["labels"][:]), ["" if name is None else name for name in groups], num_folds, seed
        )
    else:
        _, folds, groups = deal_by_names(dataset["clip"][:], num_folds, seed, where)
    kept = [name for name in dataset.column_names if name not in ("fold", "group")]
    changed = dataset.select_columns(kept).add_column("fold", folds, feature=Value("int8"))
    return changed.add_column("group", groups, feature=Value("string"))


def check_classes(names: Sequence[str], labels: np.ndarray, folds: np.ndarray, where: str) -> None:
    """Refuses labels (N, C) of one class alone, and a class that one fold (N,) alone has, since no other fold can
    learn it; those below 0 are none."""
    has = labels > 0
    found = [name for name, column in zip(names, has.T, strict=True) if column.any()]
    if len(found) < 2:
        raise ValueError(f"{where}: found labels of one class only ({', '.join(found)}), expected two or more")
    if len(np.unique(folds[folds >= 0])) < 2:
        return
    for name, column in zip(names, has.T, strict=True):
        within = np.unique(folds[column & (folds >= 0)])
        if len(within) == 1:
            raise ValueError(
                f"{where}: found the class {name!r} in fold {within[0]} only, expected it in two folds or more, or no "
                "model that is scored on it has seen it; choose other folds, or leave its clips out"
            )


def group_in_two_folds(groups: Sequence[str | None], folds: np.ndarray) -> tuple[str, list[int]] | None:
    """The first group that is in several folds, and those; None where there is no such group."""
    found: dict[str, set[int]] = {}
    for group, fold in zip(groups, folds.tolist(), strict=True):
        if group is not None and fold >= 0:
            found.setdefault(group, set()).add(fold)
    return next(((group, sorted(within)) for group, within in found.items() if len(within) > 1), None)
