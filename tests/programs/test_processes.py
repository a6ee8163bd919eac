"""The processes of a run agree before they begin, and end together; see also `tests/fuzzing`."""

import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from fresh_processes import run_python

from hf_blemo.programs import processes

PROGRAM = """
import os, sys, time
from dataclasses import dataclass
from pathlib import Path
from accelerate import Accelerator
from hf_blemo.errors import one_line_errors
from hf_blemo.programs.checkpoints import Checkpoints
from hf_blemo.programs.processes import check_same, check_shared, of_first, together

@dataclass
class Settings:
    rate: float = 1.0

def fail_late():
    time.sleep(1)
    raise ValueError("too late")

rank, settings = int(os.environ["RANK"]), Settings()
exec(sys.argv[1])
with one_line_errors("program"):
    accelerator = Accelerator()
    with together(accelerator, settings) as stack:
        stack.callback(print, "closed")
        exec(sys.argv[2])
    print("all are done")
"""


@pytest.mark.parametrize(
    ("before", "inside", "line"),
    [
        ("settings.rate += rank", "", "rate is 1.0 on process 0 and 2.0 on process 1 of 2: start all with the same"),
        ("", "check_same(accelerator, {'data': ['a', rank]})", "data is ['a', 0] on process 0 and ['a', 1] on"),
        (
            "os.mkdir(str(rank)); os.chdir(str(rank))",
            "Checkpoints(accelerator, Path('checkpoints'), 1)",
            "checkpoints: process 1 of 2 does not see what process 0 writes there",
        ),
        ("", "if rank == 1: fail_late()", "process 1 of 2: too late"),
        ("", "if rank == 0: fail_late()", "process 0 of 2: too late"),
        # Whatever a process is at, it ends.
        ("", "fail_late() if rank == 1 else time.sleep(100)", "process 1 of 2: too late"),
    ],
)
def test_processes_agree_and_end_together(before, inside, line, tmp_path):
    done = run_python(["-c", PROGRAM, before, inside], cwd=tmp_path, processes=2, patience=40)
    assert done.codes == [2, 2], done.stderr
    lines = [text for text in done.stderr.splitlines() if text.startswith("program: error: ") or " error: pr" in text]
    assert len(lines) == 2 and all(line in text for text in lines), done.stderr
    assert "all are done" not in done.stdout


def test_processes_that_do_not_know_of_each_other_are_refused(monkeypatch):
    """As torchrun starts them where there is no GPU, unless a variable tells Accelerate so."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    alone: Any = SimpleNamespace(num_processes=1)
    message = "^2 processes were started .* start them as ACCELERATE_USE_CPU=true torchrun"
    with pytest.raises(ValueError, match=message), processes.together(alone, None):
        raise AssertionError("they run alone")


def test_processes_share_what_the_first_makes_and_a_folder(tmp_path):
    inside = "check_shared(accelerator, Path('shared')); print(of_first(accelerator, lambda: [rank, 'made']))"
    done = run_python(["-c", PROGRAM, "", inside], cwd=tmp_path, processes=2)
    assert done.codes == [0, 0], done.stderr
    assert done.stdout.splitlines() == ["[0, 'made']", "closed", "all are done"] * 2
    assert list((tmp_path / "shared").iterdir()) == []


def test_prepared_models_go_before_the_processes(fresh_accelerate_state, monkeypatch):
    accelerator = Accelerator(cpu=True)
    monkeypatch.setattr(type(accelerator), "num_processes", 2)
    model = torch.nn.Linear(2, 2)
    # As wrapping does: a cycle, which counting references does not free.
    model.forward = model.forward
    watched = weakref.ref(accelerator.prepare(model))
    alive = []
    monkeypatch.setattr(type(accelerator.state), "destroy_process_group", lambda *_: alive.append(watched()))
    del model
    assert watched() is not None
    processes._end_training(accelerator)
    assert alive == [None]
