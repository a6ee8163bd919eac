from fractions import Fraction

import numpy as np
import pytest
from direct_features import segment_features
from encoder_checks import WAYS, assert_same, encoded
from exact_clips import write_exact
from tiny_encoders import frames

LENGTHS = {"videomae": 16, "timesformer": 4, "vivit": 8}


@pytest.mark.parametrize(("name", "way"), [*(("vivit", way) for way in WAYS), *((name, WAYS[1]) for name in LENGTHS)])
def test_rows_are_the_means_of_segments_the_last_one_filled_up(name, way, checkpoint, clips, direct):
    length = LENGTHS[name]
    found = encoded([clip.path for clip in clips], checkpoint(name), *way)
    for clip, (features, times) in zip(clips, found, strict=True):
        assert_same(features, direct(segment_features, checkpoint(name), clip.path, clip.frames, length))
        np.testing.assert_allclose(times, np.arange(0, len(clip.frames), length) / 25, atol=1e-9)


def test_segments_begin_with_their_first_frame_where_the_rate_varies(checkpoint, tmp_path):
    stamps = [0, 40, 70, 400, 430, 1200, 1210, 1300, 1500]
    path = write_exact(
        tmp_path / "varying.mkv", frames(9), None, times=stamps, time_base=Fraction(1, 1000), frame_rate=25
    )
    [(_, times)] = encoded([path], checkpoint("timesformer"))
    np.testing.assert_allclose(times, [0, 0.43, 1.5], atol=1e-9)


def test_frames_per_second_chooses_the_frames_of_segments(checkpoint, clips):
    folder, clip = checkpoint("timesformer"), clips[2]
    [(features, times)] = encoded([clip.path], folder, extraction={"frames_per_second": 12.5})
    assert_same(features, segment_features(folder, clip.frames[::2], 4))
    np.testing.assert_allclose(times, np.arange(0, 32, 8) / 25, atol=1e-9)


def test_bfloat16_comes_close_to_float32(checkpoint, clips):
    [(features, _)] = encoded([clips[2].path], checkpoint("videomae"))
    [(half, _)] = encoded([clips[2].path], checkpoint("videomae"), dtype="bfloat16")
    assert 0 < np.abs(features - half).max() < 0.1 * np.abs(features).max()
