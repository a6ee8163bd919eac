"""The ranking behind static top-n: right where something is planted, and blind to all rows but the given ones."""

import numpy as np
import pytest
import torch

from hf_blemo.fusion_training.cross_validation import _RIDGE, _probe_scores


@pytest.mark.parametrize("pooling", ["mean", "statistics", "attention"])
def test_planted_encoders_rank_before_noise(make_data, make_settings, make_store, pooling):
    data = make_data(150, noise_std=0.2)
    scores = _probe_scores(make_store(data, make_settings(pooling=pooling)), np.arange(150))
    assert list(scores) == ["voice", "face", "noise"]
    assert scores["noise"] < 0.1 < scores["face"] < 1
    assert scores["voice"] > 0.3
    # Four directions tell more of six emotions than three.
    assert scores["voice"] > scores["face"]


def test_nothing_outside_the_rows_matters(make_data, make_settings, make_store, with_column):
    settings = make_settings()
    data = make_data(90)
    outside = np.asarray(data["fold"]) == 3
    rows = np.flatnonzero(~outside)
    tampered = make_data(90)
    labels = np.asarray(data["labels"])
    labels[outside] = labels[outside][::-1]
    tampered = with_column(tampered, "labels", labels)
    store, other = make_store(data, settings), make_store(tampered, settings)
    for values in other.pooled.values():
        values[torch.from_numpy(outside)] = 1e6
    assert _probe_scores(store, rows) == _probe_scores(other, rows)
    assert _probe_scores(store, np.arange(90)) != _probe_scores(other, np.arange(90))


def test_explained_variance_equals_ridge_regression_by_the_normal_equations(make_data, make_settings, make_store):
    store = make_store(make_data(40, num_folds=2), make_settings())
    values, labels = store.pooled["voice"].double().numpy(), store.labels.double().numpy()
    explained = []
    for fold in (0, 1):
        train, test = store.folds != fold, store.folds == fold
        mean, std = values[train].mean(0), values[train].std(0, ddof=1)
        inputs, others = (values[train] - mean) / std, (values[test] - mean) / std
        centre = labels[train].mean(0)
        weights = np.linalg.solve(inputs.T @ inputs + _RIDGE * np.eye(4), inputs.T @ (labels[train] - centre))
        residual = labels[test] - centre - others @ weights
        explained.append(1 - (residual**2).sum() / ((labels[test] - centre) ** 2).sum())
    assert _probe_scores(store, np.arange(40))["voice"] == pytest.approx(np.mean(explained), abs=1e-5)


def test_rows_without_an_encoder_are_left_out_of_its_score(make_data, make_settings, make_store):
    missing = [(row, "voice") for row in range(0, 60, 3)]
    settings = make_settings()
    with_gaps = make_store(make_data(60, missing=missing), settings)
    present = np.flatnonzero(with_gaps.present["voice"].numpy())
    assert len(present) == 40
    scores = _probe_scores(with_gaps, np.arange(60))
    assert scores["voice"] == pytest.approx(_probe_scores(with_gaps, present)["voice"])
    nowhere = make_store(make_data(60, missing=[(row, "voice") for row in range(60)]), settings)
    assert _probe_scores(nowhere, np.arange(60))["voice"] == -1
