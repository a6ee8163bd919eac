"""`training/ablate_encoders.py`: one row per set of encoders, from clips on, kept when a run goes on."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tiny_extraction import save_encoders

from hf_blemo.fusion_training.encoder_ablation import markdown
from hf_blemo.fusion_training.settings import EncoderAblationSettings
from hf_blemo.settings import read_settings

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ablation")
    settings = {
        "synthetic": {"num_clips": 40, "num_actors": 5, "seconds": [1.0, 1.2]},
        "output_dir": str(folder / "out"),
        "encoders": save_encoders(folder / "encoders"),
        "sets": {"picture": ["student"], "both": ["student", "hubert"]},
        "fusion": {"num_epochs": 2, "model": {"top_n": 2, "hidden_size": 8}},
        "seeds": [0, 1],
        "timed_clips": 2,
        "timing_rounds": 1,
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return path


def run(config, *options):
    command = [sys.executable, str(ROOT / "training" / "ablate_encoders.py"), "--config", str(config), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


def test_rows_are_measured_and_kept(config):
    output = config.parent / "out"
    done = run(config, "--sets", "{picture: [student]}")
    assert done.returncode == 0, done.stderr
    first = json.loads((output / "encoders.json").read_text())
    [row] = first["rows"]
    assert first["clips"] == 40 and row["name"] == "picture" and row["encoders"] == ["student"]
    assert 0 < row["expected_score"]["acc_presence"]["mean"] < 1 and row["loss"]["std"] > 0
    assert row["milliseconds"] > 0 and row["real_time"] > 0 and row["parameters"] > 1000
    other = run(config)
    assert other.returncode == 2 and "sets" in other.stderr.splitlines()[-1]
    (output / "encoders.json").unlink()
    done = run(config)
    assert done.returncode == 0, done.stderr
    both = json.loads((output / "encoders.json").read_text())
    # The same seeds and folds, and features that were not made again.
    assert both["rows"][0]["expected_score"] == row["expected_score"]
    assert both["rows"][1]["parameters"] > row["parameters"]
    assert markdown(both) == (output / "encoders.md").read_text() and markdown(both) in done.stdout
    modified = (output / "encoders.json").read_text()
    assert run(config).returncode == 0 and (output / "encoders.json").read_text() == modified


def test_bad_settings_are_refused(config):
    arguments = ["--config", str(config)]
    for options, message in (
        (["--sets", "{picture: [gone]}"], "sets.picture: found 'gone'"),
        (["--sets", "{picture: []}"], "sets.picture: found None"),
        (["--sets", "{}"], "sets: expected at least one"),
        (["--fusion.num_epoch", "2"], "fusion: unknown setting 'num_epoch'; the nearest known one is 'num_epochs'"),
        (["--timed_clips", "0"], "timed_clips must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message.replace("'", ".")):
            read_settings(EncoderAblationSettings, [*arguments, *options])
