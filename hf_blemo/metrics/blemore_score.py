"""Score of BlEmoRE: the mean of ACC_presence and ACC_salience."""

from typing import Any

import evaluate

from hf_blemo import blemore
from hf_blemo.metrics.saliences import metric_info, saliences_to_blends


class BlemoreScore(evaluate.Metric):
    """Score of BlEmoRE: the mean of ACC_presence and ACC_salience.

    Source: arXiv 2601.13225; equal to `hf_blemo.blemore.score`.
    """

    def _info(self) -> evaluate.MetricInfo:
        return metric_info("Score of BlEmoRE: the mean of ACC_presence and ACC_salience.")

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return {"score": blemore.score(saliences_to_blends(predictions), references)}
