"""The folder of a run: one run at a time, no result replaced unasked, results whole, inputs known by content."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from hf_blemo.files import held
from hf_blemo.programs.fingerprints import fingerprint, weights_fingerprint
from hf_blemo.programs.run_folder import begin_run, check_output, check_resumable, whole_results

HOLDING = """
import sys, time
from pathlib import Path
from hf_blemo.files import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_is_held_by_one_run_until_it_ends_however_it_ends(tmp_path):
    folder = tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-c", HOLDING, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    message = rf"out: -c \(process {process.pid} on .*, since .*\) writes there; wait until it ends, or name another"
    with pytest.raises(FileExistsError, match=message), held(folder):
        pass
    process.kill()
    process.wait()
    process.stdout.close()
    with held(folder):
        assert len(list(folder.iterdir())) == 1
    assert list(folder.iterdir()) == []
    with held(folder / "made", beside=True):
        assert not (folder / "made").exists()
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("there", "overwrite", "resume", "message"),
    [
        ([], False, False, None),
        ([], False, True, None),
        (["notes.txt", "README.md"], False, False, None),
        (["metrics.json"], False, False, r"metrics.json\); name another folder, or replace it \(--overwrite true\)"),
        (["model.safetensors"], False, True, "model.safetensors"),
        (["config.json"], True, False, None),
        (["checkpoints"], False, False, r"checkpoints\); name another folder, or resume it \(--resume true\) or repl"),
        (["checkpoints"], False, True, None),
        (["checkpoints", "metrics.json"], False, True, None),
        (["checkpoints", "metrics.json"], True, False, None),
    ],
)
def test_an_earlier_run_is_refused_unless_it_is_resumed_or_replaced(tmp_path, there, overwrite, resume, message):
    for name in there:
        (tmp_path / name).mkdir()
    if message is None:
        assert check_output(tmp_path, overwrite, resume) == tmp_path
        return
    with pytest.raises(FileExistsError, match=message):
        check_output(tmp_path, overwrite, resume)


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def write(folder, names, text):
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)


def test_results_of_two_runs_are_never_mixed(tmp_path, monkeypatch):
    mine = {"thesis.txt": "mine", "seed_9/notes": "mine", "README.md": "mine"}
    for name, text in mine.items():
        write(tmp_path, [name], text)
    one = ["config.json", "model.safetensors", "metrics.json", "seed_1/config.json", "plots/a.png"]
    other = ["config.json", "model.safetensors", "metrics.json", "seed_2/config.json"]
    with whole_results(tmp_path) as made:
        assert contents(made) == {"README.md": "mine"}, "the card is there to be merged"
        write(made, one, "one")
        assert contents(tmp_path).keys() & {"config.json", "metrics.json"} == set()
    before = contents(tmp_path)
    assert before == {**dict.fromkeys(one, "one"), **mine, ".results.json": before[".results.json"]}
    # While the results are written, and at every file that is moved.
    rename = os.rename
    for number in range(12):
        calls = []

        def renamed(source, target, number=number, calls=calls):
            calls.append(target)
            if len(calls) == number:
                raise OSError(28, "No space left on device")
            rename(source, target)

        with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"), whole_results(tmp_path) as made:
            write(made, other, "other")
            patch.setattr("hf_blemo.programs.run_folder.os.rename", renamed)
            if number == 0 or number > 11:
                raise OSError(28, "No space left on device")
        assert contents(tmp_path) == before, number
    with whole_results(tmp_path) as made:
        write(made, other, "other")
    after = contents(tmp_path)
    assert after == {**dict.fromkeys(other, "other"), **mine, ".results.json": after[".results.json"]}


def test_a_training_resumes_with_the_same_settings_and_inputs_alone(tmp_path):
    settings = {"resume": False, "overwrite": False, "checkpoint_every": 1, "rate": 0.5}
    resumed, inputs = {**settings, "resume": True}, {"the labels of data": "a1", "the clips of data": "b2"}
    record = tmp_path / "checkpoints" / "settings.json"
    with begin_run(tmp_path, settings, {"resume"}, inputs):
        assert json.loads(record.read_text())["inputs"] == inputs, "before the first work"
    assert check_resumable(tmp_path, resumed, {"resume"}, inputs)
    for changes, found, message in (
        ({"rate": 0.25}, inputs, "resume: rate is 0.25 and was 0.5 in the run in "),
        ({}, {**inputs, "the labels of data": "c3"}, "resume: the labels of data changed since the run in .*, under"),
    ):
        with pytest.raises(ValueError, match=message), begin_run(tmp_path, {**resumed, **changes}, {"resume"}, found):
            pass
        assert record.is_file()
    record.rename(record.with_name("step_00001"))
    with pytest.raises(ValueError, match="found no settings.json, which tells whose checkpoints these are"):
        check_resumable(tmp_path, resumed, {"resume"}, inputs)
    with begin_run(tmp_path, {**settings, "overwrite": True}, (), inputs):
        assert [path.name for path in record.parent.iterdir()] == ["settings.json"]


def test_fingerprints_are_those_of_content_type_and_order():
    values = np.arange(6.0)
    parts = [
        values,
        values[::-1],
        values.astype(np.float32),
        values.reshape(2, 3),
        torch.arange(6.0),
        values[:0],
        b"6",
    ]
    parts += [["a", "b"], ["b", "a"], "a", None, torch.arange(6.0).bfloat16(), torch.tensor(True)]
    assert len({fingerprint(part) for part in parts}) == len(parts)
    assert fingerprint(values[::-1][::-1], "a") == fingerprint(values, "a")
    model = torch.nn.Linear(2, 2)
    before = weights_fingerprint(model)
    assert weights_fingerprint(model) == before
    torch.nn.init.zeros_(model.bias)
    assert weights_fingerprint(model) != before
