import math

import numpy as np
import pytest
from direct_features import spectrogram_features
from encoder_checks import WAYS, assert_same, encoded
from exact_clips import exact_sound, write_exact

# Seconds of a window, and of a row where it is shorter.
WINDOWS = {"whisper": (2.0, 0.02), "ast": (1.28, None), "wav2vec2_bert": (10.0, None), "clap": (2.0, None)}


@pytest.mark.parametrize(("name", "way"), [*(("ast", way) for way in WAYS), *((name, WAYS[1]) for name in WINDOWS)])
def test_rows_are_what_transformers_gives_for_each_window(name, way, checkpoint, clips, clips_48k, direct):
    rate = 48000 if name == "clap" else 16000
    chosen = clips_48k if name == "clap" else clips
    window, step = (None if seconds is None else round(seconds * rate) for seconds in WINDOWS[name])
    found = encoded([clip.path for clip in chosen], checkpoint(name), *way)
    for clip, (features, times) in zip(chosen, found, strict=True):
        expected = direct(spectrogram_features, checkpoint(name), clip.path, clip.samples, window, step)
        assert_same(features, expected)
        seconds = WINDOWS[name][1] or WINDOWS[name][0]
        np.testing.assert_allclose(times, seconds * np.arange(len(expected)), atol=1e-6)


@pytest.mark.parametrize("name", WINDOWS)
def test_the_last_window_may_be_shorter_than_a_spectrum(name, checkpoint, tmp_path):
    rate = 48000 if name == "clap" else 16000
    for seconds in (0.0001, 0.01, 1.2801):
        path = write_exact(tmp_path / "short.wav", [], exact_sound(seconds, rate), rate)
        [(features, times)] = encoded([path], checkpoint(name))
        counts = {"whisper": math.ceil(seconds / 0.02), "ast": math.ceil(seconds / 1.28)}
        assert np.isfinite(features).all() and len(times) == counts.get(name, 1)


def test_a_gap_is_silence_and_late_sound_is_late(checkpoint, tmp_path):
    samples = exact_sound(1.0)
    path = write_exact(tmp_path / "late.mkv", np.zeros((40, 16, 16, 3), np.uint8), samples, audio_start=0.5)
    [(features, times)] = encoded([path], checkpoint("whisper"))
    assert_same(features, spectrogram_features(checkpoint("whisper"), samples, 32000, 320))
    np.testing.assert_allclose(times, 0.5 + 0.02 * np.arange(50), atol=1e-3)
