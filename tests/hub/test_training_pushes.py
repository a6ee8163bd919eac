"""Pushes beside a training: one at a time, without a card, and a failure ends neither training nor later pushes."""

import threading
from pathlib import Path

import pytest
from accelerate import Accelerator

from hf_blemo.hub import training_pushes
from hf_blemo.hub.training_pushes import TrainingPushes
from hf_blemo.programs.settings import PushSettings


def save(folder):
    for name in ("README.md", "model.safetensors"):
        (folder / name).write_text("")


def test_pushes_never_hold_up_a_training(hub, fresh_accelerate_state, monkeypatch, caplog):
    go_on, pushed = threading.Event(), []

    def upload(repo_id, files, message, private):
        go_on.wait(10)
        pushed.append((repo_id, list(files), message, private))
        if message.endswith("step 1"):
            raise ValueError("the disk is full")

    monkeypatch.setattr(training_pushes, "upload", upload)
    settings = PushSettings(push_to_hub="you/beside", hub_strategy="every_save", checkpoint_every=1)
    pushes = TrainingPushes(settings, Accelerator(cpu=True))
    assert hub.repository("you/beside").private
    with caplog.at_level("INFO", logger="hf_blemo"):
        pushes.on_save("step 1", save)
        pushes.on_save("step 2", save)
        assert pushed == [] and "no push at step 2: the last one is still under way" in caplog.text
        go_on.set()
        assert pushes._push.exception(10) is not None
        pushes.on_save("step 3", save)
    assert "a push to you/beside failed, the training continues: the disk is full" in caplog.text
    assert pushes._push.result(10) is None
    caplog.clear()
    with pytest.raises(ValueError, match="gone: expected a folder with a model"):
        pushes.at_end(Path("gone"))
    assert "failed" not in caplog.text
    assert pushed == [
        ("you/beside", ["model.safetensors"], f"Training in progress, step {step}", True) for step in (1, 3)
    ]


def test_nothing_is_pushed_that_was_not_asked_for(hub, fresh_accelerate_state):
    for settings in (PushSettings(), PushSettings(push_to_hub="you/at-end")):
        TrainingPushes(settings, Accelerator(cpu=True)).on_save("step 1", pytest.fail)
    assert TrainingPushes(PushSettings(), Accelerator(cpu=True)).at_end(Path("gone")) is None
    assert len(hub.repository("you/at-end").branches["main"].history()) == 1
