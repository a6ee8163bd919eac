"""Training in lockstep: what each member becomes depends on its seed and its own rows, and on no other member."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from hf_blemo.fusion_training.data import with_unlabelled
from hf_blemo.fusion_training.lockstep import Lockstep, Member
from hf_blemo.programs.progress import Progress

ALL_TERMS = {"encoder_loss_weight": 0.3, "gate_loss_weight": 0.2}


@pytest.fixture
def train(make_store, accelerator):
    def trained(data, settings, members, epochs=2, static_scores=None):
        store = make_store(data, settings)
        lockstep = Lockstep(accelerator, members, store, settings, static_scores)
        with Progress("test", "step", shown=False) as bar:
            losses = [lockstep.train_epoch(bar) for _ in range(epochs)]
        return lockstep, np.array(losses)

    return trained


def weights(lockstep, index):
    return lockstep.model_of(index).state_dict()


def assert_equal_weights(found, expected, tolerance=0.0):
    assert set(found) == set(expected)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], atol=tolerance, rtol=0, msg=name)


@pytest.mark.parametrize("model", [{}, ALL_TERMS, {"gate": "uniform", "fusion": "concatenation"}])
def test_a_member_does_not_depend_on_who_else_is_trained(make_data, make_settings, train, model):
    data = make_data(60, missing=[(3, "voice"), (8, "noise")])
    settings = make_settings(model=model, max_grad_norm=0.5)
    members = [Member(0, (0,)), Member(0, (1,)), Member(4, (1,)), Member(4, (2,))]
    together, losses = train(data, settings, members)
    for index, member in enumerate(members):
        alone, own_losses = train(data, settings, [member])
        assert_equal_weights(weights(together, index), weights(alone, 0), 2e-6)
        np.testing.assert_allclose(losses[:, index], own_losses[:, 0], atol=1e-5)
    first, second = weights(together, 0), weights(together, 1)
    assert (first["projections.0.linear.weight"] - second["projections.0.linear.weight"]).abs().max() > 1e-3


def test_a_member_reads_nothing_of_the_folds_it_does_not_train_on(
    make_data, make_settings, train, with_column, with_features
):
    """Neither labels nor features of held-out rows reach weights or standardisation."""
    data = make_data(60)
    held_out = np.isin(data["fold"], (1, 3))
    labels = np.asarray(data["labels"])
    labels[held_out] = np.roll(labels[held_out], 5, axis=0)
    tampered = with_features(data, lambda row, name, steps: 50 * steps - 7 if held_out[row] else steps)
    tampered = with_column(tampered, "labels", labels)
    members = [Member(0, (1, 3)), Member(0, (1,))]
    first, _ = train(data, make_settings(), members)
    second, _ = train(tampered, make_settings(), members)
    assert_equal_weights(weights(first, 0), weights(second, 0))
    changed = weights(second, 1)
    assert not torch.equal(weights(first, 1)["poolings.0.feature_mean"], changed["poolings.0.feature_mean"])


def test_standardisation_is_fitted_on_the_training_rows(make_data, make_settings, train):
    data = make_data(60)
    lockstep, _ = train(data, make_settings(), [Member(0, (2,)), Member(0, ())], epochs=0)
    rows = np.flatnonzero(np.asarray(data["fold"]) != 2)
    for index, own in ((0, rows), (1, np.arange(60))):
        state = weights(lockstep, index)
        for position, name in enumerate(("voice", "face", "noise")):
            values = lockstep.store.pooled[name][own]
            torch.testing.assert_close(
                state[f"poolings.{position}.feature_mean"], values.mean(0), atol=1e-5, rtol=1e-5
            )
            torch.testing.assert_close(
                state[f"poolings.{position}.feature_std"], values.std(0, unbiased=False), atol=1e-5, rtol=1e-5
            )


def test_initial_weights_depend_on_the_seed_alone(make_data, make_settings, train):
    members = [Member(0, (1,)), Member(0, (2, 3)), Member(1, (1,))]
    lockstep, _ = train(make_data(40), make_settings(), members, epochs=0)
    same, other, third = (weights(lockstep, index)["projections.0.linear.weight"] for index in range(3))
    assert torch.equal(same, other) and not torch.allclose(same, third)


def test_static_scores_reach_their_own_member(make_data, make_settings, train):
    scores = [{"voice": 1.0, "face": 3.0, "noise": 2.0}, {"voice": 0.5, "face": 0.1, "noise": 0.2}]
    members = [Member(0, (0,)), Member(0, (1,))]
    lockstep, _ = train(make_data(40), make_settings(model={"gate": "static"}), members, 1, scores)
    found = lockstep.predict(np.arange(40))["selected_encoders"]
    assert found[0].tolist() == [[1, 2]] * 40 and found[1].tolist() == [[0, 2]] * 40


@pytest.mark.parametrize("model", [{}, ALL_TERMS, {"head_fusion": "salience"}])
@pytest.mark.parametrize("mixed_precision", ["no", "bf16"])
def test_the_loss_falls(make_data, make_settings, make_store, model, mixed_precision):
    accelerator = Accelerator(mixed_precision=mixed_precision)
    settings = make_settings(model=model, learning_rate=2e-2)
    store = make_store(make_data(120, noise_std=0.1), settings)
    members = [Member(0, (fold,)) for fold in range(5)]
    lockstep = Lockstep(accelerator, members, store, settings)
    with Progress("test", "step", shown=False) as bar:
        losses = [lockstep.train_epoch(bar) for _ in range(6)]
    assert (losses[-1] < 0.9 * losses[0]).all()
    predictions = lockstep.predict_held_out(np.arange(120))
    assert predictions["joint_probabilities"].dtype == np.float32
    np.testing.assert_allclose(
        predictions["joint_probabilities"][np.arange(120) % 5, np.arange(120)].sum(-1), 1, atol=1e-3
    )
    model = lockstep.model_of(0)
    assert {value.dtype for value in model.parameters()} == {torch.float32}


def test_half_precision_is_used_and_stays_near_full_precision(make_data, make_settings, make_store, accelerator):
    settings = make_settings()
    data = make_data(40)
    found = {}
    for mixed_precision in ("no", "bf16"):
        accelerator.state._reset_state(reset_partial_state=True)
        store = make_store(data, settings)
        lockstep = Lockstep(Accelerator(mixed_precision=mixed_precision), [Member(0, (0,))], store, settings)
        found[mixed_precision] = lockstep.predict(np.arange(40))["joint_probabilities"]
    assert 0 < np.abs(found["no"] - found["bf16"]).max() < 0.02


@pytest.mark.parametrize("size", [1, 7, 100])
def test_predictions_keep_the_order_of_the_rows_for_any_batch(make_data, make_settings, train, size):
    data = make_data(30, missing=[(3, "voice"), (4, "noise")])
    members = [Member(0, (0,)), Member(1, (1,)), Member(2, (0, 1))]
    lockstep, _ = train(data, make_settings(evaluation_batch_size=size), members, 1)
    rows = np.array([4, 29, 3, 3, 0, 11, 12, 8])
    found = lockstep.predict(rows)
    assert found["joint_probabilities"].shape == (3, 8, 36) and found["probabilities"].shape == (3, 8, 6)
    assert found["encoder_weights"].shape == (3, 8, 3) and found["selected_encoders"].shape == (3, 8, 2)
    for index in range(3):
        model = lockstep.model_of(index)
        with torch.no_grad():
            expected = model(**lockstep.store.batch(rows, torch.device("cpu"), labels=False))
        for name in ("joint_probabilities", "probabilities", "encoder_weights"):
            np.testing.assert_allclose(found[name][index], expected[name], atol=1e-5)
        np.testing.assert_array_equal(found["selected_encoders"][index], expected["selected_encoders"])
    assert (found["selected_encoders"][:, 1] >= 0).all() and not (found["selected_encoders"][:, 2:4] == 0).any()


def test_members_predict_their_held_out_rows_alone(make_data, make_settings, train):
    data = make_data(30)
    members = [Member(0, (0,)), Member(0, (1,)), Member(0, (0, 1)), Member(0, (2, 4)), Member(0, (3,))]
    lockstep, _ = train(data, make_settings(), members, 1)
    rows = np.array([5, 3, 0, 21, 22, 24, 23, 1])
    found = lockstep.predict_held_out(rows)
    for index, member in enumerate(members):
        mine = np.isin(lockstep.store.folds[rows], member.held_out)
        expected = lockstep.predict(rows[mine], [index])
        for name, values in found.items():
            np.testing.assert_allclose(values[index][mine], expected[name][0], atol=1e-6)
            assert not values[index][~mine].any()


def test_dropout_is_off_in_prediction_and_on_again_in_training(make_data, make_settings, train):
    settings = make_settings(model={"dropout": 0.5, "gate_noise": 1.0, "encoder_dropout": 0.5})
    lockstep, _ = train(make_data(30), settings, [Member(0, (0,))], 1)
    rows = np.arange(30)
    first, second = lockstep.predict(rows), lockstep.predict(rows)
    np.testing.assert_array_equal(first["joint_probabilities"], second["joint_probabilities"])
    batch = lockstep.store.batch(rows[None], torch.device("cpu"))
    with Progress("test", "step", shown=False) as bar:
        lockstep.train_epoch(bar)
    noisy = [lockstep.model(batch)["loss"].item() for _ in range(2)]
    assert noisy[0] != noisy[1]


def test_smaller_members_go_round_their_rows_again(make_data, make_settings, train):
    """An epoch is one pass of the member with most rows; all take as many steps and every batch is full."""
    members = [Member(0, ()), Member(0, (0, 1)), Member(0, (0, 1, 2, 3))]
    lockstep, losses = train(make_data(50), make_settings(batch_size=20), members, 0)
    assert lockstep.steps_per_epoch == 3
    seen = [np.concatenate([lockstep._batch_rows(step)[index] for step in range(3)]) for index in range(3)]
    assert [len(rows) for rows in seen] == [60] * 3
    assert set(seen[0]) == set(range(50))
    for index, folds in ((1, {2, 3, 4}), (2, {4})):
        assert {row % 5 for row in seen[index]} == folds
        counts = np.bincount(seen[index])
        assert np.ptp(counts[counts > 0]) <= 1


def test_warm_up_then_constant_or_cosine(make_data, make_settings, train):
    members = [Member(0, ())]
    constant, _ = train(make_data(40), make_settings(batch_size=10, learning_rate=0.1, num_epochs=4), members, 0)
    assert [constant._learning_rate(step) for step in (0, 1, 3, 4, 15)] == pytest.approx([0.025, 0.05, 0.1, 0.1, 0.1])
    settings = make_settings(batch_size=10, learning_rate=0.1, num_epochs=4, schedule="cosine")
    cosine, _ = train(make_data(40), settings, members, 0)
    assert cosine._learning_rate(8) == pytest.approx(0.05)
    assert cosine._learning_rate(12) == pytest.approx(0.05 * (1 - np.sqrt(0.5)))
    assert cosine._learning_rate(16) == cosine._learning_rate(20) == pytest.approx(0)


def test_the_learning_rate_and_weight_decay_are_those_of_the_step(make_data, make_settings, train):
    """Without gradients that matter AdamW shrinks matrices by 1 - lr * decay each step, and only them."""
    model = {f"{name}_loss_weight": 0.0 for name in ("presence", "salience", "alignment", "joint")}
    model["gate_balance_weight"] = 0.0
    settings = make_settings(batch_size=16, learning_rate=0.1, weight_decay=0.5, model=model)
    before, _ = train(make_data(64), settings, [Member(0, ())], 0)
    after, _ = train(make_data(64), settings, [Member(0, ())], 1)
    factor = np.prod([1 - rate * 0.5 for rate in (0.025, 0.05, 0.075, 0.1)])
    old, new = weights(before, 0), weights(after, 0)
    torch.testing.assert_close(new["fusion.linear.weight"], factor * old["fusion.linear.weight"])
    assert torch.equal(new["fusion.rank_scale"], old["fusion.rank_scale"])


@pytest.mark.parametrize("max_grad_norm", [0.0, 1e-4])
def test_clipping_is_applied_or_not(make_data, make_settings, train, max_grad_norm):
    """Adam hides the gradient's length but not that all terms of a step were scaled to below its epsilon."""
    settings = make_settings(max_grad_norm=max_grad_norm * 1e-6, weight_decay=0.0)
    before, _ = train(make_data(40), settings, [Member(0, ())], 0)
    after, _ = train(make_data(40), settings, [Member(0, ())], 1)
    moved = (weights(after, 0)["fusion.linear.weight"] - weights(before, 0)["fusion.linear.weight"]).abs().max()
    assert moved < 1e-3 if max_grad_norm else moved > 1e-3


def test_a_member_without_rows_is_refused(make_data, make_settings, train):
    with pytest.raises(ValueError, match=r"no labelled rows to train on without folds \(0, 1\)"):
        train(make_data(10, num_folds=2), make_settings(), [Member(0, (0,)), Member(0, (0, 1))], 0)


# --- Domain adaptation ---


@pytest.mark.parametrize("kind", ["mmd", "coral", "adversarial"])
def test_labels_of_the_target_are_never_read(make_data, make_settings, train, with_column, kind):
    settings = make_settings(model={"domain_adaptation": kind, "domain_adaptation_weight": 2.0})
    source, target = make_data(40), make_data(30, seed=1)
    garbage = with_column(target, "labels", np.tile(source["labels"][:1], (30, 1)))
    garbage = with_column(garbage, "fold", np.arange(30) % 5)
    members = [Member(0, ()), Member(1, (0, 2))]
    found = [train(with_unlabelled(source, rows), settings, members) for rows in (target, garbage)]
    for index in range(2):
        assert_equal_weights(weights(found[0][0], index), weights(found[1][0], index))
    plain, _ = train(source, make_settings(), members)
    assert not torch.allclose(
        weights(plain, 0)["projections.0.linear.weight"], weights(found[0][0], 0)["projections.0.linear.weight"]
    )


def test_unlabelled_rows_alone_join_every_batch_in_equal_number(make_data, make_settings, train):
    settings = make_settings(batch_size=12, unlabelled_batch_size=7, model={"domain_adaptation": "mmd"})
    data = with_unlabelled(make_data(40), make_data(20, seed=1))
    lockstep, _ = train(data, settings, [Member(0, (0,)), Member(3, (0,))], 0)
    rows = lockstep._batch_rows(5)
    assert rows.shape == (2, 19)
    assert (rows[:, :12] < 40).all() and (rows[:, 12:] >= 40).all()
    assert (lockstep.store.labels[torch.from_numpy(rows[:, 12:])] == -100).all()
    # Without adaptation the same rows are left out of every batch and of the standardisation.
    plain, _ = train(data, make_settings(batch_size=12), [Member(0, (0,))], 0)
    assert plain._batch_rows(5).shape == (1, 12) and plain._batch_rows(5).max() < 40
    alone, _ = train(make_data(40), make_settings(batch_size=12), [Member(0, (0,))], 0)
    assert_equal_weights(weights(plain, 0), weights(alone, 0))


def test_adaptation_without_unlabelled_rows_is_refused(make_data, make_settings, train):
    with pytest.raises(ValueError, match="domain_adaptation 'mmd' needs unlabelled rows, found none"):
        train(make_data(20), make_settings(model={"domain_adaptation": "mmd"}), [Member(0, ())], 0)
