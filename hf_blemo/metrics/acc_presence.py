"""ACC_presence of BlEmoRE: share of clips whose set of predicted emotions is the true set."""

# `evaluate.load` takes the first metric class of a module: the base class stays out of it.
import hf_blemo.metrics.saliences as saliences


class AccPresence(saliences.SalienceMetric):
    """ACC_presence of BlEmoRE: share of clips whose set of predicted emotions is the true set.

    Source: arXiv 2601.13225; equal to `hf_blemo.blemore.acc_presence`.
    """

    measure = "acc_presence"
