"""The protocols are what they claim, and an interrupted run ends where an uninterrupted one does."""

import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from hf_blemo import blemore
from hf_blemo.fusion_training import cross_validation
from hf_blemo.fusion_training.cross_validation import _probe_scores, cross_validate, train_on_all
from hf_blemo.fusion_training.lockstep import PREDICTED, Lockstep

NOISY = {"dropout": 0.3, "gate_noise": 0.5, "encoder_dropout": 0.2}


@pytest.fixture
def run(make_store):
    return lambda data, settings, *args, **options: cross_validate(
        Accelerator(), make_store(data, settings), settings, *args, **options
    )


@pytest.fixture
def finish(make_store):
    return lambda data, settings, num_epochs, folder=None: train_on_all(
        Accelerator(), make_store(data, settings), settings, num_epochs, folder
    )


@contextmanager
def interrupted_in(number):
    """Training breaks off in an epoch, counted over all phases from here on, after its weights have changed."""
    epochs, original = iter(range(1, 1000)), Lockstep.train_epoch

    def train_epoch(self, bar):
        losses = original(self, bar)
        if next(epochs) == number:
            raise KeyboardInterrupt
        return losses

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Lockstep, "train_epoch", train_epoch)
        yield


def assert_same_choice(found, expected, tolerance=0.0):
    assert found.epoch == expected.epoch
    assert found.criterion == pytest.approx(expected.criterion, abs=tolerance)
    for part in ("scored", "judging"):
        for name in PREDICTED:
            mine, theirs = getattr(found, part)[name], getattr(expected, part)[name]
            np.testing.assert_allclose(mine, theirs, atol=tolerance, rtol=0)


@pytest.mark.parametrize(
    "changes",
    [
        {"model": NOISY},
        {"selection_metric": "score", "decoding": "thresholds", "model": {"gate": "static"}},
        {"protocol": "published_style"},
    ],
)
def test_labels_of_a_scored_fold_change_its_predictions_in_the_published_style_alone(
    make_data, make_settings, run, with_column, changes
):
    settings = make_settings(learning_rate=3e-2, **changes)
    data = make_data(48, num_folds=4, noise_std=0.6)
    labels, rows = np.asarray(data["labels"]), np.flatnonzero(np.equal(data["fold"], 3))
    labels[rows] = blemore.LABEL_MATRIX[np.random.default_rng(0).integers(0, 36, len(rows))]
    found = [run(clips, settings)[0] for clips in (data, with_column(data, "labels", labels))]
    mine, theirs = (results.choices[0, 3] for results in found)
    by_score, by_thresholds = (
        [
            results.first.decode(results.choices[0, 3].scored, 3, rule, results.choices[0, 3].judging)
            for results in found
        ]
        for rule in ("expected_score", "thresholds")
    )
    if settings.protocol == "published_style":
        assert mine.criterion != theirs.criterion and by_thresholds[0] != by_thresholds[1]
        return
    assert_same_choice(theirs, mine)
    assert by_score[0] == by_score[1] and by_thresholds[0] == by_thresholds[1]
    for fold in range(3):
        one, two = (results.choices[0, fold].scored["probabilities"] for results in found)
        assert np.abs(one - two).max() > 1e-3


def test_static_rankings_are_made_without_the_folds_a_member_does_not_see(
    make_data, make_settings, run, make_store, monkeypatch
):
    settings = make_settings(num_epochs=1, model={"gate": "static"})
    data = make_data(48, num_folds=4)
    given = {}

    class Recorded(Lockstep):
        def __init__(self, accelerator, members, store, settings, static_scores):
            given.update({member.held_out: scores for member, scores in zip(members, static_scores, strict=True)})
            super().__init__(accelerator, members, store, settings, static_scores)

    monkeypatch.setattr(cross_validation, "Lockstep", Recorded)
    run(data, settings)
    store = make_store(data, settings)
    assert len(given) == 4 + 6
    for held_out, scores in given.items():
        assert scores == _probe_scores(store, np.flatnonzero(~np.isin(store.folds, held_out)))


def test_the_ranking_is_ridge_regression_inside_the_rows_that_have_the_encoder(make_data, make_settings, make_store):
    missing = [(row, "voice") for row in range(0, 60, 4)] + [(row, "noise") for row in range(60)]
    store = make_store(make_data(60, num_folds=3, missing=missing), make_settings())
    present = store.present["voice"].numpy()
    values, labels = store.pooled["voice"].double().numpy(), store.labels.double().numpy()
    explained = []
    for fold in (0, 1):
        train, test = present & (store.folds == 1 - fold), present & (store.folds == fold)
        mean, std = values[train].mean(0), values[train].std(0, ddof=1)
        inputs, others = (values[train] - mean) / std, (values[test] - mean) / std
        centre = labels[train].mean(0)
        weights = np.linalg.solve(inputs.T @ inputs + 10.0 * np.eye(4), inputs.T @ (labels[train] - centre))
        residual = labels[test] - centre - others @ weights
        explained.append(1 - (residual**2).sum() / ((labels[test] - centre) ** 2).sum())
    scores = _probe_scores(store, np.flatnonzero(store.folds < 2))
    assert scores["voice"] == pytest.approx(np.mean(explained), abs=1e-5) and scores["noise"] == -1
    store.pooled["voice"][torch.from_numpy(store.folds == 2)] = 1e6
    store.labels[torch.from_numpy(store.folds == 2)] = 0.5
    assert _probe_scores(store, np.flatnonzero(store.folds < 2)) == scores


def test_learning_curves_tell_every_epoch_and_mark_the_chosen_one(make_data, make_settings, run):
    settings = make_settings(seeds=[5, 2], num_epochs=3, learning_rate=3e-2)
    logged = []
    results, rows = run(make_data(36, num_folds=3), settings, log=lambda means, epoch: logged.append((epoch, means)))
    assert {(row["seed"], row["fold"], row["epoch"]) for row in rows} == {
        (seed, fold, epoch) for seed in (2, 5) for fold in range(3) for epoch in (1, 2, 3)
    }
    assert len(rows) == 18
    assert {(row["seed"], row["fold"]): row["epoch"] for row in rows if row["selected"]} == {
        key: choice.epoch for key, choice in results.choices.items()
    }
    for (seed, fold), choice in results.choices.items():
        own = [row["validation_loss"] for row in rows if (row["seed"], row["fold"]) == (seed, fold)]
        assert choice.criterion == min(own) == own[choice.epoch - 1]
    assert [epoch for epoch, _ in logged] == [1, 2, 3]
    losses = [row["validation_loss"] for row in rows if row["epoch"] == 2]
    assert logged[1][1]["validation_loss"] == pytest.approx(np.mean(losses))
    assert [means["train_loss"] for _, means in logged] == sorted((m["train_loss"] for _, m in logged), reverse=True)


def test_groups_of_seeds_find_what_all_together_find(make_data, make_settings, run):
    data = make_data(36, num_folds=3)
    together, _ = run(data, make_settings(seeds=[5, 2, 7]))
    apart, rows = run(data, make_settings(seeds=[5, 2, 7], seeds_at_once=2))
    assert set(apart.choices) == set(together.choices) and len(rows) == 27
    for key, choice in apart.choices.items():
        assert_same_choice(choice, together.choices[key], 2e-5)


def test_patience_ends_a_run_that_no_longer_improves(make_data, make_settings, run):
    # So high a rate that the first epochs are the best.
    settings = make_settings(learning_rate=0.5, num_epochs=40, patience=2)
    results, rows = run(make_data(36, num_folds=3, noise_std=2.0), settings)
    last = max(choice.epoch for choice in results.choices.values())
    assert max(row["epoch"] for row in rows) == last + 2 < 40
    assert results.first.patience == 2


def test_data_without_what_the_run_needs_is_refused(make_data, make_settings, run, with_column):
    data = make_data(20)
    for clips, changes, message in (
        (with_column(data, "fold", [-1 if row == 13 else row % 5 for row in range(20)]), {}, "none for clip_013"),
        (make_data(20, num_folds=1), {"protocol": "published_style"}, "needs at least 2 folds, found 1"),
        (
            with_column(data, "labels", np.full((20, 6), -100.0)),
            {},
            "20 of 20 clips carry no label, for instance clip_000, clip_001",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            run(clips, make_settings(**changes))


@pytest.mark.parametrize("protocol", ["honest", "published_style"])
def test_a_fold_may_have_a_single_clip(make_data, make_settings, run, with_column, protocol):
    data = with_column(make_data(20), "fold", [0, 1, *[2] * 18])
    results, _ = run(data, make_settings(protocol=protocol, seeds=[5], num_epochs=1))
    rows = results.fold_rows("thresholds")
    assert [row["clips"] for row in rows] == [1, 1, 18] and [row["seed"] for row in rows] == [5, 5, 5]


def test_final_models_come_in_the_order_of_the_seeds(make_data, make_settings, finish):
    data = make_data(30)
    both = finish(data, make_settings(seeds=[5, 2]), 2)
    states = [model.state_dict() for model in both]
    for seed, state in zip((5, 2), states, strict=True):
        alone = finish(data, make_settings(seeds=[seed]), 2)[0].state_dict()
        for name, value in state.items():
            torch.testing.assert_close(value, alone[name], atol=2e-6, rtol=0)
    assert not any(model.training for model in both)
    assert not torch.allclose(states[0]["fusion.linear.weight"], states[1]["fusion.linear.weight"])


def test_an_interrupted_second_group_of_seeds_goes_on_to_the_same_end(make_data, make_settings, run, tmp_path):
    changes = {"seeds": [3, 1], "num_epochs": 5, "seeds_at_once": 1, "model": NOISY}
    data = make_data(36, num_folds=3)
    expected, expected_rows = run(data, make_settings(**changes))
    with interrupted_in(8), pytest.raises(KeyboardInterrupt):
        run(data, make_settings(checkpoint_every=2, **changes), tmp_path)
    for folder in tmp_path.iterdir():
        (folder / "partial_00004").mkdir()
        (folder / "partial_00004" / "optimizer.bin").write_bytes(b"half a fil")
    found, rows = run(data, make_settings(checkpoint_every=2, resume=True, **changes), tmp_path)
    assert rows == expected_rows
    assert set(found.choices) == set(expected.choices)
    for key, choice in found.choices.items():
        assert_same_choice(choice, expected.choices[key])


def _cut(path):
    path.write_bytes(path.read_bytes()[:-5])


def _changed(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "optimizer.bin": (_cut, "optimizer.bin has"),
    "model.safetensors": (_changed, "model.safetensors has other content"),
    "random_states_0.pkl": (Path.unlink, "random_states_0.pkl is missing"),
    "cross_validation.json": (Path.unlink, "cross_validation.json is missing"),
    "manifest.json": (_cut, "manifest.json is damaged"),
}


def test_of_half_copied_checkpoints_the_newest_whole_one_is_resumed(make_data, make_settings, run, tmp_path, caplog):
    """The same end whichever file is damaged; copies that somebody made are no checkpoints."""
    settings = make_settings(num_epochs=4, checkpoint_every=1, model=NOISY)
    data, whole = make_data(36, num_folds=3), tmp_path / "whole"
    expected, expected_rows = run(data, settings, whole)
    [phase] = whole.iterdir()
    for name in ("epoch_00003 (copy)", "epoch_4", "epoch_", "epoch_00009.tmp"):
        (phase / name).mkdir()
    for name, (damage, message) in DAMAGES.items():
        folder = shutil.copytree(whole, tmp_path / name)
        damage(folder / phase.name / "epoch_00004" / name)
        caplog.clear()
        found, rows = run(data, replace(settings, resume=True), folder)
        [line] = [record.getMessage() for record in caplog.records if "resuming" in record.getMessage()]
        assert "epoch_00004 is not whole: " + message in line and line.endswith("resuming from epoch_00003")
        assert rows == expected_rows
        for key, choice in found.choices.items():
            assert_same_choice(choice, expected.choices[key])
    for name in ("epoch_00003", "epoch_00004"):
        (phase / name / "manifest.json").unlink()
    with pytest.raises(ValueError, match="epoch_00004 is not whole: it has no manifest.json; no other is"):
        run(data, replace(settings, resume=True), whole)


def test_a_shorter_training_does_not_resume_from_beyond_its_end(make_data, make_settings, finish, tmp_path):
    """Checkpoints are kept two at a time; of those, only one of the shorter training's epochs is of use to it."""
    data = make_data(36)
    expected = finish(data, make_settings(), 4, tmp_path)
    assert list(tmp_path.iterdir()) == []
    finish(data, make_settings(checkpoint_every=2), 5, tmp_path)
    assert sorted(path.name for path in (tmp_path / "final").iterdir()) == ["epoch_00004", "epoch_00005"]
    with interrupted_in(1):
        found = finish(data, make_settings(checkpoint_every=2, resume=True), 4, tmp_path)
    for name, value in found[0].state_dict().items():
        assert torch.equal(value, expected[0].state_dict()[name]), name


def test_a_finished_run_is_resumed_without_training(make_data, make_settings, run, finish, tmp_path):
    settings = make_settings(checkpoint_every=3, num_epochs=4, patience=1, learning_rate=0.5)
    data = make_data(36, num_folds=3, noise_std=2.0)
    expected, expected_rows = run(data, settings, tmp_path)
    models = finish(data, settings, 2, tmp_path)
    settings = replace(settings, resume=True)
    with interrupted_in(1):
        found, rows = run(data, settings, tmp_path)
        again = finish(data, settings, 2, tmp_path)
    assert rows == expected_rows
    assert_same_choice(found.choices[0, 1], expected.choices[0, 1])
    assert torch.equal(again[0].state_dict()["heads.joint_bias"], models[0].state_dict()["heads.joint_bias"])
