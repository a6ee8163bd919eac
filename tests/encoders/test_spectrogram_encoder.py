import math

import numpy as np
import pytest
from known_clips import encoded, exact_sound, write_exact


@pytest.mark.parametrize("name", ["whisper", "ast", "wav2vec2_bert", "clap"])
def test_the_last_window_may_be_shorter_than_a_spectrum(name, checkpoint, tmp_path):
    rate = 48000 if name == "clap" else 16000
    for seconds in (0.0001, 0.01, 1.2801):
        path = write_exact(tmp_path / "short.wav", [], exact_sound(seconds, rate), rate)
        [(features, times)] = encoded([path], checkpoint(name))
        counts = {"whisper": math.ceil(seconds / 0.02), "ast": math.ceil(seconds / 1.28)}
        assert np.isfinite(features).all() and len(times) == counts.get(name, 1)
