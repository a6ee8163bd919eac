import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
from distribution_files import write_metadata

from hf_blemo import blemore, feature_sets
from hf_blemo.feature_sets import writing
from hf_blemo.feature_sets.feature_files import FeatureFileReader

CLIPS = ["A102_ang_int1_ver1", "A102_neu_sit2_ver1", "A303_mix_ang_hap_30_70_ver1", "A303_mix_fea_sad_50_50_ver1"]
CLIPS += [f"A1_sad_int{intensity}_ver1" for intensity in (1, 2, 3, 4)]
WIDTHS = {"HiCMAE": 4, "OpenFace_3": 11, "VideoMAEv2": 3, "WavLM_large": 5}
OPENFACE_HEADER = "emotion_index,gaze_yaw,gaze_pitch,action_units\n"


def write_features(folder, encoder, clip, generator, dtype=np.float32):
    folder.mkdir(parents=True, exist_ok=True)
    length = int(generator.integers(1, 6))
    if encoder == "OpenFace_3":
        frames = generator.integers(0, 9, (length, 11)) / 8
        head = frames[:, :3]
        lines = [f'{a},{b},{c},"{units.tolist()}"\n' for (a, b, c), units in zip(head, frames[:, 3:], strict=True)]
        (folder / f"{clip}.csv").write_text(OPENFACE_HEADER + "".join(lines))
        return frames.astype(np.float32)
    array = generator.standard_normal((length, WIDTHS[encoder])).astype(dtype)
    np.save(folder / f"{clip}.npy", array[:, None] if encoder == "VideoMAEv2" else array)
    return array


@pytest.fixture
def distribution(tmp_path):
    """The official folders with eight training and three test clips, and what was written in them."""
    root = tmp_path / "blemore"
    generator = np.random.default_rng(0)
    written = {}
    for split, clips in (("train", CLIPS), ("test", ["test_0001", "test_0002", "test_0594"])):
        for encoder in WIDTHS:
            folder = root / f"pre_extracted_{split}_data" / f"{encoder}_{split}"
            for clip in clips:
                written[clip, encoder] = write_features(folder, encoder, clip, generator)
    folds = {clip: row % 3 for row, clip in enumerate(CLIPS)}
    write_metadata(root, folds, {1: {"fold": "nan", "emotion_2": "NaN"}})
    return root, written


def train_file(root, encoder, clip):
    return root / "pre_extracted_train_data" / f"{encoder}_train" / f"{clip}.npy"


def build(root, **options):
    return feature_sets.build_distribution_dataset(root, root.parent / "built", progress=False, **options)


def test_training_clips_come_with_labels_folds_and_features(distribution, capsys):
    root, written = distribution
    dataset = build(root)
    assert dataset["clip"][:] == CLIPS
    assert dataset["fold"][:] == [0, -1, 2, 0, 1, 2, 0, 1]
    assert blemore.label_indices(dataset["labels"][:]).tolist() == [
        blemore.parse_clip_name(clip).label_index for clip in CLIPS
    ]
    assert feature_sets.encoder_widths(dataset) == WIDTHS
    assert {kind.feature.feature.dtype for kind in dataset.features["features"].values()} == {"float16"}
    for clip, features in zip(CLIPS, feature_sets.read_features(dataset), strict=True):
        assert list(features) == sorted(WIDTHS)
        for encoder, array in features.items():
            np.testing.assert_array_equal(array, written[clip, encoder].astype(np.float16))
    loaded = datasets.load_from_disk(root.parent / "built")
    assert loaded[:] == dataset[:]
    assert capsys.readouterr() == ("", "")


def test_test_clips_are_unlabelled(distribution):
    root, written = distribution
    dataset = build(root, split="test", feature_dtype="float32", encoders=["WavLM_large", "HiCMAE"])
    assert dataset["clip"][:] == ["test_0001", "test_0002", "test_0594"]
    assert dataset["fold"][:] == [-1] * 3
    assert np.array_equal(dataset["labels"][:], np.full((3, 6), -100.0))
    assert feature_sets.encoder_widths(dataset) == {"WavLM_large": 5, "HiCMAE": 4}
    features = feature_sets.read_features(dataset, [2])[0]
    np.testing.assert_array_equal(features["HiCMAE"], written["test_0594", "HiCMAE"])
    dataset = build(root, split="test", aggregate="statistics", overwrite=True)
    assert feature_sets.encoder_widths(dataset) == {name: 7 * width for name, width in WIDTHS.items()}


def test_missing_files_are_an_error_or_null(distribution):
    root, _ = distribution
    path = train_file(root, "HiCMAE", CLIPS[2])
    path.unlink()
    train_file(root, "WavLM_large", CLIPS[3]).unlink()
    message = f"clip '{CLIPS[2]}', encoder 'HiCMAE': found no feature file, expected {path}.* 2 are missing in all"
    with pytest.raises(FileNotFoundError, match=message):
        build(root)
    assert not (root.parent / "built").exists()
    dataset = build(root, allow_missing=True)
    assert dataset[2]["features"]["HiCMAE"] is None
    assert list(feature_sets.read_features(dataset, [2])[0]) == ["OpenFace_3", "VideoMAEv2", "WavLM_large"]
    with pytest.raises(FileNotFoundError, match=f"clip '{CLIPS[2]}': found no feature file"):
        build(root, allow_missing=True, encoders=["HiCMAE"], overwrite=True)


def test_damaged_files_are_named(distribution):
    root, _ = distribution
    path = train_file(root, "WavLM_large", CLIPS[4])
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    with pytest.raises(ValueError, match=f"{CLIPS[4]}.npy: expected a complete .npy array"):
        build(root)
    for array, message in [
        (np.zeros((2, 6), np.float32), "found features of width 6, expected 5"),
        (np.zeros((0, 5), np.float32), "found no time step"),
        (np.full((2, 5), np.nan, np.float32), "found NaN or infinity"),
        (np.full((2, 5), 1e5, np.float32), "found 100000, expected at most 65504"),
    ]:
        np.save(path, array)
        with pytest.raises(ValueError, match=f"{CLIPS[4]}.npy: {message}"):
            build(root)
        assert not (root.parent / "built").exists()
    path.write_bytes(whole)
    assert len(build(root)) == 8


def test_auto_dtype_follows_the_first_clip_and_float32_never_narrows(distribution):
    root, _ = distribution
    np.save(train_file(root, "WavLM_large", CLIPS[0]), np.full((2, 5), 1e5, np.float32))
    dataset = build(root)
    kinds = {name: kind.feature.feature.dtype for name, kind in dataset.features["features"].items()}
    assert kinds == {**dict.fromkeys(WIDTHS, "float16"), "WavLM_large": "float32"}
    assert feature_sets.read_features(dataset, [0])[0]["WavLM_large"].max() == 1e5
    np.save(train_file(root, "WavLM_large", CLIPS[0]), np.ones((2, 5), np.float16))
    with pytest.raises(ValueError, match=f"{CLIPS[1]}.npy: found float32, expected float16 as in the first clip"):
        build(root, feature_dtype="float32", overwrite=True)


def test_metadata_must_agree_with_the_names(distribution):
    root, _ = distribution
    for row, change, message in [
        (0, {"emotion_1": "hap"}, f"line 2: clip '{CLIPS[0]}' has the label hap 100.0, expected ang 100.0"),
        (2, {"emotion_1_salience": 50, "emotion_2_salience": 50}, "label ang 50.0 . hap 50.0, expected ang 30.0"),
        (2, {"emotion_2": ""}, "has the label ang 100.0, expected ang 30.0 . hap 70.0"),
        (2, {"emotion_1_salience": "x"}, "column emotion_1_salience: found 'x', expected a number"),
        (3, {"fold": 1.5}, "has the fold 1.5, expected a whole number"),
        (3, {"filename": "A1_foo"}, "clip 'A1_foo': found a name outside the grammar"),
        (3, {"filename": CLIPS[0], "emotion_1": "ang", "emotion_2": ""}, f"clip '{CLIPS[0]}' comes more than once"),
    ]:
        write_metadata(root, dict.fromkeys(CLIPS, 0), {row: change})
        with pytest.raises(ValueError, match=message):
            build(root)
    for header, missing in (
        ("file,mix", "'filename', 'fold'"),
        ("filename,fold,emotion_1", "'emotion_1_salience', 'emotion_2', 'emotion_2_salience'"),
    ):
        (root / "train_metadata.csv").write_text(f"{header}\n")
        with pytest.raises(ValueError, match=f"found the columns .*, expected {missing} among them"):
            build(root)


def test_names_and_folds_are_all_that_the_metadata_needs(distribution):
    root, _ = distribution
    full = build(root)[:]
    rows = [f"{clip}.mov,{fold}" for clip, fold in zip(full["clip"], full["fold"], strict=True)]
    (root / "train_metadata.csv").write_text("\n".join(["filename,fold", *rows]).replace(",-1", ","))
    assert build(root, overwrite=True)[:] == full


def test_wrong_folders_and_options_are_named(distribution, tmp_path):
    root, _ = distribution
    for options, message in (
        (
            {"encoders": ["CLIP", "HiCMAE", "BERT"]},
            "the encoders HiCMAE, .*, expected 'CLIP', 'BERT' among",
        ),
        ({"split": "dev"}, "split: found 'dev'"),
        ({"aggregate": "mean"}, "aggregate: found 'mean'"),
        ({"feature_dtype": "int8"}, "feature_dtype: found 'int8'"),
    ):
        with pytest.raises(ValueError, match=message):
            build(root, **options)
    with pytest.raises(FileNotFoundError, match="elsewhere: no such folder"):
        build(tmp_path / "elsewhere")
    (root / "train_metadata.csv").unlink()
    with pytest.raises(FileNotFoundError, match="train_metadata.csv: no such file"):
        build(root)


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_interrupted_build_goes_on_and_ends_in_the_same_bytes(distribution, monkeypatch):
    root, _ = distribution
    monkeypatch.setattr(writing, "CLIPS_PER_PART", 3)
    reference = feature_sets.build_distribution_dataset(root, root.parent / "reference", progress=False)
    read = []
    load = FeatureFileReader._load

    def interrupted(reader, path):
        if path.stem == CLIPS[4] and path.parent.name == "HiCMAE_train":
            raise KeyboardInterrupt
        return load(reader, path)

    monkeypatch.setattr(FeatureFileReader, "_load", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(root)
    partial = root.parent / "built.partial"
    assert [path.name.rsplit("-", 1)[0] for path in partial.glob("*.arrow")] == ["clips-00000000"]
    assert not (root.parent / "built").exists()

    monkeypatch.setattr(FeatureFileReader, "_load", lambda reader, path: read.append(path.stem) or load(reader, path))
    with pytest.raises(ValueError, match="built.partial: found an unfinished build with other settings"):
        build(root, feature_dtype="float32")
    read.clear()
    dataset = build(root)
    # One look at the first clip fixes the types; the clips of the first part are not read again.
    assert [clip for clip in read if clip in CLIPS[:3]] == [CLIPS[0]] * 4
    found, expected = files_of(root.parent / "built"), files_of(root.parent / "reference")
    assert sorted(found) == ["build.json", "data-00000-of-00001.arrow", "dataset_info.json", "state.json"]
    # The state holds a random fingerprint.
    assert {**found, "state.json": b""} == {**expected, "state.json": b""}
    assert not partial.exists()
    assert dataset[:] == reference[:]


@pytest.mark.parametrize("overwrite", [False, True])
def test_parts_of_other_feature_files_are_written_again(distribution, monkeypatch, overwrite):
    """A failed build leaves its first parts; then one of their clips is extracted anew, with equal shapes."""
    root, _ = distribution
    monkeypatch.setattr(writing, "CLIPS_PER_PART", 2)
    last, first = train_file(root, "HiCMAE", CLIPS[-1]), train_file(root, "HiCMAE", CLIPS[0])
    sound = last.read_bytes()
    np.save(last, np.full((2, 4), np.nan, np.float32))
    with pytest.raises(ValueError, match="HiCMAE.*NaN"):
        build(root)
    assert len(list((root.parent / "built.partial").glob("*.arrow"))) == 3
    last.write_bytes(sound)
    new = np.full_like(np.load(first), 2.0)
    np.save(first, new)
    written, write = [], writing._write_part
    monkeypatch.setattr(writing, "_write_part", lambda path, *more: written.append(path) or write(path, *more))
    dataset = build(root, overwrite=overwrite)
    assert len(written) == 2, "the parts of unchanged clips are kept"
    np.testing.assert_array_equal(feature_sets.read_features(dataset)[0]["HiCMAE"], new)


def test_existing_outputs_are_left_alone(distribution):
    root, _ = distribution
    output = root.parent / "built"
    output.mkdir()
    (output / "thesis.txt").write_text("precious")
    for options in ({}, {"overwrite": True}):
        with pytest.raises(FileExistsError, match="built: "):
            build(root, **options)
    assert (output / "thesis.txt").read_text() == "precious"
    shutil.rmtree(output)
    (root.parent / "built.partial").mkdir()
    with pytest.raises(FileExistsError, match="built.partial: exists and is not an unfinished build"):
        build(root, overwrite=True)
    (root.parent / "built.partial").rmdir()

    first = build(root, encoders=["HiCMAE"])
    before = files_of(output)
    with pytest.raises(FileExistsError, match="built: already exists; pass overwrite=True"):
        build(root)
    assert files_of(output) == before
    second = build(root, encoders=["WavLM_large"], overwrite=True)
    assert feature_sets.encoder_widths(second) == {"WavLM_large": 5}
    assert first._fingerprint != second._fingerprint
    assert sorted(path.name for path in root.parent.iterdir()) == ["blemore", "built"]


def test_large_clips_leave_the_memory_batch_by_batch(distribution, monkeypatch):
    root, written = distribution
    monkeypatch.setattr(writing, "_BATCH_BYTES", 100)
    batches = []
    encode = writing.encode_clips
    monkeypatch.setattr(
        writing, "encode_clips", lambda clips, schema: batches.append(len(clips)) or encode(clips, schema)
    )
    dataset = build(root)
    assert sum(batches) == len(CLIPS) and len(batches) > 3
    for clip, features in zip(CLIPS, feature_sets.read_features(dataset), strict=True):
        np.testing.assert_array_equal(features["HiCMAE"], written[clip, "HiCMAE"].astype(np.float16))


def test_a_build_that_is_interrupted_while_it_is_saved_leaves_no_half_data_set(distribution, monkeypatch):
    root, _ = distribution

    def interrupted(dataset, folder):
        Path(folder).mkdir()
        (Path(folder) / "data-00000-of-00001.arrow").write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(datasets.Dataset, "save_to_disk", interrupted)
        build(root)
    assert not (root.parent / "built").exists()
    assert build(root)["clip"][:] == CLIPS
    assert sorted(path.name for path in root.parent.iterdir()) == ["blemore", "built"]
