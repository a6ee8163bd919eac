from types import SimpleNamespace

import numpy as np
import pytest

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


@pytest.mark.parametrize("rate", [24, 29.97, 30, 60])
def test_rounded_times_lose_no_frame(rate):
    for places in (3, 4, 9):
        times = [round(number / rate, places) for number in range(2000)]
        assert taken(rate, times) == list(range(2000))
        assert taken(rate / 2, times) == list(range(0, 2000, 2))


def test_an_invalid_rate_is_refused(checkpoint):
    for rate in (0, -1, "5", True, float("nan"), float("inf"), [5]):
        with pytest.raises(ValueError, match="vit: frames_per_second must be a positive number or null, found"):
            load_encoder(checkpoint("vit"), extraction={"frames_per_second": rate}, device="cpu")
