import numpy as np
import pytest

from hf_blemo import blemore, feature_sets
from hf_blemo.built_in import SYNTHETIC_ENCODERS, make_synthetic_blends, synthetic_blends

NAMES = list(SYNTHETIC_ENCODERS)
NOISE = ("scene", "room")
STRUCTURES = {
    name: synthetic_blends._structure(0, number, SYNTHETIC_ENCODERS[name]["feature_size"])
    for number, name in enumerate(NAMES)
}


def means(dataset, name):
    """(N, D) mean over time less the encoder's own, in its own scale, NaN where missing."""
    size = SYNTHETIC_ENCODERS[name]["feature_size"]
    rows = [row[name].mean(0) if name in row else np.full(size, np.nan) for row in feature_sets.read_features(dataset)]
    return np.stack(rows) / synthetic_blends._ENCODERS[name].scale - STRUCTURES[name].mean


@pytest.fixture(scope="module")
def clips():
    return make_synthetic_blends(num_clips=400, seed=3)


def test_form_is_that_of_blemore_with_folds_disjoint_in_actors(clips):
    assert clips.column_names == ["clip", "features", "labels", "fold", "informative", "domain"]
    assert feature_sets.encoder_widths(clips) == {name: SYNTHETIC_ENCODERS[name]["feature_size"] for name in NAMES}
    assert len(set(clips["clip"])) == 400
    fold_of = {}
    for name, label, fold in zip(clips["clip"], clips["labels"], clips["fold"], strict=True):
        np.testing.assert_allclose(blemore.soft_label(name), label, atol=1e-6)
        assert fold_of.setdefault(blemore.parse_clip_name(name).actor, fold) == fold
    assert set(fold_of.values()) == {0, 1, 2, 3, 4}


def test_same_seed_same_bits_and_other_seed_other_clips(clips):
    again = make_synthetic_blends(num_clips=400, seed=3)
    assert clips.data.table.equals(again.data.table)
    assert make_synthetic_blends(num_clips=400, seed=4)["clip"] != clips["clip"]


def test_planted_encoders_are_present_and_never_the_noise_encoders(clips):
    counts = dict.fromkeys(NAMES, 0)
    for row, planted in zip(feature_sets.read_features(clips), clips["informative"], strict=True):
        real = [NAMES[place] for place in planted if place >= 0]
        assert len(real) >= 2 and len(set(real)) == len(real) and set(real) <= set(row)
        for name in real:
            counts[name] += 1
    assert all((count > 400 * 3 / 6 * 0.7) if name not in NOISE else count == 0 for name, count in counts.items())


def test_planted_encoders_show_the_label_and_the_others_do_not(clips):
    """The dominant emotion, read off the prototypes, is right where planted and near chance elsewhere."""
    planted, labels = np.array(clips["informative"]), np.array(clips["labels"])
    for number, name in enumerate(NAMES):
        values = means(clips, name)
        here = ~np.isnan(values).any(1) & (labels.max(1) == 1)
        right = (values @ STRUCTURES[name].prototypes.T).argmax(1) == labels.argmax(1)
        shown = (planted == number).any(1)
        assert right[here & ~shown].mean() < 0.4
        assert name in NOISE or right[here & shown].mean() > 0.8


def test_quality_marks_give_the_planted_order_away(clips):
    marks = np.full((400, len(NAMES)), -np.inf)
    for number, name in enumerate(NAMES):
        if name not in NOISE:
            marks[:, number] = means(clips, name) @ STRUCTURES[name].mark
    marks[np.isnan(marks)] = -np.inf
    planted = np.array(clips["informative"])
    best = (-marks).argsort(1)[:, :3]
    full = (planted >= 0).all(1)
    assert (np.sort(best, 1) == np.sort(planted, 1))[full].all(1).mean() > 0.97
    assert (best == planted)[full].all(1).mean() > 0.9


def test_shift_is_the_only_difference_between_the_domains():
    source, target, unshifted = (
        make_synthetic_blends(num_clips=60, seed=5, **options)
        for options in ({}, {"domain": "target"}, {"domain": "target", "shift": 0.0})
    )
    for column in ("clip", "labels", "fold", "informative"):
        assert source[column] == target[column]
    assert source["features"] == unshifted["features"]
    for name in NAMES:
        structure = STRUCTURES[name]
        gain = np.exp(synthetic_blends._SHIFT_LOG_GAIN_STD * structure.log_gain)
        expected = gain * means(source, name) + synthetic_blends._SHIFT_OFFSET * structure.offset
        np.testing.assert_allclose(means(target, name), expected, atol=0.02)


def test_missing_share_and_invalid_settings():
    assert all(len(row) == 8 for row in feature_sets.read_features(make_synthetic_blends(num_clips=50, missing=0.0)))
    lossy = feature_sets.read_features(make_synthetic_blends(num_clips=200, missing=1.0))
    assert np.mean([len(row) < 8 for row in lossy]) > 0.95
    with pytest.raises(ValueError, match="domain 'sink' is not one of source, target"):
        make_synthetic_blends(num_clips=5, domain="sink")
    for options in ({"num_clips": 0}, {"missing": -0.1}, {"missing": 1.1}):
        with pytest.raises(ValueError, match=r"num_clips >= 1 and missing in \[0, 1\]"):
            make_synthetic_blends(**options)
