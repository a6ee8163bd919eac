"""What follows from a label space: decodings, measures, the loss and thresholds, against plain loops."""

import numpy as np
import pytest

from hf_blemo import blemore
from hf_blemo.fusion_training.judging import Judge, better
from hf_blemo.rank_aware_fusion.decoding_rank_aware_fusion import decode_thresholds
from hf_blemo.rank_aware_fusion.label_space_rank_aware_fusion import LabelSpace

SINGLE = LabelSpace(["red", "green", "blue"])
BLENDS = LabelSpace(["a", "b", "c", "d"], [[60, 40], [50, 50], [50, 30, 20]], ["d"])
OFFICIAL = ("acc_presence", "acc_salience", "score")
COMMON = ("accuracy", "uar", "macro_f1", "acc_presence")


@pytest.mark.parametrize(
    ("judge", "columns", "decodings", "metrics"),
    [
        (Judge(), OFFICIAL, ("expected_score", "thresholds"), ("loss", "score")),
        (Judge(SINGLE), (*COMMON, "nll"), ("expected_score",), ("loss", "accuracy")),
        (Judge(BLENDS), (*COMMON, "acc_salience", "nll"), ("expected_score", "thresholds"), ("loss", "accuracy")),
        (Judge(SINGLE, "soft"), (*COMMON, "kl", "js_distance", "mae"), ("soft", "expected_score"), ("kl", "kl")),
    ],
)
def test_columns_decodings_and_default_metrics_follow_the_space(judge, columns, decodings, metrics):
    assert judge.columns == columns and judge.decodings == decodings and judge.decoding(None) == decodings[0]
    assert tuple(judge.selection_metric(None, name) for name in ("honest", "published_style")) == metrics
    assert judge.selection_metric("uar", "honest") == "uar"
    generator = np.random.default_rng(0)
    labels = judge.space.percent[generator.integers(0, len(judge.space), 20)] / 100
    joint = generator.dirichlet(np.ones(len(judge.space)), 20)
    predictions = {"joint_probabilities": joint, "probabilities": joint @ judge.space.percent / 100}
    for decoding in decodings:
        blends = judge.decode(predictions, decoding, {"blend_share": 0.5, "alpha": 0.1, "beta": 0.1})
        assert set(judge.measure(blends, labels, predictions)) == set(judge.measures)


def test_what_the_labels_do_not_have_is_refused():
    with pytest.raises(
        ValueError, match="selection_metric for these labels: found 'score', expected loss, last, accuracy, uar"
    ):
        Judge(SINGLE).selection_metric("score", "honest")
    with pytest.raises(ValueError, match="decoding 'thresholds' tells blends apart, but nothing blends"):
        Judge(SINGLE).decoding("thresholds")
    assert better("kl", 2.0) == 2.0 and better("loss", 2.0) == 2.0 and better("uar", 2.0) == -2.0


def test_the_loss_of_soft_labels_is_expected_where_nothing_blends_and_of_the_nearest_label_elsewhere():
    labels = np.array([[0.5, 0.5, 0.0], [0.1, 0.2, 0.7]])
    joint = np.array([[0.2, 0.3, 0.5], [0.1, 0.1, 0.8]])
    judge = Judge(SINGLE, "soft")
    expected = -(labels * np.log(joint)).sum(1)
    np.testing.assert_allclose(judge.losses(joint, labels, judge.nearest(labels)), expected)
    judge = Judge(BLENDS, "soft")
    labels = np.array([[0.58, 0.42, 0.0, 0.0]])
    joint = np.random.default_rng(0).dirichlet(np.ones(len(BLENDS)), 1)
    place = BLENDS.index([0, 1], (60, 40))
    assert judge.losses(joint, labels, judge.nearest(labels)) == pytest.approx(-np.log(joint[0, place]))


def test_the_grid_of_thresholds_is_that_of_a_plain_loop():
    generator = np.random.default_rng(1)
    labels = BLENDS.percent[generator.integers(0, len(BLENDS), 40)] / 100
    probabilities = generator.dirichlet(np.ones(4), 40)
    presence, salience = Judge(BLENDS).threshold_grid(probabilities, labels)
    truth = BLENDS.nearest(labels)
    for row, column in ((0, 0), (3, 1), (7, 12), (19, 19)):
        alpha, beta = blemore.THRESHOLD_GRID[[row, column]]
        found = BLENDS.nearest(Judge(BLENDS).shares_of(decode_thresholds(probabilities, alpha, beta, BLENDS)))
        sets = BLENDS.set_of_label
        assert presence[row, column] == pytest.approx((sets[found] == sets[truth]).mean())
        blends = BLENDS.is_blend[truth]
        assert salience[row, column] == pytest.approx((found == truth)[blends].mean())
    fitted = Judge(BLENDS).fit_thresholds(probabilities, labels)
    best = np.unravel_index((presence + salience).argmax(), presence.shape)
    assert (fitted["alpha"], fitted["beta"]) == tuple(blemore.THRESHOLD_GRID[list(best)])


def test_the_official_grid_and_the_plain_one_agree(monkeypatch):
    generator = np.random.default_rng(2)
    labels = blemore.LABEL_MATRIX[generator.integers(0, 36, 60)]
    probabilities = generator.dirichlet(np.full(6, 0.5), 60)
    official = Judge().threshold_grid(probabilities, labels)
    monkeypatch.setattr(Judge, "is_benchmark", False)
    for found, expected in zip(Judge().threshold_grid(probabilities, labels), official, strict=True):
        np.testing.assert_allclose(found, expected)


def test_sets_of_labels_and_predictions_are_those_of_the_nearest_valid_labels():
    labels = np.array([[1.0, 0, 0, 0], [0.6, 0.4, 0, 0]])
    blends = [[{"emotion": "b", "salience": 90.0}, {"emotion": "d", "salience": 10.0}], BLENDS.blend(5)]
    true, predicted = Judge(BLENDS).sets_of(blends, labels)
    assert [BLENDS.sets[place] for place in true] == [("a",), ("a", "b")]
    assert [BLENDS.sets[place] for place in predicted] == [("b",), ("a", "b")]
