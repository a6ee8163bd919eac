"""Whole runs: every file that is promised, numbers that agree with each other, and nothing touched on bad input."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from fresh_processes import run_python
from transformers import AutoModel, AutoProcessor

from hf_blemo import blemore, feature_sets
from hf_blemo.fusion_training import run as run_module
from hf_blemo.fusion_training.judging import Judge
from hf_blemo.fusion_training.results import results_table
from hf_blemo.fusion_training.run import train_fusion
from hf_blemo.prediction.fusion import load_fusion, predict_blends

PLOTS = {"confusion.png", "gate_weights.png", "learning_curves.png", "thresholds.png"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_data):
    """Data sets of this file."""
    folder = tmp_path_factory.mktemp("runs")
    make_data(48, num_folds=3).save_to_disk(str(folder / "data"))
    make_data(20, seed=1).save_to_disk(str(folder / "test"))
    return folder


@pytest.fixture
def settings_for(folder, make_settings, tmp_path):
    def make(**changes):
        defaults = {"data": str(folder / "data"), "output_dir": str(tmp_path / "output"), "learning_rate": 3e-2}
        return make_settings(**{**defaults, **changes})

    return make


@pytest.fixture(scope="module")
def found_results():
    """The results of the cross-validation of `trained`, once it is made."""
    return []


@pytest.fixture(scope="module")
def trained(folder, make_settings, found_results):
    """One honest run of two seeds, whose order is not that of their numbers, with plots, tracker and test data."""
    output, original = folder / "output", run_module.cross_validate

    def cross_validate(*arguments):
        found = original(*arguments)
        found_results.append(found[0])
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        patch.setattr(run_module, "cross_validate", cross_validate)
        paths = {"data": str(folder / "data"), "output_dir": str(output), "test_data": str(folder / "test")}
        options = {"decoding": "thresholds", "trackers": ["tensorboard"], "checkpoint_every": 2}
        settings = make_settings(seeds=[4, 1], learning_rate=3e-2, **paths, **options)
        metrics = train_fusion(settings, command="accelerate launch training/train_fusion.py")
    return output, metrics


def read(path):
    return json.loads(path.read_text())


def test_every_promised_file_is_there(trained):
    output, metrics = trained
    for folder in (output, output / "seed_1"):
        names = {path.name for path in folder.iterdir()}
        assert {"config.json", "model.safetensors", "processor_config.json", "modeling_rank_aware_fusion.py"} <= names
    files = {"metrics.json", "README.md", "predictions.json", "history.json", "test_predictions.json"}
    assert files <= {path.name for path in output.iterdir()}
    assert {path.name for path in (output / "plots").iterdir()} == PLOTS
    kept = {path.name for path in (output / "checkpoints").iterdir()}
    assert kept == {"cross_validation_seed_4", "final", "settings.json"}
    assert not list(output.rglob("*.partial")) and not (output / "seed_4").exists()
    assert read(output / "metrics.json") == json.loads(json.dumps(metrics))


def test_the_tracker_was_told(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    output, _ = trained
    [events] = (output / "hf_blemo-fusion").glob("events.out.tfevents.*")
    found = EventAccumulator(str(events)).Reload()
    scalars = {name: found.Scalars(name) for name in ("train_loss", "validation_loss", "validation_score")}
    assert [event.step for event in scalars["validation_loss"]] == [1, 2, 3]
    history = read(output / "history.json")
    for event in scalars["validation_loss"]:
        losses = [row["validation_loss"] for row in history if row["epoch"] == event.step]
        assert event.value == pytest.approx(np.mean(losses), abs=1e-5)


def test_metrics_agree_with_predictions_and_history(trained, folder):
    output, metrics = trained
    data = feature_sets.load_features(folder / "data")
    labels, folds = np.asarray(data["labels"]), np.asarray(data["fold"])
    predictions = read(output / "predictions.json")["predictions"]
    assert list(predictions) == data["clip"]
    scores = [
        blemore.score([predictions[data["clip"][row]] for row in rows], labels[rows])
        for rows in (np.flatnonzero(folds == fold) for fold in range(3))
    ]
    assert metrics["ensemble"]["score"]["mean"] == pytest.approx(np.mean(scores))
    assert metrics["ensemble"]["score"]["std"] == pytest.approx(np.std(scores, ddof=1))

    rows = metrics["folds"]
    assert {(row["seed"], row["fold"]) for row in rows} == {(seed, fold) for seed in (1, 4) for fold in range(3)}
    assert sum(row["clips"] for row in rows) == 2 * 48
    for name in ("acc_presence", "acc_salience", "score"):
        values = np.array([[row[name] for row in rows if row["seed"] == seed] for seed in (1, 4)])
        assert metrics["summary"][name] == pytest.approx({"mean": values.mean(), "std": values.std(ddof=1)})
        assert metrics["over_seeds"][name] == pytest.approx({"mean": values.mean(), "std": values.mean(1).std(ddof=1)})
        assert metrics["alternatives"]["thresholds"][name] == metrics["summary"][name]
    for row in rows:
        assert row["score"] == pytest.approx((row["acc_presence"] + row["acc_salience"]) / 2)
        chosen = [entry for entry in read(output / "history.json") if entry["selected"]]
        assert row["epoch"] in {e["epoch"] for e in chosen if (e["seed"], e["fold"]) == (row["seed"], row["fold"])}
    assert metrics["final_epochs"] == round(np.mean([row["epoch"] for row in rows]))
    assert metrics["data"]["clips"] == 48 and metrics["data"]["folds"] == [0, 1, 2]
    assert metrics["data"]["blend_share"] == pytest.approx(((labels > 0).sum(1) == 2).mean())
    weights = [encoder["mean_weight"] for encoder in metrics["encoders"].values()]
    selected = [encoder["selected"] for encoder in metrics["encoders"].values()]
    assert sum(weights) == pytest.approx(1) and sum(selected) == pytest.approx(2)


def test_the_folder_loads_as_any_model_of_the_hub_does(trained, folder):
    output, metrics = trained
    model, processor = AutoModel.from_pretrained(output), AutoProcessor.from_pretrained(output)
    assert model.num_parameters() == metrics["num_parameters"]
    data = feature_sets.load_features(folder / "test")
    with torch.no_grad():
        blends = processor.post_process_blends(model(**processor(feature_sets.read_features(data))))
    assert blends == [found["blend"] for found in predict_blends([load_fusion(output)], data)]
    assert processor.decoding == "thresholds"
    other = load_fusion(output / "seed_1")[0]
    assert not torch.allclose(other.heads.joint_bias, model.heads.joint_bias)


def test_thresholds_of_the_saved_models_are_those_of_their_own_seed(trained, found_results, folder):
    """Fitted on all out-of-fold predictions of the seed."""
    labels = np.asarray(feature_sets.load_features(folder / "data")["labels"])
    for seed, where in ((4, trained[0]), (1, trained[0] / "seed_1")):
        fitted = blemore.fit_thresholds(found_results[0].pooled([seed])["probabilities"], labels)
        processor = load_fusion(where)[1]
        assert (processor.alpha, processor.beta) == (fitted.alpha, fitted.beta)


def test_test_data_are_predicted_by_the_mean_of_the_seeds_and_scored(trained, folder):
    output, metrics = trained
    data = feature_sets.load_features(folder / "test")
    members = [load_fusion(output), load_fusion(output / "seed_1")]
    expected = [found["blend"] for found in predict_blends(members, data)]
    predictions = read(output / "test_predictions.json")["predictions"]
    assert list(predictions) == data["clip"] and list(predictions.values()) == expected
    scores = Judge().shown(Judge().measure(expected, np.asarray(data["labels"]), {}))
    assert metrics["test"] == {"source": str(folder / "test"), "clips": 20, **scores}
    table = results_table(metrics)
    for part in (metrics["summary"], metrics["over_seeds"], metrics["ensemble"]):
        assert f"{part['score']['mean']:.4f} ± {part['score']['std']:.4f}" in table
    assert f"{metrics['alternatives']['expected_score']['score']['mean']:.4f}" in table
    assert f"{metrics['test']['score']:.4f}" in table
    assert len({len(line) for line in table.splitlines()}) == 1


def test_without_a_protocol_nothing_is_scored_and_test_clips_are_read_once(
    settings_for, make_data, with_column, tmp_path, monkeypatch
):
    test = make_data(6, seed=1)
    with_column(test, "labels", np.full((6, 6), -100.0)).save_to_disk(str(tmp_path / "test"))
    num_read, original = [], feature_sets.read_features

    def counted(dataset, rows=None):
        found = original(dataset, rows)
        num_read.extend([len(dataset)] * len(found))
        return found

    monkeypatch.setattr(feature_sets, "read_features", counted)
    settings = settings_for(protocol="none", num_epochs=2, seeds=[5], test_data=str(tmp_path / "test"))
    metrics, output = train_fusion(settings), tmp_path / "output"
    assert (num_read.count(6), num_read.count(48)) == (6, 48)
    assert metrics["test"] == {"source": settings.test_data, "clips": 6}
    assert len(read(output / "test_predictions.json")["predictions"]) == 6
    assert metrics["summary"] == {} and metrics["final_epochs"] == 2 and metrics["data"]["folds"] == []
    assert read(output / "history.json") == []
    assert not (output / "predictions.json").exists() and not (output / "plots").exists()
    assert load_fusion(output)[1].blend_share == pytest.approx(metrics["data"]["blend_share"])
    assert results_table(metrics) == "Trained on all clips; nothing was scored."


@pytest.mark.parametrize(
    ("changes", "unlabelled"),
    [
        ({"encoders": ["noise", "voice"], "model": {"gate": "static", "top_n": 1}, "align_folds": True}, 0),
        (
            {
                "protocol": "published_style",
                "pooling": "attention",
                "encoder_options": {"noise": {"pooling": "statistics"}},
                "model": {"domain_adaptation": "adversarial"},
            },
            20,
        ),
    ],
)
def test_other_kinds_of_runs_leave_a_model_that_predicts(
    settings_for, folder, tmp_path, monkeypatch, changes, unlabelled
):
    monkeypatch.setattr(run_module, "plot_cross_validation", lambda *arguments: None)
    target = str(folder / "test") if unlabelled else None
    metrics = train_fusion(settings_for(num_epochs=2, unlabelled_data=target, **changes))
    assert metrics["protocol"] == changes.get("protocol", "honest")
    assert metrics["ensemble"] is None and metrics["seeds"] == [0]
    assert metrics["data"]["unlabelled_clips"] == unlabelled
    assert list(metrics["encoders"]) == changes.get("encoders", ["voice", "face", "noise"])
    member = load_fusion(tmp_path / "output")
    found = predict_blends([member], feature_sets.load_features(folder / "test"))
    assert np.ptp([list(clip["probabilities"].values()) for clip in found], axis=0).max() > 1e-3
    predictions = read(tmp_path / "output" / "predictions.json")["predictions"]
    data = feature_sets.load_features(folder / "data")
    assert list(predictions) == data["clip"]
    overall = blemore.score(list(predictions.values()), np.asarray(data["labels"]))
    # All folds are of one size, but not of one number of blends: the mean over folds is near the score of all.
    assert metrics["summary"]["score"]["mean"] == pytest.approx(overall, abs=0.05)


def test_a_run_killed_in_both_phases_ends_bit_for_bit_as_one_left_alone(settings_for, tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "plot_cross_validation", lambda *arguments: None)
    noise = {"dropout": 0.3, "gate_noise": 0.5, "encoder_dropout": 0.2}
    changes = {"seeds": [2, 0], "num_epochs": 8, "learning_rate": 1e-3, "schedule": "cosine", "model": noise}
    alone = train_fusion(settings_for(**changes, output_dir=str(tmp_path / "alone")))
    changes["checkpoint_every"] = 1
    program = Path(__file__).with_name("killed_runs.py")
    killed = run_python([program, json.dumps(vars(settings_for(**changes)))], cwd=tmp_path)
    assert killed.returncode == 0, killed.stderr[-4000:]
    output = tmp_path / "output"
    assert not (output / "metrics.json").exists()
    found = train_fusion(settings_for(**changes, resume=True))
    for name in ("summary", "over_seeds", "ensemble", "alternatives", "folds", "final_epochs", "encoders"):
        assert found[name] == alone[name], name
    assert found["final_epochs"] > 4
    for name in ("model.safetensors", "seed_0/model.safetensors", "predictions.json", "history.json", "config.json"):
        assert (output / name).read_bytes() == (tmp_path / "alone" / name).read_bytes(), name


def test_a_run_is_resumed_with_data_of_the_same_content_alone(
    settings_for, make_data, with_column, with_features, tmp_path
):
    data, path = make_data(12, num_folds=3), tmp_path / "own"
    data.save_to_disk(str(path))
    settings = {"data": str(path), "protocol": "none", "num_epochs": 1, "checkpoint_every": 1}
    train_fusion(settings_for(**settings))
    with pytest.raises(FileExistsError, match="holds an earlier run"):
        train_fusion(settings_for(**settings))
    labels = np.asarray(data["labels"])
    for changed, part in (
        (data.select(range(11)), "clips"),
        (data.select(range(11, -1, -1)), "clips"),
        (with_column(data, "labels", labels[::-1]), "labels"),
        (with_column(data, "fold", [1, *data["fold"][1:]]), "folds"),
        (with_features(data, lambda row, name, steps: steps + (row == 7 and name == "face")), "features"),
    ):
        shutil.rmtree(path)
        changed.save_to_disk(str(path))
        with pytest.raises(ValueError, match=f"resume: the {part} of data changed since the run in "):
            train_fusion(settings_for(**settings, resume=True))
    shutil.rmtree(path)
    data.save_to_disk(str(path))
    train_fusion(settings_for(**settings, resume=True))


REFUSED = [
    ({"data": "two_folds"}, "protocol 'honest' needs at least 3 folds, found 2"),
    ({"test_data": "other"}, "test_data: found the encoders other"),
    ({"test_data": "repeated"}, "test_data: clip 'clip_001' comes more than once"),
    ({"test_data": "damaged"}, "test_data: clip_004, encoder 'voice': expected finite values"),
    ({"unlabelled_data": "other", "model": {"domain_adaptation": "coral"}}, "expected some of voice, face, noise"),
    ({"unlabelled_data": "synthetic"}, "model.domain_adaptation is none"),
    ({"model": {"domain_adaptation": "mmd"}}, "needs unlabelled rows, found none"),
    ({"resume": True, "checkpoint_every": 2}, "resume: (test_data|seeds) is"),
    ({"resume": True}, "resume needs checkpoint_every"),
    ({"align_folds": True, "pooling": "attention"}, "pooled vectors; encoder .voice. has attention pooling"),
    ({"encoder_options": {"voice": {"feature_size": 9}}}, "clip_000, encoder 'voice': expected shape"),
]


def test_what_is_refused_leaves_an_output_as_it_was(settings_for, trained, make_data, with_features, tmp_path):
    made = {
        "two_folds": make_data(20, num_folds=2),
        "other": make_data(6, widths={"other": 3}),
        "repeated": make_data(6).select([0, 1, 2, 1]),
        "damaged": with_features(make_data(6), lambda row, name, steps: steps * (np.nan if row == 4 else 1)),
    }
    for name, data in made.items():
        data.save_to_disk(str(tmp_path / name))
    output = shutil.copytree(trained[0], tmp_path / "output")

    def snapshot():
        return {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}

    before = snapshot()
    for changes, message in REFUSED:
        paths = {key: str(tmp_path / value) for key, value in changes.items() if str(value) in made}
        with pytest.raises(Exception, match=message):
            train_fusion(settings_for(**{"overwrite": "resume" not in changes, **changes, **paths}))
        assert snapshot() == before, message
