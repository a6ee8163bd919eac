"""The measures of any label space as one module of `evaluate`."""

from typing import Any

import datasets
import evaluate
import numpy as np

import hf_blemo.metrics.measures as measures
from hf_blemo.rank_aware_fusion.label_space_rank_aware_fusion import BLEMORE_SPACE, LabelSpace

_INPUTS = """
Args:
    predictions: for each sample C shares in the order of the names; `hf_blemo.metrics.blends_to_saliences` makes them
        of blends. With `kind="soft"` they are the probabilities.
    references: for each sample the C shares of its label, which sum to 1.
    names, blend_percents, unblended: the names in order and how they blend; by default those of BlEmoRE.
    kind: "valid" or "soft"; see `hf_blemo.metrics.measure`.
    presence_share: a name is present where its share is above this.
"""


class BlendMeasures(evaluate.Metric):
    """The measures of `hf_blemo.metrics.measure` for names and blends of one's own.

    Args:
        settings: `names`, `blend_percents`, `unblended`, `kind` and `presence_share`, or any argument of
            `evaluate.Metric`; `compute` takes the five as well.
    """

    def __init__(self, *args: Any, **settings: Any):
        names = ("names", "blend_percents", "unblended", "kind", "presence_share")
        self.settings = {name: settings.pop(name) for name in names if name in settings}
        super().__init__(*args, **settings)

    def _info(self) -> evaluate.MetricInfo:
        shares = datasets.Sequence(datasets.Value("float64"))
        return evaluate.MetricInfo(
            description="Measures of single, blended or soft labels.",
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": shares, "references": shares}),
        )

    def _compute(self, predictions: Any, references: Any, **changes: Any) -> dict[str, float]:
        options = {**self.settings, **changes}
        names, percents, unblended = (options.pop(key, ()) for key in ("names", "blend_percents", "unblended"))
        space = LabelSpace(names, percents, unblended) if names else BLEMORE_SPACE
        shares = np.asarray(predictions, dtype=np.float64)
        probabilities = shares if options.get("kind") == "soft" else None
        return measures.measure(space, references, shares, probabilities, **options)
