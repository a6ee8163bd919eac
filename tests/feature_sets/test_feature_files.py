import os

import numpy as np
import pytest

from hf_blemo.feature_sets.feature_files import ClipSource, FeatureFileReader
from hf_blemo.feature_sets.readers import load_features

OPENFACE = """emotion_index,gaze_yaw,gaze_pitch,action_units
0,0.5,-0.25,"[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, nan]"
,nan,0.75,"[0.3 0.4 0.5 nan 0.7 0.8 0.9 nan]"
4,1.5,0.25,
"""


def load_feature_file(path, aggregate=None):
    source = ClipSource("x", np.zeros(6), 0, {"encoder": path})
    return FeatureFileReader([source], ["encoder"], "float32", aggregate)(0).features["encoder"]


def test_sequences_segments_and_vectors(tmp_path):
    array = np.arange(12, dtype=np.float16).reshape(4, 3)
    for name, value, expected in [
        ("sequence", array, array),
        ("segments", array[:, None, :], array),
        ("vector", array[0], array[:1]),
        ("one", array[:1, None, :], array[:1]),
        ("whole numbers", array.astype(np.int64), array.astype(np.float32)),
        ("double", array.astype(np.float64), array.astype(np.float32)),
    ]:
        np.save(tmp_path / f"{name}.npy", value)
        found = load_feature_file(tmp_path / f"{name}.npy")
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


def test_files_that_hold_something_else_are_named(tmp_path):
    path = tmp_path / "x.npy"
    for value, message in [
        (np.zeros((2, 2, 3)), r"x.npy: found shape \(2, 2, 3\), expected \(T, D\)"),
        (np.float32(1), r"found shape \(\)"),
        (np.zeros((3, 0)), r"found shape \(3, 0\)"),
        (np.array(["a"]), "found <U1, expected an array of numbers"),
        (np.array([None]), "x.npy: expected a complete .npy array"),
    ]:
        np.save(path, value, allow_pickle=True)
        with pytest.raises(ValueError, match=message):
            load_feature_file(path)
    np.save(path, np.zeros((10, 4), dtype=np.float32))
    whole = path.read_bytes()
    for length in (0, 5, 50, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="x.npy: expected a complete .npy array"):
            load_feature_file(path)
    with pytest.raises(FileNotFoundError, match="absent.npy"):
        load_feature_file(tmp_path / "absent.npy")


def test_openface_fills_gaps_with_the_clips_mean(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text(OPENFACE)
    frames = load_feature_file(path)
    assert frames.dtype == np.float32
    expected = [
        [0, 0.5, -0.25, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0],
        [2, 1.0, 0.75, 0.3, 0.4, 0.5, 0.4, 0.7, 0.8, 0.9, 0],
        [4, 1.5, 0.25, 0.2, 0.3, 0.4, 0.4, 0.6, 0.7, 0.8, 0],
    ]
    np.testing.assert_allclose(frames, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a,b\n1,2\n",
            "x.csv: found the columns a, b, expected 'emotion_index', .*, 'action_units' among them",
        ),
        (OPENFACE.replace("0.1, ", ""), "x.csv, line 2: found 7 action units, expected 8"),
        (OPENFACE.replace("0.5,-0.25", "left,-0.25"), "x.csv, line 2: .*'left'.*expected numbers"),
        (OPENFACE.replace("0.5,-0.25", "inf,-0.25"), "x.csv: found infinity"),
        ("", "x.csv: found no columns"),
        (OPENFACE.replace("gaze_pitch", "gaze_yaw"), "x.csv: column 'gaze_yaw' comes more than once"),
        ("\udcff\udcfe\x00", "x.csv: expected CSV with a header"),
    ],
)
def test_openface_files_that_are_damaged_are_named(tmp_path, text, message):
    path = tmp_path / "x.csv"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=message):
        load_feature_file(path)


def test_statistics_are_the_seven_in_order(tmp_path):
    # Sums of float16 would overflow.
    np.save(tmp_path / "x.npy", np.array([[1, 60000], [2, 60000], [3, 60000], [4, 60000], [10, 60000]], np.float16))
    statistics = load_feature_file(tmp_path / "x.npy", "statistics")
    assert statistics.shape == (1, 14) and statistics.dtype == np.float32
    np.testing.assert_allclose(statistics[0, 0::2], [4, np.sqrt(10), 1.4, 2, 3, 4, 7.6], rtol=1e-6)
    np.testing.assert_allclose(statistics[0, 1::2], np.float32(np.float16(60000)) * np.array([1, 0, 1, 1, 1, 1, 1]))


def test_a_file_name_that_is_no_text_is_escaped(tmp_path):
    (tmp_path / "voice").mkdir()
    np.save(tmp_path / "voice" / os.fsdecode(b"a\xff.npy"), np.ones((1, 2), np.float32))
    [clip] = load_features(tmp_path)["clip"]
    assert clip.isprintable() and clip.isascii() and clip == "a%FF"
