"""Progress: a bar on a terminal, elsewhere lines ten seconds apart; no bars of libraries in a program's log."""

import io
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import fresh_processes
import pytest
from huggingface_hub.utils import are_progress_bars_disabled
from transformers.utils import logging

from hf_blemo.programs import progress
from hf_blemo.programs.progress import Progress

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def clock(monkeypatch):
    """Seconds, as the bars read them."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def test_a_long_job_says_every_ten_seconds_how_far_it_is(capsys, clock):
    with Progress("distillation", "step", 400, done=100, holds=("pairs", 8)) as bar:
        for clock.now in range(1, 26):
            bar.update(2, loss="0.5")
    lines = [re.sub(r"\w+ \d\d:\d\d", "DAY TIME", line) for line in capsys.readouterr().err.splitlines()]
    assert lines == [
        "distillation: 120 of 400 steps, 2 steps/s, 16 pairs/s, loss 0.5, done at DAY TIME (in 2 min 20 s)",
        "distillation: 140 of 400 steps, 2 steps/s, 16 pairs/s, loss 0.5, done at DAY TIME (in 2 min 10 s)",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"), (48.4, "48 s"), (60, "1 min"), (125, "2 min 5 s"), (3599.9, "1 h"), (12_059, "3 h 20 min"),
        (86_400 * 2 + 60, "2 d"), (86_400 * 2 + 7200, "2 d 2 h"),
    ],
)  # fmt: skip
def test_durations_are_written_for_people(seconds, text):
    assert progress.duration(seconds) == text


def test_short_jobs_and_other_processes_say_nothing(capsys, clock):
    for seconds, shown in ((9, True), (100, False)):
        clock.now = 0
        bar = Progress("encoding", "clip", shown=shown)
        clock.now = seconds
        bar.update()
        bar.close()
    assert capsys.readouterr().err == ""
    clock.now = 0
    bar = Progress("encoding", "clip")
    clock.now = 10
    bar.update()
    assert capsys.readouterr().err == "encoding: 1 clip, 10 s/clip\n"


def test_a_terminal_gets_a_bar_and_those_of_downloads(monkeypatch):
    for name in ("HF_DATASETS_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_PROGRESS_BARS"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setattr(progress, "_program_is_quiet", False)
    logging.enable_progress_bar()
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress("encoding", "clip", 3) as bar:
        bar.update(3)
    assert "\rencoding: 100%" in terminal.getvalue() and "3/3" in terminal.getvalue()
    assert logging.is_progress_bar_enabled()
    progress.quiet_libraries()
    assert not logging.is_progress_bar_enabled() and not are_progress_bars_disabled()
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    progress.quiet_libraries()
    assert are_progress_bars_disabled() and os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] == "1"


def test_the_log_of_a_program_holds_no_bars(tmp_path):
    program = [REPOSITORY / "training" / "train_fusion.py", "--output_dir", tmp_path / "out", "--seeds", "0"]
    options = ["--num_epochs", "1", "--protocol", "none", "--data", "synthetic", "--model.hidden_size", "8"]
    options += ["--synthetic", "{num_clips: 40}"]
    done = fresh_processes.run_python([*program, *options], cwd=tmp_path, env=dict(os.environ))
    log = done.stdout + done.stderr
    assert "Model, processor, card" in log, log
    assert not [
        word for word in ("\r", "Writing model shards", "Generating", "Map:", "Loading weights", "%|") if word in log
    ]
