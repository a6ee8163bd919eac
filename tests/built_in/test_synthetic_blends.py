import numpy as np
import pytest

from hf_blemo import blemore
from hf_blemo.built_in import SYNTHETIC_ENCODERS, make_synthetic_blends, synthetic_blends

NAMES = list(SYNTHETIC_ENCODERS)


def means(dataset, name):
    """(N, D) mean over time in the encoder's own scale, NaN where missing."""
    size = SYNTHETIC_ENCODERS[name]["feature_size"]
    rows = [row[name].mean(0) if name in row else np.full(size, np.nan) for row in blemore.read_features(dataset)]
    return np.stack(rows) / synthetic_blends._ENCODERS[name].scale


@pytest.fixture(scope="module")
def clips():
    return make_synthetic_blends(num_clips=400, seed=3)


def test_form_is_that_of_blemore(clips):
    assert clips.column_names == ["clip", "features", "labels", "fold", "informative", "domain"]
    assert blemore.encoder_widths(clips) == {name: SYNTHETIC_ENCODERS[name]["feature_size"] for name in NAMES}
    assert len(set(clips["clip"])) == 400
    for name, label in zip(clips["clip"], clips["labels"], strict=True):
        np.testing.assert_allclose(blemore.soft_label(name), label, atol=1e-6)


def test_folds_are_disjoint_in_actors(clips):
    actors = np.array([blemore.parse_clip_name(name).actor for name in clips["clip"]])
    folds = np.array(clips["fold"])
    assert sorted(set(folds)) == [0, 1, 2, 3, 4]
    assert all(len(set(folds[actors == actor])) == 1 for actor in set(actors))


def test_same_seed_same_bits_and_other_seed_other_clips(clips):
    again = make_synthetic_blends(num_clips=400, seed=3)
    assert clips.data.table.equals(again.data.table)
    assert make_synthetic_blends(num_clips=400, seed=4)["clip"] != clips["clip"]


def test_planted_encoders_are_present_and_never_the_noise_encoders(clips):
    noise = {NAMES.index("scene"), NAMES.index("room")}
    for row, planted in zip(blemore.read_features(clips), clips["informative"], strict=True):
        real = [place for place in planted if place >= 0]
        assert len(real) >= 2 and not noise & set(real) and len(set(real)) == len(real)
        assert all(NAMES[place] in row for place in real)
    counts = np.bincount([place for planted in clips["informative"] for place in planted if place >= 0], minlength=8)
    assert (counts[[index for index in range(8) if index not in noise]] > 400 * 3 / 6 * 0.7).all()


def test_planted_encoders_show_the_label_and_the_others_do_not(clips):
    """The dominant emotion, read off the prototypes, is right where planted and near chance elsewhere."""
    planted = np.array(clips["informative"])
    labels = np.array(clips["labels"])
    single = labels.max(1) == 1
    for number, name in enumerate(NAMES):
        structure = synthetic_blends._structure(0, number, SYNTHETIC_ENCODERS[name]["feature_size"])
        values = means(clips, name) - structure.mean
        here = ~np.isnan(values).any(1) & single
        right = (values @ structure.prototypes.T).argmax(1) == labels.argmax(1)
        shown = (planted == number).any(1)
        assert right[here & ~shown].mean() < 0.4
        if name in ("scene", "room"):
            assert not shown.any()
        else:
            assert right[here & shown].mean() > 0.8


def test_quality_marks_give_the_planted_order_away(clips):
    marks = np.full((400, len(NAMES)), -np.inf)
    for number, name in enumerate(NAMES):
        if name not in ("scene", "room"):
            structure = synthetic_blends._structure(0, number, SYNTHETIC_ENCODERS[name]["feature_size"])
            marks[:, number] = (means(clips, name) - structure.mean) @ structure.mark
    marks[np.isnan(marks)] = -np.inf
    planted = np.array(clips["informative"])
    best = np.sort((-marks).argsort(1)[:, :3], 1)
    full = (planted >= 0).all(1)
    assert (best == np.sort(planted, 1))[full].all(1).mean() > 0.97


def test_shift_is_the_only_difference_between_the_domains():
    source = make_synthetic_blends(num_clips=60, seed=5)
    target = make_synthetic_blends(num_clips=60, seed=5, domain="target")
    unshifted = make_synthetic_blends(num_clips=60, seed=5, domain="target", shift=0.0)
    for column in ("clip", "labels", "fold", "informative"):
        assert source[column] == target[column]
    assert source["features"] == unshifted["features"]
    for number, name in enumerate(NAMES):
        structure = synthetic_blends._structure(0, number, SYNTHETIC_ENCODERS[name]["feature_size"])
        gain = np.exp(synthetic_blends._SHIFT_LOG_GAIN_STD * structure.log_gain)
        expected = gain * (means(source, name) - structure.mean) + synthetic_blends._SHIFT_OFFSET * structure.offset
        np.testing.assert_allclose(means(target, name) - structure.mean, expected, atol=0.02)


def test_missing_share_and_bad_settings():
    assert all(len(row) == 8 for row in blemore.read_features(make_synthetic_blends(num_clips=50, missing=0.0)))
    lossy = blemore.read_features(make_synthetic_blends(num_clips=200, missing=1.0))
    assert np.mean([len(row) < 8 for row in lossy]) > 0.95
    with pytest.raises(ValueError, match="domain 'sink' is not one of source, target"):
        make_synthetic_blends(num_clips=5, domain="sink")
    with pytest.raises(ValueError, match="num_clips >= 1"):
        make_synthetic_blends(num_clips=0)
