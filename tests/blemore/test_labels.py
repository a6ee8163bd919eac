import numpy as np
import pytest

from hf_blemo import blemore
from hf_blemo.blemore import EMOTIONS, LABEL_MATRIX, LABELS


def test_labels_are_the_36_in_order():
    assert EMOTIONS == ("ang", "disg", "fea", "hap", "sad", "neu")
    assert len(LABELS) == 36
    assert LABELS[5] == [{"emotion": "neu", "salience": 100.0}]
    assert LABELS[6] == [{"emotion": "ang", "salience": 70.0}, {"emotion": "disg", "salience": 30.0}]
    assert LABELS[10] == [{"emotion": "ang", "salience": 50.0}, {"emotion": "fea", "salience": 50.0}]
    assert LABELS[35] == [{"emotion": "hap", "salience": 30.0}, {"emotion": "sad", "salience": 70.0}]
    assert LABEL_MATRIX.shape == (36, 6)
    assert LABEL_MATRIX[35].tolist() == [0, 0, 0, 0.3, 0.7, 0]
    assert len({tuple(row) for row in LABEL_MATRIX}) == 36


def test_emotion_sets_are_singles_then_pairs_and_match_the_labels():
    assert len(blemore.EMOTION_SETS) == 16
    assert blemore.EMOTION_SETS[6:8] == (("ang", "disg"), ("ang", "fea"))
    sets = [blemore.EMOTION_SETS[index] for index in blemore.LABEL_SETS]
    assert sets == [tuple(part["emotion"] for part in label) for label in LABELS]


@pytest.mark.parametrize(
    ("name", "soft_label"),
    [
        ("A102_ang_int1_ver1", [1, 0, 0, 0, 0, 0]),
        ("A303_neu_sit2_ver1", [0, 0, 0, 0, 0, 1]),
        ("A411_mix_ang_hap_30_70_ver1", [0.3, 0, 0, 0.7, 0, 0]),
        ("A55_mix_disg_sad_50_50_ver12", [0, 0.5, 0, 0, 0.5, 0]),
    ],
)
def test_soft_label_of_a_name(name, soft_label):
    assert blemore.soft_label(name).tolist() == soft_label
    assert blemore.soft_label(f"some/folder.v2/{name}.mov").tolist() == soft_label
    assert LABEL_MATRIX[blemore.parse_clip_name(f"{name}.NPY").label_index].tolist() == soft_label


def test_parse_clip_name_gives_every_part():
    clip = blemore.parse_clip_name("A102_ang_int4_ver2.csv")
    assert (clip.name, clip.actor, clip.emotions, clip.saliences) == ("A102_ang_int4_ver2", "A102", ("ang",), (100.0,))
    assert (clip.intensity, clip.situation, clip.version, clip.is_blend) == (4, None, 2, False)
    clip = blemore.parse_clip_name("A303_neu_sit3_ver1")
    assert (clip.emotions, clip.intensity, clip.situation) == (("neu",), None, 3)
    clip = blemore.parse_clip_name("A411_mix_ang_hap_30_70_ver1")
    assert (clip.emotions, clip.saliences, clip.is_blend) == (("ang", "hap"), (30.0, 70.0), True)
    assert clip.intensity is clip.situation is None


@pytest.mark.parametrize(
    "name",
    [
        "A102_ang_int5_ver1", "A102_ang_int0_ver1", "A102_ang_sit1_ver1", "A102_neu_int1_ver1", "A102_neu_sit5_ver1",
        "A102_angry_int1_ver1", "A_ang_int1_ver1", "102_ang_int1_ver1", "A102_ang_int1", "A102_ang_int1_ver0",
        "A102_ang_int1_ver1_copy", "A102_ang_int1_ver1\n", "A102_mix_ang_hap_60_40_ver1",
        "A102_mix_ang_neu_50_50_ver1", "A102_mix_hap_ang_50_50_ver1", "A102_mix_ang_ang_50_50_ver1",
        "A١٠٢_ang_int1_ver1", "test_0595", "test_0000", "",
    ],
)  # fmt: skip
def test_names_outside_the_grammar_are_refused(name):
    with pytest.raises(ValueError, match=r"clip .*found.*expected"):
        blemore.parse_clip_name(name)


def test_test_clips_carry_no_label():
    for name in ("videos/test_0001.mov", "test_0594"):
        with pytest.raises(ValueError, match=r"'test_0(001|594)': test clips carry no label"):
            blemore.parse_clip_name(name)
        assert blemore.soft_label(name, required=False).tolist() == [-100.0] * 6
    assert blemore.soft_label("mine", required=False).tolist() == [-100.0] * 6
    assert blemore.soft_label("A102_ang_int1_ver1", required=False).tolist() == [1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_label_indices_find_every_label_in_every_dtype(dtype):
    rows = np.vstack([LABEL_MATRIX, np.full((1, 6), -100.0)]).astype(dtype)
    assert blemore.label_indices(rows).tolist() == [*range(36), -1]


@pytest.mark.parametrize(
    "row",
    [
        [0.6, 0.4, 0, 0, 0, 0], [0.5, 0, 0, 0, 0, 0.5], [0.7, 0.3, 0, 0, 0, 0.1], [0] * 6, [0.34, 0.33, 0.33, 0, 0, 0],
        [0.998, 0, 0, 0, 0, 0], [np.nan, 0.3, 0.7, 0, 0, 0], [np.nan] * 6, [np.inf, 0, 0, 0, 0, 0], [-100] * 5 + [0],
    ],
)  # fmt: skip
def test_label_indices_name_the_row_that_is_no_label(row):
    with pytest.raises(ValueError, match="row 1 is"):
        blemore.label_indices([LABEL_MATRIX[3].tolist(), row])
    with pytest.raises(ValueError, match=r"shape \(2, 5\), expected \(N, 6\)"):
        blemore.label_indices(np.zeros((2, 5)))


def test_decoded_labels_are_fresh():
    first = blemore.decode_label_indices([6, 6])
    first[0][0]["salience"] = 1.0
    assert first[1] == LABELS[6]
    assert blemore.decode_label_indices([6])[0] == LABELS[6] == first[1]
    with pytest.raises(ValueError, match="entry 1 is 36"):
        blemore.decode_label_indices([0, 36])
    with pytest.raises(ValueError, match="entry 0 is -1"):
        blemore.decode_label_indices(np.array([-1]))


def test_prediction_label_indices_ignore_order_and_round():
    predictions = [
        *LABELS,
        [{"emotion": "sad", "salience": 70.4}, {"emotion": "hap", "salience": 29.6}],
        [{"emotion": "hap", "salience": 60.0}, {"emotion": "sad", "salience": 40.0}],
        [{"emotion": "hap", "salience": 70.0}],
        [{"emotion": "ang", "salience": 50.0}, {"emotion": "neu", "salience": 50.0}],
        [{"emotion": "ang", "salience": 50.0}, {"emotion": "ang", "salience": 50.0}],
        [{"emotion": "angry", "salience": 100.0}],
        [{"emotion": "ang"}],
        [{"emotion": "ang", "salience": None}],
        [{"emotion": "ang", "salience": float("inf")}],
        [],
    ]
    assert blemore.prediction_label_indices(predictions).tolist() == [*range(36), 35, *[-1] * 9]


def test_data_is_blemores_where_its_names_say_its_labels():
    clips = ["A1_hap_int1_ver1", "A2_mix_ang_sad_70_30_ver1", "test_0001"]
    labels = np.stack([*map(blemore.soft_label, clips[:2]), np.full(6, blemore.UNLABELLED)])
    assert blemore.named_by_labels(clips, labels) and blemore.named_by_labels(clips[2:], labels[2:])
    assert not blemore.named_by_labels(clips[::-1], labels) and not blemore.named_by_labels(["a", *clips[1:]], labels)
    assert not blemore.named_by_labels(["a"], labels[2:])
