"""From steps over time to one vector: against numpy, and against whatever stands at masked steps."""

import numpy as np
import pytest
import torch

from hf_blemo.feature_sets.feature_files import _statistics
from hf_blemo.rank_aware_fusion.pooling_rank_aware_fusion import RankAwareFusionPooling

LENGTHS = (*range(1, 25), 41, 100)


def make_pooling(pooling: str, transform: str = "none", feature_size: int = 4) -> RankAwareFusionPooling:
    """A pooling with statistics and weights at no special value."""
    torch.manual_seed(0)
    options = {"feature_size": feature_size, "pooling": pooling, "transform": transform, "modality": "video"}
    module = RankAwareFusionPooling(options)
    module.feature_mean.copy_(torch.randn(module.output_size))
    module.feature_std.copy_(0.5 + torch.rand(module.output_size))
    return module


def ragged_batch(lengths, fill: float, feature_size: int = 4):
    """Clips of the given lengths whose valid steps stand anywhere among the padding; the clips themselves too."""
    generator = np.random.default_rng(0)
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


@pytest.mark.parametrize("transform", ["none", "log_softmax"])
@pytest.mark.parametrize("pooling", ["mean", "statistics"])
@pytest.mark.parametrize("fill", [1e30, float("nan"), float("inf"), float("-inf")])
def test_pooling_is_numpys_at_every_length_and_whatever_the_padding(fill, pooling, transform):
    """The seven statistics are those of the benchmark's room."""
    values, mask, clips = ragged_batch(LENGTHS, fill=fill)
    if transform == "log_softmax":
        clips = [clip - np.log(np.exp(clip).sum(-1, keepdims=True)) for clip in clips]
    expected = np.stack([_statistics(clip)[0, : 4 if pooling == "mean" else None] for clip in clips])
    found = make_pooling(pooling, transform).pool(values, mask).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-6)


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


@pytest.mark.parametrize("pooling", ["mean", "statistics"])
def test_float16_features_are_summed_in_float32(pooling):
    module = make_pooling(pooling)
    values = torch.full((1, 2000, 4), 60.0, dtype=torch.float16)
    mask = torch.ones(1, 2000, dtype=torch.bool)
    # 2,000 * 60 and the sum of squares are beyond float16, whose largest number is 65,504.
    torch.testing.assert_close(module(values, mask), module(values.float(), mask))
    torch.testing.assert_close(module.pool(values, mask)[:, :4], torch.full((1, 4), 60.0))
