"""Predictions and labels as six saliences, the form in which the metrics gather them over processes."""

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

from hf_blemo import blemore

CITATION = "BlEmoRE: blended emotion recognition, arXiv 2601.13225."
INPUTS = f"""
Args:
    predictions: for each clip six saliences from 0 to 1 in the order {", ".join(blemore.EMOTIONS)}, zero where an
        emotion is not predicted; `hf_blemo.metrics.blends_to_saliences` converts blends.
    references: for each clip its soft label: one emotion at 1, or two of the first five at 0.7/0.3, 0.5/0.5, 0.3/0.7.
"""


def metric_info(description: str) -> evaluate.MetricInfo:
    """Describes a metric to `evaluate`.

    Args:
        description: of the metric.
    """
    saliences = datasets.Sequence(datasets.Value("float64"), length=len(blemore.EMOTIONS))
    return evaluate.MetricInfo(
        description=description,
        citation=CITATION,
        inputs_description=INPUTS,
        features=datasets.Features({"predictions": saliences, "references": saliences}),
    )


def saliences_to_blends(predictions: Any) -> list[list[dict[str, Any]]]:
    """Converts the six saliences of each clip into a blend.

    Args:
        predictions: (N, 6) from 0 to 1.

    Returns:
        N lists of {"emotion": str, "salience": per cent}; an empty list for six zeros.

    Raises:
        ValueError: wrong shape, or a salience outside 0 to 1; the message names the row.
    """
    rows = np.asarray(predictions, dtype=np.float64)
    if rows.ndim != 2 or rows.shape[1] != len(blemore.EMOTIONS):
        raise ValueError(f"predictions: expected the shape (N, {len(blemore.EMOTIONS)}), found {rows.shape}")
    outside = ~((rows >= 0) & (rows <= 1)).all(1)
    if outside.any():
        row = int(np.argmax(outside))
        raise ValueError(f"prediction {row}: found {rows[row].tolist()}, expected six saliences from 0 to 1")
    return [
        [{"emotion": blemore.EMOTIONS[place], "salience": 100 * row[place]} for place in np.flatnonzero(row)]
        for row in rows
    ]


def blends_to_saliences(blends: Sequence[Sequence[Mapping[str, Any]]]) -> np.ndarray:
    """Converts blends into saliences for the metrics.

    Args:
        blends: N lists of {"emotion": str, "salience": per cent}, as the decoders and the processor return them.

    Returns:
        (N, 6) float64 from 0 to 1.

    Raises:
        ValueError: unknown emotion; the message names the row.
    """
    saliences = np.zeros((len(blends), len(blemore.EMOTIONS)))
    for row, blend in enumerate(blends):
        for part in blend:
            if part["emotion"] not in blemore.EMOTIONS:
                known = ", ".join(blemore.EMOTIONS)
                raise ValueError(f"blend {row}: found the emotion {part['emotion']!r}, expected one of {known}")
            saliences[row, blemore.EMOTIONS.index(part["emotion"])] = part["salience"] / 100
    return saliences
