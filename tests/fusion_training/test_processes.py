"""Two processes that share every batch end with what one process ends with."""

import importlib.util
import json
import os
from pathlib import Path

import pytest
import torch
from fresh_processes import run_python

PROGRAM = Path(__file__).with_name("on_two_processes.py")
ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {
    # Without the balance term, which is one of a batch and so of a process.
    "the method": {},
    "all terms": {
        "model": {"encoder_loss_weight": 0.3, "gate_loss_weight": 0.2},
        "encoder_options": {"voice": {"pooling": "attention"}},
        "max_grad_norm": 0.5,
    },
    "static": {"model": {"gate": "static", "fusion": "concatenation"}},
}


@pytest.fixture(scope="module")
def outcome(make_data, make_settings, tmp_path_factory):
    """What one process found, and each of two."""
    folder = tmp_path_factory.mktemp("processes")
    # Most batches of a process hold no clip with a voice: its parameters must take part all the same.
    data = make_data(41, num_folds=3, missing=[(row, "voice") for row in range(38)])
    data.save_to_disk(str(folder / "data"))
    written = {}
    for name, changes in SETTINGS.items():
        model = {"gate_balance_weight": 0.0, **changes.get("model", {})}
        options = {"evaluation_batch_size": 5, "batch_size": 8, **changes, "model": model}
        written[name] = vars(make_settings(**options))
    (folder / "settings.json").write_text(json.dumps(written))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
    run = run_python([PROGRAM, folder], cwd=folder, env=environment, processes=2)
    assert run.returncode == 0, run.stderr[-4000:]
    spec = importlib.util.spec_from_file_location(PROGRAM.stem, PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.work(str(folder))
    return [
        torch.load(folder / name, weights_only=True)
        for name in ("process_0_of_1.pt", "process_0_of_2.pt", "process_1_of_2.pt")
    ]


@pytest.mark.parametrize("name", [*SETTINGS, "cross-validation"])
def test_two_processes_end_like_one(outcome, name):
    one, first, second = outcome
    assert set(one) == set(first) == set(second)
    compared = [key for key in one if key.startswith(f"{name}/")]
    assert len(compared) == 6 if name == "cross-validation" else len(compared) > 40
    for key in compared:
        torch.testing.assert_close(first[key], one[key], atol=1e-5, rtol=0, msg=key)
        assert torch.equal(first[key], second[key]), key


def test_the_runs_did_train(outcome):
    losses = outcome[0]["the method/losses"]
    assert (losses[1] < losses[0]).all()
    predicted = outcome[0]["the method/joint_probabilities"]
    assert predicted.shape == (2, 31, 36)
    assert predicted[0, ::3].std(0).max() > 1e-3 and not predicted[0, 1::3].any()
