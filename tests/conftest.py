"""The environment of every test, set before any test imports torch or a Hugging Face library."""

import os
import tempfile
from collections.abc import Iterator

import pytest

# Workers share the machine's cores, so torch may not start a thread per core in each.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# A test that reaches for the network fails at once instead of depending on it.
os.environ["HF_HUB_OFFLINE"] = "1"

IS_XDIST_WORKER = "PYTEST_XDIST_WORKER" in os.environ

# The caches of an earlier run, or the user's own, must not decide what a test sees. Workers inherit the variable.
if not IS_XDIST_WORKER:
    hf_home = tempfile.TemporaryDirectory(prefix="hf_blemo_tests_", ignore_cleanup_errors=True)
    os.environ["HF_HOME"] = hf_home.name


def pytest_unconfigure(config: pytest.Config) -> None:
    if not IS_XDIST_WORKER:
        hf_home.cleanup()


@pytest.fixture(scope="session")
def hub():
    """A Hub on the loopback interface, shared by the tests of a worker: each takes repositories of its own names."""
    from hub_server import HubServer

    with HubServer() as server:
        yield server


@pytest.fixture
def on_hub(hub, tmp_path):
    """Runs programs in fresh processes that know this Hub alone; see `hub_programs.run_on_hub`."""
    from functools import partial

    from hub_programs import run_on_hub

    return partial(run_on_hub, hub, tmp_path)


@pytest.fixture
def fresh_accelerate_state(monkeypatch) -> Iterator[None]:
    """Accelerate keeps one state per process: a test starts and ends without one, on the CPU wherever it runs."""
    from accelerate.state import AcceleratorState, GradientState

    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
