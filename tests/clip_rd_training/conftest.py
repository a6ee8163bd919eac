"""What the tests of distillation share: settings of a run of a second, and a teacher."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_models import save_tiny_model

from hf_blemo.clip_rd_training import run as run_module
from hf_blemo.clip_rd_training.run import _Training, distill
from hf_blemo.clip_rd_training.settings import DistillationSettings
from hf_blemo.programs.settings import read_settings

ROOT = Path(__file__).resolve().parents[2]
CONFIG = str(ROOT / "training" / "configs" / "clip_rd_synthetic.yaml")
QUICK = (
    *("--config", CONFIG, "--weight_schedule", "{}", "--synthetic.num_pairs", "64"),
    *("--batch_size", "16", "--num_steps", "6", "--log_every", "2"),
)


@pytest.fixture(scope="session")
def leave_plots_out() -> Callable[[pytest.MonkeyPatch], None]:
    """Has runs draw nothing: drawing takes most of the time of one this short."""

    def patched(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(run_module, "plot_distillation", lambda *_: None)

    return patched


@pytest.fixture(autouse=True)
def start_fresh(fresh_accelerate_state) -> None:
    """Every test here starts without state of Accelerate."""


@pytest.fixture
def with_plots() -> None:
    """Asks for the plots of a run."""


@pytest.fixture(autouse=True)
def without_plots(request, monkeypatch, leave_plots_out) -> None:
    """Draws where `with_plots` asks for it alone."""
    if "with_plots" not in request.fixturenames:
        leave_plots_out(monkeypatch)


@pytest.fixture(scope="session")
def quick() -> tuple[str, ...]:
    """Arguments of a distillation that takes a second."""
    return QUICK


@pytest.fixture(scope="session")
def settings_for() -> Callable[..., DistillationSettings]:
    """Settings of such a distillation, by output folder and further arguments."""

    def make(output: object, *arguments: object) -> DistillationSettings:
        return read_settings(DistillationSettings, [*QUICK, "--output_dir", str(output), *map(str, arguments)])

    return make


@pytest.fixture(scope="session")
def teacher(trained_teacher) -> Path:
    """The folder of a teacher that has learned a little, wider than its students."""
    return trained_teacher


@pytest.fixture(scope="session")
def clip(once) -> Path:
    """The folder of another teacher, with CLIP's kind of tokenizer."""
    return once("tiny_clip", lambda folder: save_tiny_model("clip_rd", folder, 5))


@pytest.fixture
def stopped(monkeypatch) -> Callable[[DistillationSettings, int], None]:
    """Runs a distillation, and ends it as by Ctrl-C in the step of a number, counted from 0."""

    def run(settings: DistillationSettings, at: int) -> None:
        def stop(self, number, *arguments, step=_Training._step):
            if number == at:
                raise KeyboardInterrupt
            return step(self, number, *arguments)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(_Training, "_step", stop)
            distill(settings)

    return run
