"""A run ends with its prepared models first, then its processes."""

import weakref

import torch
from accelerate import Accelerator

from hf_blemo.programs import processes


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
