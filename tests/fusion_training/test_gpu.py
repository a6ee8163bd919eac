"""Training of fusions on an accelerator ends near that of the CPU."""

import json

import numpy as np
import pytest

from hf_blemo.fusion_training.run import train_fusion

pytestmark = pytest.mark.gpu


def test_a_run_scores_as_on_the_cpu(make_data, make_settings, tmp_path, monkeypatch):
    make_data(120).save_to_disk(str(tmp_path / "data"))
    found = {}
    for device in ("cpu", "cuda"):
        if device == "cuda":
            monkeypatch.delenv("ACCELERATE_USE_CPU")
        settings = make_settings(data=str(tmp_path / "data"), output_dir=str(tmp_path / device), num_epochs=8)
        train_fusion(settings, command="python training/train_fusion.py")
        history = json.loads((tmp_path / device / "history.json").read_text())
        found[device] = np.mean([row["validation_loss"] for row in history if row["epoch"] == 8])
    assert found["cuda"] == pytest.approx(found["cpu"], rel=0.02)
