"""ACC_presence of BlEmoRE: share of clips whose set of predicted emotions is the true set."""

from typing import Any

import evaluate

from hf_blemo import blemore
from hf_blemo.metrics.saliences import metric_info, saliences_to_blends


class AccPresence(evaluate.Metric):
    """ACC_presence of BlEmoRE: share of clips whose set of predicted emotions is the true set.

    Source: arXiv 2601.13225; equal to `hf_blemo.blemore.acc_presence`.
    """

    def _info(self) -> evaluate.MetricInfo:
        return metric_info("ACC_presence of BlEmoRE: share of clips whose set of predicted emotions is the true set.")

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return {"acc_presence": blemore.acc_presence(saliences_to_blends(predictions), references)}
