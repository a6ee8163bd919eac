"""From probabilities to predictions: the official thresholds, their grid search, and the expected Score."""

from typing import Any, NamedTuple

import numpy as np

from .labels import EMOTIONS, FIRST_BLEND_LABELS, LABELS, NEUTRAL_INDEX, decode_label_indices, label_indices

THRESHOLD_GRID = np.linspace(0.05, 0.95, 20)
"""The 20 values from 0.05 to 0.95 that the official search tries for alpha and for beta."""
THRESHOLD_GRID.flags.writeable = False
BLEND_SHARE = 1660 / 3050
"""Share of blends among the data set's clips, which decoding by the expected Score assumes."""

_NUM_SALIENCES = 3


class _Thresholds(NamedTuple):
    """Thresholds of presence and salience chosen by the grid search, and their accuracies on its clips, 0 to 1."""

    alpha: float
    beta: float
    acc_presence: float
    acc_salience: float


class _TopTwo(NamedTuple):
    """The two most probable emotions of every clip, arrays (N,); `first` and `second` in the order of `EMOTIONS`."""

    best: np.ndarray
    first: np.ndarray
    second: np.ndarray
    runner_up: np.ndarray
    difference: np.ndarray
    first_leads: np.ndarray
    best_probability: np.ndarray
    without_neutral: np.ndarray


def decode_thresholds(probabilities: Any, alpha: float, beta: float) -> list[list[dict[str, Any]]]:
    """Turns probabilities into predictions by the official thresholds.

    The two largest probabilities are kept (the lower index on a tie). The most probable emotion is predicted alone
    where it, or the other one, is below alpha. Where neutral is one of the two, the more probable is predicted alone
    (the other emotion on a tie). Otherwise both are: 50/50 where they differ by at most beta, else 70/30.

    Args:
        probabilities: (N, 6) in the order of `EMOTIONS`. Comparisons are made in its dtype, the thresholds rounded to
            it, so that thresholds fitted on float32 probabilities keep their meaning there.
        alpha: presence threshold.
        beta: salience threshold.

    Returns:
        N predictions, emotions in the order of `EMOTIONS`. If no probability is left above zero, a case that the
        official rules leave open, only the most probable emotion is predicted.

    Raises:
        ValueError: the shape is not (N, 6), a row holds NaN or infinity, or a threshold is not finite.
    """
    for name, value in (("alpha", alpha), ("beta", beta)):
        if not np.isfinite(value):
            raise ValueError(f"{name}: found {value}, expected a finite number")
    values = _checked(probabilities, len(EMOTIONS), "probabilities")
    top = _top_two(values)
    alpha_, beta_ = values.dtype.type(alpha), values.dtype.type(beta)
    both = (top.best_probability >= alpha_) & (top.runner_up >= alpha_) & (top.runner_up > 0)
    blend = FIRST_BLEND_LABELS[top.first, top.second]
    step = np.where(top.difference <= beta_, 1, np.where(top.first_leads, 0, 2))
    indices = np.where(both, np.where(blend >= 0, blend + step, top.without_neutral), top.best)
    return decode_label_indices(indices)


def threshold_grid(probabilities: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    """Both accuracies at every pair of thresholds of the official grid, `THRESHOLD_GRID` for alpha and for beta.

    A clip's prediction changes at most once along alpha (where the runner-up falls below it) and once along beta, so
    counting clips per grid cell replaces the official loop.

    Args:
        probabilities: (N, 6) in the order of `EMOTIONS`.
        labels: (N, 6) soft labels, or N clip names, or N labels in the form of predictions.

    Returns:
        ACC_presence and ACC_salience, each (20, 20), rows alpha, columns beta.

    Raises:
        ValueError: see `decode_thresholds` and `acc_presence`.
    """
    values = _checked(probabilities, len(EMOTIONS), "probabilities")
    truth = label_indices(labels, required=True)
    if len(values) != len(truth) or not len(truth):
        raise ValueError(f"found {len(values)} probabilities and {len(truth)} labels, expected equal numbers above 0")
    top = _top_two(values)
    grid = THRESHOLD_GRID.astype(values.dtype)
    size = len(grid)
    # Both emotions survive alphas 0 .. num_alphas - 1; the pair counts as 50/50 from beta index first_even on.
    num_alphas = np.searchsorted(grid, top.runner_up, side="right")
    first_even = np.searchsorted(grid, top.difference, side="left")

    blend = FIRST_BLEND_LABELS[top.first, top.second]
    true_blend = truth >= len(EMOTIONS)
    step = np.where(true_blend, (truth - len(EMOTIONS)) % _NUM_SALIENCES, 0)
    right_pair = true_blend & (truth - step == blend)
    right_both = np.where(blend >= 0, right_pair, truth == top.without_neutral)
    right_alone = truth == top.best

    both_per_alpha = _at_least(np.bincount(num_alphas[right_both], minlength=size + 1))
    alone_per_alpha = right_alone.sum() - _at_least(np.bincount(num_alphas[right_alone], minlength=size + 1))
    presence = np.repeat(((both_per_alpha + alone_per_alpha) / len(truth))[:, None], size, axis=1)

    even = right_pair & (step == 1)
    uneven = right_pair & (step == np.where(top.first_leads, 0, 2))
    cells = np.zeros((2, size + 1, size + 1), dtype=np.int64)
    np.add.at(cells[0], (num_alphas[even], first_even[even]), 1)
    np.add.at(cells[1], (num_alphas[uneven], first_even[uneven]), 1)
    even_counts = _at_least(cells[0]).cumsum(axis=1)[:, :size]
    uneven_counts = np.stack([_at_least(row) for row in _at_least(cells[1])])
    num_blends = int(true_blend.sum())
    salience = (even_counts + uneven_counts) / num_blends if num_blends else np.zeros((size, size))
    return presence, salience


def fit_thresholds(probabilities: Any, labels: Any) -> _Thresholds:
    """Chooses alpha and beta by the official grid search.

    Args:
        probabilities: (N, 6) in the order of `EMOTIONS`.
        labels: (N, 6) soft labels, or N clip names, or N labels in the form of predictions.

    Returns:
        The pair with the best Score, on a tie the lowest alpha, then the lowest beta; with its two accuracies.

    Raises:
        ValueError: see `decode_thresholds` and `acc_presence`.
    """
    presence, salience = threshold_grid(probabilities, labels)
    row, column = np.unravel_index(np.argmax(0.5 * presence + 0.5 * salience), presence.shape)
    return _Thresholds(
        alpha=float(THRESHOLD_GRID[row]),
        beta=float(THRESHOLD_GRID[column]),
        acc_presence=float(presence[row, column]),
        acc_salience=float(salience[row, column]),
    )


def decode_expected_score(joint_probabilities: Any, blend_share: float = BLEND_SHARE) -> list[list[dict[str, Any]]]:
    """Predicts the label with the best expected Score, the first of them on a tie.

    A hit on the set is worth 0.5 / N and an exact blend another 0.5 / N_blends, that is 0.5 / (N * blend_share).

    Args:
        joint_probabilities: (N, 36) over `LABELS`.
        blend_share: expected share of blends among the clips, above 0 and at most 1; that of the whole data set by
            default.

    Returns:
        N predictions, each one of the 36 labels.

    Raises:
        ValueError: the shape is not (N, 36), a row holds NaN, infinity or a negative number, or the share is outside
            its range.
    """
    if not 0.0 < blend_share <= 1.0:
        raise ValueError(f"blend_share: found {blend_share}, expected a share above 0 and at most 1")
    joint = _checked(joint_probabilities, len(LABELS), "joint_probabilities").astype(np.float64)
    negative = np.flatnonzero((joint < 0).any(axis=1))
    if negative.size:
        raise ValueError(f"joint_probabilities: row {negative[0]} holds a negative number, expected probabilities")
    singles, blends = joint[:, : len(EMOTIONS)], joint[:, len(EMOTIONS) :]
    pairs = np.repeat(blends.reshape(len(joint), -1, _NUM_SALIENCES).sum(axis=2), _NUM_SALIENCES, axis=1)
    expected = np.concatenate([0.5 * singles, 0.5 * pairs + 0.5 * blends / blend_share], axis=1)
    return decode_label_indices(expected.argmax(axis=1))


def _at_least(counts: np.ndarray) -> np.ndarray:
    """Turns counts per number k = 0 .. K into counts of k > i, for i = 0 .. K - 1."""
    return counts[::-1].cumsum(axis=0)[::-1][1:]


def _top_two(values: np.ndarray) -> _TopTwo:
    rows = np.arange(len(values))
    order = np.argsort(-values, axis=1, kind="stable")[:, :2]
    first, second = order.min(axis=1), order.max(axis=1)
    first_value, second_value = values[rows, first], values[rows, second]
    return _TopTwo(
        best=order[:, 0],
        first=first,
        second=second,
        runner_up=values[rows, order[:, 1]],
        difference=np.abs(first_value - second_value),
        first_leads=first_value > second_value,
        best_probability=values[rows, order[:, 0]],
        without_neutral=np.where((second == NEUTRAL_INDEX) & (second_value > first_value), second, first),
    )


def _checked(probabilities: Any, width: int, what: str) -> np.ndarray:
    values = np.asarray(probabilities)
    if values.dtype.kind != "f":
        values = values.astype(np.float64)
    if values.ndim != 2 or values.shape[1] != width:
        raise ValueError(f"{what}: found shape {values.shape}, expected (N, {width})")
    finite = np.isfinite(values).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        raise ValueError(f"{what}: row {row} is {values[row].tolist()}, expected finite numbers")
    return values
