"""Label spaces: the valid labels of names and splits, labels of every form, and configs that hold them."""

import json
import re
from itertools import combinations

import numpy as np
import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from hf_blemo import RankAwareFusionConfig, RankAwareFusionProcessor
from hf_blemo.rank_aware_fusion.label_space_rank_aware_fusion import BLEMORE_SPACE, LabelSpace, same_space

PAIRS = ((70, 30), (50, 50), (30, 70))
# Names, splits, unblended, number of valid labels.
SPACES = {
    "singles": ("abcdefgh", (), (), 8),
    "pairs": ("abcdef", PAIRS, (), 51),
    "60/40": ("abc", ((60, 40), (40, 60)), (), 9),
    "threes": ("abcde", ((50, 50), (34, 33, 33), (50, 30, 20)), ("b",), 5 + 6 + 8),
    "threes alone": ("abc", ((40, 30, 30),), (), 4),
    "most": (tuple(map(str, range(90))), ((50, 50),), (), 4095),
}


def valid_labels(names, splits, unblended):
    """Each as name -> per cent, in the documented order."""
    blending = [name for name in names if name not in unblended]
    labels = [{name: 100} for name in names]
    for size in sorted({len(split) for split in splits}):
        for names in combinations(blending, size):
            labels += [dict(zip(names, split, strict=True)) for split in splits if len(split) == size]
    return labels


@pytest.mark.parametrize(("names", "splits", "unblended", "count"), SPACES.values(), ids=SPACES)
def test_valid_labels_and_their_order(names, splits, unblended, count):
    space, expected = LabelSpace(names, splits, unblended), valid_labels(names, splits, unblended)
    assert len(space) == len(expected) == count
    assert space.percent.tolist() == [[label.get(name, 0) for name in names] for label in expected]
    assert [{part["emotion"]: part["salience"] for part in space.blend(i)} for i in range(count)] == expected
    assert space.sets == list(dict.fromkeys(tuple(label) for label in expected))
    assert [space.sets[number] for number in space.set_of_label] == [tuple(label) for label in expected]
    assert space.is_blend.tolist() == [len(label) > 1 for label in expected]
    assert space.largest_set == max(map(len, expected))
    places = {name: place for place, name in enumerate(names)}
    for index in (0, count // 2, count - 1):
        label = expected[index]
        assert space.index([places[name] for name in label], list(label.values())) == index
        assert space.nearest(space.percent[index : index + 1] / 100) == [index]
    with pytest.raises(ValueError, match="read-only"):
        space.percent[0] = 1


@pytest.mark.parametrize(
    ("names", "splits", "unblended", "message"),
    [
        (["a", " "], (), (), "found the name ' ' among the names of the labels, expected words"),
        (["a", 3], (), (), "found the name 3"),
        ("aba", (), (), "the name 'a' comes twice among a, b, a"),
        (["a"], (), (), r"found the names \[a\], expected at least two classes"),
        ("ab", (), ["z"], "unblended has 'z', expected some of the names a, b"),
        *(
            ("abc", [split], (), rf"blend_percents has {re.escape(str(list(split)))}, expected two or more")
            for split in ((100,), (60, 30), (50.0, 50.0), (110, -10), (100, 0), (True, 99))
        ),
        ("abc", [(60, 40), (60, 40)], (), r"blend_percents has \[60, 40\] twice"),
        ("ab", [(50, 50), (40, 30, 30)], (), "splits of 3, but only 2 of the names a, b blend"),
        ("abc", [(50, 50)], ["a", "b"], "splits of 2, but only 1 of the names a, b, c blend"),
        (tuple(map(str, range(91))), [(50, 50)], (), r"found 4,186 valid labels \(91 names.*50/50.*at most 4,096"),
    ],
)  # fmt: skip
def test_what_makes_no_space_is_refused(names, splits, unblended, message):
    with pytest.raises(ValueError, match=message):
        LabelSpace(names, splits, unblended)


def test_equal_spaces_and_the_message_of_two_that_differ():
    space = LabelSpace("abc", PAIRS, ["c"])
    assert space == LabelSpace(list("abc"), [list(split) for split in PAIRS], ("c",)) and hash(space) == hash(space)
    # Without blends, it does not matter which names do not blend.
    assert LabelSpace("abc", (), ["c"]) == LabelSpace("abc") and LabelSpace("abc") != "abc"
    same_space(space, space, "one", "other")
    for other, what in (
        (LabelSpace("bac", PAIRS, ["c"]), "order of the names differs"),
        (LabelSpace("abd", PAIRS, ["d"]), "names differ"),
        (LabelSpace("ab"), "names differ"),
        (LabelSpace("abc", PAIRS), "blends differ"),
        (LabelSpace("abc"), "blends differ"),
        (LabelSpace("abc", PAIRS[::-1], ["c"]), "blends differ"),
    ):
        with pytest.raises(ValueError) as error:
            same_space(other, space, "the data", "the model")
        assert str(error.value) == f"the {what}: the data has {other!r}, the model has {space!r}"
    assert repr(space) == "3 names (a, b, c), blends of 70/30, 50/50, 30/70, c unblended"
    assert repr(LabelSpace("ab")) == "2 names (a, b), single"


def test_nearest_takes_the_first_on_a_tie_whatever_rounding_says():
    space = LabelSpace("abc", PAIRS)
    shares = np.random.default_rng(0).dirichlet([0.5] * 3, 300)
    distances = [[round(sum(abs(row - label / 100)), 9) for label in space.percent] for row in shares]
    assert space.nearest(shares).tolist() == [row.index(min(row)) for row in distances]
    ties = np.array([[0.6, 0.4, 0], [0.4, 0.6, 0], [0, 0.6, 0.4], [0.6, 0, 0.4]])
    assert [space.percent[index].tolist() for index in space.nearest(ties)] == [
        [70, 30, 0], [50, 50, 0], [0, 70, 30], [70, 0, 30],
    ]  # fmt: skip
    assert LabelSpace("ab").nearest(np.array([[0.5, 0.5]])).tolist() == [0]


@pytest.mark.parametrize(
    ("label", "shares"),
    [
        ("b", [0, 1, 0]),
        (2, [0, 0, 1]),
        (np.int64(0), [1, 0, 0]),
        ({"a", "c"}, [0.5, 0, 0.5]),
        (frozenset(["c"]), [0, 0, 1]),
        (["b", "a"], [0.5, 0.5, 0]),
        ({"a": 0.7, "b": 0.3}, [0.7, 0.3, 0]),
        ([{"emotion": "c", "salience": 30.0}, {"emotion": "a", "salience": 70.0}], [0.7, 0, 0.3]),
        ([0.3, 0.7, 0], [0.3, 0.7, 0]),
        (np.array([0.7, 0.3, 0], np.float16), [0.7, 0.3, 0]),
        (None, [-100] * 3),
        ([-100.0] * 3, [-100] * 3),
    ],
)
def test_labels_of_every_form(label, shares):
    space = LabelSpace("abc", PAIRS)
    found = space.shares(label)
    assert found.dtype == np.float64 and found.tolist() == shares
    np.testing.assert_allclose(space.shares(label, "soft"), shares, atol=1e-3)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("A", "found the name 'A', expected one of a, b, c"),
        ("", "found the name ''"),
        (3, "found the class 3, expected 0 to 2"),
        (-1, "found the class -1"),
        *((label, "found the label .* expected a name, a class ind") for label in (True, 1.0, [], set(), [1, 0])),
        ([[1, 0, 0]], "found the label"),
        ({"a": "much"}, "could not convert"),
        ({"z": 1.0}, "found the name 'z'"),
        (["a", "a"], "which sum to 0.5, expected 1"),
        ([0.5, 0.4, 0], "which sum to 0.9, expected 1"),
        ([1.2, -0.2, 0], r"found a share below 0 in \[1.2, -0.2, 0\]"),
        ([np.nan, 1, 0], "expected finite numbers"),
        ([-100, 1, 0], "found a share below 0"),
        ([{"emotion": "a"}], "found the part {'emotion': 'a'} of a blend, expected"),
        ([{"emotion": "a", "salience": "all"}], "of a blend, expected"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["valid", "soft"])
def test_what_is_no_label_is_refused(label, message, kind):
    with pytest.raises(ValueError, match=message):
        LabelSpace("abc", PAIRS).shares(label, kind)


def test_only_soft_labels_may_be_any_distribution_and_a_near_name_is_proposed():
    space = LabelSpace(["happy", "calm", "sad"], PAIRS)
    np.testing.assert_allclose(space.shares([0.2, 0.3, 0.5003], "soft").sum(), 1, rtol=1e-12)
    for row in ([0.2, 0.3, 0.5], [0.6, 0.4, 0]):
        with pytest.raises(ValueError, match="expected one of the valid labels of 3 names"):
            space.shares(row)
    with pytest.raises(ValueError, match="did you mean 'happy'"):
        space.shares("hapy")


# Of configs.

ENCODERS = {"face": {"feature_size": 3}}
NAMES = {0: "x", 1: "y", 2: "z"}
REFUSALS = (ValueError, StrictDataclassError)


def make(**settings):
    return RankAwareFusionConfig(encoders=ENCODERS, **settings)


def labels_of(config):
    assert all(type(place) is int for place in config.id2label)
    assert config.label2id == {name: place for place, name in config.id2label.items()}
    assert config.num_labels == len(config.id2label)
    return config.label_space


@pytest.mark.parametrize(
    ("settings", "space"),
    [
        ({}, BLEMORE_SPACE),
        ({"num_labels": 6}, BLEMORE_SPACE),
        ({"id2label": NAMES}, LabelSpace("xyz")),
        ({"id2label": {str(place): name for place, name in NAMES.items()}, "num_labels": 3}, LabelSpace("xyz")),
        ({"id2label": {2: "z", 0: "x", 1: "y"}, "label2id": {"z": 2, "x": 0, "y": 1}}, LabelSpace("xyz")),
        ({"id2label": NAMES, "blend_percents": [[60, 40]], "unblended": ["y"]}, LabelSpace("xyz", [(60, 40)], ["y"])),
        ({"blend_percents": []}, LabelSpace(BLEMORE_SPACE.names)),
    ],
)
def test_configs_obey_names_and_keep_them(settings, space, tmp_path):
    config = make(**settings)
    assert labels_of(config) == space
    config.save_pretrained(tmp_path)
    assert all(type(place) is str for place in json.loads((tmp_path / "config.json").read_text()).get("id2label", {}))
    for loaded in (RankAwareFusionConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert labels_of(loaded) == space and type(loaded) is RankAwareFusionConfig
    processor = RankAwareFusionProcessor.from_config(config)
    processor.save_pretrained(tmp_path)
    assert RankAwareFusionProcessor.from_pretrained(tmp_path).label_space == space


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_labels": 7}, "num_labels is 7, but without id2label there are the 6 names ang, disg, fea"),
        ({"num_labels": 2, "id2label": NAMES}, "num_labels is 2, but id2label has the 3 names x, y, z"),
        ({"label2id": {"x": 0, "y": 1}}, "label2id is {'x': 0, 'y': 1}, but id2label gives {'ang': 0"),
        ({"label2id": {"x": 1, "y": 0, "z": 2}, "id2label": NAMES}, "label2id is .* but id2label gives"),
        *(({"id2label": found}, "id2label must map 0, 1, 2") for found in ({1: "x", 2: "y"}, ["x", "y"], {})),
        ({"id2label": {0: "x", 1: "x"}}, "the name 'x' comes twice"),
        ({"id2label": NAMES, "blend_percents": [[50, 40]]}, r"blend_percents has \[50, 40\]"),
        ({"id2label": NAMES, "unblended": ["neu"]}, "unblended has 'neu'"),
        ({"presence_share": 1.0}, "presence_share must be in"),
        ({"label_kind": "graded"}, "label_kind"),
    ],
)  # fmt: skip
def test_configs_refuse_what_does_not_fit(settings, message):
    with pytest.raises(REFUSALS, match=f"(?s){message}"):
        make(**settings)


def test_names_given_beside_a_file_are_obeyed_or_refused(tmp_path):
    make(id2label=NAMES, blend_percents=[[60, 40]]).save_pretrained(tmp_path)
    other = {0: "r", 1: "s", 2: "t"}
    for load in (RankAwareFusionConfig.from_pretrained, AutoConfig.from_pretrained):
        for options in (
            {"id2label": other},
            {"id2label": other, "label2id": {"r": 0, "s": 1, "t": 2}},
            {"id2label": other, "num_labels": 3},
        ):
            assert labels_of(load(tmp_path, **options)) == LabelSpace("rst", [(60, 40)])
        two = {"id2label": {0: "r", 1: "s"}, "num_labels": 2, "blend_percents": []}
        assert labels_of(load(tmp_path, **two)) == LabelSpace("rs")
        for options, message in (
            ({"num_labels": 2}, "num_labels is 2, but id2label has the 3 names x, y, z"),
            ({"label2id": {"r": 0}}, "label2id is {'r': 0}, but id2label gives"),
            ({"unblended": ["neu"]}, "unblended has 'neu'"),
        ):
            with pytest.raises(REFUSALS, match=message):
                load(tmp_path, **options)
    config = RankAwareFusionConfig.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="num_labels is 5, but id2label has the 3 names x, y, z: give id2label"):
        config.num_labels = 5
