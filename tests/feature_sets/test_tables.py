import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_blemo import blemore, feature_sets

CLIPS = ["A102_ang_int1_ver1", "A303_mix_ang_hap_30_70_ver1", "test_0001"]
VECTORS = np.array([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]], dtype=np.float32)
LABEL_INDICES = [0, 14, -1]


def write_parquet(path, **columns):
    pq.write_table(pa.table(columns), path)
    return path


def assert_table(dataset, encoder="a", folds=(2, 0, -1)):
    assert dataset["clip"][:] == CLIPS
    assert dataset["fold"][:] == list(folds)
    assert blemore.label_indices(dataset["labels"][:]).tolist() == LABEL_INDICES
    for features, vector in zip(feature_sets.read_features(dataset), VECTORS, strict=True):
        assert list(features) == [encoder]
        np.testing.assert_array_equal(features[encoder], vector[None])


@pytest.mark.parametrize("form", ["parquet", "npz", "official npz", "csv", "csv with dots"])
def test_every_form_of_table(tmp_path, form):
    names = [f"{clip}.mov" for clip in CLIPS]
    folds, encoder = (2, 0, -1), "a"
    if form == "parquet":
        path = write_parquet(tmp_path / "x.parquet", filename=names, fold=[2, 0, None], a=VECTORS.tolist())
    elif form == "npz":
        path = tmp_path / "x.npz"
        np.savez(path, clip=np.array(CLIPS), fold=np.array(folds), a=VECTORS)
    elif form == "official npz":
        path, folds, encoder = tmp_path / "wavlm_static_features.npz", (-1, -1, -1), "wavlm_static_features"
        np.savez(path, X=VECTORS.astype(np.float64), filenames=np.array(CLIPS))
    else:
        path = tmp_path / "x.csv"
        separator = "." if "dots" in form else "_"
        header = f"filename,fold,emotion_1,a{separator}1,a{separator}0\n"
        cells = zip(CLIPS, folds, VECTORS, strict=True)
        rows = [f"{clip},{fold},x,{second},{first}\n" for clip, fold, (first, second) in cells]
        path.write_text(header + "".join(rows))
    dataset = feature_sets.build_table_dataset(path, tmp_path / "built")
    assert_table(dataset, encoder, folds)
    assert dataset.features["features"][encoder].feature.feature.dtype == "float32"
    assert_table(datasets.load_from_disk(tmp_path / "built"), encoder, folds)
    assert_table(feature_sets.build_table_dataset(path), encoder, folds)
    assert_table(feature_sets.load_features(path), encoder, folds)
    with pytest.raises(FileExistsError, match="built: already exists"):
        feature_sets.build_table_dataset(path, tmp_path / "built")


def test_sequences_and_absent_encoders(tmp_path):
    sequences = [[[1.0, 2.0], [3.0, 4.0]], None, [[5.0, 6.0]]]
    path = write_parquet(tmp_path / "x.parquet", clip=CLIPS, a=sequences, b=VECTORS.tolist())
    features = feature_sets.read_features(feature_sets.build_table_dataset(path))
    assert features[0]["a"].tolist() == sequences[0]
    assert list(features[1]) == ["b"]
    path = tmp_path / "x.npz"
    np.savez(path, clip=np.array(CLIPS), a=np.arange(12.0).reshape(3, 2, 2))
    assert feature_sets.read_features(feature_sets.build_table_dataset(path), [1])[0]["a"].tolist() == [[4, 5], [6, 7]]
    path = tmp_path / "x.csv"
    path.write_text("clip,a.0,a.1,b.0\nA1_ang_int1_ver1,1,2,3\nA1_ang_int2_ver1,,,4\n")
    features = feature_sets.read_features(feature_sets.build_table_dataset(path))
    assert [list(row) for row in features] == [["a", "b"], ["b"]]


def test_a_data_set_of_this_package_comes_back_from_parquet(tmp_path):
    source = write_parquet(tmp_path / "x.parquet", clip=CLIPS, fold=[2, 0, None], a=VECTORS.tolist())
    dataset = feature_sets.build_table_dataset(source)
    dataset.to_parquet(tmp_path / "y.parquet")
    again = feature_sets.build_table_dataset(tmp_path / "y.parquet")
    assert again.features == dataset.features
    assert again[:] == dataset[:]


def test_labels_of_the_table_come_before_names(tmp_path):
    labels = [blemore.LABEL_MATRIX[20].tolist(), [-100.0] * 6, None]
    path = write_parquet(tmp_path / "x.parquet", clip=["mine", CLIPS[0], CLIPS[1]], labels=labels, a=VECTORS.tolist())
    dataset = feature_sets.build_table_dataset(path)
    assert blemore.label_indices(dataset["labels"][:]).tolist() == [20, -1, LABEL_INDICES[1]]
    for given, message in (
        (blemore.LABEL_MATRIX[1].tolist(), "found the label .*expected .*as in the name"),
        ([0.6, 0.4, 0, 0, 0, 0], "labels: row 0"),
    ):
        write_parquet(path, clip=CLIPS, labels=[given, None, None], a=VECTORS.tolist())
        with pytest.raises(ValueError, match=f"clip '{CLIPS[0]}': {message}"):
            feature_sets.build_table_dataset(path)


def test_names_without_a_label_need_leave(tmp_path):
    path = write_parquet(tmp_path / "x.parquet", clip=["mine", *CLIPS[1:]], a=VECTORS.tolist())
    with pytest.raises(ValueError, match="no column 'labels'.*clip 'mine': found a name outside the grammar"):
        feature_sets.build_table_dataset(path)
    dataset = feature_sets.build_table_dataset(path, require_labels=False)
    assert blemore.label_indices(dataset["labels"][:]).tolist() == [-1, LABEL_INDICES[1], -1]


def test_dtypes_and_chosen_encoders(tmp_path, caplog):
    half = pa.array(VECTORS.astype(np.float16).tolist(), pa.list_(pa.float16(), 2))
    path = write_parquet(tmp_path / "x.parquet", clip=CLIPS, a=VECTORS.tolist(), b=half, note=["x", "y", "z"])
    assert list(feature_sets.encoder_widths(feature_sets.build_table_dataset(path))) == ["a", "b"]
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: left out the columns note, which are neither vectors nor clip, fold, label or group"
    ]

    def kinds(**options):
        dataset = feature_sets.build_table_dataset(path, encoders=["b", "a"], **options)
        return {name: kind.feature.feature.dtype for name, kind in dataset.features["features"].items()}

    assert kinds() == {"b": "float16", "a": "float32"}
    assert list(kinds()) == ["b", "a"]
    assert kinds(feature_dtype="auto") == {"b": "float16", "a": "float16"}
    with pytest.raises(ValueError, match="found the encoders a, b, expected 'c' among them"):
        feature_sets.build_table_dataset(path, encoders=["c"])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"video": CLIPS, "a": [[1.0]] * 3},
            "expected one of clip, filename, filenames .*; --clip-column names another",
        ),
        ({"clip": [CLIPS[0], CLIPS[0] + ".mov", CLIPS[1]], "a": [[1.0]] * 3}, f"'{CLIPS[0]}' comes more than once"),
        ({"clip": [CLIPS[0], None, CLIPS[1]], "a": [[1.0]] * 3}, "column 'clip': row 1 is None"),
        ({"clip": CLIPS}, "found no encoder"),
        ({"clip": CLIPS, "a": [[1.0], [1.0, 2.0], [1.0]]}, f"'a', clip '{CLIPS[1]}': .*width 2, expected 1"),
        ({"clip": CLIPS, "a": [[1.0], [float("nan")], [1.0]]}, f"'a', clip '{CLIPS[1]}': found NaN"),
        ({"clip": CLIPS, "a": [[1.0], [None], [1.0]]}, f"'a', clip '{CLIPS[1]}': found NaN or infinity or an empty"),
        ({"clip": CLIPS, "a": [["x"]] * 3}, "found no encoder among clip, a"),
        ({"clip": CLIPS, "": [[1.0]] * 3}, "found vectors in the column '', expected the name of an encoder"),
        ({"clip": CLIPS, "\0": [[1.0]] * 3}, "found vectors in the column '.x00', expected the name of an encoder"),
        ({"clip": CLIPS, "a": [[1.0]] * 3, "fold": [[1]] * 3}, "found vectors in the column 'fold'"),
        ({"clip": CLIPS, "a": [[1.0]] * 3, "labels": [1, 2, 3]}, "found single values in the column 'labels'"),
        ({"clip": CLIPS, "a": [[1.0]] * 3, "labels": [[1.0]] * 3}, "labels: found shape .1, 1., expected .N, 6."),
        ({"clip": CLIPS, "a": [[1.0]] * 3, "labels": [[[-100.0] * 6] * 2] * 3}, "found 2 labels, expected one"),
        ({"clip": CLIPS, "a": pa.array([None] * 3, pa.list_(pa.float32()))}, "'a': found no features of any clip"),
        ({"clip": CLIPS, "a": [[1.0], None, [1.0]]}, f"clip '{CLIPS[1]}' has no features of any encoder"),
        ({"clip": CLIPS, "a": [[1.0]] * 3, "fold": [0.5, 0, 1]}, f"clip '{CLIPS[0]}' has the fold 0.5"),
        ({"clip": CLIPS, "a": [[1.0]] * 3, "fold": ["x", "y", "z"]}, "has the fold 'x'"),
        ({"clip": pa.array([], pa.string()), "a": pa.array([], pa.list_(pa.float32()))}, "found no clip"),
    ],
)
def test_bad_tables_are_named(tmp_path, columns, message):
    path = write_parquet(tmp_path / "x.parquet", **columns)
    with pytest.raises(ValueError, match=f"x.parquet.*{message}"):
        feature_sets.build_table_dataset(path, tmp_path / "built")
    assert not (tmp_path / "built").exists()


@pytest.mark.parametrize(
    "names",
    [["0001", "0010"], ["1e5", "2e5"], ["2024-01-05", "x"], ["00:01:02", "00:01:03"], ["TRUE", "true"], ["NA", "nan"]],
)
@pytest.mark.parametrize("column", ["clip", "own"])
def test_names_of_clips_and_groups_stay_text_in_csv(tmp_path, names, column):
    rows = "".join(f"{name},{number},{name},1\n" for number, name in enumerate(names))
    (tmp_path / "x.csv").write_text(f"{column},fold,speaker,a.0\n{rows}")
    found = feature_sets.build_table_dataset(
        tmp_path / "x.csv", require_labels=False, clip_column=None if column == "clip" else column, group="speaker"
    )
    assert list(found["clip"]) == names and list(found["group"]) == names


def test_bad_files_are_named(tmp_path):
    write_parquet(tmp_path / "twice.parquet", clip=CLIPS, a=VECTORS.tolist(), features=[{"a": [1.0]}] * 3)
    with pytest.raises(ValueError, match="twice.parquet: column 'a' comes more than once"):
        feature_sets.build_table_dataset(tmp_path / "twice.parquet")
    for name in ("x.parquet", "x.npz"):
        (tmp_path / name).write_bytes(b"no table")
        with pytest.raises(ValueError, match=f"{name}: expected a table of clips in"):
            feature_sets.build_table_dataset(tmp_path / name)
    for columns, message in (
        ({"clip": np.array(CLIPS, dtype=object), "a": VECTORS}, "x.npz: expected .* without pickled objects"),
        ({"clip": np.array(CLIPS), "a": VECTORS[:2]}, "found 2 rows of 'a' and 3 clips"),
    ):
        np.savez(tmp_path / "x.npz", **columns)
        with pytest.raises(ValueError, match=message):
            feature_sets.build_table_dataset(tmp_path / "x.npz")
    for header, cells, message in (
        ("a.0,a.2", "1,2", "found 2 columns of 'a', expected number 1 among them"),
        ("a.0,a.1", "1,left", "column 'a.1': found string, expected numbers"),
        ("a.0", "1,2", "x.csv: expected a table of clips in CSV"),
        # Of columns that come twice one would be lost.
        ("a.0,a.0", "1,2", "x.csv: column 'a.0' comes more than once"),
        ("a.0,a_0", "1,2", "found the columns 'a.0' and 'a_0', expected one of them"),
        ("fold,a.0,fold", "0,1,1", "column 'fold' comes more than once"),
    ):
        (tmp_path / "x.csv").write_text(f"clip,{header}\nA1_ang_int1_ver1,{cells}\n")
        with pytest.raises(ValueError, match=message):
            feature_sets.build_table_dataset(tmp_path / "x.csv")
    with pytest.raises(FileNotFoundError, match="absent.csv"):
        feature_sets.build_table_dataset(tmp_path / "absent.csv")
    with pytest.raises(ValueError, match="'.xlsx', expected one of .parquet, .npz, .csv"):
        feature_sets.build_table_dataset(tmp_path / "x.xlsx")


def test_arrays_that_unpack_to_far_more_than_their_file(tmp_path):
    path = tmp_path / "table.npz"
    np.savez_compressed(path, clip=np.array(["a"]), face=np.zeros((1, 100), np.float32))
    content = bytearray(path.read_bytes())
    place = content.index(b"PK\1\2") + 24
    content[place : place + 4] = (2**31).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"table.npz: found 2,147,.* bytes of arrays in .* \(limits.max_inflation"):
        feature_sets.build_table_dataset(path)
