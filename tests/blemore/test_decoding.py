import itertools
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from drawn_probabilities import KINDS, draw, softmax

from hf_blemo import blemore
from hf_blemo.blemore import EMOTIONS, LABEL_MATRIX, LABELS, THRESHOLD_GRID

DATA = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "blemore_hicmae_logits.parquet"


def as_dict(prediction):
    return {part["emotion"]: part["salience"] for part in prediction}


def reference_prediction(row, alpha, beta):
    """One clip, by the rules as they are written down; alpha and beta in the dtype of the row."""
    best, other = sorted(range(6), key=lambda index: (-row[index], index))[:2]
    if row[best] < alpha:
        return {EMOTIONS[best]: 100.0}
    kept = sorted(index for index in (best, other) if row[index] >= alpha and row[index] > 0)
    if len(kept) < 2:
        return {EMOTIONS[best]: 100.0}
    first, second = kept
    if second == EMOTIONS.index("neu"):
        return {EMOTIONS[second if row[second] > row[first] else first]: 100.0}
    if abs(row[first] - row[second]) <= beta:
        return {EMOTIONS[first]: 50.0, EMOTIONS[second]: 50.0}
    if row[first] > row[second]:
        return {EMOTIONS[first]: 70.0, EMOTIONS[second]: 30.0}
    return {EMOTIONS[first]: 30.0, EMOTIONS[second]: 70.0}


def reference_search(probabilities, labels):
    """The official loop: every pair of thresholds, sorted by Score, the first of equals."""
    cast = probabilities.dtype.type
    truth = [as_dict(LABELS[index]) for index in blemore.label_indices(labels)]
    grid = []
    for alpha, beta in itertools.product(THRESHOLD_GRID.tolist(), repeat=2):
        predictions = [reference_prediction(row, cast(alpha), cast(beta)) for row in probabilities]
        pairs = list(zip(predictions, truth, strict=True))
        presence = np.mean([set(prediction) == set(label) for prediction, label in pairs])
        blends = [prediction == label for prediction, label in pairs if len(label) == 2]
        grid.append((alpha, beta, presence, np.mean(blends) if blends else 0.0))
    return grid, sorted(grid, key=lambda cell: 0.5 * cell[2] + 0.5 * cell[3], reverse=True)[0]


@pytest.mark.parametrize(
    ("kind", "dtype", "singles_only"),
    [
        *((kind, np.float32, False) for kind in KINDS),
        *((kind, np.float64, kind == "twentieths") for kind in ("twentieths", "thresholds")),
    ],
)
def test_search_equals_the_official_loop(kind, dtype, singles_only):
    probabilities = draw(kind, (60, 6), dtype)
    generator = np.random.default_rng(0)
    labels = LABEL_MATRIX[generator.integers(0, 6 if singles_only else 36, 60)]
    # Half of the labels are near a prediction, so that hits of every kind occur.
    near = [*blemore.decode_thresholds(probabilities[:20], 0.1, 0.1)]
    near += blemore.decode_thresholds(probabilities[20:30], 0.3, 0.4)
    if not singles_only:
        labels[:30] = LABEL_MATRIX[blemore.prediction_label_indices(near)]
    grid, (alpha, beta, presence, salience) = reference_search(probabilities, labels)

    thresholds = blemore.fit_thresholds(probabilities, labels)
    assert thresholds == (alpha, beta, presence, salience)
    presence_grid, salience_grid = blemore.threshold_grid(probabilities, labels)
    assert presence_grid.ravel().tolist() == [cell[2] for cell in grid]
    assert salience_grid.ravel().tolist() == [cell[3] for cell in grid]

    predictions = blemore.decode_thresholds(probabilities, thresholds.alpha, thresholds.beta)
    assert blemore.acc_presence(predictions, labels) == thresholds.acc_presence
    assert blemore.acc_salience(predictions, labels) == thresholds.acc_salience


@pytest.mark.parametrize(("num_blends", "alpha"), [(2, 0.05), (3, 0.05 + 6 * 0.9 / 19)])
def test_presence_and_salience_weigh_the_same(num_blends, alpha):
    """A low alpha hits one more blend of 1 + n, a higher one three more singles of 4 + n clips."""
    probabilities = np.array([[0.6, 0.3, 0, 0, 0, 0]] * 4 + [[0.5, 0.5, 0, 0, 0, 0]] * num_blends)
    thresholds = blemore.fit_thresholds(probabilities, LABEL_MATRIX[[0, 0, 0, 6] + [7] * num_blends])
    assert thresholds.alpha == pytest.approx(alpha)


@pytest.mark.parametrize("alpha, beta", [(0.1, 0.1), (0.0, 0.0), (0.05, 0.95), (0.5, 0.2), (-1.0, -1.0)])
def test_decoding_equals_the_rules(alpha, beta):
    for kind in KINDS:
        probabilities = draw(kind, (200, 6))
        for row, prediction in zip(probabilities, blemore.decode_thresholds(probabilities, alpha, beta), strict=True):
            assert list(as_dict(prediction).items()) == sorted(
                reference_prediction(row, alpha, beta).items(), key=lambda part: EMOTIONS.index(part[0])
            )


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([0.3, 0.3, 0.3, 0.1, 0, 0], {"ang": 50.0, "disg": 50.0}),  # three equal: the lower two
        ([0.19, 0.1, 0.1, 0.1, 0.1, 0.1], {"ang": 100.0}),  # largest below alpha
        ([0.2, 0.5, 0, 0, 0, 0], {"ang": 30.0, "disg": 70.0}),  # equal to alpha stays
        ([0.199, 0.5, 0, 0, 0, 0], {"disg": 100.0}),
        ([0.4, 0, 0, 0, 0, 0.4], {"ang": 100.0}),  # neutral loses a tie
        ([0.4, 0, 0, 0, 0, 0.41], {"neu": 100.0}),
        ([0.25, 0, 0.5, 0, 0, 0], {"ang": 50.0, "fea": 50.0}),  # difference equal to beta
        ([0, 0, 0, 0, 0, 0], {"ang": 100.0}),
    ],
)
def test_the_rules_by_hand(row, expected):
    assert as_dict(blemore.decode_thresholds(np.array([row]), alpha=0.2, beta=0.25)[0]) == expected


def test_thresholds_are_compared_in_the_dtype_of_the_probabilities():
    probabilities = np.array([[0.7, 0.7, 0, 0, 0, 0]], dtype=np.float32)
    assert float(probabilities[0, 0]) < 0.7
    assert blemore.decode_thresholds(probabilities, 0.7, 0.05)[0] == LABELS[7]
    assert blemore.decode_thresholds(probabilities.astype(np.float64), 0.7, 0.05)[0] == LABELS[0]


def test_bad_probabilities_are_named():
    probabilities, joint = np.full((3, 6), 1 / 6), np.full((3, 36), 1 / 36)
    probabilities[1, 2], joint[1, 7] = np.nan, np.inf
    for call, given, message in (
        (partial(blemore.decode_thresholds, alpha=0.1, beta=0.1), probabilities, "probabilities: row 1"),
        (partial(blemore.fit_thresholds, labels=LABEL_MATRIX[:3]), probabilities, "probabilities: row 1"),
        (blemore.decode_expected_score, joint, "joint_probabilities: row 1"),
        (
            partial(blemore.decode_thresholds, alpha=0.1, beta=0.1),
            probabilities[0],
            r"shape \(6,\), expected \(N, 6\)",
        ),
        (partial(blemore.fit_thresholds, labels=LABEL_MATRIX[:3]), joint[:2, :6], "2 probabilities and 3 labels"),
        (blemore.decode_expected_score, joint[:2, :6], r"expected \(N, 36\)"),
        (blemore.decode_expected_score, -np.eye(36), "row 0 holds a negative number"),
        *(
            (partial(blemore.decode_expected_score, blend_share=share), np.eye(36), "blend_share")
            for share in (0.0, 1.01, float("nan"))
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call(given)
    assert blemore.decode_thresholds(np.zeros((0, 6)), 0.1, 0.1) == []


@pytest.mark.parametrize("share", [0.4, 1660 / 3050])
def test_expected_score_decoding_maximises_the_mean_score_over_the_joint_distribution(share):
    joint = np.random.default_rng(0).dirichlet(np.full(36, 0.4), size=300)
    hits = blemore.LABEL_SETS[:, None] == blemore.LABEL_SETS
    worth = 0.5 * hits + 0.5 * np.diag(np.arange(36) >= 6) / share
    found = blemore.prediction_label_indices(blemore.decode_expected_score(joint, share))
    assert found.tolist() == (joint @ worth).argmax(axis=1).tolist()
    if share == 1660 / 3050:
        assert blemore.decode_expected_score(joint) == blemore.decode_expected_score(joint, share)


def test_expected_score_takes_the_first_of_equal_labels():
    assert blemore.decode_expected_score(np.full((1, 36), 1 / 36))[0] == LABELS[6]
    assert blemore.decode_expected_score(np.eye(36)) == list(LABELS)


@pytest.mark.skipif(not DATA.is_file(), reason="the HiCMAE logits are not beside this checkout")
def test_real_predictions_reproduce_the_published_table():
    import pyarrow.parquet as pq

    table = pq.read_table(DATA)
    clips = table.column("filename").to_pylist()
    expected = {
        "hicmae_ce_50": (0.1447, 0.0500, 0.23982, 0.13424),
        "hicmae_ce_100": (0.0974, 0.1921, 0.24634, 0.15460),
        "hicmae_kl_50": (0.1447, 0.0974, 0.24959, 0.14178),
        "hicmae_kl_100": (0.1447, 0.0974, 0.27117, 0.14480),
        "mean": (0.1921, 0.0974, 0.27891, 0.13047),
    }
    probabilities = {
        name: softmax(np.array(table.column(name).to_pylist(), dtype=np.float32)) for name in list(expected)[:-1]
    }
    probabilities["mean"] = np.mean(list(probabilities.values()), axis=0)
    for variant, numbers in expected.items():
        thresholds = blemore.fit_thresholds(probabilities[variant], clips)
        assert tuple(map(round, thresholds, (4, 4, 5, 5))) == numbers
