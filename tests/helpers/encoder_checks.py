"""What tests of all families of encoders do alike."""

import numpy as np

from hf_blemo.encoders import load_encoder
from hf_blemo.extraction.extraction import encode_clips

# Pieces at once, and clips decoded at once.
WAYS = [(1, 1), (3, 3), (64, 1)]


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
