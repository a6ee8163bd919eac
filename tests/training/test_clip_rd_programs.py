"""The programs of CLIP-RD as their users start them: what they print, what they write, and how they refuse."""

import json
import re
from pathlib import Path
from shlex import split

import pytest

from hf_blemo.clip_rd.configuration_clip_rd import CLIPRDConfig
from hf_blemo.clip_rd_training.settings import ComparisonSettings, DistillationSettings, EmbeddingSettings
from hf_blemo.programs.settings import read_settings

CONFIGS = Path(__file__).resolve().parents[2] / "training" / "configs"
SYNTHETIC = CONFIGS / "clip_rd_synthetic.yaml"
QUICK = ("--config", SYNTHETIC, "--synthetic.num_pairs", 32, "--batch_size", 8, "--num_steps", 2)


def test_a_teacher_is_trained_embedded_and_distilled_from_its_store(program, tmp_path, capsys):
    teacher, store, student = (tmp_path / name for name in ("teacher", "store", "student"))
    program("distill_clip_rd.py", *QUICK, "--output_dir", teacher)
    program(
        *("embed_teacher.py", "--synthetic.num_pairs", 32, "--output_dir", store, "--teachers.tiny", teacher),
        *("--rows_per_shard", 20),
    )
    assert "32 pairs, 32 rows in 2 shards, 2 of them now; 0 of 32 could not be read" in capsys.readouterr().out
    late = ("--log_every", 1, "--weight_schedule", "{xrd: [[1, 0], [2, 1]]}")
    program("distill_clip_rd.py", *QUICK, "--output_dir", student, "--teacher_store", store, *late, "--num_steps", 3)
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1].endswith(str(student))
    xrd = next(line for line in printed if line.startswith("xrd "))
    assert xrd.split()[2:4] == ["after", "3"] and xrd.endswith("after 3 steps")
    metrics = json.loads((student / "metrics.json").read_text())
    assert metrics["teacher"]["stored"] and metrics["teacher"]["source"] == str(teacher)
    assert metrics["command"].startswith("python ") and "--teacher_store" in metrics["command"]
    assert {path.name for path in student.iterdir()} >= {"README.md", "model.safetensors", "plots", "tokenizer.json"}


BAD = {
    "unknown key": ("distill_clip_rd.py", ["--learning_rat", "1"], "unknown setting .*learning_rate"),
    "unknown teacher": (
        "distill_clip_rd.py",
        ["--teacher", "./gone"],
        "teacher './gone': not a file, folder or Hub id",
    ),
    "no store": (
        "distill_clip_rd.py",
        ["--teacher_store", "./gone"],
        "teacher_store './gone': not a file, folder or Hub id",
    ),
    "no pairs": ("distill_clip_rd.py", ["--data", "gone"], "data 'gone': not a file, folder or Hub id"),
    "unknown task": ("distill_clip_rd.py", ["--evaluation.a.kid", "1"], "unknown setting 'kid'.*'kind'"),
    "no teachers": ("embed_teacher.py", [], "teachers: expected at least one"),
    "no variants": (
        "embed_teacher.py",
        ["--teachers.a", "x", "--augmentation.scale", "[0.9, 1.0]"],
        "augmentation.variants",
    ),
    "method": ("compare_distillation.py", ["--methods", "CLIP-KR"], "expected some of .*found 'CLIP-KR'"),
}


@pytest.mark.parametrize(("name", "arguments", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_ends_with_one_line_and_code_two(program, tmp_path, capfd, name, arguments, message):
    output = tmp_path / "output"
    output.mkdir()
    (output / "metrics.json").write_text("mine")
    with pytest.raises(SystemExit) as end:
        program(name, "--output_dir", output, *arguments)
    assert end.value.code == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if "error" in line]
    assert len(errors) == 1 and errors[0].startswith(f"{name}: error: ")
    assert re.search(message, errors[0]), errors[0]
    assert [path.name for path in output.iterdir()] == ["metrics.json"]
    assert (output / "metrics.json").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "settings_class"),
    [
        ("distill_clip_rd.py", DistillationSettings),
        ("compare_distillation.py", ComparisonSettings),
        ("embed_teacher.py", EmbeddingSettings),
    ],
)
def test_help_lists_every_setting_with_its_line(program, capsys, name, settings_class):
    with pytest.raises(SystemExit) as end:
        program(name, "--help")
    assert end.value.code == 0
    printed = capsys.readouterr().out
    for field in settings_class.__dataclass_fields__:
        position = printed.index(f"  --{field}  ")
        assert printed[position:].split("\n")[1].startswith("      "), field


def test_the_published_recipe_is_shipped():
    settings = read_settings(DistillationSettings, ["--config", str(CONFIGS / "clip_rd_vit_t_16.yaml")])
    assert CLIPRDConfig.from_preset(settings.student).projection_dim == 512 and settings.weights["fd"] == 2000
    passes = settings.num_steps * settings.batch_size / 12.9e6
    assert passes == pytest.approx(32, abs=0.01)
    assert all(source.streaming for source in settings.pair_sources())


def test_the_shipped_store_serves_the_shipped_recipe():
    """The command in the comment of the config, word by word."""
    path = CONFIGS / "embed_vit_b_16.yaml"
    store = read_settings(EmbeddingSettings, ["--config", str(path)])
    lines = [line.removeprefix("#").strip().removesuffix("\\") for line in path.read_text().splitlines()]
    start = next(index for index, line in enumerate(lines) if line.startswith("accelerate launch"))
    command = " ".join(lines[start : start + 3])
    shell = [str(CONFIGS.parents[1] / word) if word.startswith("training/") else word for word in split(command)]
    settings = read_settings(DistillationSettings, shell[3:])
    assert settings.augmentation == store.augmentation and settings.teacher == store.teachers["vit_b_16"]
    assert settings.described_sources() == store.described_sources()
    assert settings.teacher_store == store.output_dir


def test_the_comparisons_are_alike_but_for_their_data():
    names = sorted(path.stem for path in CONFIGS.glob("clip_rd_comparison*.yaml"))
    settings = [read_settings(ComparisonSettings, ["--config", str(CONFIGS / f"{name}.yaml")]) for name in names]
    for entry in settings:
        assert len(entry.seeds) >= 5 and entry.scales == "exponentiated"
        assert entry.weights == settings[0].weights and entry.methods == settings[0].methods
