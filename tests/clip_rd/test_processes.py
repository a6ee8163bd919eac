"""Several processes give the loss and the gradients of one with all pairs, and none waits for a broken one."""

import os
from pathlib import Path

import losses_on_processes
import pytest
import torch
from fresh_processes import run_python

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Number of processes -> what each of them found, computed once."""
    found = {}

    def run(world: int) -> list[dict[str, torch.Tensor]]:
        if world not in found:
            folder = tmp_path_factory.mktemp(f"processes_{world}")
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
            program = [losses_on_processes.__file__, folder, world]
            done = run_python(program, cwd=folder, env=environment, processes=world)
            assert done.returncode == 0, done.stderr
            paths = [folder / f"{rank}_of_{world}.pt" for rank in range(world)]
            found[world] = [torch.load(path, weights_only=True) for path in paths]
        return found[world]

    return run


def assert_equal_to_rounding(found: torch.Tensor, expected: torch.Tensor, name: str) -> None:
    """To 1e-5 of the largest entry."""
    error = (found - expected).abs().max() / expected.abs().max().clamp_min(1e-6)
    assert error < 1e-5, f"{name}: {error:.1e}"


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("case", losses_on_processes.CASES)
def test_processes_give_the_loss_and_gradients_of_one(case, world, results):
    [alone] = results(1)
    names = [name for name in alone if name.startswith(f"{case}/")]
    for part in ("student.logit_scale", "loss.cross_scale", "student.text.bias"):
        assert f"{case}/gradient/{part}" in names
    one = case != "equal widths" and not case.endswith("teachers")
    assert (f"{case}/gradient/loss.visual_projection.weight" in names) == one
    assert (f"{case}/gradient/loss.text_projection.1.weight" in names) == case.endswith("teachers")
    for found in results(world):
        for name in names:
            assert alone[name].abs().max() > 1e-5, f"{name} shows nothing"
            assert_equal_to_rounding(found[name], alone[name], name)


def test_cached_gradients_are_those_of_the_whole_batch(results):
    [found] = results(1)
    for name in found:
        if name.startswith("cached/"):
            assert_equal_to_rounding(found[name], found[name.replace("cached/", "plain/")], name)
        if name.startswith(("cached, duplicates/", "cached, teachers/")):
            assert_equal_to_rounding(found[name], found[name.removeprefix("cached, ")], name)


@pytest.mark.parametrize(
    ("case", "problem"),
    [
        ("NaN", "embeddings hold NaN or infinite values"),
        ("rows", "the embeddings have different numbers of rows, or are not matrices"),
        ("gradient", "the teacher has a gradient: compute it under torch.no_grad()"),
        ("no teacher", "there is no teacher, and terms other than task have a weight"),
    ],
)
@pytest.mark.parametrize("world", [2, 4])
def test_all_processes_end_with_the_error_of_one(case, problem, world, results):
    for found in results(world):
        message = bytes(found[case].tolist()).decode()
        assert message == f"CLIPRDLoss: {problem} on process {world - 1} of {world}"


@pytest.mark.parametrize("world", [2, 4])
def test_a_process_that_fails_before_the_loss_takes_the_others_with_it(world, results):
    for case in ("input", "chunks"):
        messages = [bytes(found[case].tolist()).decode() for found in results(world)]
        assert messages[-1] == "the batch has no input_ids"
        others = f"CLIPRDLoss: its embeddings could not be computed on process {world - 1} of {world}"
        assert messages[:-1] == [others] * (world - 1)
    for found in results(world):
        message = bytes(found["weights"].tolist()).decode()
        expected = "the processes have different weights, or ids of the pairs on some only; expected all alike"
        assert message == f"CLIPRDLoss: {expected}"
        assert bytes(found["ids"].tolist()).decode() == message
