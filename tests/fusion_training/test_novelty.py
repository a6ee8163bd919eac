"""Clips that are unlike those a fusion was trained on: distances by hand, limits, and what results say of them."""

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from transformers import AutoModel

from hf_blemo import RankAwareFusionModel, feature_sets
from hf_blemo.fusion_training import novelty
from hf_blemo.fusion_training.feature_store import FeatureStore, fit_feature_statistics
from hf_blemo.prediction.fusion import predict_blends
from hf_blemo.rank_aware_fusion.processing_rank_aware_fusion import RankAwareFusionProcessor

ROWS = 120
MISSING = {(5, "voice"), (8, "face")}


def moving(row, name, steps):
    """Six to nine steps of correlated features about a clip's own place."""
    generator = np.random.default_rng([row, len(name)])
    size = steps.shape[1]
    mixing = np.random.default_rng(size).standard_normal((size, size))
    return (generator.standard_normal(size) + generator.standard_normal((6 + row % 4, size))) @ mixing


@pytest.fixture
def data(make_data, with_features):
    return with_features(make_data(ROWS, num_folds=4, missing=MISSING), moving)


@pytest.fixture(params=["mean", "statistics", "attention"])
def store(request, data, build):
    return build(data, pooling=request.param)


def fitted(store, **options):
    model = RankAwareFusionModel(store.config).eval()
    store.fit_novelty([model], np.arange(len(store)), **options)
    return model


def novelty_of(model, samples):
    batch = RankAwareFusionProcessor.from_config(model.config)(samples)
    with torch.no_grad():
        return model(**batch).novelty


def test_the_distance_is_that_of_mahalanobis_over_its_limit(store, data):
    """All directions are kept, so that the covariance has its full rank."""
    samples = list(feature_sets.read_features(data, range(ROWS)))
    found = novelty_of(fitted(store), samples)
    for place, name in enumerate(store.config.encoders):
        used = [row for row in range(ROWS) if name in samples[row]]
        means = np.stack([samples[row][name].mean(0) for row in used])
        spread = np.stack([samples[row][name].std(0) for row in used])

        def distances(rows, others, means=means, spread=spread):
            floor = 0.01 * np.sqrt((spread[others] ** 2).mean(0)) + 1e-6
            values = np.concatenate([means, np.log(spread + floor)], 1)
            standard = (values - values[others].mean(0)) / values[others].std(0)
            covariance = 0.7 * np.cov(standard[others].T, bias=True) + 0.3 * np.eye(standard.shape[1])
            inverse = np.linalg.inv(covariance)
            return np.sqrt(np.einsum("np,pq,nq->n", standard[rows], inverse, standard[rows]) / len(inverse))

        folds = store.folds[used]
        held_out = np.zeros(len(used))
        for fold in range(4):
            held_out[folds == fold] = distances(folds == fold, folds != fold)
        limit = max(
            np.exp(np.log(held_out).mean() + 3.4029 * np.log(held_out).std()), np.quantile(held_out, 1 - 0.001 / 3)
        )
        every = np.ones(len(used), bool)
        np.testing.assert_allclose(found[used, place], distances(every, every) / limit, rtol=2e-3)
        absent = sorted(set(range(ROWS)) - set(used))
        assert not found[absent, place].any()


def test_still_far_and_unrelated_features_are_unlike_others_of_the_same_kind_are_not(store, data):
    model = fitted(store)
    samples = [{name: moving(row, name, values[:1]) for name, values in WHOLE.items()} for row in range(1000, 1200)]
    assert (novelty_of(model, samples) > 1).any(1).float().mean() < 0.02
    for change in (
        lambda values: np.repeat(values[:1], len(values), 0),
        lambda values: values + 20,
        lambda values: 30 * values,
    ):
        changed = [{"face": change(sample["face"])} for sample in samples[:20]]
        found = novelty_of(model, changed)
        place = list(store.config.encoders).index("face")
        assert (found[:, place] > 1).all() and not np.delete(found.numpy(), place, 1).any()
    # Of one step nobody knows whether it moves.
    single = [{name: values.mean(0, keepdims=True) for name, values in sample.items()} for sample in samples]
    assert (novelty_of(model, single) > 1).any(1).float().mean() < 0.02


WHOLE = {"voice": np.zeros((1, 4)), "face": np.zeros((1, 3)), "noise": np.zeros((1, 2))}


def test_what_is_fitted_is_saved_and_results_say_it(store, data, tmp_path):
    model = fitted(store)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert loaded.config.novelty_directions == novelty.NUM_DIRECTIONS
    samples = list(feature_sets.read_features(data, range(20)))
    assert torch.equal(novelty_of(loaded, samples), novelty_of(model, samples))
    processor = RankAwareFusionProcessor.from_config(loaded.config)
    plain = RankAwareFusionModel(store.config).eval()
    plain.config.novelty_directions = 0
    plain = RankAwareFusionModel(plain.config).eval()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "novelty" not in k})
    still = data.select(range(2)).map(
        lambda row: {"features": {name: values and [values[0]] * 5 for name, values in row["features"].items()}}
    )
    usual, unusual = (
        predict_blends([(loaded, processor)], data.select([0])),
        predict_blends([(loaded, processor)], still),
    )
    before = next(predict_blends([(plain, processor)], data.select([0])))
    result = next(usual)
    assert set(result) - set(before) == {"novelty", "unlike_training"} and not result["unlike_training"]
    assert result["blend"] == before["blend"]
    assert result["probabilities"] == pytest.approx(before["probabilities"], abs=1e-6)
    for result in unusual:
        assert result["unlike_training"] and max(result["novelty"].values()) > 1
        [note] = result["notes"]
        assert note.startswith("unlike the clips that the model was trained on (") and "face" in note
    # A member that does not know leaves the others' word.
    both = next(predict_blends([(loaded, processor), (plain, processor)], still))
    assert "novelty" not in both and "notes" not in both


def test_few_clips_say_nothing_and_one_encoder_can_be_fitted_alone(data, build):
    model = RankAwareFusionModel(build(data).config).eval()
    fit_feature_statistics(model, data.select(range(19)))
    assert model.novelty is None and model.config.novelty_directions == 0
    fit_feature_statistics(model, data.remove_columns(["fold"]), encoders=["face"])
    samples = list(feature_sets.read_features(data, range(20)))
    found = novelty_of(model, samples)
    place = list(model.config.encoders).index("face")
    assert (found[[0, 1], place] > 0).all() and not np.delete(found.numpy(), place, 1).any()
    assert model.train()(**RankAwareFusionProcessor.from_config(model.config)(samples)).novelty is None


def test_single_steps_make_a_limit_of_places_alone(make_data, with_features, build):
    data = with_features(make_data(ROWS, num_folds=4), lambda row, name, steps: moving(row, name, steps)[:1])
    store: FeatureStore = build(data, pooling="mean")
    model = fitted(store)
    samples = list(feature_sets.read_features(data, range(ROWS)))
    assert (novelty_of(model, samples) > 1).any(1).float().mean() < 0.02
    assert torch.allclose(
        novelty_of(model, samples),
        novelty_of(model, [{name: np.repeat(values, 3, 0) for name, values in sample.items()} for sample in samples]),
        atol=1e-5,
    )
    far = [{name: values + 50 for name, values in sample.items()} for sample in samples[:5]]
    assert (novelty_of(model, far) > 1).all()


def test_what_does_not_fit_is_refused(data, build):
    model, other = fitted(build(data)), RankAwareFusionModel(build(data).config)
    with pytest.raises(ValueError, match="unknown encoder 'klip'"):
        other.set_novelty("klip", model.novelty[0])
    with pytest.raises(ValueError, match="'face': expected floor of shape .*, found"):
        other.set_novelty("face", model.novelty[0])
    with pytest.raises(StrictDataclassClassValidationError, match="novelty_directions must be at least 0, found -1"):
        type(model.config)(encoders=model.config.encoders, novelty_directions=-1)
