"""The environment of all tests, set before any of them imports torch or a Hugging Face library; shared fixtures."""

import gc
import os
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import shared_models
from hub_server import local_hub

# Workers share the machine's cores, so torch may not start a thread per core in each.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# The only Hub that a test can reach is the one of its own process, where its token belongs to "you".
os.environ["HF_ENDPOINT"] = local_hub().endpoint
os.environ["HF_TOKEN"] = "hf_of_you"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_XET"] = "1"
os.environ["HF_UPDATE_DOWNLOAD_COUNTS"] = "0"

IS_XDIST_WORKER = "PYTEST_XDIST_WORKER" in os.environ

# Caches of an earlier run or of the user must not influence a test. Workers inherit the variable.
if not IS_XDIST_WORKER:
    hf_home = tempfile.TemporaryDirectory(prefix="hf_blemo_tests_", ignore_cleanup_errors=True)
    os.environ["HF_HOME"] = hf_home.name


# The files that take longest, the longest first.
SLOW_FILES = (
    *("clip_rd_training/test_run", "hub/test_onnx_export", "docs/test_examples", "round_trips/test_models"),
    "fuzzing/test_failing_processes",
    *("trainer/test_trainer", "clip_rd_training/test_embedding", "fusion_training/test_cross_validation"),
    *("fusion_training/test_run", "clip_rd/test_distillation", "clip_rd/test_modeling", "extraction/test_run"),
    *("training/test_programs", "clip_rd/test_processes", "test_package"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Starts long files first, or one worker would wait for the other at the end: each gets whole files."""
    places = {name: place for place, name in enumerate(SLOW_FILES)}
    folder = Path(__file__).parent
    items.sort(key=lambda item: places.get(item.path.relative_to(folder).with_suffix("").as_posix(), len(places)))


def pytest_collection_finish() -> None:
    """Keeps garbage collection from walking everything imported so far, again and again."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs an accelerator of CUDA")


def pytest_unconfigure(config: pytest.Config) -> None:
    if not IS_XDIST_WORKER:
        hf_home.cleanup()


@pytest.fixture(scope="session")
def hub():
    """A Hub on the loopback interface, shared by the tests of a worker: each uses repository names of its own."""
    return local_hub()


@pytest.fixture
def fresh_accelerate_state() -> Iterator[None]:
    """Accelerate keeps one state per process: a test starts and ends without one, on the CPU wherever it runs."""
    with shared_models.fresh_accelerate():
        yield


# --- Trained once per run of the suite, whichever worker needs it first ---


@pytest.fixture(scope="session")
def once(tmp_path_factory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Makes a folder once per run of the suite: `once(name, make)` calls `make(folder)` in the first worker that asks.

    All workers read the folder, so no test may write into it: `shutil.copytree` it first.
    """
    from filelock import FileLock

    base = tmp_path_factory.getbasetemp()
    root = (base.parent if IS_XDIST_WORKER else base) / "made_once"
    root.mkdir(exist_ok=True)

    def folder(name: str, make: Callable[[Path], object]) -> Path:
        made, done = root / name, root / f"{name}.done"
        with FileLock(root / f"{name}.lock"):
            if not done.exists():
                made.mkdir()
                with shared_models.fresh_accelerate():
                    make(made)
                done.touch()
        return made

    return folder


@pytest.fixture(scope="session")
def trained_fusion(once) -> Path:
    """The folder that `train_fusion.py` leaves for built-in clips: two seeds, five folds, plots and a test set.

    Read it for cards, publishing, export, prediction and loading; copy it (`shutil.copytree`) to change it.
    """
    return once("fusion", shared_models.train_fusion)


@pytest.fixture(scope="session")
def trained_teacher(once) -> Path:
    """The folder that `distill_clip_rd.py` leaves without a teacher: a CLIP of built-in pairs, wider than students."""
    return once("teacher", shared_models.train_teacher)


@pytest.fixture(scope="session")
def trained_student(once, trained_teacher) -> Path:
    """The folder that `distill_clip_rd.py` leaves: a student of `trained_teacher` by every term, with plots.

    Read it for cards, publishing, export, evaluation and loading; copy it (`shutil.copytree`) to change it.
    """
    return once("student", partial(shared_models.distill_student, teacher=trained_teacher))
