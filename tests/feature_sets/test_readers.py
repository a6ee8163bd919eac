import datasets
import numpy as np
import pytest

from hf_blemo import blemore, feature_sets

CLIPS = ["A102_ang_int1_ver1", "mine", "test_0002"]


@pytest.fixture
def folder(tmp_path):
    """Two encoders, one of them without the clip `mine`."""
    for encoder, width in (("wavlm_test", 4), ("hicmae", 2)):
        (tmp_path / "features" / encoder).mkdir(parents=True)
        for number, clip in enumerate(CLIPS):
            if (encoder, clip) != ("hicmae", "mine"):
                array = np.full((number + 1, width), number, dtype=np.float32)
                np.save(tmp_path / "features" / encoder / f"{clip}.npy", array)
    return tmp_path / "features"


def test_a_folder_of_encoders(folder):
    dataset = feature_sets.load_features(folder)
    assert dataset["clip"][:] == CLIPS
    assert dataset["fold"][:] == [-1] * 3
    assert blemore.label_indices(dataset["labels"][:]).tolist() == [0, -1, -1]
    assert feature_sets.encoder_widths(dataset) == {"hicmae": 2, "wavlm": 4}
    features = feature_sets.read_features(dataset)
    assert [sorted(row) for row in features] == [["hicmae", "wavlm"], ["wavlm"], ["hicmae", "wavlm"]]
    assert features[2]["wavlm"].tolist() == [[2.0] * 4] * 3


def test_the_folder_of_one_encoder(folder, monkeypatch):
    dataset = feature_sets.load_features(folder / "wavlm_test")
    assert feature_sets.encoder_widths(dataset) == {"wavlm": 4}
    monkeypatch.chdir(folder / "wavlm_test")
    assert feature_sets.encoder_widths(feature_sets.load_features(".")) == {"wavlm": 4}


def test_a_built_data_set(folder, tmp_path):
    dataset = feature_sets.load_features(folder)
    dataset.save_to_disk(tmp_path / "saved")
    assert feature_sets.load_features(tmp_path / "saved")[:] == dataset[:]
    datasets.DatasetDict({"train": dataset}).save_to_disk(tmp_path / "splits")
    with pytest.raises(ValueError, match="splits: found a data set of several splits"):
        feature_sets.load_features(tmp_path / "splits")
    datasets.Dataset.from_dict({"x": [1]}).save_to_disk(tmp_path / "other")
    with pytest.raises(ValueError, match=r"other: found the columns \['x'\], expected 'clip' and 'features'"):
        feature_sets.load_features(tmp_path / "other")


def test_nothing_to_read_is_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="absent: no such file or folder"):
        feature_sets.load_features(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: found no encoder, expected sub-folders <encoder>"):
        feature_sets.load_features(tmp_path / "empty")
    (tmp_path / "x.txt").write_text("")
    with pytest.raises(ValueError, match="'.txt', expected one of .parquet, .npz, .csv"):
        feature_sets.load_features(tmp_path / "x.txt")
    (tmp_path / "root" / "pre_extracted_test_data").mkdir(parents=True)
    with pytest.raises(ValueError, match="root: found the whole distribution.*: pre_extracted_test_data"):
        feature_sets.load_features(tmp_path / "root")
    np.save(folder / "hicmae" / "mine.npy", np.zeros((1, 3), np.float32))
    with pytest.raises(ValueError, match="mine.npy: found features of width 3, expected 2"):
        feature_sets.load_features(folder)
    (folder / "wavlm_train").mkdir()
    np.save(folder / "wavlm_train" / "mine.npy", np.zeros((1, 4), np.float32))
    with pytest.raises(ValueError, match="found wavlm_test and wavlm_train, expected encoder 'wavlm' once"):
        feature_sets.load_features(folder)
