"""ACC_salience of BlEmoRE: share of true blends whose emotions and saliences are both predicted exactly."""

# `evaluate.load` takes the first metric class of a module: the base class stays out of it.
import hf_blemo.metrics.saliences as saliences


class AccSalience(saliences.SalienceMetric):
    """ACC_salience of BlEmoRE: share of true blends whose emotions and saliences are both predicted exactly.

    Source: arXiv 2601.13225; equal to `hf_blemo.blemore.acc_salience`.
    """

    measure = "acc_salience"
