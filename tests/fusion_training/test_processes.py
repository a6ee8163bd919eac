"""Two processes that share every batch end with what one process ends with."""

import json
import runpy
from pathlib import Path

import pytest
import torch
from fresh_processes import run_python
from tiny_models import EXTENDED

PROGRAM = Path(__file__).with_name("on_two_processes.py")
# The balance term is one of a batch and so of a process.
MODEL = {"gate_balance_weight": 0.0}
SETTINGS = {
    "all terms": {
        "model": {**MODEL, **EXTENDED, "encoder_loss_weight": 0.3, "gate_loss_weight": 0.2},
        "encoder_options": {"voice": {"pooling": "attention"}},
        "max_grad_norm": 0.5,
        "exchange_groups": 0.5,
    },
    "static": {"model": {**MODEL, "gate": "static", "fusion": "concatenation"}},
}


@pytest.fixture(scope="module")
def outcome(make_data, make_settings, tmp_path_factory):
    """What one process found, and each of two."""
    folder = tmp_path_factory.mktemp("processes")
    # Most batches of a process hold no clip with a voice: its parameters must take part all the same.
    data = make_data(41, num_folds=3, missing=[(row, "voice") for row in range(38)])
    data = data.add_column("group", [f"speaker {row % 4}" for row in range(41)])
    data.save_to_disk(str(folder / "data"))
    options = {"seeds": [3, 1], "evaluation_batch_size": 5, "batch_size": 8}
    written = {name: vars(make_settings(**options, **changes)) for name, changes in SETTINGS.items()}
    (folder / "settings.json").write_text(json.dumps(written))
    run = run_python([PROGRAM, folder], cwd=folder, processes=2)
    assert run.returncode == 0, run.stderr[-4000:]
    runpy.run_path(str(PROGRAM))["work"](str(folder))
    names = ("process_0_of_1.pt", "process_0_of_2.pt", "process_1_of_2.pt")
    return [torch.load(folder / name, weights_only=True) for name in names]


@pytest.mark.parametrize("name", SETTINGS)
def test_two_processes_end_like_one(outcome, name):
    one, first, second = outcome
    assert set(one) == set(first) == set(second)
    compared = [key for key in one if key.startswith(f"{name}/")]
    assert len(compared) == 1 + 2 * 3 * (1 + 4)
    for key in compared:
        torch.testing.assert_close(first[key], one[key], atol=1e-5, rtol=0, msg=key)
        assert torch.equal(first[key], second[key]), key
    predicted = one[f"{name}/1/0/joint_probabilities"]
    assert predicted.shape == (14, 36) and predicted.std(0).max() > 1e-3
