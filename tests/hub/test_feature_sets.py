"""Data sets of features on the Hub keep what their labels are."""

import json

import datasets
import numpy as np
import pytest

from hf_blemo import feature_sets
from hf_blemo.hub import load_hub_features, push_features
from hf_blemo.rank_aware_fusion.label_space_rank_aware_fusion import BLEMORE_SPACE, LabelSpace

SPACE = LabelSpace(["calm", "bored", "up"])


@pytest.fixture
def hub(hub):
    with hub.emptied():
        yield hub


def made(space=SPACE, kind="valid", fold=(0, 1, -1), **columns):
    labels = np.eye(len(space.names), dtype=np.float32)[:3].tolist()
    dataset = datasets.Dataset.from_dict(
        {"clip": ["a", "b", "c"], "features": [{"voice": [[1.0, 2.0]]}] * 3, "labels": labels, "fold": list(fold)}
        | columns
    )
    return feature_sets.with_label_space(dataset, space, kind)


def test_the_label_space_is_beside_the_parquet_files_and_in_the_card(hub):
    push_features(made(kind="soft", group=["x", "y", "x"]), "you/moods")
    files = hub.files("you/moods", kind="dataset")
    assert json.loads(files["label_space.json"]) == {
        "names": ["calm", "bored", "up"], "blend_percents": [], "unblended": [], "label_kind": "soft",
    }  # fmt: skip
    found = load_hub_features("you/moods")
    assert feature_sets.label_space(found) == (SPACE, "soft") and found["group"][:] == ["x", "y", "x"]
    card = files["README.md"].decode()
    for part in ("3 names (calm, bored, up)", "any distribution", "| `bored` | 0.333 | 1 |", "groups: 2, none in two"):
        assert part in card
    assert "blemore" not in card.lower().replace("hf_blemo", "") and "blend" not in card and "emotion" not in card


def test_splits_of_two_spaces_are_refused_and_one_split_may_change(hub):
    push_features(made(), "you/moods")
    for other, message in (
        (
            made(LabelSpace(["calm", "up", "bored"])),
            r"order of the names differs: .* split test .*calm, up, bored.*calm,",
        ),
        (made(kind="soft"), "kinds of labels differ: .*soft.*valid"),
        (made(LabelSpace(["calm", "bored", "low"])), "names differ"),
    ):
        with pytest.raises(ValueError, match=message):
            push_features(other, "you/moods", split="test")
    assert not any("test-" in name for name in hub.files("you/moods", kind="dataset"))
    push_features(made(kind="soft"), "you/moods")
    assert feature_sets.label_space(load_hub_features("you/moods")) == (SPACE, "soft")


def test_a_data_set_without_the_file_is_blemores_where_it_can_be(hub):
    made(BLEMORE_SPACE).push_to_hub("you/old")
    assert feature_sets.label_space(load_hub_features("you/old")) == (BLEMORE_SPACE, "valid")
    made().push_to_hub("you/mine")
    with pytest.raises(ValueError, match="labels of 3 shares and no names .*--label-column"):
        feature_sets.label_space(load_hub_features("you/mine"))
    with pytest.raises(ValueError, match="split train, has 6 names"):
        push_features(made(), "you/old", split="test")
    hub.repository("you/mine", "dataset").edit("label_space.json", b'{"names": ["a", "b"]}')
    with pytest.raises(ValueError, match="labels of 3 shares, expected 2 .*a, b"):
        load_hub_features("you/mine")
    hub.repository("you/mine", "dataset").edit("label_space.json", b'{"classes": ["a", "b"]}')
    with pytest.raises(ValueError, match="you/mine, label_space.json: .*expected the names of a label space"):
        load_hub_features("you/mine")
