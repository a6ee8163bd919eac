from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
from direct_features import frame_features, segment_features
from known_clips import assert_same, encoded, write_exact
from tiny_encoders import frames

from hf_blemo.encoders import load_encoder
from hf_blemo.encoders.image_encoder import _ImageSession


def taken(rate, times):
    session = _ImageSession(SimpleNamespace(pixels=lambda frame: frame), rate)
    return [number for number, time in enumerate(times) if list(session.push(SimpleNamespace(time=time, image=0)))]


def test_sampling():
    assert taken(None, [0.0, 0.1, 0.1]) == [0, 1, 2]
    assert taken(10, np.arange(25) / 25) == [0, 3, 5, 8, 10, 13, 15, 18, 20, 23]
    # A pause is not made up for.
    assert taken(10, [0.0, 0.05, 3.02, 3.05, 3.1, 3.15, 3.2]) == [0, 2, 4, 6]
    # The first frame of a clip is not always at 0.
    assert taken(1, [0.9, 0.95, 1.0, 1.5, 2.0]) == [0, 2, 4]
    # Rounded times lose no frame.
    for rate in (24, 29.97, 30, 60):
        for places in (3, 4, 9):
            times = [round(number / rate, places) for number in range(2000)]
            assert taken(rate, times) == list(range(2000))
            assert taken(rate / 2, times) == list(range(0, 2000, 2))


def test_an_invalid_rate_is_refused(checkpoint):
    for rate in (0, -1, "5", True, float("nan"), float("inf"), [5]):
        with pytest.raises(ValueError, match="vit: frames_per_second must be a positive number or null, found"):
            load_encoder(checkpoint("vit"), extraction={"frames_per_second": rate}, device="cpu")


def test_rows_are_those_of_the_sampled_frames(checkpoint, clips):
    clip = clips[2]
    for rate, kept in ((25, range(32)), (10, (0, 3, 5, 8, 10, 13, 15, 18, 20, 23, 25, 28, 30)), (0.5, (0,))):
        shown, times = clip.frames[list(kept)], np.array(kept) / 25
        for name, length, expected in (
            ("vit", 1, frame_features(checkpoint("vit"), shown)),
            ("timesformer", 4, segment_features(checkpoint("timesformer"), shown, 4)),
        ):
            [found] = encoded([clip.path], checkpoint(name), extraction={"frames_per_second": rate})
            assert_same(found[0], expected)
            np.testing.assert_allclose(found[1], times[::length], atol=1e-9)


def test_times_are_those_of_the_first_frames_where_the_rate_varies(checkpoint, tmp_path):
    stamps = [0, 40, 70, 400, 430, 1200, 1210, 1300, 1500]
    path = tmp_path / "varying.mkv"
    write_exact(path, frames(9), None, times=stamps, time_base=Fraction(1, 1000), frame_rate=25)
    for name, length in (("vit", 1), ("timesformer", 4)):
        [(_, times)] = encoded([path], checkpoint(name))
        np.testing.assert_allclose(times, np.array(stamps[::length]) / 1000, atol=1e-9)
