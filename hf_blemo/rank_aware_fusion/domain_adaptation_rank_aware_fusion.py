"""Unsupervised domain adaptation on the feature level: MMD, CORAL, adversarial with gradient reversal.

Every term takes one batch of features with two weight vectors, one per domain, instead of two tensors: a row belongs
to a domain where its weight is not zero. The same code then serves any mixture of source and target rows, also under
`torch.vmap`, where slices of varying size cannot exist. A batch without rows of one domain gives zero.
"""

import torch
from torch import nn

BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)


def domain_weights(is_source: torch.Tensor, present: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Uniform weights over the rows of each domain.

    Args:
        is_source: (B,) bool, true for source rows; the other rows are the target.
        present: (B,) bool, false for rows that have no features here and belong to neither domain; all by default.

    Returns:
        Source and target weights, (B,) each, summing to 1 over their own rows (to 0 where a domain has none).
    """
    used = torch.ones_like(is_source) if present is None else present
    source, target = (is_source & used).float(), (~is_source & used).float()
    return source / source.sum().clamp_min(1), target / target.sum().clamp_min(1)


def maximum_mean_discrepancy(features: torch.Tensor, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Squared maximum mean discrepancy under a mean of Gaussian kernels.

    The bandwidths are multiples of the mean squared distance between the rows in use, taken without gradient.

    Args:
        features: (B, H).
        source, target: (B,) weights of [`domain_weights`].

    Returns:
        Scalar, not negative.

    Source: Long et al., "Learning Transferable Features with Deep Adaptation Networks", ICML 2015 (multi-kernel MMD);
    the biased estimate, bandwidths as this project's choice.
    """
    squared = (features.unsqueeze(0) - features.unsqueeze(1)).square().sum(-1)
    used = ((source > 0) | (target > 0)).to(squared.dtype)
    num_rows = used.sum()
    scale = (used @ squared.detach() @ used / (num_rows * (num_rows - 1)).clamp_min(1)).clamp_min(1e-12)
    kernel = torch.stack([torch.exp(-squared / (2 * factor * scale)) for factor in BANDWIDTHS]).mean(0)
    difference = source - target
    both = (source.sum() > 0) & (target.sum() > 0)
    return torch.where(both, (difference @ kernel @ difference).clamp_min(0), kernel.new_zeros(()))


def correlation_alignment(features: torch.Tensor, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """CORAL: squared distance between the feature covariances of the two domains, and between their means.

    Args:
        features: (B, H); the covariances are (H, H), whatever the number of rows in each domain.
        source, target: (B,) weights of [`domain_weights`].

    Returns:
        Scalar, not negative: ||C_s - C_t||^2 / (4 H^2) + ||m_s - m_t||^2 / H.

    Source: Sun and Saenko, "Deep CORAL", ECCV 2016; the mean term is this project's choice (CORAL assumes centred
    features).
    """

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


class GradientReversal(torch.autograd.Function):
    """Identity whose gradient has the other sign (Ganin et al., "Domain-Adversarial Training", JMLR 2016)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(features: torch.Tensor) -> torch.Tensor:
        return features.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        """Nothing is kept: the backward pass needs the gradient alone."""

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        return -gradient


class RankAwareFusionDomainDiscriminator(nn.Module):
    """Tells source from target rows, behind a gradient reversal.

    Args:
        hidden_size: H, width of the features.
    """

    def __init__(self, hidden_size: int):
        super().__init__()
        self.hidden = nn.Linear(hidden_size, hidden_size)
        self.output = nn.Linear(hidden_size, 1)

    def forward(self, features: torch.Tensor, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Binary cross-entropy of the domain, both domains weighing the same.

        Args:
            features: (B, H).
            source, target: (B,) weights of [`domain_weights`].

        Returns:
            Scalar; zero where one domain has no row.
        """
        logits = self.output(nn.functional.gelu(self.hidden(GradientReversal.apply(features)))).squeeze(-1)
        loss = -(source * nn.functional.logsigmoid(logits) + target * nn.functional.logsigmoid(-logits)).sum() / 2
        both = (source.sum() > 0) & (target.sum() > 0)
        return torch.where(both, loss, loss.new_zeros(()))
