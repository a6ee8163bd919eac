"""The official accuracies of BlEmoRE, and the confusion over the 16 sets of emotions."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .labels import (
    EMOTION_SETS,
    EMOTIONS,
    LABEL_SETS,
    LABELS,
    label_indices,
    parse_clip_name,
    prediction_label_indices,
)

Prediction = Sequence[Mapping[str, Any]]

_SET_INDEX = {frozenset(emotions): index for index, emotions in enumerate(EMOTION_SETS)}


def acc_presence(predictions: Sequence[Prediction], labels: Any) -> float:
    """Share of clips whose set of predicted emotions equals the true set.

    Args:
        predictions: N lists of {"emotion": str, "salience": per cent}; an empty list is wrong.
        labels: (N, 6) soft labels, or N clip names, or N labels in the form of predictions.

    Returns:
        Accuracy from 0 to 1.

    Raises:
        ValueError: lengths differ, there are no clips, or a row is unlabelled or not one of the 36 labels.

    Source: spec blemore_protocol, Metrics.
    """
    predicted, truth = _paired(predictions, labels)
    truth_sets = LABEL_SETS[truth].tolist()
    correct = sum(
        _SET_INDEX.get(_emotions(prediction, row)) == true_set
        for row, (prediction, true_set) in enumerate(zip(predicted, truth_sets, strict=True))
    )
    return correct / len(truth_sets)


def acc_salience(predictions: Sequence[Prediction], labels: Any) -> float:
    """Share of true blends whose emotions and saliences, rounded to whole per cent, are both predicted exactly.

    Args:
        predictions: N lists of {"emotion": str, "salience": per cent}; one emotion for a blend is wrong.
        labels: (N, 6) soft labels, or N clip names, or N labels in the form of predictions.

    Returns:
        Accuracy from 0 to 1; 0 where no clip is a blend.

    Raises:
        ValueError: lengths differ, there are no clips, or a row is unlabelled or not one of the 36 labels.

    Source: spec blemore_protocol, Metrics.
    """
    predicted, truth = _paired(predictions, labels)
    blends = np.flatnonzero(truth >= len(EMOTIONS))
    if not blends.size:
        return 0.0
    correct = prediction_label_indices([predicted[row] for row in blends]) == truth[blends]
    return float(correct.mean())


def score(predictions: Sequence[Prediction], labels: Any) -> float:
    """Mean of the two accuracies, by which models and thresholds are selected.

    Args:
        predictions: N lists of {"emotion": str, "salience": per cent}.
        labels: (N, 6) soft labels, or N clip names, or N labels in the form of predictions.

    Returns:
        0.5 * ACC_presence + 0.5 * ACC_salience.

    Raises:
        ValueError: see `acc_presence`.

    Source: spec blemore_protocol, Metrics.
    """
    return 0.5 * acc_presence(predictions, labels) + 0.5 * acc_salience(predictions, labels)


def confusion(predictions: Sequence[Prediction], labels: Any) -> np.ndarray:
    """Counts of predicted against true sets of emotions.

    Args:
        predictions: N lists of {"emotion": str, "salience": per cent}.
        labels: (N, 6) soft labels, or N clip names, or N labels in the form of predictions.

    Returns:
        (16, 16) int64 in the order of `EMOTION_SETS`, rows true, columns predicted.

    Raises:
        ValueError: see `acc_presence`; or a predicted set is none of the 16.

    Source: this project's choice.
    """
    predicted, truth = _paired(predictions, labels)
    counts = np.zeros((len(EMOTION_SETS), len(EMOTION_SETS)), dtype=np.int64)
    for row, (prediction, true_set) in enumerate(zip(predicted, LABEL_SETS[truth].tolist(), strict=True)):
        emotions = _emotions(prediction, row)
        if emotions not in _SET_INDEX:
            raise ValueError(
                f"prediction {row}: found {sorted(emotions)}, expected one of the {len(EMOTION_SETS)} sets of emotions"
            )
        counts[true_set, _SET_INDEX[emotions]] += 1
    return counts


def true_label_indices(labels: Any) -> np.ndarray:
    """The index into `LABELS` of every clip that is to be scored, whatever form its label has.

    Args:
        labels: (N, 6) soft labels, or N clip names, or N labels in the form of predictions.

    Returns:
        (N,) int64 from 0 to 35.

    Raises:
        ValueError: a row is unlabelled or not one of the 36 labels.

    Source: this project's choice.
    """
    rows: Any = list(labels)
    if hasattr(labels, "__array__") and np.asarray(labels).dtype.kind in "fiub":
        rows = np.asarray(labels)
    if len(rows) and isinstance(rows[0], str):
        return np.array([parse_clip_name(row).label_index for row in rows], dtype=np.int64)
    if len(rows) and not isinstance(rows, np.ndarray) and any(isinstance(part, Mapping) for part in rows[0]):
        indices = prediction_label_indices(rows)
        if (indices < 0).any():
            row = int(np.argmin(indices))
            raise ValueError(f"labels: row {row} is {rows[row]}, expected one of the {len(LABELS)} labels")
        return indices
    indices = label_indices(rows) if len(rows) else np.zeros(0, dtype=np.int64)
    if (indices < 0).any():
        raise ValueError(f"labels: row {int(np.argmin(indices))} is unlabelled, expected only labelled clips to score")
    return indices


def _paired(predictions: Sequence[Prediction], labels: Any) -> tuple[list[Prediction], np.ndarray]:
    predicted = list(predictions)
    if not predicted:
        raise ValueError("found no predictions, expected at least one clip to score")
    truth = true_label_indices(labels)
    if len(predicted) != len(truth):
        raise ValueError(f"found {len(predicted)} predictions and {len(truth)} labels, expected as many of each")
    return predicted, truth


def _emotions(prediction: Prediction, row: int) -> frozenset[str]:
    try:
        return frozenset(part["emotion"] for part in prediction)
    except (TypeError, KeyError):
        raise ValueError(
            f"prediction {row}: found {prediction!r}, expected a list of {{'emotion': ..., 'salience': ...}}"
        ) from None
