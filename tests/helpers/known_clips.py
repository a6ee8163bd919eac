"""Clips that decode to exactly what they were made of, tiny checkpoints, and checks of encoders by both."""

from typing import NamedTuple

import numpy as np
import pytest
from clip_files import write_clip
from tiny_encoders import frames, save_encoder, sound

from hf_blemo.encoders import load_encoder
from hf_blemo.extraction.extraction import encode_clips

FRAME_RATE = 25

# Of frames; the last segment of 16, 8 or 4 is a full one of some clips and not of others.
LENGTHS = (17, 5, 32)
# Of sound, in seconds; none is a whole number of steps, and two are shorter than the windows of tiny models.
SECONDS = (1.33, 0.52, 2.777)

# Pieces at once, and clips decoded at once.
WAYS = [(1, 1), (3, 3), (64, 1)]


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


def exact_sound(seconds, rate=16000, seed=0):
    """Samples that 16 bits hold exactly."""
    return (np.round(sound(seconds, rate, seed) * 32768) / 32768).astype(np.float32)


def write_exact(path, pictures, samples, rate=16000, **options):
    """Writes a clip that decodes to exactly what it was made of."""
    video, audio = ("ffv1" if len(pictures) else None), (None if samples is None else "pcm_s16le")
    options = {"frame_rate": FRAME_RATE, **options}
    given = np.zeros((1, 0), np.float32) if samples is None else samples[None]
    return str(write_clip(path, video, audio, list(pictures), sound=given, audio_rate=rate, **options))


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


def encoded(paths, folder, batch_size=None, num_threads=1, **options):
    """Features and times of clips by one encoder, as (features, times) each."""
    encoder = load_encoder(folder, batch_size=batch_size, device="cpu", **options)
    found = list(encode_clips(paths, {"encoder": encoder}, num_threads))
    for clip in found:
        assert clip.error is None
        features, times = clip.features["encoder"], clip.times["encoder"]
        assert features.dtype == np.float32 and times.dtype == np.float64
        assert features.shape == (len(times), encoder.feature_size)
    return [(clip.features["encoder"], clip.times["encoder"]) for clip in found]


def assert_same(found, expected, tolerance=1e-4):
    """Compares features, which must tell something: rows that are all alike would be the same by any mistake."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
    assert len(expected) == 1 or expected.std(0).max() > 0.01
