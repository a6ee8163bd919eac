"""`training/ablate_encoders.py`: one row per set of encoders, from clips on, kept when a run goes on."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from command_line import run_training
from safetensors.torch import load_file, save_file

from hf_blemo.encoders.loading import load_encoders
from hf_blemo.fusion_training import encoder_ablation
from hf_blemo.fusion_training.encoder_ablation import ablate_encoders
from hf_blemo.fusion_training.settings import EncoderAblationSettings
from hf_blemo.programs.settings import read_settings


@pytest.fixture(scope="module")
def config(tmp_path_factory, entries):
    folder = tmp_path_factory.mktemp("ablation")
    settings = {
        "data": "synthetic",
        "synthetic": {"num_clips": 40, "num_actors": 5, "seconds": [1.0, 1.2]},
        "output_dir": str(folder / "out"),
        "encoders": entries,
        "sets": {"picture": ["student"], "both": ["student", "hubert"]},
        "fusion": {"num_epochs": 2, "model": {"top_n": 2, "hidden_size": 8}},
        "seeds": [0, 1],
        "timed_clips": 2,
        "timing_rounds": 1,
        "dtype": "bfloat16",
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return path


def ablated(config, *options):
    settings = read_settings(EncoderAblationSettings, ["--config", str(config), *options])
    return ablate_encoders(settings)


def test_rows_are_measured_and_kept(config, fresh_accelerate_state, monkeypatch):
    output = config.parent / "out"
    first = ablated(config, "--sets", "{picture: [student]}")
    [row] = first["rows"]
    assert first["clips"] == 40 and row["name"] == "picture" and row["encoders"] == ["student"]
    assert 0 < row["expected_score"]["acc_presence"]["mean"] < 1 and row["loss"]["std"] > 0
    assert row["milliseconds"] > 0 and row["real_time"] > 0 and row["parameters"] > 1000
    with pytest.raises(ValueError, match="sets"):
        ablated(config)
    (output / "encoders.json").unlink()
    with pytest.raises(FileExistsError, match="features: found features, but no encoders.json beside them"):
        ablated(config)
    both = ablated(config, "--overwrite", "true")
    # The same clips, encoders, seeds and folds.
    assert both["rows"][0]["expected_score"] == row["expected_score"]
    assert both["rows"][1]["parameters"] > row["parameters"]
    assert len((output / "encoders.md").read_text().splitlines()) == 2 + 2
    modified = (output / "encoders.json").read_text()
    again = ablated(config)
    assert again["rows"] == both["rows"] and json.loads(modified)["rows"] == both["rows"]
    # Other weights under the same name.
    student = Path(yaml.safe_load(config.read_text())["encoders"]["student"]["model_id"])
    other = shutil.copytree(student, output.with_name("student"))
    weights = load_file(other / "model.safetensors")
    save_file({name: value + 1 for name, value in weights.items()}, other / "model.safetensors", {"format": "pt"})
    monkeypatch.setattr(
        encoder_ablation,
        "load_encoders",
        lambda found, **more: load_encoders(
            {**found, "student": {**found["student"], "model_id": str(other)}}, **more
        ),
    )
    with pytest.raises(
        ValueError, match="the weights of encoder 'student' changed since the run in .*, under the sam"
    ):
        ablated(config)


def test_the_program_prints_the_table_that_is_done(config, monkeypatch, capsys, fresh_accelerate_state):
    run_training(monkeypatch, "ablate_encoders.py", "--config", config)
    assert (config.parent / "out" / "encoders.md").read_text() in capsys.readouterr().out


def test_a_fusion_that_cannot_be_trained_is_refused_before_anything_is_written(config, tmp_path):
    output = tmp_path / "out"
    with pytest.raises(ValueError, match="protocol 'none' scores nothing"):
        ablated(config, "--fusion.protocol", "none", "--output_dir", str(output))
    assert not output.exists()


def test_bad_settings_are_refused(config):
    arguments = ["--config", str(config)]
    for options, message in (
        (["--sets", "{picture: [gone]}"], "sets.picture: found 'gone'"),
        (["--sets", "{picture: []}"], "sets.picture: found None"),
        (["--sets", "{}"], "sets: expected at least one"),
        (["--fusion.num_epoch", "2"], "fusion: unknown setting 'num_epoch'; the nearest known one is 'num_epochs'"),
        (["--timed_clips", "0"], "--timed_clips: expected at least 1"),
        (["--dtype", "int8"], "--dtype: found 'int8', expected float32"),
    ):
        with pytest.raises(ValueError, match=message.replace("'", ".")):
            read_settings(EncoderAblationSettings, [*arguments, *options])
