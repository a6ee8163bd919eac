"""The official accuracies of BlEmoRE, and the confusion over the 16 sets of emotions."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .labels import EMOTION_SETS, EMOTIONS, LABEL_SETS, label_indices, prediction_label_indices

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
        ValueError: see `acc_presence`; or a predicted set is not one of the 16.
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


def _paired(predictions: Sequence[Prediction], labels: Any) -> tuple[list[Prediction], np.ndarray]:
    predicted = list(predictions)
    if not predicted:
        raise ValueError("found no predictions, expected at least one clip to score")
    truth = label_indices(labels, required=True)
    if len(predicted) != len(truth):
        raise ValueError(f"found {len(predicted)} predictions and {len(truth)} labels, expected equal numbers")
    return predicted, truth


def _emotions(prediction: Prediction, row: int) -> frozenset[str]:
    try:
        return frozenset(part["emotion"] for part in prediction)
    except (TypeError, KeyError):
        raise ValueError(
            f"prediction {row}: found {prediction!r}, expected a list of {{'emotion': ..., 'salience': ...}}"
        ) from None
