"""From one encoder's steps over time to one standardised vector per sample."""

from typing import Any

import torch
from torch import nn

from .configuration_rank_aware_fusion import NUM_STATISTICS

_PERCENTILES = (0.10, 0.25, 0.50, 0.75, 0.90)


def _masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(B, T, D) -> (B, D); zeros for a sample without a valid step."""
    values = torch.where(mask.unsqueeze(-1), values, values.new_zeros(()))
    return values.sum(1) / mask.sum(1).clamp_min(1).unsqueeze(-1)


def _masked_statistics(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(B, T, D) -> (B, 7 * D): numpy's mean, std and (linear) percentiles, as in the BlEmoRE baselines; or zeros."""
    # Masked steps may hold any values, which must not reach the gradient of the others either.
    values = torch.where(mask.unsqueeze(-1), values, values.new_zeros(()))
    mean = _masked_mean(values, mask)
    variance = _masked_mean((values - mean.unsqueeze(1)).square(), mask)
    # The root of zero, the variance of a single step, has no finite slope.
    deviation = variance.clamp_min(torch.finfo(variance.dtype).tiny).sqrt()
    ordered = torch.where(mask.unsqueeze(-1), values, values.new_full((), torch.inf)).sort(dim=1).values
    last = (mask.sum(1) - 1).clamp_min(0)
    statistics = [mean, deviation]
    for percentile in _PERCENTILES:
        position = last * percentile
        lower = position.floor().long()
        upper = position.ceil().long()
        index = torch.stack([lower, upper], 1).unsqueeze(-1).expand(-1, -1, values.shape[-1])
        bounds = ordered.gather(1, index)
        low, high = bounds[:, 0], bounds[:, 1]
        statistics.append(low + (high - low) * (position - lower).unsqueeze(-1))
    pooled = torch.cat(statistics, -1)
    return torch.where(mask.any(1, keepdim=True), pooled, pooled.new_zeros(()))


def squashed(standard: torch.Tensor) -> torch.Tensor:
    """Bends standardised features, of any shape, so that a few extreme values do not decide (ours)."""
    return standard.asinh()


class RankAwareFusionPooling(nn.Module):
    """Transforms, pools over time and standardises the features of one encoder.

    `mean` and `statistics` are standardised after pooling, `attention` before it, step by step. The statistics are
    buffers: they are fitted only on the training part and travel with the checkpoint, as does the relevance.

    Args:
        options: one complete entry of `config.encoders`.
        squash: of the config; it bends the standardised features.
        weighted: whether features are weighted by their relevance.
    """

    feature_mean: torch.Tensor
    feature_std: torch.Tensor
    feature_relevance: torch.Tensor

    def __init__(self, options: dict[str, Any], squash: str = "none", weighted: bool = False):
        super().__init__()
        self.squash = squash == "asinh"
        self.weighted = weighted
        self.pooling = options["pooling"]
        self.transform = options["transform"]
        self.feature_size = options["feature_size"]
        self.output_size = self.feature_size * (NUM_STATISTICS if self.pooling == "statistics" else 1)
        self.register_buffer("feature_mean", torch.zeros(self.output_size))
        self.register_buffer("feature_std", torch.ones(self.output_size))
        if weighted:
            self.register_buffer("feature_relevance", torch.ones(self.output_size))
        if self.pooling == "attention":
            size = min(self.feature_size, 128)
            self.attention_hidden = nn.Linear(self.feature_size, size)
            # A bias would add the same to the score of every step.
            self.attention_score = nn.Linear(size, 1, bias=False)

    def pool(self, values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Applies the transform and, for `mean` and `statistics`, the pooling; without standardisation.

        (B, T, D) with a mask (B, T) -> (B, D) for `mean`, (B, 7 * D) for `statistics`, the transformed (B, T, D) for
        `attention`.
        """
        values = values.float()
        if self.transform == "log_softmax":
            values = values.log_softmax(-1)
        if self.pooling == "mean":
            return _masked_mean(values, mask)
        if self.pooling == "statistics":
            return _masked_statistics(values, mask)
        return values

    def moments(self, values: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Mean and standard deviation over time, (B, D) each, without standardisation, of (B, T, D) or what
        [`pool`] returned; and (B,) bool, false where a sample has no two steps known of it."""
        size = self.feature_size
        if values.dim() == 2:
            pooled = values.float()
            whole = self.pooling == "statistics"
            spread = pooled[:, size : 2 * size] if whole else torch.zeros_like(pooled)
            return pooled[:, :size], spread, torch.full(pooled.shape[:1], whole, device=pooled.device)
        values = values.float()
        if self.transform == "log_softmax":
            values = values.log_softmax(-1)
        values = torch.where(mask.unsqueeze(-1), values, values.new_zeros(()))
        mean = _masked_mean(values, mask)
        variance = _masked_mean((values - mean.unsqueeze(1)).square(), mask)
        return mean, variance.sqrt(), mask.sum(1) > 1

    def forward(self, values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(B, T, D), or what [`pool`] returned for them -> (B, output_size), standardised; zeros for a sample
        without a valid step."""
        if self.pooling == "attention" and values.dim() == 2:
            # One step, pooled like any other, so that every parameter takes part.
            values = values.unsqueeze(1)
        pooled = values.float() if values.dim() == 2 else self.pool(values, mask)
        standard = (pooled - self.feature_mean.float()) / self.feature_std.float()
        if self.squash:
            standard = squashed(standard)
        if standard.dim() == 3:
            # Masked steps may hold anything, NaN included, and a zero weight would not silence that.
            standard = torch.where(mask.unsqueeze(-1), standard, standard.new_zeros(()))
            standard = standard.to(self.attention_hidden.weight.dtype)
            score = self.attention_score(torch.tanh(self.attention_hidden(standard))).squeeze(-1).float()
            weight = score.masked_fill(~mask, torch.finfo(score.dtype).min).softmax(-1)
            standard = (weight.unsqueeze(-1) * standard.float()).sum(1)
        if self.weighted:
            standard = standard * (self.feature_relevance.float() / self.relevance)
        return torch.where(mask.any(1, keepdim=True), standard, standard.new_zeros(()))

    @property
    def relevance(self) -> torch.Tensor:
        """Root mean square of the relevance of the features."""
        return self.feature_relevance.float().square().mean().sqrt().clamp_min(1e-6)
