"""The program as its users start it: what it prints, what it writes, and how it refuses."""

import json
from pathlib import Path

import pytest

from hf_blemo.fusion_training import run as run_module
from hf_blemo.fusion_training.settings import FusionSettings
from hf_blemo.programs.settings import read_settings
from hf_blemo.rank_aware_fusion.configuration_rank_aware_fusion import RankAwareFusionConfig

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "training" / "configs").glob("fusion_*.yaml"))
QUICK = ("--seeds", 0, "--num_epochs", 1, "--model.hidden_size", 8)


def test_a_run_prints_its_table_and_where_it_wrote(program, table, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run_module, "plot_cross_validation", lambda *arguments: None)
    output = tmp_path / "output"
    config = next(path for path in CONFIGS if path.name == "fusion_synthetic.yaml")
    program("train_fusion.py", "--config", config, "--data", table, "--output_dir", output, *QUICK)
    metrics = json.loads((output / "metrics.json").read_text())
    printed = capsys.readouterr().out
    score = metrics["summary"]["score"]
    assert f"{score['mean']:.4f} ± {score['std']:.4f}" in printed
    assert printed.splitlines()[-1].endswith(str(output))
    assert metrics["config"]["model"]["hidden_size"] == 8 and metrics["config"]["batch_size"] == 64
    assert metrics["command"].startswith("python ") and "--num_epochs 1" in metrics["command"]
    assert len(json.loads((output / "predictions.json").read_text())["predictions"]) == 36


BAD = {
    "unknown key": (["--learning_rat", "1"], "unknown setting .*learning_rate"),
    "bad value": (["--protocol", "fair"], "--protocol: found 'fair', expected honest"),
    "bad type": (["--num_epochs", "many"], "expected int"),
    "unknown config": (["--config", "gone.yaml"], "gone.yaml: no such file"),
    "unknown encoder": (["--encoders", "voice", "clip"], "unknown encoder 'clip': the data has voice, face"),
    "unknown data": (["--data", "gone"], "'gone': not a file, folder or Hub id"),
    "unknown model setting": (["--model.top", "1"], "model: unknown setting 'top'; the nearest known one is 'top_n'"),
    "bad model value": (["--model.top_n", "0"], "top_n must be at least 1"),
    "bad model type": (["--model.gate", "hard"], "gate"),
    "too few folds": (["--data", "{table}"], "needs a fold for every labelled clip"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_ends_with_one_line_and_code_two(program, table, tmp_path, capfd, arguments, message):
    import re

    import numpy as np

    arrays = dict(np.load(table, allow_pickle=False))
    del arrays["fold"]
    np.savez(tmp_path / "no_folds.npz", **arrays)
    output = tmp_path / "output"
    output.mkdir()
    (output / "metrics.json").write_text("mine")
    arguments = [value.format(table=tmp_path / "no_folds.npz") for value in arguments]
    with pytest.raises(SystemExit) as end:
        program("train_fusion.py", "--data", table, "--output_dir", output, *QUICK, *arguments)
    assert end.value.code == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if "error" in line]
    assert len(errors) == 1 and errors[0].startswith("train_fusion.py: error: ")
    assert re.search(message, errors[0]), errors[0]
    assert [path.name for path in output.iterdir()] == ["metrics.json"]
    assert (output / "metrics.json").read_text() == "mine"


def test_help_lists_every_setting_with_its_line(program, capsys):
    with pytest.raises(SystemExit) as end:
        program("train_fusion.py", "--help")
    assert end.value.code == 0
    printed = capsys.readouterr().out
    for name in FusionSettings.__dataclass_fields__:
        position = printed.index(f"  --{name}  ")
        assert printed[position:].split("\n")[1].startswith("      "), name


@pytest.mark.parametrize("path", CONFIGS, ids=[path.stem for path in CONFIGS])
def test_shipped_configs_are_valid(path):
    settings = read_settings(FusionSettings, ["--config", str(path)])
    encoders = {name: {"feature_size": 6} for name in "abcd"}
    config = RankAwareFusionConfig(encoders=encoders, **settings.model)
    assert config.top_n < 4 and settings.protocol == "honest" and len(settings.seeds) >= 3
    assert set(settings.model) <= set(RankAwareFusionConfig.__annotations__)


def test_these_configs_are_shipped():
    assert [path.stem for path in CONFIGS] == ["fusion_blemore", "fusion_clips", "fusion_synthetic", "fusion_table"]
