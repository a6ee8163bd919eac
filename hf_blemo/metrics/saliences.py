"""Predictions and labels as six saliences, the form in which the metrics gather them over processes."""

from typing import Any

import datasets
import evaluate
import numpy as np

from hf_blemo import blemore

_CITATION = "BlEmoRE: blended emotion recognition, arXiv 2601.13225."
_INPUTS = f"""
Args:
    predictions: for each clip six saliences from 0 to 1 in the order {", ".join(blemore.EMOTIONS)}, zero where an
        emotion is not predicted; `hf_blemo.metrics.blends_to_saliences` converts blends.
    references: for each clip its soft label: one emotion at 1, or two of the first five at 0.7/0.3, 0.5/0.5, 0.3/0.7.
"""


class SalienceMetric(evaluate.Metric):
    """A measure of `hf_blemo.blemore` on six saliences of each clip, which Arrow can gather over processes."""

    measure: str

    def _info(self) -> evaluate.MetricInfo:
        saliences = datasets.Sequence(datasets.Value("float64"), length=len(blemore.EMOTIONS))
        return evaluate.MetricInfo(
            description=(type(self).__doc__ or "").splitlines()[0],
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": saliences, "references": saliences}),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        rows = np.asarray(predictions, dtype=np.float64)
        outside = ~((rows >= 0) & (rows <= 1)).all(1)
        if outside.any():
            row = int(np.argmax(outside))
            raise ValueError(f"prediction {row}: found {rows[row].tolist()}, expected six saliences from 0 to 1")
        blends = [
            [{"emotion": blemore.EMOTIONS[place], "salience": 100 * row[place]} for place in np.flatnonzero(row)]
            for row in rows
        ]
        return {self.measure: getattr(blemore, self.measure)(blends, references)}
