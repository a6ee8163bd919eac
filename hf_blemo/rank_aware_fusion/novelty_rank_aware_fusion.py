"""How far a clip's features lie from those of the clips that the model was trained on (ours)."""

import torch
from torch import nn


def described(mean: torch.Tensor, spread: torch.Tensor, floor: torch.Tensor) -> torch.Tensor:
    """What a clip is compared by, (N, 2 D): where its features lie, and how much they move, of which the logarithm.

    Args:
        mean, spread: (N, D) mean and standard deviation of a clip's features over time.
        floor: (D,) what is no movement any more.
    """
    return torch.cat([mean, (spread + floor).log()], -1)


class RankAwareFusionNovelty(nn.Module):
    """The distance of one encoder's features to a Gaussian of those of the training clips, in units of a limit.

    All its numbers are buffers that [`fusion_training.novelty`] fits; as long as they are zero, nothing is new.

    Args:
        feature_size: D, of the encoder.
        num_directions: most directions K in which the Gaussian has a variance of its own.

    Source: the distance of Mahalanobis as a measure of novelty, Lee et al. 2018, arXiv 1807.03888; here of one class,
    with a covariance of low rank.
    """

    floor: torch.Tensor
    centre: torch.Tensor
    scale: torch.Tensor
    directions: torch.Tensor
    precision: torch.Tensor

    def __init__(self, feature_size: int, num_directions: int):
        super().__init__()
        self.num_directions = num_directions
        size = 2 * feature_size
        count = min(num_directions, size)
        self.register_buffer("floor", torch.ones(feature_size))
        self.register_buffer("centre", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))
        self.register_buffer("directions", torch.zeros(count, size))
        # Of each direction, and of all others together.
        self.register_buffer("precision", torch.zeros(count + 1))

    def forward(self, mean: torch.Tensor, spread: torch.Tensor, moves: torch.Tensor) -> torch.Tensor:
        """Distances (N,) of clips; above 1 a clip is unlike the training clips.

        Args:
            mean, spread: (N, D) mean and standard deviation over time.
            moves: (N,) bool, false where a clip has one step, whose movement nobody knows; it then counts as usual.
        """
        standard = (described(mean, spread, self.floor.to(mean)) - self.centre.to(mean)) / self.scale.to(mean)
        known = torch.cat([torch.ones_like(mean, dtype=torch.bool), moves.unsqueeze(-1).expand_as(mean)], -1)
        standard = torch.where(known, standard, standard.new_zeros(()))
        directions, precision = self.directions.to(mean), self.precision.to(mean)
        along = standard @ directions.T
        rest = standard - along @ directions
        return ((along.square() * precision[:-1]).sum(-1) + rest.square().sum(-1) * precision[-1]).sqrt()
