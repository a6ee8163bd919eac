"""The fusions without a gate: right regressions, and nothing learned from what is scored."""

import numpy as np
import pytest
import torch

from hf_blemo.fusion_training import naive_fusion
from hf_blemo.fusion_training.naive_fusion import NaiveFusions, Regressions, naive_names
from hf_blemo.fusion_training.out_of_fold import Truth
from hf_blemo.rank_aware_fusion.label_space_rank_aware_fusion import LabelSpace

SPACE = LabelSpace(["red", "green", "blue"])
BLENDS = LabelSpace(["a", "b", "c"], [[60, 40], [40, 60]], ["c"])


@pytest.fixture(autouse=True)
def few_weights(monkeypatch):
    monkeypatch.setattr(naive_fusion, "L2", (1.0, 0.1))
    monkeypatch.setattr(naive_fusion, "_NUM_STEPS", 25)


@pytest.fixture
def make_naive(make_data, make_settings, make_store):
    def make(data):
        store = make_store(data, make_settings())
        rows, _ = store.labelled_rows("honest")
        return NaiveFusions(store, rows, Truth.of(data, store.judge, store.labels.numpy(), rows))

    return make


def test_a_regression_is_the_minimum_of_its_loss():
    generator = np.random.default_rng(0)
    inputs = torch.from_numpy(generator.standard_normal((40, 3)))
    targets = torch.eye(3).double()[torch.from_numpy(generator.integers(0, 3, 40))]
    weights = naive_fusion._fit(inputs, targets, 0.1, torch.zeros(4, 3).double())
    logits = inputs @ weights[:-1] + weights[-1]
    slope = inputs.T @ (logits.softmax(-1) - targets) / 40 + 0.1 * weights[:-1]
    assert slope.abs().max() < 1e-5 and (logits.softmax(-1) - targets).mean(0).abs().max() < 1e-5


def test_missing_inputs_count_as_the_mean_and_scaling_weighs_the_penalty():
    inputs = np.random.default_rng(0).standard_normal((30, 2))
    targets, folds = np.eye(3)[np.arange(30) % 3], np.arange(30) % 5
    filled = Regressions(inputs, targets, folds).without(0)
    missing = inputs.copy()
    missing[0] = np.nan
    train = folds != 0
    inputs[0] = inputs[train].mean(0)
    found = Regressions(missing, targets, folds).without(0)
    np.testing.assert_allclose(found[:, 0], Regressions(inputs, targets, folds).without(0)[:, 0], atol=1e-6)
    shrunk = Regressions(inputs, targets, folds, np.full(2, 1e-3)).without(0)
    assert np.ptp(shrunk[0], 0).max() < 1e-3 < np.ptp(filled[0], 0).max()


@pytest.mark.parametrize(("space", "kind"), [(SPACE, "valid"), (SPACE, "soft"), (BLENDS, "valid"), (BLENDS, "soft")])
def test_labels_of_the_scored_fold_change_nothing_of_its_predictions(make_naive, make_data, with_column, space, kind):
    data = make_data(24, num_folds=3, space=space, kind=kind, missing=[(4, "voice"), (5, "face")])
    labels = np.asarray(data["labels"])
    rows = np.flatnonzero(np.asarray(data["fold"]) == 2)
    labels[rows] = np.roll(labels[rows], 1, axis=1 if kind == "soft" else 0)
    changed = make_naive(with_column(data, "labels", labels)).rows()
    for name, make in make_naive(data).rows().items():
        one, two = make(), changed[name]()
        assert (one.probabilities[0, rows] == two.probabilities[0, rows]).all(), name
        assert (one.probabilities != two.probabilities).any() and one.judging[0, 2] == two.judging[0, 2]
        np.testing.assert_allclose(one.probabilities.sum(-1), 1, atol=1e-5)
        assert one.joint_probabilities.shape[-1] == (0 if (space, kind) == (BLENDS, "soft") else len(space))


def test_late_fusions_combine_the_single_encoders(make_naive, make_data):
    data = make_data(60, num_folds=3, space=SPACE, noise_std=0.6, missing=[(7, "face"), (7, "noise")])
    naive = make_naive(data)
    rows = naive.rows()
    assert list(rows) == naive_names(["voice", "face", "noise"])
    made = {name: make().probabilities[0] for name, make in rows.items()}
    singles = np.stack([made[f"linear, single encoder: {name}"] for name in ("voice", "face", "noise")])
    present = np.delete(np.arange(60), 7)
    np.testing.assert_allclose(made["mean of probabilities"][present], singles.mean(0)[present], atol=1e-6)
    np.testing.assert_allclose(made["mean of probabilities"][7], singles[0, 7], atol=1e-6)
    truth = naive.truth.labels

    def loss(name):
        return -(truth * np.log(made[name])).sum(1).mean()

    # What noise says is worth nothing, which the mean cannot know.
    for name in ("static weights", "linear concatenation, block-scaled"):
        assert loss(name) < loss("mean of probabilities") and loss(name) < loss("linear, single encoder: noise")
