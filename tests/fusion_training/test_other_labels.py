"""Whole runs on labels that are not BlEmoRE's, and what such data must have."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from hf_blemo.fusion_training import run as run_module
from hf_blemo.fusion_training.feature_store import FeatureStore
from hf_blemo.fusion_training.results import results_table
from hf_blemo.fusion_training.run import train_fusion
from hf_blemo.prediction.fusion import load_fusion
from hf_blemo.rank_aware_fusion.label_space_rank_aware_fusion import LabelSpace

SINGLE = LabelSpace(["red", "green", "blue", "grey"])
BLENDS = LabelSpace(["a", "b", "c"], [[60, 40], [40, 60]], ["c"])


@pytest.mark.parametrize(("space", "kind"), [(SINGLE, "valid"), (SINGLE, "soft"), (BLENDS, "valid")])
def test_a_run_speaks_of_the_names_of_its_data(make_data, make_settings, tmp_path, monkeypatch, space, kind):
    monkeypatch.setattr("hf_blemo.fusion_training.plots.save", lambda figure, path: path)
    data = make_data(40, num_folds=3, space=space, kind=kind)
    if kind == "soft":
        data = data.add_column("group", [f"person {fold}" for fold in data["fold"]])
    data.save_to_disk(str(tmp_path / "data"))
    make_data(8, seed=1, space=space, kind=kind).save_to_disk(str(tmp_path / "test"))
    paths = {"data": str(tmp_path / "data"), "test_data": str(tmp_path / "test"), "output_dir": str(tmp_path / "out")}
    metrics = train_fusion(make_settings(num_epochs=12, learning_rate=3e-2, **paths))
    assert metrics["data"]["groups"] == (3 if kind == "soft" else None)
    model, processor = load_fusion(tmp_path / "out")
    assert model.config.label_space == space == processor.label_space
    assert processor.label_kind == kind and processor.decoding == metrics["decoding"]
    assert metrics["decoding"] == ("soft" if kind == "soft" else "expected_score")
    assert list(metrics["summary"]) == metrics["measures"] and set(metrics["measures"]) < set(metrics["test"])
    assert all(name in results_table(metrics) for name in metrics["measures"])
    assert processor.blend_share == pytest.approx(space.is_blend[space.nearest(np.asarray(data["labels"]))].mean())
    assert ("thresholds" in metrics["alternatives"]) == bool(space.blend_percents)
    content = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert list(content["predictions"]) == list(content["shares"]) == data["clip"]
    shares = [list(row.values()) for row in content["shares"].values()]
    assert set(next(iter(content["shares"].values()))) == set(space.names)
    np.testing.assert_allclose(np.sum(shares, 1), 1, atol=1e-5)
    assert metrics["summary"]["accuracy"]["mean"] > 1.1 / len(space.names)
    history = json.loads((tmp_path / "out" / "history.json").read_text())
    chosen = "validation_kl" if kind == "soft" else "validation_loss"
    for row in history:
        if row["selected"]:
            alike = [other[chosen] for other in history if other["fold"] == row["fold"]]
            assert row[chosen] == min(alike)


def test_names_of_one_fold_alone_and_test_data_of_other_names_are_refused(
    make_data, make_settings, with_column, tmp_path
):
    data, labels = make_data(30, num_folds=3, space=SINGLE), np.eye(4)[np.arange(30) // 3 % 3]
    data.save_to_disk(str(tmp_path / "data"))
    labels[4] = [0, 0, 0, 1]
    with_column(data, "labels", labels).save_to_disk(str(tmp_path / "alone"))
    make_data(6, space=BLENDS).save_to_disk(str(tmp_path / "other"))
    for changes, message in (
        ({"test_data": "other"}, "test_data: the names differ: the data has 3 names .*a, b, c.*the model has 4 names"),
        ({"data": "alone"}, "found the class 'grey' in fold 1 only"),
    ):
        paths = {key: str(tmp_path / value) for key, value in {"data": "data", "output_dir": "out", **changes}.items()}
        with pytest.raises(ValueError, match=message):
            train_fusion(make_settings(**paths))
        assert not (tmp_path / "out").exists()


def test_test_clips_without_labels_are_predicted_whatever_their_labels_would_be(make_data, make_store, make_settings):
    config = make_store(make_data(6, space=SINGLE), make_settings()).config
    for clips in (make_data(5).remove_columns("labels"), make_data(5).map(lambda row: {"labels": [-100.0] * 6})):
        assert not FeatureStore(clips, config, progress=False).labelled.any()
    soft = make_data(5, space=SINGLE, kind="soft")
    with pytest.raises(ValueError, match="the data has soft labels, but model.label_kind is 'valid'"):
        FeatureStore(soft, config, progress=False)


def test_a_run_of_other_labels_is_not_resumed(make_data, make_settings, tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "plot_cross_validation", lambda *arguments: None)
    settings = make_settings(
        data=str(tmp_path / "data"),
        output_dir=str(tmp_path / "out"),
        num_epochs=1,
        checkpoint_every=1,
        protocol="none",
    )
    make_data(9, space=SINGLE).save_to_disk(settings.data)
    train_fusion(settings)
    make_data(9, space=BLENDS).save_to_disk(str(tmp_path / "other"))
    (tmp_path / "data").rename(tmp_path / "before")
    (tmp_path / "other").rename(tmp_path / "data")
    with pytest.raises(ValueError, match="resume: labels is '3 names .*was '4 names"):
        train_fusion(make_settings(**{**asdict(settings), "resume": True}))
