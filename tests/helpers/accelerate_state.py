"""Accelerate keeps one state per process; tests and shared trainings each start without one."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def fresh_accelerate() -> Iterator[None]:
    """Starts and ends without Accelerate's state, on the CPU wherever it runs."""
    from accelerate.state import AcceleratorState, GradientState

    def reset() -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        reset()
        yield
        reset()
