"""The program as its users start it: what it prints, what it makes, and how it refuses."""

import re
from pathlib import Path

import datasets
import pytest
from tiny_extraction import BROKEN, CLIPS, make_clips, save_encoders

from hf_blemo.extraction.settings import ExtractionSettings
from hf_blemo.programs.settings import read_settings

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "training" / "configs").glob("extract_*.yaml"))


@pytest.fixture(scope="module")
def entries(tmp_path_factory):
    return save_encoders(tmp_path_factory.mktemp("encoders"))


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return make_clips(tmp_path_factory.mktemp("clips"))


def test_a_run_says_what_it_made_and_what_failed(program, entries, clips, tmp_path, capfd):
    output = tmp_path / "made"
    options = ["--encoders.student.model_id", entries["student"]["model_id"], "--num_threads", 1]
    (tmp_path / "config.yaml").write_text("encoders:\n  student:\n    extraction: {frames_per_second: 5.0}\n")
    program(
        "extract_features.py", "--config", tmp_path / "config.yaml", "--data", clips, "--output_dir", output, *options
    )
    printed = capfd.readouterr()
    assert printed.out.splitlines()[-1] == f"4 clips, 1 failed; student 12: {output}"
    assert [line for line in printed.err.splitlines() if f"{BROKEN}.mp4" in line]
    data = datasets.Dataset.load_from_disk(str(output))
    assert data["clip"][:] == list(CLIPS)
    assert len(data[0]["features"]["student"]) == 5


BAD = {
    "unknown key": (
        ["--encoder.a.model_id", "x"],
        "unknown setting '--encoder'; the nearest known one is '--encoders'",
    ),
    "no encoder": (
        [],
        r"expected encoders \(--encoders.NAME.model_id ID\) or the model that names them, found neither",
    ),
    "both": (["--encoders.a.model_id", "x", "--model", "y"], "found both"),
    "no model": (["--encoders.a.revision", "x"], "encoders.a: expected a model_id"),
    "unknown option": (["--encoders.a.model_id", "x", "--encoders.a.batch", "2"], "encoders.a.*batch"),
    "bad name": (["--encoders", "{a/b: {model_id: x}}"], "encoders: 'a/b' cannot name a folder"),
    "bad dtype": (["--encoders.a.model_id", "x", "--dtype", "int8"], "--dtype: found 'int8', expected float32"),
    "gone encoder": (["--encoders.a.model_id", "gone"], "encoder 'a': gone: not a file, folder or Hub id"),
    "gone data": (["--encoders.a.model_id", "x", "--data", "gone"], "gone: not a file, folder or Hub id"),
    "synthetic": (["--encoders.a.model_id", "x", "--synthetic.num_clips", "3"], "synthetic needs data 'synthetic'"),
    "gone model": (["--model", "gone"], "model 'gone': not a file, folder or Hub id"),
    "imported twice": (["--encoders.a.model_id", "x", "--imported.a", "y"], "imported: encoder 'a' is among the enc"),
    "bad repository": (["--encoders.a.model_id", "x", "--push_to_hub", "mine"], "push_to_hub.*mine"),
    "no good clip": (
        ["--encoders.a.model_id", "{student}", "--data", "{bad}"],
        "could not encode the clip: ",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_ends_with_one_line_and_code_two(program, entries, clips, tmp_path, capfd, arguments, message):
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no clip at all")
    values = {"{student}": entries["student"]["model_id"], "{bad}": bad}
    arguments = [values.get(value, value) for value in arguments]
    with pytest.raises(SystemExit) as end:
        program("extract_features.py", "--data", clips, "--output_dir", tmp_path / "made", *arguments)
    assert end.value.code == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if "error: " in line]
    assert len(errors) == 1 and errors[0].startswith("extract_features.py: error: ")
    assert re.search(message, errors[0]), errors[0]
    assert not (tmp_path / "made").exists()


def test_help_lists_every_setting_with_its_line(program, capsys):
    with pytest.raises(SystemExit) as end:
        program("extract_features.py", "--help")
    assert end.value.code == 0
    printed = capsys.readouterr().out
    for name in ExtractionSettings.__dataclass_fields__:
        position = printed.index(f"  --{name}  ")
        assert printed[position:].split("\n")[1].startswith("      "), name


@pytest.mark.parametrize("path", CONFIGS, ids=[path.stem for path in CONFIGS])
def test_shipped_configs_are_valid(path):
    settings = read_settings(ExtractionSettings, ["--config", str(path)])
    assert settings.encoders or settings.model
