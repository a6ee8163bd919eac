"""`training/ablate_encoders.py`: one row per set of encoders, from clips on, kept when a run goes on."""

import pytest
import yaml
from command_line import run_training

from hf_blemo.fusion_training.encoder_ablation import ablate_encoders
from hf_blemo.fusion_training.settings import EncoderAblationSettings
from hf_blemo.programs.settings import read_settings


@pytest.fixture(scope="module")
def config(tmp_path_factory, entries):
    folder = tmp_path_factory.mktemp("ablation")
    settings = {
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


def test_rows_are_measured_and_kept(config, fresh_accelerate_state):
    output = config.parent / "out"
    first = ablated(config, "--sets", "{picture: [student]}")
    [row] = first["rows"]
    assert first["clips"] == 40 and row["name"] == "picture" and row["encoders"] == ["student"]
    assert 0 < row["expected_score"]["acc_presence"]["mean"] < 1 and row["loss"]["std"] > 0
    assert row["milliseconds"] > 0 and row["real_time"] > 0 and row["parameters"] > 1000
    with pytest.raises(ValueError, match="sets"):
        ablated(config)
    (output / "encoders.json").unlink()
    both = ablated(config)
    # The same seeds and folds, and features that were not made again.
    assert both["rows"][0]["expected_score"] == row["expected_score"]
    assert both["rows"][1]["parameters"] > row["parameters"]
    assert len((output / "encoders.md").read_text().splitlines()) == 2 + 2
    modified = (output / "encoders.json").read_text()
    assert ablated(config) == both and (output / "encoders.json").read_text() == modified


def test_the_program_prints_the_table_that_is_done(config, monkeypatch, capsys, fresh_accelerate_state):
    run_training(monkeypatch, "ablate_encoders.py", "--config", config)
    assert (config.parent / "out" / "encoders.md").read_text() in capsys.readouterr().out


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
