"""Distillation on an accelerator: every precision learns, resumes, and runs under the collectives of NCCL."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_blemo.clip_rd_training.run import distill

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def on_the_accelerator(start_fresh, monkeypatch):
    """Undoes what keeps the other tests on the CPU."""
    monkeypatch.delenv("ACCELERATE_USE_CPU")


@pytest.mark.parametrize(
    "options",
    [
        ("--mixed_precision", "no"),
        ("--mixed_precision", "bf16", "--num_workers", 2),
        ("--mixed_precision", "fp16", "--max_grad_norm", 1, "--chunk_size", 8),
    ],
    ids=str,
)
def test_a_student_learns_and_resumes(settings_for, teacher, tmp_path, options, stopped):
    arguments = ("--teacher", teacher, "--num_steps", 12, "--checkpoint_every", 4, *options)
    whole = distill(settings_for(tmp_path / "whole", *arguments))
    assert whole["history"][-1]["loss"] < whole["history"][0]["loss"]
    stopped(settings_for(tmp_path / "killed", *arguments), 6)
    distill(settings_for(tmp_path / "killed", *arguments, "--resume", "true"))
    expected = load_file(tmp_path / "whole" / "model.safetensors")
    found = load_file(tmp_path / "killed" / "model.safetensors")
    for name, values in expected.items():
        # Sums of some kernels depend on the order of threads.
        torch.testing.assert_close(found[name], values, rtol=1e-2, atol=1e-3, msg=name)


def test_a_run_under_nccl_is_that_of_one_process(quick, teacher, tmp_path):
    output = {}
    for name, launcher in (
        ("alone", ()),
        ("nccl", ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1")),
    ):
        folder = tmp_path / name
        program = (str(ROOT / "training" / "distill_clip_rd.py"), *quick, "--teacher", teacher, "--output_dir", folder)
        subprocess.run([sys.executable, *launcher, *map(str, program)], check=True, cwd=ROOT)
        output[name] = json.loads((folder / "metrics.json").read_text())["history"]
    for found, expected in zip(output["nccl"], output["alone"], strict=True):
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-3)
