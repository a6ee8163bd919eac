"""Measures of predictions over any label space; needs numpy alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hf_blemo.rank_aware_fusion.label_space_rank_aware_fusion import (
    BLEMORE_SPACE,
    EMOTIONS,
    LABEL_KINDS,
    TOLERANCE,
    UNLABELLED,
    LabelSpace,
)

LOWER_IS_BETTER = {"nll", "kl", "js_distance", "mae"}
"""The measures of which less is better."""

# float32 tells shares apart that differ by more than this.
_STEP = 1e-6
# Probabilities count as at least this much, float32's smallest normal number: one row costs 87 nats at most.
LOWEST = float(np.finfo(np.float32).tiny)


def measure(
    space: LabelSpace,
    labels: Any,
    blends: Sequence[Sequence[Mapping[str, Any]]] | np.ndarray,
    probabilities: Any = None,
    joint: Any = None,
    kind: str = "valid",
    presence_share: float = 0.0,
) -> dict[str, float]:
    """Measures predictions against labels.

    | key | what | where |
    |---|---|---|
    | `accuracy` | the predicted name with the largest share has the largest share in the label | always |
    | `uar` | mean recall of these names, over the names that the labels have | always |
    | `macro_f1` | mean F1 of these names, over the names that labels or predictions have | always |
    | `acc_presence` | the set of names with a share above `presence_share` is right | always |
    | `acc_salience` | among true blends, the valid label is right, to whole per cent; 0 without any | with blends |
    | `score` | the official Score: mean of presence (share above 0) and salience accuracy | BlEmoRE, `valid` |
    | `nll` | negative log-likelihood of the label under `joint`, nats | with `joint`, `valid` |
    | `kl` | divergence of `probabilities` from the label, nats; for single labels their NLL | with `probabilities` |
    | `js_distance` | square root of the Jensen-Shannon divergence, nats | `soft` |
    | `mae` | mean absolute error of a share | `soft` |

    Of names that share the largest part, the first counts, in labels and predictions alike. With soft labels, salience
    compares the nearest valid labels.

    Args:
        space: names and valid labels.
        labels: (N, C) shares that sum to 1, every row labelled.
        blends: N lists of {"emotion": name, "salience": per cent}, as the decoders return them, or an array (N, C) of
            shares.
        probabilities: (N, C), rows that sum to 1; `js_distance` and `mae` take the blends without them.
        joint: (N, L) probabilities of the valid labels.
        kind: `valid`: labels are valid labels; `soft`: any distributions.
        presence_share: a name is present where its share is above this.

    Returns:
        Measure -> value; those of `LOWER_IS_BETTER` are better where they are lower.

    Raises:
        ValueError: there are no rows, numbers of rows or widths differ, a row of labels is unlabelled or not of its
            kind, a blend is empty or has an unknown name, or a probability is not finite.
    """
    if kind not in LABEL_KINDS:
        raise ValueError(f"kind {kind!r} is not one of {', '.join(LABEL_KINDS)}")
    names = space.names
    truth, indices = _truth(space, labels, kind)
    if len(blends) != len(truth):
        raise ValueError(f"found {len(blends)} blends and {len(truth)} rows of labels, expected equal numbers")
    if isinstance(blends, np.ndarray):
        shares = _checked("blends", blends, (len(truth), len(names)))
    else:
        shares = blends_to_saliences(blends, names)
    if not shares.any(1).all():
        raise ValueError(f"blend {int(np.argmin(shares.any(1)))} is empty, expected at least one name")
    if probabilities is not None:
        probabilities = _checked("probabilities", probabilities, (len(truth), len(names)))
    if joint is not None:
        joint = _checked("joint", joint, (len(truth), len(space)))

    found: dict[str, float] = {}
    rows = np.arange(len(truth))
    top, true_top = largest(shares), largest(truth)
    hits, true, predicted = (np.bincount(of, minlength=len(names)) for of in (top[top == true_top], true_top, top))
    found["accuracy"] = int(hits.sum()) / len(truth)
    found["uar"] = float((hits[true > 0] / true[true > 0]).mean())
    seen = true + predicted > 0
    found["macro_f1"] = float((2 * hits[seen] / (true + predicted)[seen]).mean())
    found["acc_presence"] = _same_sets(shares, truth, presence_share)
    if space.blend_percents:
        found["acc_salience"] = _acc_salience(space, shares, indices, kind)
        if space == BLEMORE_SPACE and kind == "valid":
            found["score"] = 0.5 * _same_sets(shares, truth, 0.0) + 0.5 * found["acc_salience"]
    if joint is not None and kind == "valid":
        found["nll"] = float(-np.log(np.maximum(joint[rows, indices], LOWEST)).mean())
    if probabilities is not None:
        found["kl"] = float(divergences(truth, probabilities).mean())
    if kind == "soft":
        guessed = shares if probabilities is None else probabilities
        middle = (truth + guessed) / 2
        divergence = (divergences(truth, middle) + divergences(guessed, middle)) / 2
        found["js_distance"] = float(np.sqrt(np.maximum(divergence, 0)).mean())
        found["mae"] = float(np.abs(truth - guessed).mean())
    return found


def blends_to_saliences(blends: Sequence[Sequence[Mapping[str, Any]]], names: Sequence[str] = EMOTIONS) -> np.ndarray:
    """Converts blends into rows of shares.

    Args:
        blends: N lists of {"emotion": name, "salience": per cent}, as the decoders and the processor return them.
        names: the C names in order; the emotions of BlEmoRE by default.

    Returns:
        (N, C) float64 from 0 to 1.

    Raises:
        ValueError: unknown name; the message tells the row.
    """
    places = {name: place for place, name in enumerate(names)}
    parts = [(row, part["emotion"], part["salience"]) for row, blend in enumerate(blends) for part in blend]
    for row, name, _ in parts:
        if name not in places:
            raise ValueError(f"blend {row}: found the emotion {name!r}, expected one of {', '.join(names)}")
    saliences = np.zeros((len(blends), len(places)))
    if parts:
        rows, found, values = zip(*parts, strict=True)
        saliences[rows, [places[name] for name in found]] = np.array(values, dtype=np.float64) / 100
    return saliences


def _truth(space: LabelSpace, labels: Any, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """The labels as (N, C) shares, exact for valid labels, and (N,) numbers of the nearest valid labels."""
    truth = np.asarray(labels, dtype=np.float64)
    if truth.ndim != 2 or truth.shape[1] != len(space.names) or not len(truth):
        raise ValueError(f"labels: found shape {truth.shape}, expected (N, {len(space.names)}), N at least 1")
    unlabelled = (truth == UNLABELLED).all(1)
    if unlabelled.any():
        raise ValueError(f"labels: row {int(np.argmax(unlabelled))} is unlabelled, expected only labelled rows")
    # Written so that a NaN counts as wrong.
    right = (truth >= 0).all(1) & (np.abs(truth.sum(1) - 1) <= TOLERANCE)
    if not right.all():
        row = int(np.argmin(right))
        raise ValueError(f"labels: row {row} is {truth[row].tolist()}, expected shares from 0 that sum to 1")
    if kind == "soft":
        return truth / truth.sum(1, keepdims=True), nearest(space, truth)
    indices = nearest(space, truth)
    exact = space.percent[indices] / 100
    right = (np.abs(truth - exact) <= TOLERANCE).all(1)
    if not right.all():
        row = int(np.argmin(right))
        raise ValueError(f"labels: row {row} is {truth[row].tolist()}, expected one of the valid labels of {space}")
    return exact, indices


def nearest(space: LabelSpace, shares: np.ndarray) -> np.ndarray:
    """`space.nearest` of each different row once, in parts that fit memory; the largest share where nothing blends."""
    if not space.blend_percents:
        return shares.argmax(1)
    different, inverse = np.unique(shares, axis=0, return_inverse=True)
    step = max(1, 2**22 // space.percent.size)
    parts = [space.nearest(different[start : start + step]) for start in range(0, max(1, len(different)), step)]
    return np.concatenate(parts)[inverse.reshape(-1)]


def _checked(what: str, values: Any, shape: tuple[int, int]) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.shape != shape:
        raise ValueError(f"{what}: found shape {array.shape}, expected {shape}")
    finite = np.isfinite(array).all(1)
    if not finite.all():
        row = int(np.argmin(finite))
        raise ValueError(f"{what}: row {row} is {array[row].tolist()}, expected finite numbers")
    return array


def largest(shares: np.ndarray) -> np.ndarray:
    """(N, C) shares -> (N,) places of the largest share of each row, the first of those that share it."""
    return (shares >= shares.max(1, keepdims=True) - _STEP).argmax(1)


def _same_sets(shares: np.ndarray, truth: np.ndarray, presence_share: float) -> float:
    same = ((shares > presence_share + _STEP) == (truth > presence_share + _STEP)).all(1)
    return int(same.sum()) / len(same)


def _acc_salience(space: LabelSpace, shares: np.ndarray, indices: np.ndarray, kind: str) -> float:
    blends = np.flatnonzero(space.is_blend[indices])
    if not blends.size:
        return 0.0
    if kind == "soft":
        return float((nearest(space, shares[blends]) == indices[blends]).mean())
    expected = space.percent[indices[blends]]
    guessed = 100 * shares[blends]
    # The official rule rounds to whole per cent; a name with less than that is still one too many.
    return float(((np.rint(guessed) == expected) & ((guessed > 0) == (expected > 0))).all(1).mean())


def divergences(of: np.ndarray, against: np.ndarray) -> np.ndarray:
    """Kullback-Leibler divergence KL(of || against) of each row, in nats."""
    logs = np.log(np.maximum(of, LOWEST)) - np.log(np.maximum(against, LOWEST))
    return (of * logs).sum(1)
