from fractions import Fraction

import numpy as np
from direct_features import segment_features
from encoder_checks import assert_same, encoded
from exact_clips import write_exact
from tiny_encoders import frames


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
