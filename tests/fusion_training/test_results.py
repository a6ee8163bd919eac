"""Numbers of a cross-validation, on choices made by hand."""

import numpy as np
import pytest

from hf_blemo import blemore
from hf_blemo.fusion_training.judging import Judge
from hf_blemo.fusion_training.results import CrossValidationResults
from hf_blemo.fusion_training.selection import Selection

FOLDS = np.array([0, 1, 2, 1, 0, 2, 0, 1, 2, 2, 1, 0])
LABELS = np.array([0, 6, 10, 3, 7, 20, 5, 13, 2, 1, 30, 35])
SOFT = blemore.LABEL_MATRIX[LABELS].astype(np.float64)
EPOCHS = {(5, 0): 2, (5, 1): 4, (5, 2): 3, (2, 0): 7, (2, 1): 4, (2, 2): 1}


def measure(blends, labels):
    """The official measures."""
    return Judge().shown(Judge().measure(blends, labels, {}))


def draw(generator, num_rows, labels):
    """Predictions that are right more often than not, each row selecting two of four encoders."""
    joint = 0.5 * generator.dirichlet(np.full(36, 0.1), num_rows)
    joint[np.arange(num_rows), labels] += 0.5
    probabilities = joint @ blemore.LABEL_MATRIX
    weights = generator.dirichlet(np.ones(4), num_rows)
    return {
        "joint_probabilities": joint,
        "probabilities": probabilities / probabilities.sum(1, keepdims=True),
        "encoder_weights": weights,
        "selected_encoders": np.argsort(-weights, 1)[:, :2],
    }


@pytest.fixture
def results():
    """Two seeds, each in a group of its own as with `seeds_at_once: 1`."""
    generator = np.random.default_rng(0)
    selections = []
    for seed in (5, 2):
        selection = Selection("honest", FOLDS, SOFT, [seed], "loss", "thresholds")
        for fold in range(3):
            choice = selection.choices[seed, fold]
            inside, outside = np.equal(FOLDS, fold), ~np.equal(FOLDS, fold)
            choice.epoch = EPOCHS[seed, fold]
            choice.scored = draw(generator, inside.sum(), LABELS[inside])
            choice.judging = draw(generator, outside.sum(), LABELS[outside])
        selections.append(selection)
    return CrossValidationResults(selections, [f"clip_{row}" for row in range(12)])


def test_every_seed_and_fold_is_scored_on_its_own_rows(results):
    assert results.seeds == [2, 5] and results.folds == [0, 1, 2]
    rows = results.fold_rows("thresholds")
    assert [(row["seed"], row["fold"]) for row in rows] == [(s, f) for s in (2, 5) for f in range(3)]
    for row in rows:
        choice = results.choices[row["seed"], row["fold"]]
        inside, outside = np.equal(FOLDS, row["fold"]), ~np.equal(FOLDS, row["fold"])
        fitted = blemore.fit_thresholds(choice.judging["probabilities"], SOFT[outside])
        blends = blemore.decode_thresholds(choice.scored["probabilities"], fitted.alpha, fitted.beta)
        assert (row["alpha"], row["beta"]) == (fitted.alpha, fitted.beta)
        assert {name: row[name] for name in ("acc_presence", "acc_salience", "score")} == measure(blends, SOFT[inside])
        assert (row["epoch"], row["clips"]) == (EPOCHS[row["seed"], row["fold"]], inside.sum())


def test_the_ensemble_decodes_mean_probabilities(results):
    for decoding in ("expected_score", "thresholds"):
        rows, blends = results.ensemble(decoding)
        for fold in range(3):
            first, second = results.choices[2, fold], results.choices[5, fold]
            inside, outside = np.equal(FOLDS, fold), ~np.equal(FOLDS, fold)
            scored = {
                name: (first.scored[name] + second.scored[name]) / 2
                for name in ("probabilities", "joint_probabilities")
            }
            if decoding == "thresholds":
                judging = (first.judging["probabilities"] + second.judging["probabilities"]) / 2
                fitted = blemore.fit_thresholds(judging, SOFT[outside])
                expected = blemore.decode_thresholds(scored["probabilities"], fitted.alpha, fitted.beta)
            else:
                share = (LABELS[outside] >= 6).mean()
                expected = blemore.decode_expected_score(scored["joint_probabilities"], share)
            assert [blends[row] for row in np.flatnonzero(inside)] == expected
            assert rows[fold]["score"] == measure(expected, SOFT[inside])["score"]


def test_pooled_predictions_are_in_the_order_of_the_clips(results):
    for seeds in ([5], [2, 5]):
        pooled = results.pooled(seeds)
        for fold in range(3):
            parts = [results.choices[seed, fold].scored["joint_probabilities"] for seed in seeds]
            np.testing.assert_allclose(pooled["joint_probabilities"][np.equal(FOLDS, fold)], np.mean(parts, 0))
    # A selection has no mean: it is the first seed's.
    selected = [results.pooled(seeds)["selected_encoders"] for seeds in (None, [2], [5])]
    assert (selected[0] == selected[1]).all() and (selected[1] != selected[2]).any()
    for seed, loss in zip((2, 5), results.losses(), strict=True):
        picked = results.pooled([seed])["joint_probabilities"][np.arange(12), LABELS]
        assert loss == pytest.approx(-np.log(picked).mean())


def test_gate_table_counts_by_emotion_set(results):
    gate = results.gate
    sets = blemore.LABEL_SETS[LABELS]
    weights = np.mean([results.pooled([seed])["encoder_weights"] for seed in (2, 5)], 0)
    chosen = np.zeros((12, 4))
    for seed in (2, 5):
        for row, pair in enumerate(results.pooled([seed])["selected_encoders"]):
            chosen[row, pair] += 0.5
    np.testing.assert_allclose(gate["mean_weight"], weights.mean(0))
    np.testing.assert_allclose(gate["mean_selected"], chosen.mean(0))
    assert gate["mean_selected"].sum() == pytest.approx(2)
    del results.gate
    for choice in results.choices.values():
        choice.scored["selected_encoders"][:, 1] = -1
    assert results.gate["mean_selected"].sum() == pytest.approx(1), "an absent rank is no encoder"
    for index in range(16):
        if index in sets:
            np.testing.assert_allclose(gate["weights"][index], weights[sets == index].mean(0))
            np.testing.assert_allclose(gate["selected"][index], chosen[sets == index].mean(0))
        else:
            assert np.isnan(gate["weights"][index]).all() and np.isnan(gate["selected"][index]).all()


def test_a_decoding_is_made_once_for_all_who_ask(results, monkeypatch):
    decodings = []
    decode = Selection.decode
    monkeypatch.setattr(
        Selection, "decode", lambda self, *arguments: decodings.append(arguments[2]) or decode(self, *arguments)
    )
    results.summary("thresholds")
    results.ensemble("thresholds")
    assert (decodings.count("thresholds"), decodings.count("expected_score")) == (6 + 3, 6)
    assert results.gate is results.gate
