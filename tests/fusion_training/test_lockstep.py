"""Training in lockstep: what each member becomes depends on its seed and its own rows, and on no other member."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from tiny_models import EXTENDED
from torch import nn

from hf_blemo.fusion_training.data import with_unlabelled
from hf_blemo.fusion_training.lockstep import Lockstep, Member, _row_stream
from hf_blemo.programs.progress import Progress

CPU = torch.device("cpu")
QUIET = Progress("test", "step", shown=False)
ALL_TERMS = {"encoder_loss_weight": 0.3, "gate_loss_weight": 0.2}


def with_groups(data, number=7):
    """Groups that reach into every fold."""
    return data.add_column("group", [f"speaker {row % number}" for row in range(len(data))])


@pytest.fixture
def train(make_store, accelerator):
    def trained(data, settings, members, epochs=2, static_scores=None):
        store = make_store(data, settings)
        lockstep = Lockstep(accelerator, members, store, settings, static_scores)
        losses = [lockstep.train_epoch(QUIET) for _ in range(epochs)]
        return lockstep, np.array(losses)

    return trained


def weights(lockstep, index):
    return lockstep.model_of(index).state_dict()


def assert_equal_weights(found, expected, tolerance=0.0):
    assert set(found) == set(expected)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], atol=tolerance, rtol=0, msg=name)


@pytest.mark.parametrize(
    ("model", "share"), [(ALL_TERMS, 0.0), ({"gate": "uniform", "fusion": "concatenation"}, 0.0), (EXTENDED, 0.6)]
)
def test_a_member_does_not_depend_on_who_else_is_trained(make_data, make_settings, train, model, share):
    data = with_groups(make_data(60, missing=[(3, "voice"), (8, "noise")]))
    settings = make_settings(model=model, max_grad_norm=0.5, exchange_groups=share)
    members = [Member(0, (0,)), Member(0, (1,)), Member(4, (1,))]
    together, losses = train(data, settings, members)
    for index, member in enumerate(members):
        alone, own_losses = train(data, settings, [member])
        assert_equal_weights(weights(together, index), weights(alone, 0), 2e-6)
        np.testing.assert_allclose(losses[:, index], own_losses[:, 0], atol=1e-5)
    first, second = weights(together, 0), weights(together, 1)
    assert (first["projections.0.linear.weight"] - second["projections.0.linear.weight"]).abs().max() > 1e-3


@pytest.mark.parametrize("changes", [{}, {"model": EXTENDED, "exchange_groups": 0.7}], ids=["plain", "extended"])
def test_a_member_reads_nothing_of_the_folds_it_does_not_train_on(
    make_data, make_settings, train, with_column, with_features, changes
):
    """Neither labels nor features of held-out rows reach weights or standardisation."""
    data = make_data(60)
    held_out = np.isin(data["fold"], (1, 3))
    labels = np.asarray(data["labels"])
    labels[held_out] = np.roll(labels[held_out], 5, axis=0)
    tampered = with_features(data, lambda row, name, steps: 50 * steps - 7 if held_out[row] else steps)
    tampered = with_groups(with_column(tampered, "labels", labels))
    members = [Member(0, (1, 3)), Member(0, (1,))]
    first, _ = train(with_groups(data), make_settings(**changes), members)
    second, _ = train(tampered, make_settings(**changes), members)
    assert_equal_weights(weights(first, 0), weights(second, 0))
    changed = weights(second, 1)
    assert not torch.equal(weights(first, 1)["poolings.0.feature_mean"], changed["poolings.0.feature_mean"])


def test_initial_models_have_the_weights_of_their_seed_and_the_numbers_of_their_rows(make_data, make_settings, train):
    scores = [{"voice": 1.0, "face": 3.0, "noise": 2.0}, *[{"voice": 0.5, "face": 0.1, "noise": 0.2}] * 2]
    members = [Member(0, (1,)), Member(0, (2, 3)), Member(1, ())]
    lockstep, _ = train(make_data(40), make_settings(model={"gate": "static"}), members, 0, scores)
    states = [weights(lockstep, index) for index in range(3)]
    same, other, third = (state["projections.0.linear.weight"] for state in states)
    assert torch.equal(same, other) and not torch.allclose(same, third)
    for state, member in zip(states, members, strict=True):
        rows = ~np.isin(lockstep.store.folds, member.held_out)
        for position, name in enumerate(("voice", "face", "noise")):
            values, found = lockstep.store.pooled[name][rows], f"poolings.{position}.feature"
            torch.testing.assert_close(state[f"{found}_mean"], values.mean(0), atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(state[f"{found}_std"], values.std(0, unbiased=False), atol=1e-5, rtol=1e-5)
    selected = lockstep.predict(np.arange(40))["selected_encoders"]
    assert [row.tolist() for row in selected] == [[[1, 2]] * 40, [[0, 2]] * 40, [[0, 2]] * 40]


def test_the_loss_falls_in_full_and_in_half_precision(make_data, make_settings, make_store, accelerator):
    settings = make_settings(model={**ALL_TERMS, "head_fusion": "salience"}, learning_rate=2e-2)
    store = make_store(make_data(120, noise_std=0.1), settings)
    members, untrained = [Member(0, (fold,)) for fold in range(5)], []
    for precision in ("no", "bf16"):
        accelerator.state._reset_state(reset_partial_state=True)
        lockstep = Lockstep(Accelerator(mixed_precision=precision), members, store, settings)
        untrained.append(lockstep.predict(np.arange(120))["joint_probabilities"])
        losses = [lockstep.train_epoch(QUIET) for _ in range(6)]
        assert (losses[-1] < 0.9 * losses[0]).all()
        joint = lockstep.predict_held_out(np.arange(120))["joint_probabilities"]
        assert joint.dtype == np.float32
        np.testing.assert_allclose(joint[np.arange(120) % 5, np.arange(120)].sum(-1), 1, atol=1e-3)
        assert {value.dtype for value in lockstep.model_of(0).parameters()} == {torch.float32}
    assert 0 < np.abs(untrained[0] - untrained[1]).max() < 0.02


def test_members_predict_rows_in_their_order_and_their_held_out_rows_alone(make_data, make_settings, train):
    data = make_data(30, missing=[(3, "voice"), (4, "noise")])
    members = [Member(0, (0,)), Member(1, (1,)), Member(2, (0, 1)), Member(0, (2, 4)), Member(0, (3,))]
    lockstep, _ = train(data, make_settings(evaluation_batch_size=3), members, 1)
    rows = np.array([4, 29, 3, 3, 0, 11, 12, 8, 13])
    found, alone = lockstep.predict(rows), lockstep.predict_held_out(rows)
    for index, member in enumerate(members):
        mine = np.isin(lockstep.store.folds[rows], member.held_out)
        with torch.no_grad():
            expected = lockstep.model_of(index)(**lockstep.store.batch(rows, CPU, labels=False))
        for name, values in found.items():
            assert values[index].shape == expected[name].shape
            np.testing.assert_allclose(values[index], expected[name], atol=1e-5)
            np.testing.assert_allclose(alone[name][index][mine], expected[name][mine], atol=1e-5)
            assert not alone[name][index][~mine].any()
    assert (found["selected_encoders"][:, 1] >= 0).all() and not (found["selected_encoders"][:, 2:4] == 0).any()


def test_dropout_is_off_in_prediction_and_on_again_in_training(make_data, make_settings, train):
    settings = make_settings(model={"dropout": 0.5, "gate_noise": 1.0, "encoder_dropout": 0.5})
    lockstep, _ = train(make_data(30), settings, [Member(0, (0,))], 1)
    rows = np.arange(30)
    first, second = lockstep.predict(rows), lockstep.predict(rows)
    np.testing.assert_array_equal(first["joint_probabilities"], second["joint_probabilities"])
    lockstep.train_epoch(QUIET)
    batch = lockstep.store.batch(rows[None], CPU)
    assert lockstep.model(batch)["loss"].item() != lockstep.model(batch)["loss"].item()


def test_smaller_members_go_round_their_rows_again(make_data, make_settings, train):
    """An epoch is one pass of the member with most rows; all take as many steps and every batch is full."""
    members = [Member(0, ()), Member(0, (0, 1)), Member(0, (0, 1, 2, 3))]
    lockstep, _ = train(make_data(50), make_settings(batch_size=20), members, 0)
    assert lockstep.steps_per_epoch == 3
    seen = [np.concatenate([lockstep._batch_rows(step)[0][index] for step in range(3)]) for index in range(3)]
    assert [len(rows) for rows in seen] == [60] * 3
    assert set(seen[0]) == set(range(50))
    for index, folds in ((1, {2, 3, 4}), (2, {4})):
        assert {row % 5 for row in seen[index]} == folds
        counts = np.bincount(seen[index])
        assert np.ptp(counts[counts > 0]) <= 1


def test_rows_take_the_moments_of_other_rows_of_their_members_training_part(make_data, make_settings, train):
    settings, members = make_settings(exchange_groups=0.7), [Member(0, (0,)), Member(3, (1, 2))]
    (lockstep, _), (again, _) = (train(with_groups(make_data(60)), settings, members, epochs) for epochs in (0, 1))
    shares = []
    for step in range(30):
        rows, others = lockstep._batch_rows(step)
        # What a resumed run draws depends on the step alone.
        np.testing.assert_array_equal(again._batch_rows(step), (rows, others))
        for member, own in zip(members, others, strict=True):
            assert not np.isin(lockstep.store.folds[own], member.held_out).any()
        shares.append((rows != others).mean())
    assert np.mean(shares) == pytest.approx(0.7, abs=0.06)
    assert train(make_data(20), make_settings(), members[:1], 0)[0]._batch_rows(0)[1] is None
    with pytest.raises(ValueError, match="exchange_groups needs a group for every labelled clip: a column `group`"):
        train(make_data(20), settings, members[:1], 0)


def test_warm_up_then_constant_or_cosine(make_data, make_settings, train):
    options = {"batch_size": 10, "learning_rate": 0.1, "num_epochs": 4}
    constant, _ = train(make_data(40), make_settings(**options), [Member(0, ())], 0)
    assert [constant._learning_rate(step) for step in (0, 1, 3, 4, 15)] == pytest.approx([0.025, 0.05, 0.1, 0.1, 0.1])
    cosine, _ = train(make_data(40), make_settings(**options, schedule="cosine"), [Member(0, ())], 0)
    expected = [0.05, 0.05 * (1 - np.sqrt(0.5)), 0, 0]
    assert [cosine._learning_rate(step) for step in (8, 12, 16, 20)] == pytest.approx(expected)


def test_the_learning_rate_and_weight_decay_are_those_of_the_step(make_data, make_settings, train):
    """Without gradients that matter AdamW shrinks matrices by 1 - lr * decay each step, and only them."""
    model = {f"{name}_loss_weight": 0.0 for name in ("presence", "salience", "alignment", "joint")}
    options = {"model": {**model, "gate_balance_weight": 0.0}, "encoder_options": {"voice": {"pooling": "attention"}}}
    settings = make_settings(batch_size=16, learning_rate=0.1, weight_decay=0.5, **options)
    lockstep, _ = train(make_data(64), settings, [Member(0, ())], 0)
    with torch.no_grad():
        for value in lockstep.stacked.stacked:
            value.add_(1)
    old = weights(lockstep, 0)
    lockstep.train_epoch(QUIET)
    new = weights(lockstep, 0)
    changed = {name for name, value in old.items() if not torch.equal(new[name], value)}
    assert changed == {
        *("poolings.0.attention_hidden.weight", "poolings.0.attention_score.weight"),
        *(f"projections.{index}.linear.weight" for index in range(3)),
        *("gate.key.weight", "gate.context.weight", "fusion.linear.weight"),
        *(f"heads.{name}.weight" for name in ("presence", "salience", "interaction")),
    }
    factor = np.prod([1 - rate * 0.5 for rate in (0.025, 0.05, 0.075, 0.1)])
    for name in changed:
        torch.testing.assert_close(new[name], factor * old[name])


def test_members_and_batches_that_cannot_be_trained_are_refused(make_data, make_settings, train, monkeypatch):
    data = make_data(10, num_folds=2)
    with pytest.raises(ValueError, match=r"no labelled rows to train on without folds \(0, 1\)"):
        train(data, make_settings(), [Member(0, (0,)), Member(0, (0, 1))], 0)
    monkeypatch.setattr(Accelerator, "num_processes", 3)
    with pytest.raises(ValueError, match="batch_size 16 is not a multiple of the 3 processes"):
        train(data, make_settings(batch_size=16), [Member(0, ())], 0)


def test_labels_of_the_target_are_never_read(make_data, make_settings, train, with_column):
    settings = make_settings(model={"domain_adaptation": "coral", "domain_adaptation_weight": 2.0})
    source, target = make_data(40), make_data(30, seed=1)
    garbage = with_column(target, "labels", np.tile(source["labels"][:1], (30, 1)))
    garbage = with_column(garbage, "fold", np.arange(30) % 5)
    members = [Member(0, ()), Member(1, (0, 2))]
    found = [train(with_unlabelled(source, rows), settings, members)[0] for rows in (target, garbage)]
    for index in range(2):
        assert_equal_weights(weights(found[0], index), weights(found[1], index))
    plain, _ = train(source, make_settings(), members)
    name = "projections.0.linear.weight"
    assert not torch.allclose(weights(plain, 0)[name], weights(found[0], 0)[name])


def test_unlabelled_rows_alone_join_every_batch_in_equal_number(make_data, make_settings, train):
    settings = make_settings(batch_size=12, unlabelled_batch_size=7, model={"domain_adaptation": "mmd"})
    data = with_unlabelled(make_data(40), make_data(20, seed=1))
    lockstep, _ = train(data, settings, [Member(0, (0,)), Member(3, (0,))], 0)
    rows = lockstep._batch_rows(5)[0]
    assert rows.shape == (2, 19)
    assert (rows[:, :12] < 40).all() and (rows[:, 12:] >= 40).all()
    # Without adaptation the same rows are left out of every batch and of the standardisation.
    plain, _ = train(data, make_settings(batch_size=12), [Member(0, (0,))], 0)
    alone = plain._batch_rows(5)[0]
    assert alone.shape == (1, 12) and alone.max() < 40
    alone, _ = train(make_data(40), make_settings(batch_size=12), [Member(0, (0,))], 0)
    assert_equal_weights(weights(plain, 0), weights(alone, 0))


def test_every_pass_visits_each_row_once_in_an_order_of_its_own_and_stretches_join():
    rows = np.array([3, 4, 8, 11, 20, 21, 40])
    whole = _row_stream(0, 0, rows, 0, 28)
    for start, stop in ((0, 4), (5, 7), (7, 8), (6, 15), (20, 28), (5, 26)):
        np.testing.assert_array_equal(_row_stream(0, 0, rows, start, stop - start), whole[start:stop])
    passes = whole.reshape(4, -1)
    np.testing.assert_array_equal(np.sort(passes, 1), np.broadcast_to(rows, passes.shape))
    orders = [_row_stream(seed, purpose, rows, 0, 7) for seed in (1, 2) for purpose in (0, 1)]
    assert len({tuple(row) for row in [*passes, *orders]}) == 8


@pytest.mark.parametrize("max_grad_norm", [0.0, 0.5])
def test_gradients_are_clipped_member_by_member_or_not(make_data, make_settings, train, monkeypatch, max_grad_norm):
    """One above the limit, one below, one without a gradient."""
    settings = make_settings(max_grad_norm=max_grad_norm)
    lockstep, _ = train(make_data(20), settings, [Member(seed, ()) for seed in range(3)], 0)
    given, found = [], []
    for value in lockstep.stacked.stacked:
        scales = torch.tensor([50.0, 1e-3, 0.0]).view(-1, *[1] * (value.dim() - 1))
        given.append(scales * torch.randn_like(value))

    def backward(loss):
        for value, gradient in zip(lockstep.stacked.stacked, given, strict=True):
            value.grad = gradient.clone()

    monkeypatch.setattr(lockstep.accelerator, "backward", backward)
    monkeypatch.setattr(lockstep.optimizer, "step", lambda: found.append([v.grad for v in lockstep.stacked.stacked]))
    lockstep.train_epoch(QUIET)
    for index in range(3):
        expected = [nn.Parameter(gradient[index]) for gradient in given]
        for parameter in expected:
            parameter.grad = parameter.detach().clone()
        if max_grad_norm:
            nn.utils.clip_grad_norm_(expected, max_grad_norm)
        for value, parameter in zip(found[0], expected, strict=True):
            torch.testing.assert_close(value[index], parameter.grad)


@pytest.mark.parametrize(("broken_after", "step"), [(2, 3), (4, 4)])
def test_a_member_that_diverges_is_named_with_its_step(
    make_data, make_settings, make_store, accelerator, broken_after, step
):
    settings = make_settings(batch_size=16)
    members = [Member(3, ()), Member(5, (0, 2)), Member(5, (1,))]
    lockstep = Lockstep(accelerator, members, make_store(make_data(60), settings), settings)
    assert lockstep.steps_per_epoch == 4 and np.isfinite(lockstep.train_epoch(QUIET)).all()
    taken, take_step = [], lockstep.optimizer.step

    def step_and_break():
        take_step()
        taken.append(1)
        if len(taken) == broken_after:
            with torch.no_grad():
                lockstep.stacked.stacked[0][1] = torch.inf

    lockstep.optimizer.step = step_and_break
    says = rf"seed 5, without fold 0 and 2: the training diverged: .* at step {4 + step} \(epoch 2\)"
    with pytest.raises(ValueError, match=says):
        lockstep.train_epoch(QUIET)
    with pytest.raises(ValueError, match="seed 5, without fold 0 and 2: the probabilities of .* are not finite"):
        lockstep.predict(np.arange(4), [0, 1])
