"""Tiny checkpoints and clips without loss, each made once for all tests of encoders."""

from typing import NamedTuple

import numpy as np
import pytest
from exact_clips import exact_sound, write_exact
from tiny_encoders import frames, save_encoder

# Of frames; the last segment of 16, 8 or 4 is a full one of some clips and not of others.
LENGTHS = (17, 5, 32)
# Of sound, in seconds; none is a whole number of steps, and two are shorter than the windows of tiny models.
SECONDS = (1.33, 0.52, 2.777)


class KnownClip(NamedTuple):
    """A file without loss, and what is in it.

    Args:
        path: of the file.
        frames: (T, H, W, 3) uint8.
        samples: (n,) float32.
    """

    path: str
    frames: np.ndarray
    samples: np.ndarray


def _known_clips(folder, rate):
    clips = []
    for number, (length, seconds) in enumerate(zip(LENGTHS, SECONDS, strict=True)):
        # Clips of different sizes meet in one batch.
        pictures = frames(length, height=48 + 6 * number, width=70 - 8 * number, seed=number)
        samples = exact_sound(seconds, rate, seed=number)
        path = write_exact(folder / f"clip_{number}_{rate}.mkv", pictures, samples, rate)
        clips.append(KnownClip(path, pictures, samples))
    return clips


@pytest.fixture(scope="session")
def clips(tmp_path_factory):
    """Three clips of different lengths and sizes, with sound at 16 kHz."""
    return _known_clips(tmp_path_factory.mktemp("clips"), 16000)


@pytest.fixture(scope="session")
def clips_48k(tmp_path_factory):
    """The same at 48 kHz."""
    return _known_clips(tmp_path_factory.mktemp("clips"), 48000)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Gives the folder of a tiny checkpoint by its name in `tiny_encoders`."""
    root, saved = tmp_path_factory.mktemp("checkpoints"), {}

    def folder(name):
        if name not in saved:
            saved[name] = str(save_encoder(name, root / name))
        return saved[name]

    return folder


@pytest.fixture(scope="session")
def direct():
    """Gives features by plain transformers, made once: `direct(function, folder, values, ...)`."""
    known = {}

    def features(function, folder, clip, values, *options):
        key = (function.__name__, folder, clip, *options)
        if key not in known:
            known[key] = function(folder, values, *options)
        return known[key]

    return features
