"""Settings: YAML below the command line, every value of the type of its field, errors that name key and place."""

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassFieldValidationError

from hf_blemo.fusion_training.settings import FusionSettings
from hf_blemo.programs.settings import (
    at_least_one,
    different_seeds,
    not_negative,
    parse_settings,
    read_settings,
    repository,
    settings_help,
    settings_of,
)

REPOSITORY = Path(__file__).resolve().parents[2]


@strict
@dataclass
class Base:
    """Settings that others extend.

    Args:
        inherited: a setting of the parent.
    """

    inherited: int = 7


@strict
@dataclass
class Example(Base):
    """Settings of every kind.

    Args:
        learning_rate: of the optimizer; its help takes
            two lines.
        num_epochs, patience: counted in epochs.
        output_dir (str): where results go.

    Source: this project's choice.
    """

    learning_rate: float | int = not_negative(1e-3)
    num_epochs: int = at_least_one(3)
    patience: int = 2
    output_dir: str = "out"
    test_data: str | None = None
    resume: bool = False
    seeds: list[int] = field(default_factory=lambda: [0])
    encoders: list[str] | None = None
    model: dict[str, Any] = field(default_factory=lambda: {"top_n": 3})
    encoder_options: dict[str, dict] = field(default_factory=dict)
    weights: dict[str, float | int] = field(default_factory=dict)
    schedule: Literal["none", "constant", "cosine"] = "none"

    def __post_init__(self):
        if self.schedule == "cosine" and not self.patience:
            raise ValueError("schedule 'cosine' needs patience")


def read(*arguments: str) -> Example:
    return read_settings(Example, arguments)


@pytest.fixture
def config(tmp_path):
    """Writes a file of settings and returns the arguments that name it."""

    def write(text: str) -> list[str]:
        path = tmp_path / "settings.yaml"
        path.write_text(text, encoding="utf-8")
        return ["--config", str(path)]

    return write


def test_defaults_without_arguments_or_from_an_empty_file(config):
    assert read() == Example()
    assert read(*config("# nothing yet\n")) == Example()


def test_command_line_overrides_the_file_wherever_it_names_it(config):
    file = config("num_epochs: 5\nlearning_rate: 1e-4\noutput_dir: from_file\nseeds: [4, 5]\n")
    for arguments in ([*file, "--output_dir", "x"], ["--output-dir=x", *file]):
        settings = read(*arguments)
        assert (settings.num_epochs, settings.output_dir, settings.seeds) == (5, "x", [4, 5])
        assert settings.learning_rate == 1e-4
    assert read("--num_epochs", "4", "--num_epochs", "6").num_epochs == 6


@pytest.mark.parametrize("text", ["1e-4", "'1e-4'", "1.0e-4", "0.0001"])
def test_float_fields_take_every_way_to_write_a_number(config, text):
    assert read(*config(f"learning_rate: {text}")).learning_rate == 1e-4
    assert read("--weights.mmd", text.strip("'")).weights == {"mmd": 1e-4}
    assert read("--model.dropout", text.strip("'")).model["dropout"] == 1e-4


def test_whole_numbers_become_floats_where_the_field_is_one():
    settings = read("--learning_rate", "2", "--weights", "{mmd: 1}")
    assert type(settings.learning_rate) is float and type(settings.weights["mmd"]) is float


@pytest.mark.parametrize(
    "arguments",
    [["--seeds", "0", "1", "-2"], ["--seeds", "[0,1,-2]"], ["--seeds", "[0,", "1,", "-2]"], ["--seeds=[0, 1, -2]"]],
)
def test_lists_of_numbers(arguments):
    assert read(*arguments).seeds == [0, 1, -2]


def test_lists_of_text_stay_text():
    assert read("--encoders", "1e5", "null", "wavlm").encoders == ["1e5", "null", "wavlm"]
    assert read("--encoders", "[face, voice]").encoders == ["face", "voice"]
    assert read("--encoders", "voice").encoders == ["voice"]
    assert read("--encoders", "null").encoders is None
    assert read("--encoders", "[]").encoders == []


def test_text_is_not_read_as_yaml_and_null_empties_only_what_may_be_empty():
    assert read("--output_dir", "2024").output_dir == "2024"
    assert read("--output_dir", "null").output_dir == "null"
    assert read("--output_dir=a=b").output_dir == "a=b"
    assert read("--test_data", "null").test_data is None
    assert read("--test_data", "none").test_data == "none"


def test_a_bool_alone_means_true():
    assert read("--resume", "--num_epochs", "4").resume is True
    assert read("--resume", "true").resume is True
    assert read("--resume=false").resume is False


def test_dotted_keys_set_entries_of_dicts_and_keep_the_others(config):
    settings = read("--model.gate", "static", "--encoder_options.wavlm.pooling", "attention")
    assert settings.model == {"top_n": 3, "gate": "static"}
    assert settings.encoder_options == {"wavlm": {"pooling": "attention"}}
    assert read().model == {"top_n": 3}
    file = config("model: {top_n: 2, hidden_size: 8}\nencoder_options: {wavlm: {modality: audio}}\n")
    settings = read(*file, "--model.top_n", "1", "--encoder-options.wavlm.pooling", "mean", "--model.sizes", "1", "2")
    assert settings.model == {"top_n": 1, "hidden_size": 8, "sizes": [1, 2]}
    assert settings.encoder_options == {"wavlm": {"modality": "audio", "pooling": "mean"}}


def test_a_whole_dict_replaces_the_default():
    assert read("--model", "{gate: static,", "sizes: [1, 2]}").model == {"gate": "static", "sizes": [1, 2]}


ERRORS = {
    "unknown key": (["--lerning-rate", "1"], "command line: unknown setting '--lerning_rate'.*'--learning_rate'"),
    "abbreviation": (["--num", "1"], "unknown setting '--num'; the nearest known one is '--num_epochs'"),
    "no key": (["out"], "found 'out', expected --key value"),
    "no value": (["--num_epochs"], "--num_epochs: found no value, expected int"),
    "two values": (["--num_epochs", "1", "2"], "--num_epochs: found 1 2, expected int"),
    "fraction": (["--num_epochs", "1.5"], "--num_epochs: found 1.5, expected int"),
    "bool for int": (["--num_epochs", "true"], "--num_epochs: found True, expected int"),
    "text for float": (["--learning_rate", "fast"], "--learning_rate: found 'fast', expected float"),
    "not a number": (["--learning_rate", ".nan"], "--learning_rate: found 'not a number', expected float"),
    "number for bool": (["--resume", "2"], "--resume: found 2, expected bool"),
    "element": (["--seeds", "0", "x"], r"--seeds: found \[0, 'x'\], expected list of int"),
    "null": (["--seeds", "[null]"], r"--seeds: found \[None\], expected list of int"),
    "entry of text": (["--output_dir.x", "1"], "output_dir is str, only a dict has entries"),
    "entry of a number": (["--model.top_n.x", "1"], "model.top_n is 3, expected a dict"),
    "nameless entry": (["--model.", "1"], "expected the name of an entry"),
    "entry's type": (["--weights.mmd", "x"], "--weights.mmd: found {'mmd': 'x'}, expected dict of float"),
    "entry no dict": (["--encoder_options", "{a: 1}"], "--encoder_options: found {'a': 1}, expected dict of dict"),
    "inline YAML": (["--model", "{a: "], "--model: expected YAML, found"),
    "key twice": (["--model", "{a: 1, a: 2}"], "key 'a' comes twice"),
    "refused by the field": (["--num_epochs", "0"], "command line: --num_epochs: expected at least 1, found 0"),
    "negative": (["--learning_rate=-1"], "command line: --learning_rate: expected at least 0, found -1"),
    "no choice": (["--schedule", "linear"], "--schedule: found 'linear', expected none, constant or cosine"),
    "refused by the class": (["--schedule", "cosine", "--patience", "0"], "schedule 'cosine' needs patience"),
    "two files": (["--config", "a", "--config", "b"], "expected one file after --config"),
}


@pytest.mark.parametrize(("arguments", "message"), ERRORS.values(), ids=ERRORS.keys())
def test_errors_on_the_command_line(arguments, message):
    with pytest.raises(ValueError, match=message):
        read(*arguments)


FILE_ERRORS = {
    "unknown key": ("patiens: 3", "settings.yaml: unknown setting 'patiens'; the nearest known one is 'patience'"),
    "hyphen": ("output-dir: x", "unknown setting 'output-dir'; the nearest known one is 'output_dir'"),
    "number for text": ("output_dir: 2024", "output_dir: found 2024, expected str; put text in quotes"),
    "bool for a choice": ("schedule: no", "schedule: found False, expected none, .*; put text in quotes"),
    "list for text": ("output_dir: [a]", "output_dir: found ..a.., expected str$"),
    "text for int": ("num_epochs: '3'", "num_epochs: found '3', expected int"),
    "nothing for a dict": ("model:", "model: found None, expected dict"),
    "number for a key": ("weights: {1: 2}", "settings.yaml: expected YAML, found: key 1 is no text"),
    "key twice": ("patience: 1\npatience: 2", "key 'patience' comes twice"),
    "no mapping": ("- patience", "expected settings as 'key: value' lines, found list"),
    "no YAML": ("seeds: [1\nmodel: 2", "settings.yaml, line 2: expected YAML"),
    "object": ("output_dir: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
}


@pytest.mark.parametrize(("text", "message"), FILE_ERRORS.values(), ids=FILE_ERRORS.keys())
def test_errors_in_the_file(config, text, message):
    with pytest.raises(ValueError, match=message):
        read(*config(text))


def test_missing_file_and_file_that_is_no_text(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.yaml: no such file"):
        read("--config", str(tmp_path / "nowhere.yaml"))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="binary.yaml: expected YAML in UTF-8"):
        read("--config", str(tmp_path / "binary.yaml"))


def test_settings_without_default_are_asked_for():
    @dataclass
    class Required:
        data: str

    assert read_settings(Required, ["--data", "x"]).data == "x"
    with pytest.raises(ValueError, match="setting 'data' has no default: pass --data"):
        read_settings(Required, [])
    assert "--data  str, required" in settings_help(Required)


def test_values_from_python_are_checked_too():
    assert Example(learning_rate=1).learning_rate == 1
    for changes in ({"num_epochs": 0}, {"num_epochs": "3"}, {"seeds": [0.5]}, {"schedule": "linear"}):
        with pytest.raises(StrictDataclassFieldValidationError, match=next(iter(changes))):
            Example(**changes)
    settings = Example()
    with pytest.raises(StrictDataclassFieldValidationError):
        settings.learning_rate = float("nan")


def test_settings_in_a_dict_say_where_they_are():
    assert settings_of(Example, {"weights": {"mmd": 1}}, "fusion").weights == {"mmd": 1.0}
    with pytest.raises(ValueError, match="fusion.num_epochs: expected at least 1, found 0"):
        settings_of(Example, {"num_epochs": 0}, "fusion")
    with pytest.raises(ValueError, match="fusion: unknown setting 'num'; the nearest known one is 'num_epochs'"):
        settings_of(Example, {"num": 0}, "fusion")


def test_fields_of_several_programs():
    @strict
    @dataclass
    class Shared:
        seeds: list[int] = different_seeds(default_factory=lambda: [0])
        push_to_hub: str | None = repository(None)

    assert read_settings(Shared, ["--push_to_hub", "you/model"]).push_to_hub == "you/model"
    for seeds in ("[]", "[1, 2, 1]", "[0, -1]"):
        with pytest.raises(ValueError, match="--seeds: expected different numbers from 0, at least one, found"):
            read_settings(Shared, ["--seeds", seeds])
    with pytest.raises(ValueError, match="--push_to_hub: expected owner/name, found 'model'"):
        read_settings(Shared, ["--push_to_hub", "model"])


def test_help_lists_every_setting_with_type_default_and_documentation(capsys):
    with pytest.raises(SystemExit) as stop:
        parse_settings(Example, ["--num_epochs", "x", "--help"], description="Trains an example.")
    assert stop.value.code == 0
    output = capsys.readouterr().out
    assert "Trains an example." in output and "Source" not in output
    for lines in (
        ["--inherited  int, default: 7", "a setting of the parent."],
        ["--learning_rate  float, default: 0.001", "of the optimizer; its help takes two lines."],
        ["--patience  int, default: 2", "counted in epochs."],
        ["--output_dir  str, default: out", "where results go."],
        ["--encoders  list of str or null, default: null", '--model  dict, default: {"top_n": 3}'],
    ):
        assert "\n      ".join(lines) in output or "\n  ".join(lines) in output


def test_every_setting_of_the_fusion_is_documented():
    lines = settings_help(FusionSettings).splitlines()
    keys = [index for index, line in enumerate(lines) if line.startswith("  --")]
    assert len(keys) == len(FusionSettings.__dataclass_fields__)
    for index in keys:
        assert lines[index + 1].startswith("      "), lines[index]


# --- Programs ---


def test_bad_settings_end_the_program_with_one_line(capsys):
    with pytest.raises(SystemExit) as stop:
        parse_settings(Example, ["--num_epochs", "0"])
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.err.endswith(": error: command line: --num_epochs: expected at least 1, found 0\n")
    assert captured.err.count("\n") == 1 and captured.out == ""


def test_importing_the_settings_loads_no_torch():
    code = (
        "import sys, hf_blemo.programs.settings; print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert result.stdout.strip() == "[]", result.stderr
