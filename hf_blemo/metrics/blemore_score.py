"""Score of BlEmoRE: the mean of ACC_presence and ACC_salience."""

# `evaluate.load` takes the first metric class of a module: the base class stays out of it.
import hf_blemo.metrics.saliences as saliences


class BlemoreScore(saliences.SalienceMetric):
    """Score of BlEmoRE: the mean of ACC_presence and ACC_salience.

    Source: arXiv 2601.13225; equal to `hf_blemo.blemore.score`.
    """

    measure = "score"
