"""Members of a cross-validation and the order in which they see their rows."""

from itertools import combinations

import numpy as np
import pytest

from hf_blemo import blemore
from hf_blemo.fusion_training.lockstep import Member, _row_stream
from hf_blemo.fusion_training.selection import Selection

ROWS = np.array([3, 4, 8, 11, 20, 21, 40])


def members_of(protocol, folds, seeds):
    labels = blemore.LABEL_MATRIX[np.arange(len(folds)) % 36]
    return Selection(protocol, np.array(folds), labels, seeds, "loss", "thresholds").members


def test_honest_has_a_member_per_fold_and_per_pair_of_folds():
    members = members_of("honest", [4, 2, 0, 1, 3, 3, 0], [7, 5])
    assert len(members) == len(set(members)) == 2 * (5 + 10)
    expected = {(fold,) for fold in range(5)} | set(combinations(range(5), 2))
    for seed in (5, 7):
        assert {member.held_out for member in members if member.seed == seed} == expected


def test_published_style_has_a_member_per_fold():
    assert members_of("published_style", [9, 0, 3, 9], [1]) == [Member(1, (0,)), Member(1, (3,)), Member(1, (9,))]


@pytest.mark.parametrize(
    ("held_out", "expected"), [((), [0, 1, 2, 4, 6]), ((0,), [1, 2, 4]), ((0, 1), [2]), ((2,), [0, 1, 4, 6])]
)
def test_members_train_on_labelled_rows_outside_their_folds(held_out, expected):
    folds = np.array([0, 1, 2, 2, 1, -1, 0])
    labelled = np.array([True, True, True, False, True, False, True])
    assert Member(0, held_out).training_rows(folds, labelled).tolist() == expected


@pytest.mark.parametrize("cuts", [[4], [7], [1, 2, 3], [6, 8, 14, 21], [20]])
def test_any_split_of_a_stretch_equals_the_whole(cuts):
    whole = _row_stream(3, 0, ROWS, 5, 25)
    bounds = [0, *cuts, 25]
    parts = [
        _row_stream(3, 0, ROWS, 5 + start, stop - start) for start, stop in zip(bounds[:-1], bounds[1:], strict=True)
    ]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_every_pass_visits_each_row_once_in_an_order_of_its_own():
    passes = _row_stream(0, 0, ROWS, 0, 4 * len(ROWS)).reshape(4, -1)
    np.testing.assert_array_equal(np.sort(passes, 1), np.broadcast_to(ROWS, passes.shape))
    assert len({tuple(row) for row in passes}) == 4


def test_seed_and_purpose_choose_the_sequence():
    rows = np.arange(50)
    sequences = [tuple(_row_stream(seed, purpose, rows, 0, 50)) for seed in (0, 1, 2) for purpose in (0, 1)]
    assert len(set(sequences)) == 6


def test_a_batch_may_be_larger_than_the_rows():
    found = _row_stream(0, 0, np.array([5, 6]), 3, 7)
    assert len(found) == 7 and set(found) == {5, 6}
    assert sorted(found[1:3]) == sorted(found[3:5]) == [5, 6]
