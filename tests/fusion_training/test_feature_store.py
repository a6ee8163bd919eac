"""The store holds what the model's own pooling gives, with the statistics of the rows asked for and no others."""

import numpy as np
import pytest
import torch

from hf_blemo import RankAwareFusionConfig, RankAwareFusionModel, RankAwareFusionProcessor, feature_sets
from hf_blemo.fusion_training.feature_store import FeatureStore, fit_feature_statistics
from hf_blemo.rank_aware_fusion.label_space_rank_aware_fusion import BLEMORE_SPACE

CPU = torch.device("cpu")
MISSING = ((0, "voice"), (7, "voice"), (7, "face"), (11, "noise"))


@pytest.mark.parametrize(("pooling", "transform"), [("mean", "none"), ("statistics", "log_softmax")])
def test_pooled_vectors_give_the_outputs_of_the_model_on_the_raw_steps(make_data, build, pooling, transform):
    data = make_data(20, missing=MISSING)
    store = build(data, pooling=pooling, transform=transform, face={"pooling": "attention"})
    assert set(store.pooled) == {"voice", "noise"}
    torch.manual_seed(0)
    model = RankAwareFusionModel(store.config).eval()
    for name, (mean, std) in store.statistics(np.arange(20)).items():
        model.set_feature_statistics(name, mean, std)
    raw = RankAwareFusionProcessor(store.config.encoders)(feature_sets.read_features(data), labels=data["labels"])
    rows = np.arange(20)
    with torch.no_grad():
        expected, found = model(**raw), model(**store.batch(rows, CPU))
    for name in ("loss", "joint_probabilities", "encoder_weights", "fused_features"):
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=1e-5)
    assert torch.equal(found["selected_encoders"], expected["selected_encoders"])


@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_statistics_are_those_of_the_rows_alone(make_data, build, pooling):
    data = make_data(20, missing=MISSING)
    store = build(data, pooling=pooling)
    assert np.flatnonzero(~store.present["voice"]).tolist() == [0, 7]
    mean, std = store.statistics(np.array([0, 7]))["voice"]
    assert mean.tolist() == [0.0] * 4 and std.tolist() == [1.0] * 4, "no row has it"
    rows = np.array([1, 2, 5, 7, 9])
    for name, (mean, std) in store.statistics(rows).items():
        if pooling == "attention":
            samples = [sample.get(name) for sample in feature_sets.read_features(data, rows)]
            values = torch.from_numpy(np.concatenate([sample for sample in samples if sample is not None]))
        else:
            values = store.pooled[name][rows][store.present[name][rows]]
        torch.testing.assert_close(mean, values.mean(0), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(std, values.std(0, unbiased=False), atol=1e-5, rtol=1e-5)


def correlation_ratio_by_hand(values, labels):
    """Of one feature: the root of the share of its variance that lies between the means of the names."""
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / len(values)
    if variance < 1e-12:
        return 0.0
    between = 0.0
    for shares in zip(*labels, strict=True):
        if sum(shares):
            own = sum(share * value for share, value in zip(shares, values, strict=True)) / sum(shares)
            between += sum(shares) * (own - mean) ** 2
    return (between / sum(map(sum, labels)) / variance) ** 0.5


@pytest.mark.parametrize(
    ("kind", "pooling", "squash"),
    [("valid", "mean", "none"), ("soft", "mean", "asinh"), ("valid", "attention", "asinh")],
)
def test_relevance_is_the_correlation_ratio_of_the_labelled_rows(
    make_data, build, with_column, with_features, kind, pooling, squash
):
    data = with_features(
        make_data(40, missing=MISSING, kind=kind),
        lambda row, name, steps: np.where((name == "face") & (np.arange(steps.shape[1]) == 1), 300.7, steps),
    )
    labels = np.asarray(data["labels"])
    labels[[2, 9]] = -100
    data = feature_sets.with_label_space(with_column(data, "labels", labels), BLEMORE_SPACE, kind)
    model = {"feature_weighting": "relevance", "squash": squash, "label_kind": kind}
    store, rows = build(data, pooling=pooling, model=model), np.arange(25)
    for name, (mean, std, relevance) in store.statistics(rows).items():
        used = [row for row in rows if (row, name) not in MISSING and row not in (2, 9)]
        values = (store.vectors(name)[used].double() - mean) / torch.where(std > 1e-8, std, 1.0)
        values = (values.asinh() if squash == "asinh" else values).T.tolist()
        expected = [correlation_ratio_by_hand(column, labels[used].tolist()) for column in values]
        np.testing.assert_allclose(relevance, expected, atol=1e-4)
        assert name != "face" or relevance[1] == 0 < relevance[0]
    # What no clip shows says nothing, and a gate that starts from the relevance leaves it alone.
    lacking = store.statistics(np.array([0, 2, 7]))
    assert lacking["voice"][2].eq(0).all() and lacking["noise"][2].shape == (2,)
    fusion = RankAwareFusionModel(store.config)
    fit_feature_statistics(fusion, data)
    expected = store.statistics(np.flatnonzero(store.labelled))
    for pooling_of, (_, _, relevance) in zip(fusion.poolings, expected.values(), strict=True):
        torch.testing.assert_close(pooling_of.feature_relevance, relevance)
    fit_feature_statistics(fusion, data.remove_columns("labels"))
    assert all(pooling_of.feature_relevance.eq(1).all() for pooling_of in fusion.poolings)


def test_an_exchanged_row_keeps_its_place_in_its_group(make_data, build, with_features):
    """Groups of 30; in one of them a feature is constant, in another one value lies far out."""

    def change(row, name, steps):
        if row % 4 == 1:
            steps = np.where(np.arange(steps.shape[1]) == 0, 5.0, 3 * steps + 2)
        return steps + 900.0 if row == 2 else steps

    data = with_features(make_data(120, num_folds=2, missing=MISSING), change)
    groups = np.arange(120) % 4
    store = build(data.add_column("group", [f"speaker {group}" for group in groups]))
    rows = np.arange(120)
    others = np.where(rows % 3 == 0, rows, np.roll(rows, 1))
    others[8] = 4
    batch = store.batch(rows.reshape(2, 60), CPU, others=others.reshape(2, 60))
    for name, values in store.pooled.items():
        values, present = values.double().numpy(), store.present[name].numpy()
        found = batch["features"][name].flatten(0, 1).double().numpy()
        assert batch["feature_mask"][name].flatten().tolist() == present.tolist()
        moments = []
        for group in range(4):
            own = values[(groups == group) & present]
            centre, spread = own.mean(0), own.std(0, ddof=1)
            own = np.clip(own, centre - 4 * spread, centre + 4 * spread)
            moments.append((own.mean(0), own.std(0, ddof=1)))
        for row in np.flatnonzero(present):
            (mean, std), (other_mean, other_std) = moments[groups[row]], moments[groups[others[row]]]
            kept = (std < 1e-6) | (other_std < 1e-6) | (groups[row] == groups[others[row]])
            np.testing.assert_array_equal(found[row][kept], values[row][kept])
            one, two = (values[row] - mean)[~kept] / std[~kept], (found[row] - other_mean)[~kept] / other_std[~kept]
            np.testing.assert_allclose(two, one, atol=1e-3)
            assert kept.all() or np.abs(found[row] - values[row])[~kept].min() > 1e-5


def test_statistics_survive_a_mean_far_from_zero(make_data, build, with_features):
    data = make_data(20)
    shifted = with_features(data, lambda row, name, steps: steps + np.float32(4096))
    far, near = build(shifted).statistics(np.arange(20)), build(data).statistics(np.arange(20))
    for name in near:
        torch.testing.assert_close(far[name][1], near[name][1], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_a_batch_has_the_shape_and_the_order_of_its_rows(make_data, build, pooling):
    data = make_data(20, missing=MISSING)
    store = build(data, pooling=pooling)
    rows = np.array([[3, 7, 3], [0, 19, 7]])
    batch = store.batch(rows, CPU)
    np.testing.assert_allclose(batch["labels"], np.asarray(data["labels"])[rows], atol=1e-6)
    steps = feature_sets.read_features(data)
    for name in ("voice", "face", "noise"):
        values, mask = batch["features"][name], batch["feature_mask"][name]
        assert mask.any(-1).tolist() == store.present[name][rows].tolist()
        for place in zip(*np.nonzero(mask.any(-1).numpy()), strict=True):
            expected = steps[rows[place]][name]
            found = values[place][mask[place]] if pooling == "attention" else values[place]
            np.testing.assert_allclose(found, expected if pooling == "attention" else expected.mean(0), atol=1e-6)
            np.testing.assert_allclose(store.vectors(name)[rows[place]], expected.mean(0), atol=1e-6)
    assert "labels" not in store.batch(rows, CPU, labels=False)


@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_a_row_whose_encoders_are_all_left_out_has_none_present(make_data, build, pooling):
    data = make_data(10, missing=[(4, "voice")])
    config = RankAwareFusionConfig(encoders={"voice": {"feature_size": 4, "pooling": pooling}}, hidden_size=8)
    store = FeatureStore(data, config, progress=False)
    assert np.flatnonzero(~store.present["voice"]).tolist() == [4]
    model = RankAwareFusionModel(config).eval()
    with torch.no_grad():
        outputs = model(**store.batch(np.array([4, 5]), CPU))
    assert outputs["selected_encoders"][0].tolist() == [-1, -1, -1]
    assert outputs["encoder_weights"].flatten().tolist() == [0.0, 1.0]
    others = [row for row in range(10) if row != 4]
    found, expected = store.statistics(np.arange(10))["voice"], store.statistics(np.array(others))["voice"]
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


def test_alignment_gives_every_fold_the_moments_of_all(make_data, build):
    data = make_data(60, missing=MISSING)
    plain, aligned = build(data), build(data, align_folds=True)
    for name in ("voice", "face", "noise"):
        present = plain.present[name]
        overall = plain.pooled[name][present]
        for fold in range(5):
            values = aligned.pooled[name][torch.from_numpy(aligned.folds == fold) & present]
            torch.testing.assert_close(values.mean(0), overall.mean(0), atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(values.std(0), overall.std(0), atol=1e-5, rtol=1e-5)
        # New clips are not aligned: the scale they come in must be the one that the models were trained on.
        found, expected = aligned.statistics(np.arange(60))[name], plain.statistics(np.arange(60))[name]
        torch.testing.assert_close(found, expected, atol=0.02, rtol=0.06)
    assert torch.equal(aligned.pooled["voice"][[0, 7]], torch.zeros(2, 4))


def test_alignment_removes_a_scale_and_offset_of_a_fold_and_reads_no_label(
    make_data, build, with_column, with_features
):
    data = make_data(60)
    moved = with_features(data, lambda row, name, steps: 3 * steps + 2 if row % 5 == 1 else steps)
    moved = with_column(moved, "labels", np.roll(data["labels"], 1, axis=0))
    first, second = build(data, align_folds=True).pooled["voice"], build(moved, align_folds=True).pooled["voice"]
    # The moments of all rows differ between the two; what is left after removing them may not.
    standard = [(values - values.mean(0)) / values.std(0) for values in (first, second)]
    torch.testing.assert_close(standard[0], standard[1], atol=1e-4, rtol=1e-4)


def test_labels_and_folds_may_be_absent_but_not_wrong(make_data, build, with_column, with_features):
    data = make_data(80)
    store = build(data.remove_columns(["labels", "fold"]))
    assert len(store) == 80 and store.folds.tolist() == [-1] * 80
    assert torch.equal(store.labels, torch.full((80, 6), -100.0))
    labels = np.asarray(data["labels"])
    labels[3] = [0.6, 0.4, 0, 0, 0, 0]
    damaged = with_features(data, lambda row, name, steps: np.where((row, name) == (70, "face"), np.nan, steps))
    for wrong, message in (
        (with_column(data, "labels", labels), "clip_003: found the shares .* expected one of the valid labels"),
        (damaged, "clip_070, encoder 'face': expected finite values, found nan at step 0"),
    ):
        with pytest.raises(ValueError, match=message):
            build(wrong)
    for twice in ("clip_001", "clip_001.mov"):
        repeated = build(with_column(data, "clip", [twice, *data["clip"][1:]]))
        with pytest.raises(ValueError, match="data set: clip 'clip_001' comes more than once, expected each once"):
            repeated.labelled_rows("honest")
