"""Two processes under plain Trainer end with the weights of one, which contrasts all pairs."""

import json

import pytest
import torch
import trainer_on_processes
from fresh_processes import run_python
from safetensors.torch import load_file
from trainer_cases import CASES


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Number of processes -> folder of what they left."""
    folders = {}
    for world in (1, 2):
        folders[world] = folder = tmp_path_factory.mktemp(f"processes_{world}")
        process = run_python([trainer_on_processes.__file__, folder], cwd=folder, processes=world)
        assert process.returncode == 0, process.stderr
    return folders


def assert_same_weights(found, expected):
    assert found.keys() == expected.keys()
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], rtol=1e-3, atol=2e-5, msg=key)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_are_one(name, runs):
    reports = {world: json.loads((folder / "report.json").read_text()) for world, folder in runs.items()}
    assert {world: report["processes"] for world, report in reports.items()} == {1: 1, 2: 2}
    one, two = (load_file(runs[world] / f"{name}.safetensors") for world in (1, 2))
    start = CASES[name]().make_model().state_dict()
    assert max((one[key] - start[key]).abs().max() for key in one if one[key].is_floating_point()) > 1e-2
    assert_same_weights(two, one)
    if name == "fusion":
        assert set(reports[1][name]["evaluation"]) == {"eval_acc_presence", "eval_acc_salience", "eval_score"}
        assert reports[2][name]["evaluation"] == pytest.approx(reports[1][name]["evaluation"])
    else:
        # Each process reports the loss of all pairs, not of its own.
        assert reports[2][name]["losses"] == pytest.approx(reports[1][name]["losses"], rel=1e-4)


@pytest.mark.parametrize("world", [1, 2])
def test_accumulated_gradients_are_those_of_one_batch(world, runs):
    """2 processes x 2 rows x 2 = 1 x 4 x 2 = 1 x 8."""
    expected = load_file(runs[1] / "fusion.safetensors")
    assert_same_weights(load_file(runs[world] / "accumulated.safetensors"), expected)


def test_unlabelled_rows_change_no_loss_of_others_wherever_they_come(runs):
    """Each part of a step counts by its share of the labelled rows of all batches and processes."""
    reports = {world: json.loads((folder / "report.json").read_text()) for world, folder in runs.items()}
    expected = load_file(runs[1] / "unlabelled_1.safetensors")
    for world, parts in ((1, 2), (2, 1), (2, 2)):
        name = f"unlabelled_{parts}"
        for key, value in load_file(runs[world] / f"{name}.safetensors").items():
            torch.testing.assert_close(value, expected[key], rtol=0, atol=1e-6)
        first = reports[1]["unlabelled_1"]
        assert reports[world][name]["losses"] == pytest.approx(first["losses"], rel=1e-6)
        assert reports[world][name]["eval_loss"] == pytest.approx(first["eval_loss"], rel=1e-6)
