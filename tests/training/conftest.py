"""Runs the programs of training/ as `python program.py ...` does, in this process."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from command_line import run_training

from hf_blemo import blemore


@pytest.fixture(autouse=True)
def start_fresh(fresh_accelerate_state) -> None:
    """Every test here starts without state of Accelerate."""


@pytest.fixture
def program(monkeypatch) -> Callable[..., None]:
    """Runs `training/<name>` with arguments."""
    return partial(run_training, monkeypatch)


@pytest.fixture(scope="session")
def table(tmp_path_factory) -> Path:
    """A table of 36 clips in three folds: two encoders that show the label."""
    generator = np.random.default_rng(0)
    labels = [blemore.LABELS[index] for index in range(36)]
    clips = []
    for number, label in enumerate(labels):
        emotions = [part["emotion"] for part in label]
        shares = [f"{part['salience']:.0f}" for part in label]
        single = f"{emotions[0]}_{'sit' if emotions[0] == 'neu' else 'int'}1"
        clips.append(f"A{number}_{'_'.join(['mix', *emotions, *shares]) if len(label) == 2 else single}_ver1")
    soft = np.array([blemore.soft_label(clip) for clip in clips])
    path = tmp_path_factory.mktemp("table") / "clips.npz"
    arrays = {
        name: (soft @ generator.standard_normal((6, width)) + 0.1 * generator.standard_normal((36, width))).astype(
            "f4"
        )
        for name, width in (("voice", 4), ("face", 3))
    }
    np.savez(path, clip=np.array(clips), fold=np.arange(36) % 3, **arrays)
    return path
