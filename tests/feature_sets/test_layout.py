import datasets
import numpy as np
import pytest

from hf_blemo import blemore, feature_sets
from hf_blemo.feature_sets.layout import Clip, FeatureType, dataset_features, encode_clips

TYPES = {"wavlm": FeatureType(8, "float16"), "face": FeatureType(3, "float32")}


def make_clips(num_clips=7):
    generator = np.random.default_rng(0)
    clips = []
    for row in range(num_clips):
        features = {
            "wavlm": generator.standard_normal((1 + row, 8)).astype(np.float16) if row != 2 else None,
            "face": generator.standard_normal((2, 3)).astype(np.float32) if row % 3 else None,
        }
        labels = blemore.LABEL_MATRIX[row] if row else np.full(6, -100.0)
        clips.append(Clip(f"clip {row}", features, labels, row % 3 - 1))
    return clips


def make_dataset(clips, batches=1):
    import pyarrow as pa

    features = dataset_features(TYPES)
    parts = np.array_split(np.arange(len(clips)), batches)
    return datasets.Dataset(
        pa.Table.from_batches([encode_clips([clips[row] for row in part], features.arrow_schema) for part in parts])
    )


def assert_same_features(found, clip):
    expected = {name: array for name, array in clip.features.items() if array is not None}
    assert list(found) == list(expected)
    for name, array in found.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, expected[name])


@pytest.mark.parametrize("batches", [1, 3])
def test_read_features_in_any_order(batches):
    clips = make_clips()
    dataset = make_dataset(clips, batches)
    for rows in (None, [6, 0, 3, 3, 2], np.array([1, 5]), range(2, 5), [4], []):
        found = feature_sets.read_features(dataset, rows)
        expected = list(range(7)) if rows is None else list(rows)
        assert len(found) == len(expected)
        for features, row in zip(found, expected, strict=True):
            assert_same_features(features, clips[row])
    shuffled = dataset.select([5, 1, 2])
    for features, row in zip(feature_sets.read_features(shuffled), [5, 1, 2], strict=True):
        assert_same_features(features, clips[row])
    with pytest.raises(IndexError):
        feature_sets.read_features(dataset, [7])


def test_disk_and_parquet_round_trips(tmp_path):
    clips = make_clips()
    dataset = make_dataset(clips, 2)
    dataset.save_to_disk(tmp_path / "saved")
    dataset.to_parquet(tmp_path / "x.parquet")
    cache = str(tmp_path / "cache")
    from_parquet = datasets.Dataset.from_parquet(str(tmp_path / "x.parquet"), cache_dir=cache)
    for loaded in (datasets.load_from_disk(tmp_path / "saved"), from_parquet):
        assert loaded.features == dataset.features == dataset_features(TYPES)
        assert feature_sets.encoder_widths(loaded) == {"wavlm": 8, "face": 3}
        assert loaded["clip"][:] == [clip.name for clip in clips] and loaded["fold"][:] == [c.fold for c in clips]
        np.testing.assert_allclose(loaded["labels"][:], [clip.labels for clip in clips], rtol=1e-6)
        for features, clip in zip(feature_sets.read_features(loaded), clips, strict=True):
            assert_same_features(features, clip)
    # What is read is a copy.
    feature_sets.read_features(dataset, [1])[0]["face"][:] = 0
    assert np.abs(feature_sets.read_features(dataset, [1])[0]["face"]).min() > 0


def one_encoder(feature, rows):
    return datasets.Dataset.from_dict(
        {"features": [{"a": row} for row in rows]}, features=datasets.Features({"features": {"a": feature}})
    )


@pytest.mark.parametrize(
    "feature",
    [
        datasets.Array2D((None, 2), "float32"),
        datasets.List(datasets.List(datasets.Value("float64"))),
        datasets.List(datasets.List(datasets.Value("float32"), length=2)),
        datasets.List(datasets.List(datasets.Value("float16"), length=2), length=3),
    ],
)
def test_other_types_of_sequences_are_read_alike(feature):
    sequence = [[1, 2], [3, 4], [5, 6]]
    dataset = one_encoder(feature, [None, sequence])
    assert feature_sets.encoder_widths(dataset) == {"a": 2}
    for rows in ([0, 1], [1, 0, 1]):
        for row, found in zip(rows, feature_sets.read_features(dataset, rows), strict=True):
            assert {name: array.tolist() for name, array in found.items()} == ({"a": sequence} if row else {})


@pytest.mark.parametrize("length", [-1, 3])
def test_vectors_are_sequences_of_one(length):
    dataset = one_encoder(datasets.List(datasets.Value("float32"), length=length), [None, [1, 2, 3]])
    assert feature_sets.encoder_widths(dataset) == {"a": 3}
    assert feature_sets.read_features(dataset)[1]["a"].tolist() == [[1, 2, 3]]


def test_features_of_another_shape_are_refused():
    for column, message in (
        ({"features": [{"a": [[1.0, 2.0], [3.0]]}]}, "a: row 0 has widths of 1 to 2"),
        ({"features": [{"a": [[1.0]]}, {"a": [[None]]}]}, "a: row 1 has an empty value"),
        ({"features": [{"a": ["x"]}]}, "a: found .*string"),
        ({"clip": ["x"]}, "expected a nested column 'features'"),
    ):
        with pytest.raises(ValueError, match=message):
            feature_sets.read_features(datasets.Dataset.from_dict(column))
    with pytest.raises(ValueError, match="encoder 'a': no clip"):
        feature_sets.encoder_widths(one_encoder(datasets.List(datasets.List(datasets.Value("float32"))), [None]))


def test_stored_dtypes():
    small, large = np.full((1, 3), 65504.0), np.full((1, 3), -65536.0)
    for first, asked, expected in (
        (small.astype(np.float16), "float32", "float16"),
        (small.astype(np.float32), "float32", "float32"),
        (small, "auto", "float16"),
        (large, "auto", "float32"),
        (large, "float16", "float16"),
    ):
        assert FeatureType.of(first, asked) == (3, expected)
    with pytest.raises(ValueError, match="'half', expected one of auto, float16, float32"):
        FeatureType.of(small, "half")
