"""The training programs as users start them: what they print, what they write, and what they refuse."""

import json
import re
import sys

import datasets
import numpy as np
import pytest
from command_line import run_training
from fresh_processes import PACKAGE_FOLDER, run_python
from tiny_extraction import BROKEN, CLIPS

from hf_blemo import blemore, cli
from hf_blemo.clip_rd_training.settings import ComparisonSettings, DistillationSettings, EmbeddingSettings
from hf_blemo.extraction.settings import ExtractionSettings
from hf_blemo.fusion_training import run as run_module
from hf_blemo.fusion_training.settings import AblationSettings, EncoderAblationSettings, FusionSettings

CONFIGS = PACKAGE_FOLDER / "training" / "configs"
SETTINGS = {
    "train_fusion.py": FusionSettings,
    "ablate_fusion.py": AblationSettings,
    "ablate_encoders.py": EncoderAblationSettings,
    "extract_features.py": ExtractionSettings,
    "distill_clip_rd.py": DistillationSettings,
    "compare_distillation.py": ComparisonSettings,
    "embed_teacher.py": EmbeddingSettings,
}
FUSION = ("--seeds", 0, "--num_epochs", 1, "--model.hidden_size", 8)
STUDENT = ("--config", CONFIGS / "clip_rd_synthetic.yaml", "--synthetic.num_pairs", 32, "--batch_size", 8)


@pytest.fixture(autouse=True)
def start_fresh(fresh_accelerate_state):
    """Every test here starts without state of Accelerate."""


@pytest.fixture
def program(monkeypatch):
    """Runs `training/<name>` with arguments."""
    return lambda name, *arguments: run_training(monkeypatch, name, *arguments)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A table of 36 clips in three folds, with two encoders that show the label; beside it, one without folds."""
    generator = np.random.default_rng(0)
    clips = []
    for number, label in enumerate(blemore.LABELS):
        emotions = [part["emotion"] for part in label]
        shares = [f"{part['salience']:.0f}" for part in label]
        single = f"{emotions[0]}_{'sit' if emotions[0] == 'neu' else 'int'}1"
        clips.append(f"A{number}_{'_'.join(['mix', *emotions, *shares]) if len(label) == 2 else single}_ver1")
    soft = np.array([blemore.soft_label(clip) for clip in clips])
    arrays = {"clip": np.array(clips)}
    for name, width in (("voice", 4), ("face", 3)):
        noise = 0.1 * generator.standard_normal((36, width))
        arrays[name] = (soft @ generator.standard_normal((6, width)) + noise).astype("f4")
    folder = tmp_path_factory.mktemp("table")
    np.savez(folder / "no_folds.npz", **arrays)
    np.savez(folder / "clips.npz", fold=np.arange(36) % 3, **arrays)
    return folder / "clips.npz"


def test_a_fusion_is_trained(program, table, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run_module, "plot_cross_validation", lambda *arguments: None)
    output = tmp_path / "output"
    config = ("--config", CONFIGS / "fusion_synthetic.yaml")
    program("train_fusion.py", *config, "--data", table, "--output_dir", output, *FUSION)
    metrics = json.loads((output / "metrics.json").read_text())
    printed = capsys.readouterr().out
    score = metrics["summary"]["score"]
    assert f"{score['mean']:.4f} ± {score['std']:.4f}" in printed
    assert printed.splitlines()[-1].endswith(str(output))
    assert metrics["config"]["model"]["hidden_size"] == 8 and metrics["config"]["batch_size"] == 64
    assert metrics["command"].startswith("python ") and "--num_epochs 1" in metrics["command"]
    assert len(json.loads((output / "predictions.json").read_text())["predictions"]) == 36


def test_features_are_extracted_and_failures_named(program, entries, clip_folder, tmp_path, capfd):
    output, config = tmp_path / "made", tmp_path / "config.yaml"
    config.write_text("encoders:\n  student:\n    extraction: {frames_per_second: 5.0}\n")
    options = ("--encoders.student.model_id", entries["student"]["model_id"], "--num_threads", 1)
    program("extract_features.py", "--config", config, "--data", clip_folder, "--output_dir", output, *options)
    printed = capfd.readouterr()
    assert printed.out.splitlines()[-1] == f"4 clips, 1 failed; width of features: student 12. Written to {output}"
    assert [line for line in printed.err.splitlines() if f"{BROKEN}.mp4" in line]
    data = datasets.Dataset.load_from_disk(str(output))
    assert data["clip"][:] == list(CLIPS)
    assert len(data[0]["features"]["student"]) == 5


def test_a_teacher_is_embedded_and_distilled_from_its_store(program, trained_teacher, tmp_path, capsys):
    store, output = tmp_path / "store", tmp_path / "student"
    data = ("--data", "synthetic", "--synthetic.num_pairs", 32, "--rows_per_shard", 20)
    program("embed_teacher.py", *data, "--output_dir", store, "--teachers.tiny", trained_teacher)
    assert "32 pairs, 32 rows in 2 shards, 2 of them now; 0 of 32 could not be read" in capsys.readouterr().out
    late = ("--log_every", 1, "--weight_schedule", "{xrd: [[1, 0], [2, 1]]}", "--num_steps", 3)
    program("distill_clip_rd.py", *STUDENT, "--output_dir", output, "--teacher_store", store, *late)
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1].endswith(str(output))
    xrd = next(line for line in printed if line.startswith("xrd "))
    assert xrd.split()[2:4] == ["after", "3"] and xrd.endswith("after 3 steps")
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["teacher"]["stored"] and metrics["teacher"]["source"] == str(trained_teacher)
    assert metrics["command"].startswith("python ") and "--teacher_store" in metrics["command"]
    assert {path.name for path in output.iterdir()} >= {"README.md", "model.safetensors", "plots", "tokenizer.json"}


def test_a_subcommand_does_the_same_on_two_processes(table, tmp_path):
    """As `accelerate launch -m hf_blemo.cli train` starts it."""
    command = ["-m", "hf_blemo.cli", "train", "--config", "fusion_synthetic", "--data", table, *FUSION]
    done = run_python([*command, "--output_dir", "out"], cwd=tmp_path, processes=2)
    assert done.codes == [0, 0], done.stderr
    assert done.stdout.splitlines()[-1] == "Model, processor, card, metrics, plots and predictions: out"
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["command"].startswith("hf-blemo train --config fusion_synthetic --data clips.npz --seeds 0 ")
    done = run_python([*command, "--output_dir", "out2", "--num_epoch", "1"], cwd=tmp_path, processes=2, patience=60)
    assert done.codes == [2, 2]
    assert set(done.stderr.splitlines()) == {
        "hf-blemo train: error: command line: unknown setting '--num_epoch'; the nearest known one is '--num_epochs'"
    }


@pytest.mark.parametrize("name", SETTINGS)
def test_scripts_are_alike_and_two_have_the_header_of_uv(name):
    script = (PACKAGE_FOLDER / "training" / name).read_text()
    [command] = [
        key for key, program in cli.PROGRAMS.items() if program.settings.endswith(f":{SETTINGS[name].__name__}")
    ]
    assert f'run_program("{command}")' in script and f"`hf-blemo {command}`" in script
    header = re.search(r"(?m)^# /// script$\s((^#(| .*)$\s)+)^# ///$", script)
    assert bool(header) == (command in ("distill", "embed"))
    if header and sys.version_info >= (3, 11):
        import tomllib

        content = tomllib.loads("\n".join(line[2:] for line in header[1].splitlines()))
        # The package is on no index: whoever starts the script says where it is.
        assert content == {"requires-python": ">=3.10", "dependencies": []}


A = "--encoders.a.model_id"
# Program -> arguments that it refuses, and what it says; see also tests/commands.
REFUSED = {
    "train_fusion.py": [
        (["--learning_rat", "1"], "unknown setting .*learning_rate"),
        (["--data", "{no_folds}"], "needs a fold for every labelled clip"),
    ],
    "ablate_fusion.py": [(["--encoders", "clip"], "unknown encoder 'clip'")],
    "extract_features.py": [
        ([], "found neither encoders nor a model that names them, expected --encoder NAME=MODEL or --model"),
        ([A, "x", "--model", "y"], "found both"),
        (["--encoders.a.revision", "x"], "encoders.a: expected a model_id"),
        ([A, "x", "--encoders.a.batch", "2"], "encoders.a.*batch"),
        (["--encoders", "{{a/b: {{model_id: x}}}}"], "encoders: 'a/b' cannot name a folder"),
        ([A, "x", "--synthetic.num_clips", "3"], "synthetic needs data 'synthetic'"),
        ([A, "x", "--imported.a", "y"], "imported: encoder 'a' is among the enc"),
        ([A, "{student}", "--data", "{bad}"], "could not encode the clip: "),
    ],
    "distill_clip_rd.py": [(["--learning_rat", "1"], "unknown setting .*learning_rate")],
    "embed_teacher.py": [([], "teachers: expected at least one")],
    "compare_distillation.py": [
        (["--methods", "CLIP-KR"], "methods: found 'CLIP-KR', expected .*did you mean 'CLIP-RD'")
    ],
}


@pytest.mark.parametrize(
    ("name", "arguments", "message"), [(name, *row) for name, rows in REFUSED.items() for row in rows]
)
def test_bad_input_ends_with_one_line_and_code_two(
    name, arguments, message, program, table, entries, clip_folder, tmp_path, capfd
):
    bad, output = tmp_path / "bad.mp4", tmp_path / "output"
    bad.write_bytes(b"no clip at all")
    # Nothing of what is there is touched; features go to a folder of their own.
    if name != "extract_features.py":
        output.mkdir()
        (output / "metrics.json").write_text("mine")
    common = {"train_fusion.py": ("--data", table, *FUSION), "extract_features.py": ("--data", clip_folder)}
    common["train_fusion.py"] += ("--overwrite", "true")
    common["ablate_fusion.py"] = common["train_fusion.py"]
    common["distill_clip_rd.py"] = ("--data", "synthetic", "--overwrite", "true")
    common["embed_teacher.py"] = common["compare_distillation.py"] = ("--data", "synthetic")
    values = {"student": entries["student"]["model_id"], "bad": bad, "no_folds": table.with_name("no_folds.npz")}
    given = [text.format(**values) for text in arguments]
    with pytest.raises(SystemExit) as end:
        program(name, "--output_dir", output, *common.get(name, ()), *given)
    assert end.value.code == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if "error: " in line]
    assert len(errors) == 1 and errors[0].startswith(f"{name}: error: ")
    assert re.search(message, errors[0]), errors[0]
    if name == "extract_features.py":
        assert not output.exists()
    else:
        assert [(path.name, path.read_text()) for path in output.iterdir()] == [("metrics.json", "mine")]


@pytest.mark.parametrize("name", SETTINGS)
def test_help_lists_every_setting_with_its_line(name, program, capsys):
    with pytest.raises(SystemExit) as end:
        program(name, "--help")
    assert end.value.code == 0
    printed = capsys.readouterr().out
    for field in SETTINGS[name].__dataclass_fields__:
        position = printed.index(f"  --{field}  ")
        assert printed[position:].split("\n")[1].startswith("      "), field
