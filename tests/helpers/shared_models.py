"""Trains the models that the whole suite shares; tests reach them by the fixtures of `tests/conftest.py`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAIRS = (
    *("--config", str(ROOT / "training" / "configs" / "clip_rd_synthetic.yaml"), "--weight_schedule", "{}"),
    *("--synthetic.num_pairs", "64", "--batch_size", "16", "--num_steps", "20", "--log_every", "2"),
)


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


def train_fusion(folder: Path) -> None:
    """Trains a small fusion of all built-in encoders."""
    from hf_blemo.built_in import make_synthetic_blends
    from hf_blemo.fusion_training.run import train_fusion
    from hf_blemo.fusion_training.settings import FusionSettings

    test_data = folder.with_name("fusion_test_data")
    make_synthetic_blends(num_clips=12, seed=9).save_to_disk(str(test_data))
    settings = FusionSettings(
        data="synthetic",
        synthetic={"num_clips": 60},
        output_dir=str(folder),
        test_data=str(test_data),
        seeds=[4, 1],
        num_epochs=3,
        patience=0,
        batch_size=16,
        learning_rate=1e-2,
        model={"hidden_size": 8, "top_n": 2},
    )
    train_fusion(settings, command="python training/train_fusion.py")


def train_teacher(folder: Path) -> None:
    """Trains a small CLIP by the contrastive loss alone."""
    _distil(folder, "--student_config.projection_dim", "48")


def distill_student(folder: Path, teacher: Path) -> None:
    """Distils a student from a teacher."""
    _distil(folder, "--teacher", str(teacher))


def _distil(folder: Path, *arguments: str) -> None:
    from hf_blemo.clip_rd_training.run import distill
    from hf_blemo.clip_rd_training.settings import DistillationSettings
    from hf_blemo.programs.settings import read_settings

    settings = read_settings(DistillationSettings, [*PAIRS, "--output_dir", str(folder), *arguments])
    distill(settings, command="python training/distill_clip_rd.py")
