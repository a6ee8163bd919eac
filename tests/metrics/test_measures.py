"""Measures over any label space, held against scikit-learn, scipy and the benchmark."""

import subprocess
import sys

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, log_loss

from hf_blemo import blemore
from hf_blemo.metrics import LOWER_IS_BETTER, measure
from hf_blemo.rank_aware_fusion.decoding_rank_aware_fusion import decode_expected_score, decode_soft, decode_thresholds
from hf_blemo.rank_aware_fusion.label_space_rank_aware_fusion import BLEMORE_SPACE, LabelSpace

SINGLE = LabelSpace(["neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised"])
VOTES = LabelSpace(["ang", "dis", "fea", "hap", "neu", "sad"])
THREES = LabelSpace("abcdef", [[60, 40], [40, 60], [50, 30, 20], [34, 33, 33]], ["f"])
SPACES = {"single": SINGLE, "blemore": BLEMORE_SPACE, "threes": THREES}
ALWAYS = {"accuracy", "uar", "macro_f1", "acc_presence"}


def drawn(space, num_rows=400, seed=0):
    """Numbers of valid labels, some of which never come, and joint and single probabilities that lean to them."""
    generator = np.random.default_rng(seed)
    indices = generator.choice(np.arange(1, len(space)), num_rows)
    joint = generator.dirichlet(np.full(len(space), 0.3), num_rows)
    joint[np.arange(num_rows), indices] += generator.random(num_rows)
    joint /= joint.sum(1, keepdims=True)
    return indices, joint, joint @ space.percent / 100


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize("name", SPACES)
def test_valid_labels_against_other_libraries(name):
    space = SPACES[name]
    indices, joint, probabilities = drawn(space)
    labels = space.percent[indices] / 100
    blends = decode_expected_score(joint, 0.5, space)
    found = measure(space, labels.astype(np.float32), blends, probabilities, joint)
    assert set(found) == ALWAYS | {"nll", "kl"} | {
        "single": set(), "blemore": {"acc_salience", "score"}, "threes": {"acc_salience"}
    }[name]  # fmt: skip
    shares = space.percent[[[space.blend(i) for i in range(len(space))].index(blend) for blend in blends]] / 100
    top, truth = shares.argmax(1), labels.argmax(1)
    assert found["accuracy"] == accuracy_score(truth, top) and 0.2 < found["accuracy"] < 0.9
    assert found["uar"] == pytest.approx(balanced_accuracy_score(truth, top), abs=1e-12)
    assert found["macro_f1"] == pytest.approx(f1_score(truth, top, average="macro", zero_division=0), abs=1e-12)
    assert found["acc_presence"] == accuracy_score((shares > 0) @ 2.0 ** np.arange(len(space.names)),
                                                   (labels > 0) @ 2.0 ** np.arange(len(space.names)))  # fmt: skip
    assert found["nll"] == pytest.approx(log_loss(indices, joint, labels=range(len(space))), abs=1e-9)
    assert found["kl"] == pytest.approx(entropy(labels, probabilities, axis=1).mean(), abs=1e-9)
    if space.blend_percents:
        rows = space.is_blend[indices]
        assert found["acc_salience"] == accuracy_score((shares == labels).all(1)[rows], np.ones(rows.sum()))
    else:
        assert found["kl"] == pytest.approx(found["nll"]) and found["acc_presence"] == found["accuracy"]
    # A perfect prediction is right by every measure, where names share the largest part as well.
    perfect = measure(space, labels, [space.blend(index) for index in indices], 1 - labels)
    assert all(value == 1 for key, value in perfect.items() if key not in LOWER_IS_BETTER)


@pytest.mark.parametrize("decode", ["expected_score", "thresholds"])
def test_blemore_measures_are_the_benchmarks_to_the_bit(decode):
    indices, joint, probabilities = drawn(BLEMORE_SPACE, 1001, seed=1)
    blends = decode_thresholds(probabilities, 0.15, 0.1) if decode == "thresholds" else decode_expected_score(joint)
    for labels in (blemore.LABEL_MATRIX[indices], blemore.LABEL_MATRIX[indices].astype(np.float16)):
        found = measure(BLEMORE_SPACE, labels, blends)
        for key in ("acc_presence", "acc_salience", "score"):
            assert found[key] == getattr(blemore, key)(blends, labels) and 0 < found[key] < 1
    rounded = [[{**part, "salience": part["salience"] + 0.4} for part in blend] for blend in blends]
    assert measure(BLEMORE_SPACE, labels, rounded)["score"] == found["score"]
    singles = measure(BLEMORE_SPACE, blemore.LABEL_MATRIX[:6], decode_expected_score(np.eye(36)[:6]))
    assert (singles["acc_salience"], singles["score"]) == (0.0, 0.5)


def test_soft_labels_against_other_libraries():
    generator = np.random.default_rng(2)
    labels = generator.dirichlet(np.full(6, 0.5), 300)
    labels[:50] = np.eye(6)[generator.integers(0, 6, 50)]
    probabilities = 0.5 * labels + 0.5 * generator.dirichlet(np.ones(6), 300)
    blends = decode_soft(probabilities, VOTES)
    found = measure(VOTES, labels, blends, probabilities, np.full((300, 6), 1 / 6), "soft", presence_share=0.3)
    assert set(found) == ALWAYS | {"kl", "js_distance", "mae"}
    assert found["accuracy"] == accuracy_score(labels.argmax(1), probabilities.argmax(1))
    assert found["uar"] == pytest.approx(balanced_accuracy_score(labels.argmax(1), probabilities.argmax(1)))
    assert found["acc_presence"] == ((labels > 0.3) == (probabilities > 0.3)).all(1).mean()
    assert found["kl"] == pytest.approx(entropy(labels, probabilities, axis=1).mean(), abs=1e-9)
    assert found["js_distance"] == pytest.approx(jensenshannon(labels, probabilities, axis=1).mean(), abs=1e-9)
    assert found["mae"] == pytest.approx(np.abs(labels - probabilities).mean(), abs=1e-12)
    from_blends = measure(VOTES, labels, blends, kind="soft", presence_share=0.3)
    assert from_blends == pytest.approx({key: value for key, value in found.items() if key != "kl"}, abs=1e-9)
    # Of soft labels of names that blend the nearest valid label counts.
    snapped = [THREES.blend(index) for index in THREES.nearest(labels)]
    found = measure(THREES, labels, snapped, kind="soft")
    assert found["acc_salience"] == 1 and "score" not in measure(BLEMORE_SPACE, labels, blends_of(6), kind="soft")


def blends_of(place, number=300):
    return [BLEMORE_SPACE.blend(place)] * number


def test_shares_on_the_limit_are_absent_in_every_precision():
    for dtype in (np.float32, np.float64):
        labels = np.array([[0.7, 0.3, 0, 0, 0, 0]], dtype=dtype)
        blend = [[{"emotion": "ang", "salience": 100.0}]]
        assert measure(VOTES, labels, blend, kind="soft", presence_share=0.3)["acc_presence"] == 1
        assert measure(VOTES, labels, blend, kind="soft", presence_share=0.29)["acc_presence"] == 0


def test_a_probability_of_zero_costs_a_finite_number():
    found = measure(VOTES, np.eye(6)[:1], [VOTES.blend(1)], np.eye(6)[1:2], np.eye(6)[1:2])
    assert found["nll"] == found["kl"] == pytest.approx(87.3, abs=0.1)


ONE = [VOTES.blend(0)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": np.zeros((0, 6)), "blends": []}, r"labels: found shape \(0, 6\), expected \(N, 6\)"),
        ({"labels": np.eye(5)[:1]}, r"labels: found shape \(1, 5\), expected \(N, 6\)"),
        ({"labels": [[1.0, 0, 0, 0, 0, 0], [-100.0] * 6], "blends": ONE * 2}, "labels: row 1 is unlabelled"),
        ({"labels": [[0.5, 0.5, 0, 0, 0, 0]]}, "labels: row 0 is .*expected one of the valid labels of 6 names"),
        ({"labels": [[3, 4, 0, 0, 3, 0]], "kind": "soft"}, "labels: row 0 is .*expected shares from 0 that sum to 1"),
        ({"labels": [[float("nan")] * 6]}, "labels: row 0"),
        ({"kind": "hard"}, "kind 'hard' is not one of valid, soft"),
        ({"blends": ONE * 2}, "found 2 blends and 1 rows of labels"),
        ({"blends": [[]]}, "blend 0 is empty, expected at least one name"),
        ({"blends": [[{"emotion": "joy", "salience": 100.0}]]}, "blend 0: found the emotion 'joy', expected one of"),
        ({"probabilities": np.ones((1, 5))}, r"probabilities: found shape \(1, 5\), expected \(1, 6\)"),
        ({"joint": np.full((1, 6), np.nan)}, "joint: row 0 is .*expected finite numbers"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        measure(**{"space": VOTES, "labels": np.eye(6)[:1], "blends": ONE, **arguments})


def test_importing_them_loads_nothing_heavy():
    code = "import sys, hf_blemo.metrics.measures; print(*{'torch', 'transformers', 'evaluate', 'datasets'} & set(sys.modules))"  # noqa: E501
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == ""
