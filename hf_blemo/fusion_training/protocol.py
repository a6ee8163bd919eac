"""Which rows each model of a cross-validation is trained on, and which rows judge it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PROTOCOLS = {
    "honest": "Epoch and thresholds are chosen for each scored fold on the other folds alone: models trained without "
    "two folds predict both of them, the predictions for one choose the settings under which the other is scored. The "
    "scored predictions come from a model trained on all folds but the scored one.",
    "published_style": "Epoch and thresholds are chosen on the very fold that is scored, as the published baselines "
    "do: optimistic.",
    "none": "No cross-validation: trained on all labelled clips for the given number of epochs.",
}


@dataclass(frozen=True)
class Member:
    """One model of the run.

    Args:
        seed: of its initial weights and the order of its rows.
        held_out: folds it is not trained on: none (final model), one (scored model) or two (inner model).
    """

    seed: int
    held_out: tuple[int, ...]

    def training_rows(self, folds: np.ndarray, labelled: np.ndarray) -> np.ndarray:
        """Row numbers it is trained on, of the labelled ones."""
        return np.flatnonzero(labelled & ~np.isin(folds, self.held_out))


def cross_validation_members(protocol: str, folds: Sequence[int], seeds: Sequence[int]) -> list[Member]:
    """The models that a protocol asks for.

    Args:
        protocol: `honest` or `published_style`.
        folds: the folds of the data set.
        seeds: one complete cross-validation each.

    Returns:
        For each seed a model per fold and, if honest, one per pair of folds.

    Raises:
        ValueError: too few folds: an honest protocol needs three, the published style two.
    """
    folds = sorted(int(fold) for fold in folds)
    needed = 3 if protocol == "honest" else 2
    if len(folds) < needed:
        raise ValueError(f"protocol {protocol!r} needs at least {needed} folds, found {len(folds)}: {folds}")
    members = []
    for seed in seeds:
        members += [Member(seed, (fold,)) for fold in folds]
        if protocol == "honest":
            members += [Member(seed, (a, b)) for a in folds for b in folds if a < b]
    return members


def row_stream(seed: int, purpose: int, rows: np.ndarray, start: int, count: int) -> np.ndarray:
    """A stretch of the endless sequence of shuffled passes over some rows.

    It depends on its arguments alone, so that a resumed run and a run on more processes see the same rows.

    Args:
        seed, purpose: choose the sequence.
        rows: (R,) row numbers.
        start: position of the first.
        count: how many.

    Returns:
        (count,) row numbers.
    """
    passes = range(start // len(rows), (start + count - 1) // len(rows) + 1)
    shuffled = [np.random.default_rng([seed, purpose, number]).permutation(rows) for number in passes]
    offset = start - passes[0] * len(rows)
    return np.concatenate(shuffled)[offset : offset + count]
