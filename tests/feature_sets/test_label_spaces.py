"""A data set of features carries its label space through everything that `datasets` does with it, Parquet aside."""

import datasets
import pytest

from hf_blemo import feature_sets
from hf_blemo.rank_aware_fusion.label_space_rank_aware_fusion import BLEMORE_SPACE, LabelSpace

SPACE = LabelSpace(["calm", "bored", "up"], [[60, 40]], ["up"])


def made(width=3, **columns):
    labels = [[1.0] + [0.0] * (width - 1)] * 4
    return datasets.Dataset.from_dict({"clip": list("abcd"), "labels": labels} | columns)


def test_it_survives_what_is_done_to_a_data_set(tmp_path):
    dataset = made()
    dataset.info.description = "Clips of mine."
    dataset = feature_sets.with_label_space(dataset, SPACE, "soft")
    dataset.save_to_disk(tmp_path / "saved")
    for found in (
        dataset,
        datasets.load_from_disk(tmp_path / "saved"),
        dataset.select([2, 0]),
        dataset.filter(lambda row: row["clip"] > "b"),
        dataset.map(lambda row: {"more": 1}),
        dataset.shuffle(seed=0),
        dataset.train_test_split(0.5)["test"],
        dataset.select_columns(["labels"]).with_format("numpy"),
        dataset.remove_columns("labels"),
        datasets.concatenate_datasets([dataset, dataset.select([1])]),
        feature_sets.concatenate([dataset, dataset.select([1])]),
    ):
        assert feature_sets.label_space(found) == (SPACE, "soft")
        assert found.info.description.startswith("Clips of mine.")
    # The last one counts, and the data set that was given stays.
    other = feature_sets.with_label_space(dataset, LabelSpace(["x", "y", "z"]))
    assert feature_sets.label_space(other)[0].names == ("x", "y", "z")
    assert feature_sets.label_space(dataset) == (SPACE, "soft")


def test_a_data_set_that_says_nothing_is_blemores_where_it_can_be():
    for dataset in (made(6), made().remove_columns("labels"), made().select([])):
        assert feature_sets.label_space(dataset) == (BLEMORE_SPACE, "valid")
    assert feature_sets.with_label_space(made(6), BLEMORE_SPACE).info.description == ""
    single = datasets.Dataset.from_dict({"labels": [1, 2]})
    with pytest.raises(ValueError, match="labels of no shares and no names"):
        feature_sets.label_space(single)
    assert feature_sets.label_space(feature_sets.with_label_space(single, SPACE)) == (SPACE, "valid")
    with pytest.raises(ValueError, match="labels of 3 shares and no names .*--label-column or --label-prefix"):
        feature_sets.label_space(made())


def test_spaces_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="labels of 4 shares, expected 3 .*calm, bored, up"):
        feature_sets.with_label_space(made(4), SPACE)
    with pytest.raises(ValueError, match="label_kind: found 'hard'"):
        feature_sets.with_label_space(made(), SPACE, "hard")
    votes = LabelSpace(["ang", "disg", "fea", "hap", "neu", "sad"])
    one, silent = feature_sets.with_label_space(made(6), votes, "valid"), made(6)
    with pytest.raises(ValueError, match="order of the names differs: mine has .*neu, sad.*yours has .*sad, neu"):
        feature_sets.concatenate([silent, one], ["yours", "mine"])
    with pytest.raises(ValueError, match="kinds of labels differ: part 1 has soft labels, part 0 has valid ones"):
        feature_sets.concatenate([one, feature_sets.with_label_space(made(6), votes, "soft")])
    other = feature_sets.with_label_space(made(), LabelSpace(["calm", "bored", "low"]))
    joined = datasets.concatenate_datasets([feature_sets.with_label_space(made(), SPACE), other])
    with pytest.raises(ValueError, match="names differ: .*calm, bored, low.*calm, bored, up"):
        feature_sets.label_space(joined)
