"""The metrics of BlEmoRE under Trainer: which rows and which predictions count."""

from types import SimpleNamespace

import numpy as np
import pytest

from hf_blemo import blemore
from hf_blemo.trainer import blemore_metrics


def predicted(labels, wrong):
    """Predictions of the clips' own labels; the first `wrong` of them are of a label that no clip has."""
    probabilities = np.array([[0.7, 0.3, 0.0, 0.0, 0.0, 0.0]] * 2 + [[0.0, 0.0, 0.0, 0.0, 0.0, 1.0]] * 2)
    joint = np.zeros((4, len(blemore.LABELS)))
    joint[np.arange(4), blemore.label_indices(np.array([[0.7, 0.3, 0, 0, 0, 0]] * 2 + [[0, 0, 0, 0, 0, 1]] * 2))] = 1
    probabilities[:wrong], joint[:wrong] = [0.0, 0.0, 0.0, 0.0, 1.0, 0.0], np.eye(len(blemore.LABELS))[4]
    return SimpleNamespace(predictions=(np.zeros((4, 3)), probabilities, joint), label_ids=labels)


def test_either_decoding_scores_the_labelled_rows():
    labels = [[0.7, 0.3, 0, 0, 0, 0]] * 2 + [[0, 0, 0, 0, 0, 1], [-100] * 6]
    for options in ({}, {"decoding": "thresholds", "alpha": 0.1, "beta": 0.3}):
        found = blemore_metrics(predicted(labels, wrong=0), **options)
        assert found == {"acc_presence": 1.0, "acc_salience": 1.0, "score": 1.0}, options
        found = blemore_metrics(predicted(labels, wrong=1), **options)
        assert found == pytest.approx({"acc_presence": 2 / 3, "acc_salience": 1 / 2, "score": 7 / 12}), options
    # A difference of at most beta is 50/50.
    found = blemore_metrics(predicted(labels, wrong=0), decoding="thresholds", alpha=0.1, beta=0.5)
    assert (found["acc_presence"], found["acc_salience"]) == (1.0, 0.0)
    # Below alpha the weaker emotion is dropped.
    found = blemore_metrics(predicted(labels, wrong=0), decoding="thresholds", alpha=0.4, beta=0.3)
    assert found["acc_presence"] == pytest.approx(1 / 3)


def test_what_cannot_be_scored_is_refused():
    unlabelled = [[-100] * 6] * 4
    with pytest.raises(ValueError, match="found 4 rows, none of them labelled"):
        blemore_metrics(predicted(unlabelled, wrong=0))
    with pytest.raises(ValueError, match="'best' is not one of expected_score, thresholds"):
        blemore_metrics(predicted(unlabelled, wrong=0), decoding="best")
    with pytest.raises(ValueError, match=r"shapes \[\(4, 6\)\], expected probabilities"):
        blemore_metrics(SimpleNamespace(predictions=[np.zeros((4, 6))], label_ids=unlabelled))
