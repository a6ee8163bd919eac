"""Unsupervised domain adaptation on the feature level: MMD, CORAL, adversarial with gradient reversal.

Every term takes one batch of features with two weight vectors, one per domain, instead of two tensors: a row belongs
to a domain where its weight is not zero. The same code then serves any mixture of source and target rows, also under
`torch.vmap`, where slices of varying size cannot exist. A batch without rows of one domain gives zero.
"""

import torch
from torch import nn

from .configuration_rank_aware_fusion import RankAwareFusionConfig

_BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)


class RankAwareFusionDomainAdaptation(nn.ModuleList):
    """Distance between the labelled rows of a batch, the source, and the unlabelled ones, the target.

    Holds the discriminators of `domain_adaptation="adversarial"`, one per place: the fused features or, at the level
    `encoders`, the latents of every encoder. The other kinds have no weights.

    Source: `mmd`: Long et al., "Learning Transferable Features with Deep Adaptation Networks", ICML 2015 (multi-kernel
    MMD, the biased estimate; the bandwidths are ours). `coral`: Sun and Saenko, "Deep CORAL", ECCV 2016 (the mean term
    is ours, as CORAL assumes centred features). `adversarial`: Ganin et al., "Domain-Adversarial Training", JMLR 2016.
    """

    def __init__(self, config: RankAwareFusionConfig):
        super().__init__()
        self.kind = config.domain_adaptation
        self.level = config.domain_adaptation_level
        if self.kind == "adversarial":
            places = len(config.encoders) if self.level == "encoders" else 1
            self.extend(_Discriminator(config.hidden_size) for _ in range(places))

    def forward(
        self, fused: torch.Tensor, latents: torch.Tensor, present: torch.Tensor, labelled: torch.Tensor
    ) -> torch.Tensor:
        """The mean distance over the places, a scalar; zero where one domain has no row.

        Args:
            fused: (B, H).
            latents: (B, E, H).
            present: (B, E) bool.
            labelled: (B,) bool, true for source rows.
        """
        if self.kind == "none":
            return fused.new_zeros((), dtype=torch.float32)
        places = [(fused, present.any(-1))]
        if self.level == "encoders":
            places = list(zip(latents.unbind(1), present.unbind(1), strict=True))
        terms = []
        for place, (features, used) in enumerate(places):
            weights = _domain_weights(labelled, used)
            if self.kind == "mmd":
                terms.append(_maximum_mean_discrepancy(features.float(), *weights))
            elif self.kind == "coral":
                terms.append(_correlation_alignment(features.float(), *weights))
            else:
                terms.append(self[place](features, *weights))
        return torch.stack(terms).mean()


def _domain_weights(is_source: torch.Tensor, present: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights (B,) of source and target, summing to 1 over the rows of each domain that are present, or to 0."""
    source, target = (is_source & present).float(), (~is_source & present).float()
    return source / source.sum().clamp_min(1), target / target.sum().clamp_min(1)


def _maximum_mean_discrepancy(features: torch.Tensor, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Squared, under a mean of Gaussian kernels as wide as multiples of the rows' mean squared distance."""
    # By products: the differences themselves would be (B, B, H). Centred, so that little cancels.
    centred = features - features.mean(0)
    lengths = centred.square().sum(-1)
    squared = (lengths.unsqueeze(0) + lengths.unsqueeze(1) - 2 * centred @ centred.T).clamp_min(0)
    used = ((source > 0) | (target > 0)).to(squared.dtype)
    num_rows = used.sum()
    scale = (used @ squared.detach() @ used / (num_rows * (num_rows - 1)).clamp_min(1)).clamp_min(1e-12)
    kernel = torch.stack([torch.exp(-squared / (2 * factor * scale)) for factor in _BANDWIDTHS]).mean(0)
    difference = source - target
    both = (source.sum() > 0) & (target.sum() > 0)
    return torch.where(both, (difference @ kernel @ difference).clamp_min(0), kernel.new_zeros(()))


def _correlation_alignment(features: torch.Tensor, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """||C_s - C_t||^2 / (4 H^2) + ||m_s - m_t||^2 / H of covariances and means; (H, H) for any number of rows."""

    def moments(weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean = weights @ features
        centred = features - mean
        count = 1 / weights.square().sum().clamp_min(1e-12)
        covariance = (centred * weights.unsqueeze(-1)).mT @ centred
        return mean, covariance * count / (count - 1).clamp_min(1)

    source_mean, source_covariance = moments(source)
    target_mean, target_covariance = moments(target)
    size = features.shape[-1]
    distance = (source_covariance - target_covariance).square().sum() / (4 * size * size)
    distance = distance + (source_mean - target_mean).square().sum() / size
    both = (source.sum() > 0) & (target.sum() > 0)
    return torch.where(both, distance, distance.new_zeros(()))


class _GradientReversal(torch.autograd.Function):
    """Identity with a reversed gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(features: torch.Tensor) -> torch.Tensor:
        return features.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        """Keeps nothing: the backward pass needs only the gradient."""

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        return -gradient


class _Discriminator(nn.Module):
    """Binary cross-entropy of the domain behind a gradient reversal, both domains weighing the same."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.hidden = nn.Linear(hidden_size, hidden_size)
        self.output = nn.Linear(hidden_size, 1)

    def forward(self, features: torch.Tensor, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        logits = self.output(nn.functional.gelu(self.hidden(_GradientReversal.apply(features)))).squeeze(-1)
        loss = -(source * nn.functional.logsigmoid(logits) + target * nn.functional.logsigmoid(-logits)).sum() / 2
        both = (source.sum() > 0) & (target.sum() > 0)
        return torch.where(both, loss, loss.new_zeros(()))
