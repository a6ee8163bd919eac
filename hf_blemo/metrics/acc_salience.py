"""ACC_salience of BlEmoRE: share of true blends whose emotions and saliences are both predicted exactly."""

from typing import Any

import evaluate

from hf_blemo import blemore
from hf_blemo.metrics.saliences import metric_info, saliences_to_blends


class AccSalience(evaluate.Metric):
    """ACC_salience of BlEmoRE: share of true blends whose emotions and saliences are both predicted exactly.

    Source: arXiv 2601.13225; equal to `hf_blemo.blemore.acc_salience`.
    """

    def _info(self) -> evaluate.MetricInfo:
        return metric_info(
            "ACC_salience of BlEmoRE: share of true blends whose emotions and saliences are both predicted exactly."
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return {"acc_salience": blemore.acc_salience(saliences_to_blends(predictions), references)}
