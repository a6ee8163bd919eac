"""`hf-blemo evaluate --model`: what it prints and writes, and what it refuses."""

import json
import re
import shutil
import sys

import pytest
from command_line import refused
from pair_files import write_shards

from hf_blemo.cli import main
from hf_blemo.clip_evaluation.evaluator import ClipEvaluator
from hf_blemo.clip_evaluation.tasks import make_tasks
from hf_blemo.commands.evaluate import _MODEL_OPTIONS
from hf_blemo.pairs.clip_models import load_clip


@pytest.fixture
def student(trained_student, tmp_path):
    """A copy, for what is written into it."""
    return shutil.copytree(trained_student, tmp_path / "student")


@pytest.fixture
def shards(tmp_path):
    words = ("red", "green", "blue", "yellow", "purple", "orange", "ring", "circle")
    return write_shards(tmp_path / "birds", words, 2)


def test_a_clip_is_evaluated_on_data_and_on_the_built_in_tasks(student, shards, tmp_path, capsys):
    output = tmp_path / "found.json"
    data = ["--retrieval", str(shards), "--zero-shot", str(shards), "--split", "train", "--label-column", "txt"]
    arguments = ["--model", str(student), "--benchmark", "synthetic", *data, "--template", "a {}", "{} on the left"]
    assert main(["evaluate", *arguments, "--batch-size", "48", "--output", str(output)]) == 0
    found = json.loads(output.read_text())
    clip = load_clip(str(student))
    assert (found["model"], found["fingerprint"]) == (str(student), clip.description()["fingerprint"])
    assert found["parameters"] == clip.model.num_parameters()
    common = {"data": str(shards), "split": "train"}
    templates = ["a {}", "{} on the left"]
    tasks = {
        "birds_zero_shot": {"kind": "zero_shot", **common, "label_column": "txt", "templates": templates},
        "birds_retrieval": {"kind": "retrieval", **common},
        "synthetic": {"kind": "synthetic"},
    }
    expected = ClipEvaluator(make_tasks(tasks), 48).evaluate(clip.model, clip.processor)
    assert found["tasks"] == expected
    assert set(expected) == {"birds_zero_shot", "birds_retrieval", "zero_shot", "held_out_zero_shot", "retrieval"}
    printed = capsys.readouterr().out
    for name, task in expected.items():
        row = next(line for line in printed.splitlines() if re.match(rf"\| {name} +\| +\d", line))
        shown = task["top_1"] if task["kind"] == "zero_shot" else task["text_to_image_r@10"]
        assert f"{shown:.4f}" in row
    # The model is as it was.
    assert json.loads((student / "metrics.json").read_text())["evaluation"] is None


def test_results_go_into_the_card_beside_what_people_wrote(student, shards):
    card = student / "README.md"
    card.write_text(card.read_text().replace("## Results", "Written by hand.\n\n## Results"))
    for task in (["--retrieval", str(shards)], ["--zero-shot", str(shards), "--label-column", "txt"]):
        for limit in ("8", "4"):
            data = [*task, "--split", "train", "--limit", limit]
            assert main(["evaluate", "--model", str(student), "--card", *data]) == 0
    evaluation = json.loads((student / "metrics.json").read_text())["evaluation"]
    assert evaluation["step"] == 20
    assert {name: task["images"] for name, task in evaluation["tasks"].items()} == {
        "birds_retrieval": 4, "birds_zero_shot": 4,
    }  # fmt: skip
    text = card.read_text()
    assert "Written by hand." in text and "These weights were not evaluated" not in text
    assert f"{evaluation['tasks']['birds_zero_shot']['top_1']:.1%}" in text


def test_results_are_written_though_the_card_cannot_be(student, shards, tmp_path, capsys):
    (student / "README.md").write_text("---\ntags: [\n---\n")
    data = ["--retrieval", str(shards), "--split", "train", "--output", str(tmp_path / "found.json")]
    assert main(["evaluate", "--model", str(student), "--card", *data]) == 2
    assert "expected YAML metadata" in capsys.readouterr().err
    assert list(json.loads((tmp_path / "found.json").read_text())["tasks"]) == ["birds_retrieval"]


def test_images_that_cannot_be_read_are_reported(student, tmp_path, capsys):
    shards = write_shards(tmp_path / "torn", ["red", "green", "blue", "ring"], 1, torn=(2,))
    assert main(["evaluate", "--model", str(student), "--retrieval", str(shards), "--split", "train"]) == 0
    assert "torn_retrieval: could not read 1 image, for example image 2: " in capsys.readouterr().out


SYNTHETIC = ("--benchmark", "synthetic")
BAD = {
    "nothing to do": (["--model", "x"], "expected tasks to evaluate it on: --retrieval, --zero-shot or --benchmark"),
    "both kinds": (["--model", "x", "--predictions", "y"], "not allowed with argument"),
    "neither": ([], "one of the arguments --predictions --model is required"),
    "labels": (["--model", "x", *SYNTHETIC, "--labels", "y"], "--labels is for --predictions"),
    "useless option": (["--model", "x", *SYNTHETIC, "--limit", "3"], "--limit is for --retrieval or"),
    "other task": (["--model", "x", "--retrieval", "y", "--classes", "z"], "--classes is for --zero-shot"),
    "twice": (["--model", "x", "--retrieval", "y", "y"], "there is a task 'y_retrieval' already"),
    "no card": (["--model", "./x", *SYNTHETIC, "--card"], "--card: ./x has no metrics.json"),
    "stream": (["--model", "x", "--retrieval", "y", "--streaming"], "streaming needs limit"),
    "suffix": (["--model", "x", *SYNTHETIC, "--output", "y.txt"], "expected the suffix .json"),
    "open_clip": (
        ["--model", "open_clip:A/b", *SYNTHETIC],
        'open_clip:A/b needs open_clip: pip install "open.clip.torch>=',
    ),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_line_and_code_two(arguments, message, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    assert main(["evaluate", *arguments]) == 2
    assert re.fullmatch(f"hf-blemo evaluate: error: .*{message}.*\n", capsys.readouterr().err)


def test_no_option_of_a_clip_is_ignored_with_predictions(capsys):
    for name in _MODEL_OPTIONS:
        option = f"--{name.replace('_', '-')}"
        values = {"limit": ["3"], "batch_size": ["3"], "benchmark": ["synthetic"], "streaming": [], "card": []}
        message = refused(capsys, "evaluate", "--predictions", "x.json", option, *values.get(name, ["x"]))
        assert f"{option} is for --model, which is not given" in message
