"""Folds are dealt even in size and labels, without a group in two of them."""

from collections import Counter

import numpy as np
import pytest

from hf_blemo.feature_sets.folds import check_classes, deal_folds, group_in_two_folds


def draw(num_clips=600, num_groups=23, classes=5, seed=0):
    """Groups of very different sizes and a rare class."""
    generator = np.random.default_rng(seed)
    groups = generator.choice(num_groups, num_clips, p=generator.dirichlet(np.full(num_groups, 3.0)))
    labels = np.eye(classes)[generator.choice(classes, num_clips, p=[0.4, 0.3, 0.2, 0.07, 0.03])]
    return labels, [f"g{group}" for group in groups]


@pytest.mark.parametrize("seed", range(4))
def test_groups_stay_together_and_folds_are_even(seed):
    labels, groups = draw(seed=seed)
    folds = deal_folds(labels, groups, 5, seed)
    assert group_in_two_folds(groups, folds) is None and set(folds) == set(range(5))
    np.testing.assert_array_equal(folds, deal_folds(labels, groups, 5, seed))
    sizes = np.bincount(folds)
    largest = max(Counter(groups).values())
    assert sizes.max() - sizes.min() <= largest
    for fold in range(5):
        mix = labels[folds == fold].mean(0)
        assert np.abs(mix - labels.mean(0)).max() < 0.1
    check_classes("abcde", labels, folds, "t")


def test_the_seed_deals_equal_groups_anew():
    labels, groups = np.tile(np.eye(2), (20, 1)), [f"g{row // 2}" for row in range(40)]
    dealt = [deal_folds(labels, groups, 5, seed) for seed in (0, 1)]
    assert (dealt[0] != dealt[1]).any()
    assert all((np.bincount(folds) == 8).all() for folds in dealt)


def test_without_groups_every_label_is_even_and_unlabelled_rows_have_no_fold():
    labels, _ = draw()
    labels[[3, 5]] = -100
    folds = deal_folds(labels, None, 4)
    assert folds[[3, 5]].tolist() == [-1, -1]
    counts = np.stack([labels[folds == fold].sum(0) for fold in range(4)])
    assert np.ptp(counts, axis=0).max() <= 1 and np.ptp(counts.sum(1)) <= 2
    soft = np.random.default_rng(0).dirichlet(np.ones(6), 500)
    sizes = np.bincount(deal_folds(soft, None, 7))
    assert np.ptp(sizes) <= 10


def test_as_many_folds_as_groups_is_the_limit():
    labels, groups = np.tile(np.eye(2), (6, 1)), list("aaaaaaaabbcc")
    assert sorted(set(deal_folds(labels, groups, 3))) == [0, 1, 2]
    for count, given, message in (
        (4, groups, "--folds 4: found 3 groups of labelled clips"),
        (13, None, "--folds 13: found 12 labelled clips"),
        (1, None, "--folds 1: expected 2 to 127"),
        (128, None, "--folds 128: expected 2 to 127"),
    ):
        with pytest.raises(ValueError, match=message):
            deal_folds(labels, given, count)


def test_classes_that_cannot_be_scored_are_refused():
    labels = np.eye(3)[[0, 1, 0, 1, 2, 2]]
    with pytest.raises(ValueError, match="t: found the class 'c' in fold 1 only"):
        check_classes("abc", labels, np.array([0, 0, 1, 1, 1, 1]), "t")
    with pytest.raises(ValueError, match=r"t: found labels of one class only \(a\)"):
        check_classes("ab", np.array([[1.0, 0], [-100, -100]]), np.array([0, 1]), "t")
    check_classes("abc", labels, np.array([0, 0, 1, 1, 1, 0]), "t")
    check_classes("abc", labels, np.full(6, -1), "t")
