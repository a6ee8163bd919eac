"""From steps over time to one vector: against numpy, and against whatever stands at masked steps."""

import numpy as np
import pytest
import torch

from hf_blemo.blemore.feature_files import _statistics
from hf_blemo.rank_aware_fusion.pooling_rank_aware_fusion import RankAwareFusionPooling

LENGTHS = (*range(1, 25), 41, 100)


def numpy_statistics(steps: np.ndarray) -> np.ndarray:
    """The official seven of one clip, (T, D) -> (7 * D,), in float64."""
    steps = steps.astype(np.float64)
    percentiles = np.percentile(steps, [10, 25, 50, 75, 90], axis=0)
    return np.concatenate([steps.mean(0), steps.std(0), *percentiles])


def make_pooling(pooling: str, transform: str = "none", feature_size: int = 4) -> RankAwareFusionPooling:
    """A pooling with statistics and weights at no special value."""
    torch.manual_seed(0)
    options = {"feature_size": feature_size, "pooling": pooling, "transform": transform, "modality": "video"}
    module = RankAwareFusionPooling(options)
    module.feature_mean.copy_(torch.randn(module.output_size))
    module.feature_std.copy_(0.5 + torch.rand(module.output_size))
    return module


def ragged_batch(lengths, feature_size: int = 4, fill: float = 0.0, seed: int = 0):
    """Clips of the given lengths whose valid steps stand anywhere among the padding; the clips themselves too."""
    generator = np.random.default_rng(seed)
    num_steps = max(lengths) + 2
    values = np.full((len(lengths), num_steps, feature_size), fill, dtype=np.float32)
    mask = np.zeros((len(lengths), num_steps), dtype=bool)
    clips = []
    for row, length in enumerate(lengths):
        clips.append(generator.standard_normal((length, feature_size)).astype(np.float32))
        steps = np.sort(generator.choice(num_steps, length, replace=False))
        values[row, steps] = clips[row]
        mask[row, steps] = True
    return torch.from_numpy(values), torch.from_numpy(mask), clips


@pytest.mark.parametrize("pooling", ["mean", "statistics"])
@pytest.mark.parametrize("fill", [0.0, 1e30, float("nan"), float("inf"), float("-inf")])
def test_pooling_is_numpys_at_every_length_and_whatever_the_padding(fill, pooling):
    values, mask, clips = ragged_batch(LENGTHS, fill=fill)
    expected = np.stack([numpy_statistics(clip)[: 4 if pooling == "mean" else None] for clip in clips])
    np.testing.assert_allclose(make_pooling(pooling).pool(values, mask).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_statistics_are_those_of_the_benchmarks_room():
    values, mask, clips = ragged_batch((9,))
    found = make_pooling("statistics").pool(values, mask)[0].numpy()
    np.testing.assert_allclose(found, _statistics(clips[0]).reshape(-1), rtol=1e-5, atol=1e-6)


def test_statistics_of_equal_steps_are_the_step_without_spread():
    step = torch.tensor([[3.0, -0.1, 0.0, 1.0]])
    pooled = make_pooling("statistics").pool(step.expand(1, 7, 4), torch.ones(1, 7, dtype=torch.bool)).view(7, 4)
    torch.testing.assert_close(pooled, torch.cat([step, torch.zeros(1, 4), step.expand(5, 4)]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("pooling", ["mean", "statistics"])
@pytest.mark.parametrize("transform", ["none", "log_softmax"])
def test_standardised_after_pooling_after_the_transform(pooling, transform):
    module = make_pooling(pooling, transform)
    values, mask, clips = ragged_batch((3, 1, 8), fill=float("nan"))
    if transform == "log_softmax":
        clips = [clip - np.log(np.exp(clip).sum(-1, keepdims=True)) for clip in clips]
    pooled = np.stack([clip.mean(0) if pooling == "mean" else numpy_statistics(clip) for clip in clips])
    expected = (pooled - module.feature_mean.numpy()) / module.feature_std.numpy()
    np.testing.assert_allclose(module(values, mask).numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("transform", ["none", "log_softmax"])
def test_attention_pooling_by_hand(transform):
    module = make_pooling("attention", transform)
    values, mask, clips = ragged_batch((3, 1, 8), fill=float("nan"))
    weights = {name: value.detach().numpy().astype(np.float64) for name, value in module.state_dict().items()}
    expected = []
    for clip in clips:
        if transform == "log_softmax":
            clip = clip - np.log(np.exp(clip).sum(-1, keepdims=True))
        steps = (clip - weights["feature_mean"]) / weights["feature_std"]
        hidden = np.tanh(steps @ weights["attention_hidden.weight"].T + weights["attention_hidden.bias"])
        score = hidden @ weights["attention_score.weight"][0]
        share = np.exp(score) / np.exp(score).sum()
        expected.append(share @ steps)
    np.testing.assert_allclose(module(values, mask).detach().numpy(), np.stack(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "statistics", "attention"])
def test_a_clip_without_a_valid_step_is_zeros(pooling):
    module = make_pooling(pooling)
    values = torch.full((2, 3, 4), float("nan"))
    values[1] = 1.0
    mask = torch.tensor([[False] * 3, [True] * 3])
    pooled = module(values, mask)
    assert pooled[0].eq(0).all()
    assert pooled[1].ne(0).any() and pooled.isfinite().all()


@pytest.mark.parametrize("transform", ["none", "log_softmax"])
@pytest.mark.parametrize("pooling", ["mean", "statistics", "attention"])
def test_gradients_are_finite_and_garbage_at_masked_steps_changes_none(pooling, transform):
    gradients = []
    for fill in (0.0, float("nan")):
        module = make_pooling(pooling, transform)
        # One step among them: the deviation of a single step has no slope.
        values, mask, _ = ragged_batch((3, 1, 8), fill=fill)
        values.requires_grad_()
        module(values, mask).square().sum().backward()
        gradients.append([values.grad[mask], *[parameter.grad for parameter in module.parameters()]])
    for clean, garbage in zip(*gradients, strict=True):
        assert clean.isfinite().all()
        torch.testing.assert_close(garbage, clean)


@pytest.mark.parametrize("transform", ["none", "log_softmax"])
@pytest.mark.parametrize("pooling", ["mean", "statistics"])
def test_what_pool_returned_gives_what_the_steps_give(pooling, transform):
    module = make_pooling(pooling, transform)
    values, mask, _ = ragged_batch((4, 1, 6), fill=float("nan"))
    pooled = module.pool(values, mask)
    assert pooled.shape == (3, module.output_size)
    torch.testing.assert_close(module(pooled, torch.ones(3, 1, dtype=torch.bool)), module(values, mask))


@pytest.mark.parametrize("pooling", ["mean", "statistics"])
def test_float16_features_are_summed_in_float32(pooling):
    module = make_pooling(pooling)
    values = torch.full((1, 2000, 4), 60.0, dtype=torch.float16)
    mask = torch.ones(1, 2000, dtype=torch.bool)
    # 2,000 * 60 and the sum of squares are beyond float16, whose largest number is 65,504.
    torch.testing.assert_close(module(values, mask), module(values.float(), mask))
    torch.testing.assert_close(module.pool(values, mask)[:, :4], torch.full((1, 4), 60.0))
