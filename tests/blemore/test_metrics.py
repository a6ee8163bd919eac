import numpy as np
import pytest

from hf_blemo import blemore
from hf_blemo.blemore import LABEL_MATRIX, LABELS


def prediction(**saliences):
    return [{"emotion": emotion, "salience": salience} for emotion, salience in saliences.items()]


CLIPS = [
    "A102_ang_int1_ver1",
    "A102_neu_sit1_ver1",
    "A411_mix_ang_hap_30_70_ver1",
    "A411_mix_ang_hap_50_50_ver1",
    "A411_mix_fea_sad_70_30_ver1",
]
PREDICTIONS = [
    prediction(ang=100.0),  # right
    prediction(hap=100.0),  # wrong
    prediction(hap=70.4, ang=29.6),  # right in any order, after rounding
    prediction(ang=70.0, hap=30.0),  # right set, wrong salience
    prediction(fea=100.0),  # one emotion of a blend: wrong in both
]


def test_accuracies_by_hand():
    assert blemore.acc_presence(PREDICTIONS, CLIPS) == 3 / 5
    assert blemore.acc_salience(PREDICTIONS, CLIPS) == 1 / 3
    assert blemore.score(PREDICTIONS, CLIPS) == pytest.approx(0.5 * 3 / 5 + 0.5 / 3)


def test_every_form_of_labels_gives_the_same():
    soft_labels = np.stack([blemore.soft_label(clip) for clip in CLIPS])
    as_predictions = [LABELS[index][::-1] for index in blemore.label_indices(soft_labels)]
    for labels in (soft_labels, soft_labels.astype(np.float32), soft_labels.tolist(), as_predictions, np.array(CLIPS)):
        assert blemore.acc_presence(PREDICTIONS, labels) == 3 / 5
        assert blemore.acc_salience(PREDICTIONS, labels) == 1 / 3


def test_salience_rounds_to_whole_per_cent():
    clip = ["A411_mix_ang_hap_30_70_ver1"]
    assert blemore.acc_salience([prediction(ang=30.5, hap=69.5)], clip) == 1.0  # halves go to even: 30 and 70
    assert blemore.acc_salience([prediction(ang=30.6, hap=69.4)], clip) == 0.0


def test_odd_predictions_are_wrong_but_no_error():
    clips = CLIPS[:1] + CLIPS[2:3]
    odd = [[], prediction(ang=30, hap=60, sad=10)]
    assert blemore.acc_presence(odd, clips) == 0.0
    assert blemore.acc_salience(odd, clips) == 0.0
    assert blemore.acc_presence([prediction(angry=100), prediction(ang=1, hap=1)], clips) == 0.5
    # Presence is about sets, so a repeated emotion counts once.
    assert blemore.acc_presence([prediction(ang=100) * 2, []], clips) == 0.5


def test_salience_is_zero_without_blends():
    assert blemore.acc_salience(PREDICTIONS[:2], CLIPS[:2]) == 0.0
    assert blemore.score(PREDICTIONS[:2], CLIPS[:2]) == 0.25


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="4 predictions and 5 labels"):
        blemore.acc_presence(PREDICTIONS[:4], CLIPS)
    with pytest.raises(ValueError, match="no predictions"):
        blemore.acc_salience([], [])
    with pytest.raises(ValueError, match="row 1 is unlabelled"):
        blemore.acc_presence(PREDICTIONS[:2], np.stack([LABEL_MATRIX[0], np.full(6, -100.0)]))
    with pytest.raises(ValueError, match="row 1 is .*hap.*expected one of the 36 labels"):
        blemore.score(PREDICTIONS[:2], [LABELS[0], prediction(hap=60, sad=40)])
    with pytest.raises(ValueError, match="prediction 1: found 'hap'"):
        blemore.acc_presence([LABELS[0], "hap"], CLIPS[:2])


def test_confusion_has_true_sets_as_rows():
    counts = blemore.confusion(PREDICTIONS, CLIPS)
    sets = blemore.EMOTION_SETS
    expected = np.zeros((16, 16), dtype=int)
    expected[sets.index(("ang",)), sets.index(("ang",))] = 1
    expected[sets.index(("neu",)), sets.index(("hap",))] = 1
    expected[sets.index(("ang", "hap")), sets.index(("ang", "hap"))] = 2
    expected[sets.index(("fea", "sad")), sets.index(("fea",))] = 1
    assert counts.tolist() == expected.tolist()
    assert np.trace(counts) / counts.sum() == blemore.acc_presence(PREDICTIONS, CLIPS)
    with pytest.raises(ValueError, match=r"prediction 0: found \['ang', 'neu'\]"):
        blemore.confusion([prediction(ang=50, neu=50)], CLIPS[:1])
