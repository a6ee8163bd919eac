"""One reader of labels: every form becomes shares of a label space, and nothing becomes unlabelled in silence."""

import numpy as np
import pytest

from hf_blemo.feature_sets.label_reading import LabelOptions, even_split, read_labels, read_votes

CLIPS = ["x", "y", "z"]


def read(values, classes=None, **options):
    values = list(values)
    space, labels = read_labels(values, CLIPS, LabelOptions(column="mood", **options), "t.csv", classes)
    return space, labels.tolist()


@pytest.mark.parametrize(
    ("values", "options", "names", "labels"),
    [
        (["up", "calm", "up"], {}, ("calm", "up"), [[0, 1], [1, 0], [0, 1]]),
        ([" up ", "calm", "up"], {"names": ["up", "calm"]}, ("up", "calm"), [[1, 0], [0, 1], [1, 0]]),
        # Indices, as numbers and as the words that CSV has.
        ([1, 0, 1], {"names": ["calm", "up"]}, ("calm", "up"), [[0, 1], [1, 0], [0, 1]]),
        (["1", "0", "1.0"], {"names": ["calm", "up"]}, ("calm", "up"), [[0, 1], [1, 0], [0, 1]]),
        ([10, 2, np.int64(10)], {}, ("2", "10"), [[0, 1], [1, 0], [0, 1]]),
        ([1.0, 0.0, None], {}, ("0", "1"), [[0, 1], [1, 0], [-100, -100]]),
        (["01", "02", "01"], {}, ("01", "02"), [[1, 0], [0, 1], [1, 0]]),
        ([1, 0, -1], {"classes": ["up", "calm"]}, ("up", "calm"), [[0, 1], [1, 0], [-100, -100]]),
        ([1, 0, 1], {"classes": ["up", "calm"], "names": ["calm", "up"]}, ("calm", "up"), [[1, 0], [0, 1], [1, 0]]),
        # No label.
        (["up", "", "calm"], {}, ("calm", "up"), [[0, 1], [-100, -100], [1, 0]]),
        (["up", float("nan"), "calm"], {}, ("calm", "up"), [[0, 1], [-100, -100], [1, 0]]),
        # Sets, in words and in lists; their even splits follow.
        (["a", "a+b", "a| b |c"], {}, ("a", "b", "c"), [[1, 0, 0], [0.5, 0.5, 0], [0.34, 0.33, 0.33]]),
        ([["a"], ["b", "a"], ["b"]], {}, ("a", "b"), [[1, 0], [0.5, 0.5], [0, 1]]),
        (["a+b", "b", "a"], {"names": ["b", "a", "a+b"]}, ("b", "a", "a+b"), [[0, 0, 1], [1, 0, 0], [0, 1, 0]]),
        (["a+b", "b", "a"], {"kind": "soft"}, ("a", "b"), [[0.5, 0.5], [0, 1], [1, 0]]),
        # Rows of shares, percentages, counts and marks.
        (
            [[1, 0], [0.5, 0.5], [0, 1]],
            {"names": ["a", "b"], "kind": "soft"},
            ("a", "b"),
            [[1, 0], [0.5, 0.5], [0, 1]],
        ),
        (
            [[30.0, 70], [3, 1], [0, 9]],
            {"names": "ab", "kind": "soft"},
            ("a", "b"),
            [[0.3, 0.7], [0.75, 0.25], [0, 1]],
        ),
        ([[1, 1], [1, 0], [-100, -100]], {"names": "ab"}, ("a", "b"), [[0.5, 0.5], [1, 0], [-100, -100]]),
        ([np.array([1, 0]), None, np.array([0, 1])], {"names": "ab"}, ("a", "b"), [[1, 0], [-100, -100], [0, 1]]),
        # Blends, and shares by name.
        (
            [
                [{"emotion": "b", "salience": 30.0}, {"emotion": "a", "salience": 70.0}],
                {"a": 1.0},
                {"b": 1, "a": None},
            ],
            {"blend_percents": [[70, 30]]},
            ("a", "b"),
            [[0.7, 0.3], [1, 0], [0, 1]],
        ),
        ([{"c": 1, "b": 3, "a": 0}] * 3, {"kind": "soft"}, ("c", "b", "a"), [[0.25, 0.75, 0]] * 3),
        ([True, False, True], {}, ("False", "True"), [[0, 1], [1, 0], [0, 1]]),
    ],
)
def test_every_form_of_label(values, options, names, labels):
    space, found = read(values, **options)
    assert space.names == names
    np.testing.assert_allclose(found, labels, atol=1e-9)


def test_even_splits_follow_only_from_sets_and_only_where_none_is_given():
    assert [even_split(size) for size in (2, 3, 4)] == [(50, 50), (34, 33, 33), (25, 25, 25, 25)]
    assert read(["a+b", "c", "a+b+c"])[0].blend_percents == ((50, 50), (34, 33, 33))
    assert read(["a", "b", "c"])[0].blend_percents == ()
    assert read(["a+b", "b", "c"], kind="soft")[0].blend_percents == ()
    with pytest.raises(ValueError, match=r"clip 'x': found the shares \[0.5, 0.5\], expected one of the valid"):
        read(["a+b", "b", "a"], blend_percents=[[70, 30]])


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([None, "", float("nan")], {}, "none of 3 rows carries a label"),
        ([-1, -1, -1], {"classes": ["up", "calm"]}, "none of 3 rows carries a label"),
        (["up", "sad", "up"], {"names": ["up", "calm"]}, "clip 'y': found the name 'sad', expected one of up, calm"),
        (["up", "clam", "up"], {"names": ["up", "calm"]}, "clip 'y': .*did you mean 'calm'"),
        ([0, 2, 1], {"names": ["up", "calm"]}, r"clip 'y': found the class 2, expected 0 to 1 \(up, calm\)"),
        ([0, -1, 1], {}, "clip 'y': found the class -1, expected a whole number from 0"),
        ([0, 0.5, 1], {}, "clip 'y': found the label 0.5, expected a class"),
        ([0, float("inf"), 1], {}, "clip 'y': found the label inf"),
        (["1.5", "0.25", "1.0"], {}, "clip 'x': found the label '1.5', expected a class"),
        (["a", "a+", "b"], {}, r"clip 'y': found the label 'a\+', expected names, joined by"),
        (["a", {"emotion": "a"}, "b"], {}, "clip 'y': found the label .*expected numbers"),
        (["a", [{"emotion": "a", "salience": None}], "b"], {}, "clip 'y': found the label .*emotion"),
        (["a", ["a", 1], "b"], {}, "clip 'y': found the label .*expected a name, a class index"),
        ([[1, 0]] * 3, {}, "found rows of 2 shares, expected the names of the 2 classes .--names"),
        ([[1, 0]] * 3, {"names": "abc"}, "clip 'x': found 2 shares, expected 3, one for each of a, b, c"),
        ([[1.0, 0], [-0.1, 1.1], [0, 1]], {"names": "ab"}, r"clip 'y': found a share below 0 in \[-0.1, 1.1\]"),
        ([[1, 0], [0, 0], [0, 1]], {"names": "ab"}, "clip 'y': found only zeros"),
        ([[1, 0], [0.5, float("nan")], [0, 1]], {"names": "ab"}, "clip 'y': found NaN or infinity"),
        (
            [[1, 0], [0.5, 0.4], [0, 1]],
            {"names": "ab", "kind": "soft"},
            "clip 'y': .*sums to 0.9, expected shares that",
        ),
        ([[1, 0], [0.8, 0.2], [0, 1]], {"names": "ab"}, "clip 'y': .*valid labels.*--label-kind soft"),
        (["a", "a", "a"], {}, r"found the names \[a\], expected at least two"),
        (["a", "b", "a"], {"unblended": ["c"]}, "unblended has 'c', expected some of the names a, b"),
        (
            ["a", "b", "c"],
            {"names": [str(n) for n in range(64)], "blend_percents": [[50, 50], [40, 60], [60, 40]]},
            "6,112 valid labels",
        ),
    ],
)
def test_what_is_not_understood_is_named(values, options, message):
    with pytest.raises(ValueError, match=f"t.csv.*{message}") as error:
        read(values, **options)
    assert "\n" not in str(error.value)


def test_unlabelled_rows_are_counted_and_two_are_shown(caplog):
    read_labels(["a", "", None, "b", ""], list("vwxyz"), LabelOptions(column="mood"), "t.csv")
    assert [record.getMessage() for record in caplog.records] == [
        "t.csv: 3 of 5 rows carry no label, such as 'w', 'x'"
    ]


def test_votes_are_normalised_whatever_their_sum():
    options = LabelOptions(prefix="v.", kind="soft")
    space, labels = read_votes({"up": [3, 0.5, None], "calm": [1, 0.75, None]}, CLIPS, options, "t")
    assert space.names == ("up", "calm")
    np.testing.assert_allclose(labels, [[0.75, 0.25], [0.4, 0.6], [-100, -100]])
    options = LabelOptions(prefix="v.", names=["calm", "up", "low"])
    assert read_votes({"up": [3, 0, 9], "calm": [0, 1, 0]}, CLIPS, options, "t")[1].tolist() == [
        [0, 1, 0], [1, 0, 0], [0, 1, 0]
    ]  # fmt: skip
    for columns, message in (
        ({"up": [1, 0, 1], "calm": [1, 0, 0]}, "clip 'y': found only zeros"),
        ({"up": [1, -1, 1], "calm": [1, 2, 0]}, "clip 'y': found a share below 0"),
        ({"up": [1, float("nan"), 1], "calm": [1, 2, 0]}, "clip 'y': found NaN or infinity"),
        ({"up": [1, None, 1], "calm": [1, 2, 0]}, "clip 'y': found None in v.up, expected a number"),
        ({"up": [1, "x", 1], "calm": [1, 2, 0]}, "clip 'y': found 'x' in v.up, expected a number"),
        ({"up": [1, 2, 1], "sad": [1, 2, 0]}, "prefix 'v.': found the name 'sad', expected one of calm, up, low"),
        ({"up": [8, 1, 1], "calm": [2, 0, 0]}, "clip 'x': .*expected one of the valid labels.*--label-kind soft"),
    ):
        with pytest.raises(ValueError, match=f"t.*{message}"):
            read_votes(columns, CLIPS, options, "t")


def test_options_that_contradict_are_refused():
    for options, message in (
        ({"column": "a", "prefix": "b"}, "expected one of the two"),
        ({"column": "a", "kind": "hard"}, "label_kind: found 'hard', expected one of valid, soft"),
        ({"names": ["a"]}, "names needs a column of labels"),
        ({"kind": "soft"}, "label_kind needs a column of labels"),
    ):
        with pytest.raises(ValueError, match=message):
            LabelOptions(**options)
