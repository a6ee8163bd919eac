"""Settings: YAML below the command line, every value of the type of its field, errors that name key and place."""

import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import pytest
from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassFieldValidationError

from hf_blemo.fusion_training.settings import FusionSettings
from hf_blemo.programs import settings as program_settings
from hf_blemo.programs.settings import (
    at_least_one,
    command_line,
    not_negative,
    parse_settings,
    read_settings,
    settings_of,
)


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
        output_dir: where results go.

    Source: not a setting.
    """

    learning_rate: float | int = not_negative(1e-3)
    num_epochs: int = at_least_one(3)
    patience: int = 2
    output_dir: str = "out"
    test_data: str | None = None
    resume: bool = False
    seeds: list[int] = program_settings.different_seeds(default_factory=lambda: [0])
    encoders: list[str] | None = None
    model: dict[str, Any] = field(default_factory=lambda: {"top_n": 3})
    encoder_options: dict[str, dict] = field(default_factory=dict)
    weights: dict[str, float | int] = field(default_factory=dict)
    schedule: Literal["none", "constant", "cosine"] = "none"
    push_to_hub: str | None = program_settings.repository(None)

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


def test_command_line_overrides_the_file_wherever_it_names_it(config):
    assert read() == read(*config("# nothing yet\n")) == Example()
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
    assert read("--model.id2label", "{0: calm, 1: tense}").model["id2label"] == {"0": "calm", "1": "tense"}
    whole = read("--learning_rate", "2", "--weights", "{mmd: 1}")
    assert type(whole.learning_rate) is float and type(whole.weights["mmd"]) is float


def test_numbers_and_words_are_those_of_yaml_1_2(config):
    cases = (
        ("010", 10), ("0o10", 8), ("0x10", 16), ("+7", 7), ("1e3", 1e3), (".5", 0.5), ("5.", 5.0), ("1:30", "1:30"),
        ("1_000", "1_000"), ("0b11", "0b11"), ("no", "no"), ("On", "On"), ("2024-01-01", "2024-01-01"), ("~", None),
        ("Null", None), ("", None), ("TRUE", True), ("false", False), ("y", "y"), ("=", "="),
    )  # fmt: skip
    for text, value in cases:
        found = read(*config(f"model: {{a: {text}}}")).model["a"]
        assert found == value and type(found) is type(value), text
    assert read(*config("num_epochs: 010")).num_epochs == 10


VALUES = (
    *((words, "seeds", [0, 1, 2]) for words in ("--seeds 0 1 2", "--seeds [0,1,2]", "--seeds [0, 1, 2]")),
    ("--encoders 1e5 null wavlm", "encoders", ["1e5", "null", "wavlm"]),
    ("--encoders [face, voice]", "encoders", ["face", "voice"]),
    ("--encoders voice", "encoders", ["voice"]),
    ("--encoders null", "encoders", None),
    ("--encoders []", "encoders", []),
    ("--output_dir 2024", "output_dir", "2024"),
    ("--output_dir null", "output_dir", "null"),
    ("--output_dir=a=b", "output_dir", "a=b"),
    ("--test_data null", "test_data", None),
    ("--test_data none", "test_data", "none"),
    ("--schedule none", "schedule", "none"),
    ("--push_to_hub you/model", "push_to_hub", "you/model"),
    ("--resume --num_epochs 4", "resume", True),
    ("--resume true", "resume", True),
    ("--resume --resume=false", "resume", False),
    ("--model {gate: static, sizes: [1, 2]}", "model", {"gate": "static", "sizes": [1, 2]}),
    ("--model.gate static", "model", {"top_n": 3, "gate": "static"}),
    ("--model.sizes 1 2", "model", {"top_n": 3, "sizes": [1, 2]}),
    ("--encoder-options.wavlm.pooling mean", "encoder_options", {"wavlm": {"pooling": "mean"}}),
)


def test_words_of_the_command_line_become_values(config):
    for words, name, value in VALUES:
        assert getattr(read(*words.split()), name) == value, words
    assert read().model == {"top_n": 3}
    file = config("model: {top_n: 2, hidden_size: 8}\nencoder_options: {wavlm: {modality: audio}}\n")
    settings = read(*file, "--model.top_n", "1", "--encoder_options.wavlm.pooling", "mean")
    assert settings.model == {"top_n": 1, "hidden_size": 8}
    assert settings.encoder_options == {"wavlm": {"modality": "audio", "pooling": "mean"}}


ERRORS = (
    ("--lerning-rate 1", "command line: unknown setting '--lerning_rate'; the nearest known one is '--learning_rate'"),
    ("--num 1", "unknown setting '--num'; the nearest known one is '--num_epochs'"),
    ("out", "found 'out', expected --key value"),
    ("--num_epochs", "--num_epochs: found no value, expected int"),
    ("--num_epochs 1 2", "--num_epochs: found 1 2, expected int"),
    ("--num_epochs 1.5", "--num_epochs: found 1.5, expected int"),
    ("--num_epochs true", "--num_epochs: found True, expected int"),
    ("--num_epochs 0", "command line: --num_epochs: expected at least 1, found 0"),
    ("--learning_rate=-1", "command line: --learning_rate: expected at least 0, found -1"),
    ("--learning_rate fast", "--learning_rate: found 'fast', expected float"),
    ("--learning_rate nan", "--learning_rate: found 'nan', expected float"),
    ("--learning_rate 1e999", "--learning_rate: expected YAML, found: 1e999, expected a finite number"),
    ("--model.dropout .inf", "--model.dropout: expected YAML, found: .inf, expected a finite number"),
    ("--resume 2", "--resume: found 2, expected bool"),
    ("--seeds 0 x", "--seeds: found [0, 'x'], expected list of int"),
    ("--seeds [null]", "--seeds: found [None], expected list of int"),
    *((f"--seeds {seeds}", "--seeds: expected different numbers from 0") for seeds in ("[]", "1 2 1", "0 -1")),
    ("--push_to_hub model", "--push_to_hub: expected owner/name, found 'model'"),
    ("--schedule linear", "--schedule: found 'linear', expected none, constant or cosine"),
    ("--schedule cosine --patience 0", "schedule 'cosine' needs patience"),
    ("--output_dir.x 1", "output_dir is str, only a dict has entries"),
    ("--model.top_n.x 1", "model.top_n is 3, expected a dict"),
    ("--model. 1", "expected the name of an entry"),
    ("--weights.mmd x", "--weights.mmd: found {'mmd': 'x'}, expected dict of float"),
    ("--encoder_options {a: 1}", "--encoder_options: found {'a': 1}, expected dict of dict"),
    ("--model {a:", "--model: expected YAML, found"),
    ("--model {a: 1, a: 2}", "key 'a' comes twice"),
    ("--config a --config b", "expected one file after --config"),
)
FILE_ERRORS = (
    ("patiens: 3", "settings.yaml: unknown setting 'patiens'; the nearest known one is 'patience'"),
    ("output-dir: x", "unknown setting 'output-dir'; the nearest known one is 'output_dir'"),
    ("output_dir: 2024", "output_dir: found 2024, expected str; put text in quotes"),
    ("schedule: true", "schedule: found True, expected none, constant or cosine; put text in quotes"),
    ("learning_rate: .nan", "settings.yaml: expected YAML, found: .nan, expected a finite number"),
    ("learning_rate: '1e999'", "learning_rate: found '1e999', expected float"),
    ("num_epochs: 1:30", "num_epochs: found '1:30', expected int"),
    ("resume: yes", "resume: found 'yes', expected bool"),
    ("output_dir: [a]", "output_dir: found ['a'], expected str"),
    ("num_epochs: '3'", "num_epochs: found '3', expected int"),
    ("model:", "model: found None, expected dict"),
    ("weights: {true: 2}", "settings.yaml: expected YAML, found: key true is no text"),
    ("weights: {1: 2, 1: 3}", "settings.yaml: expected YAML, found: key '1' comes twice"),
    ("patience: 1\npatience: 2", "settings.yaml, line 2: expected YAML, found: key 'patience' comes twice"),
    # A few lines that mean millions of values, what stands within itself, and far too many keys.
    (
        "a: &a [1]\n" + "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 10)}]\n" for a, b in pairwise("abcdefghi")),
        "settings.yaml, line 5: expected YAML, found: more than 20,000 values",
    ),
    ("model: &a {b: *a}", "settings.yaml: expected YAML, found: an alias of what it stands in"),
    ("".join(f"key_{number}: 1\n" for number in range(20_000)), "expected YAML, found: more than 20,000 values"),
    ("model: " + "[" * 5000, "settings.yaml: expected YAML, found: RecursionError"),
    ("num_epochs: " + "9" * 5000, "settings.yaml: expected YAML, found: Exceeds the limit"),
    ("- patience", "expected settings as 'key: value' lines, found list"),
    ("seeds: [1\nmodel: 2", "settings.yaml, line 2: expected YAML"),
    ("output_dir: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
)


def test_errors_name_the_key_and_the_place(config, tmp_path):
    for words, message in ERRORS:
        with pytest.raises(ValueError, match=re.escape(message)):
            read(*words.split())
    for text, message in FILE_ERRORS:
        with pytest.raises(ValueError, match=re.escape(message)):
            read(*config(text))
    with pytest.raises(FileNotFoundError, match="nowhere.yaml: no such file"):
        read("--config", str(tmp_path / "nowhere.yaml"))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="binary.yaml: expected YAML in UTF-8"):
        read("--config", str(tmp_path / "binary.yaml"))


def test_values_from_python_and_of_nested_settings_are_checked_too():
    assert Example(learning_rate=1).learning_rate == 1
    for changes in (
        {"num_epochs": 0},
        {"num_epochs": "3"},
        {"seeds": [0.5]},
        *({"learning_rate": float(x)} for x in ("nan", "inf")),
    ):
        with pytest.raises(StrictDataclassFieldValidationError, match=next(iter(changes))):
            Example(**changes)
    assert settings_of(Example, {"weights": {"mmd": 1}}, "fusion").weights == {"mmd": 1.0}
    for entries, message in (
        ({"num_epochs": 0}, "fusion.num_epochs: expected at least 1, found 0"),
        ({"num": 0}, "fusion: unknown setting 'num'; the nearest known one is 'num_epochs'"),
        ({"schedule": "cosine", "patience": 0}, "fusion: schedule 'cosine' needs patience"),
    ):
        with pytest.raises(ValueError, match=message):
            settings_of(Example, entries, "fusion")


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
        ["--weights  dict of float, default: {}", "--schedule  none, constant or cosine, default: none"],
    ):
        assert "\n      ".join(lines) in output or "\n  ".join(lines) in output
    with pytest.raises(SystemExit):
        parse_settings(FusionSettings, ["-h"])
    lines = capsys.readouterr().out.splitlines()
    keys = [index for index, line in enumerate(lines) if line.startswith("  --")]
    assert len(keys) == len(FusionSettings.__dataclass_fields__)
    assert all(lines[index + 1].startswith("      ") for index in keys)


def test_settings_without_default_are_asked_for(capsys):
    @dataclass
    class Required:
        data: str

    assert read_settings(Required, ["--data", "x"]).data == "x"
    for arguments, code in (([], 2), (["--help"], 0)):
        with pytest.raises(SystemExit) as stop:
            parse_settings(Required, arguments)
        assert stop.value.code == code
    captured = capsys.readouterr()
    assert "--data  str, required" in captured.out and captured.err.count("\n") == 1
    assert ": error: setting 'data' has no default: pass --data" in captured.err


def test_settings_and_help_of_every_program_are_light():
    rooms = ("clip_rd_training", "extraction", "fusion_training")
    code = f"import sys, {', '.join(f'hf_blemo.{room}.settings' for room in rooms)}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert not {"torch", "transformers", "numpy", "datasets"} & set(done.stdout.split())


def test_the_command_names_no_folders_of_this_machine(monkeypatch):
    words = ["--data", "/home/some one/my data", "--output_dir=/home/some one/o'x/out", "--seed", "1"]
    shown = ["--data", "my data", "--output_dir=out", "--seed", "1"]
    for launched, program, start in (
        (False, "/opt/a b/train.py", "python train.py"),
        (True, "training/train.py", "accelerate launch training/train.py"),
        (False, "hf-blemo train", "hf-blemo train"),
        (True, "hf-blemo train", "accelerate launch -m hf_blemo.cli train"),
    ):
        monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
        if launched:
            monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
        assert shlex.split(command_line(words, program)) == [*start.split(), *shown]
