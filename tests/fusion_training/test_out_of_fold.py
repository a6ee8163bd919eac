"""Measures and paired comparisons of out-of-fold predictions, by hand and on drawn numbers."""

import numpy as np
import pytest

from hf_blemo.fusion_training.judging import Judge
from hf_blemo.fusion_training.out_of_fold import OutOfFold, Truth, chosen_inside, paired_bootstrap
from hf_blemo.rank_aware_fusion.label_space_rank_aware_fusion import BLEMORE_SPACE, LabelSpace

SPACE = LabelSpace(["red", "green", "blue"])
FOLDS = np.arange(30) % 3


def drawn(space, seed, num_seeds=2):
    joint = np.random.default_rng(seed).dirichlet(np.ones(len(space)), (num_seeds, 30))
    probabilities = joint @ (space.percent / 100)
    return OutOfFold(probabilities, joint, np.random.default_rng(seed).random((num_seeds, 3)))


@pytest.mark.parametrize(("space", "kind"), [(SPACE, "valid"), (SPACE, "soft"), (BLEMORE_SPACE, "valid")])
def test_measures_of_clips_are_those_of_the_whole(space, kind, tmp_path):
    generator = np.random.default_rng(0)
    labels = space.percent[generator.integers(0, len(space), 30)] / 100
    if kind == "soft":
        labels = generator.dirichlet(np.ones(3), 30)
    truth = Truth(Judge(space, kind), labels, FOLDS, np.arange(30), "30 clips")
    made = drawn(space, 1)
    made.save(tmp_path / "rows" / "one.safetensors")
    read = OutOfFold.load(tmp_path / "rows" / "one.safetensors")
    measures, per_clip = made.measures(truth), read.per_clip(truth)
    assert truth.loss == ("kl" if kind == "soft" else "nll") and set(measures) == set(truth.judge.measures)
    for name, values in per_clip.items():
        assert values.mean() == pytest.approx(measures[name]["mean"]), name
    by_fold = made.measures(truth, by_fold=True)
    parts = [per_clip["accuracy"][fold == FOLDS].mean() for fold in range(3)]
    assert by_fold["accuracy"]["mean"] == pytest.approx(np.mean(parts))


def test_the_chosen_row_is_that_of_the_lowest_judging_loss_of_seed_and_fold():
    rows = [drawn(SPACE, seed) for seed in range(3)]
    made, best = chosen_inside(rows, FOLDS)
    for seed in range(2):
        for fold in range(3):
            expected = min(rows, key=lambda row, at=(seed, fold): row.judging[at])
            assert rows[best[seed, fold]] is expected and made.judging[seed, fold] == expected.judging[seed, fold]
            where = fold == FOLDS
            np.testing.assert_array_equal(made.probabilities[seed, where], expected.probabilities[seed, where])


def test_the_bootstrap_draws_whole_groups():
    differences = np.repeat([0.0, 1.0, 0.0, 1.0], 25)
    by_clip, by_group = (paired_bootstrap(differences, groups) for groups in (np.arange(100), np.repeat(range(4), 25)))
    assert by_clip["difference"] == by_group["difference"] == 0.5
    # Of 100 clips, 0.5 +- 1.96 * 0.05; of four groups as good as anything.
    assert by_clip["low"] == pytest.approx(0.4, abs=0.02) and by_clip["high"] == pytest.approx(0.6, abs=0.02)
    assert by_group["low"] == 0.0 and by_group["high"] == 1.0
    assert by_group == paired_bootstrap(differences, np.repeat(range(4), 25))
    assert paired_bootstrap(np.full(9, 0.25), np.arange(9)) == {"difference": 0.25, "low": 0.25, "high": 0.25}


def test_groups_are_a_column_or_the_actors_or_single_clips(make_data):
    data = make_data(6)
    labels, rows = np.asarray(data["labels"]), np.arange(1, 6)
    assert Truth.of(data, Judge(), labels, rows).grouping == "5 clips"
    grouped = Truth.of(data.add_column("group", list("aabbcc")), Judge(), labels, rows)
    assert grouped.grouping == "3 groups" and grouped.groups.tolist() == [0, 1, 1, 2, 2]
    names = [f"A{row // 2}_ang_int1_ver{row % 2 + 1}" for row in range(6)]
    named = data.remove_columns("clip").add_column("clip", names)
    assert Truth.of(named, Judge(), labels, np.arange(6)).grouping == "3 actors"
