"""Fits by what a fusion knows clips that are unlike those it was trained on."""

from statistics import NormalDist

import numpy as np
import torch

from hf_blemo.rank_aware_fusion.novelty_rank_aware_fusion import RankAwareFusionNovelty, described

NUM_DIRECTIONS = 32
# Share of the training clips that may lie beyond the limit of some encoder.
BEYOND = 0.001
# The covariance is drawn this far towards that of independent features.
_SHRINKAGE = 0.3
# A feature that moves by this share of what is usual counts as still.
_STILL = 0.01
# The scale of what no training clip shows, such as movement where each is a single step.
_UNSEEN = 1e9
_FOLDS = 5
_FEWEST_CLIPS = 20


def fit_novelty(
    mean: torch.Tensor,
    spread: torch.Tensor,
    moves: torch.Tensor,
    folds: np.ndarray,
    beyond: float = BEYOND,
    num_directions: int = NUM_DIRECTIONS,
) -> RankAwareFusionNovelty | None:
    """Fits the Gaussian of one encoder's features, and the limit of what is like them; None of fewer than 20 clips.

    The limit follows from the distances of clips to Gaussians of the other folds: from the mean and deviation of their
    logarithms, and not below their own quantile.

    Args:
        mean, spread: (N, D) mean and standard deviation over time of the training clips.
        moves: (N,) bool, whether a clip has two steps.
        folds: (N,) keep apart what belongs together; where there is one alone, clips are dealt at random.
        beyond: share of the training clips beyond the limit.
    """
    if len(mean) < _FEWEST_CLIPS:
        return None
    if len(np.unique(folds)) < 2:
        folds = np.random.default_rng(0).permutation(len(mean)) % _FOLDS
    moments = (mean, spread, moves)
    distances = torch.zeros(len(mean))
    for fold in np.unique(folds):
        held_out = torch.from_numpy(folds == fold)
        gaussian = _gaussian(num_directions, *(values[~held_out] for values in moments))
        distances[held_out] = gaussian(*(values[held_out] for values in moments))
    novelty = _gaussian(num_directions, *moments)
    novelty.precision /= _limit(distances.double().numpy(), beyond) ** 2
    return novelty


def _limit(distances: np.ndarray, beyond: float) -> float:
    logarithms = np.log(np.maximum(distances, 1e-12))
    expected = np.exp(logarithms.mean() + NormalDist().inv_cdf(1 - beyond) * logarithms.std())
    return float(max(expected, np.quantile(distances, 1 - beyond), 1e-6))


def _gaussian(
    num_directions: int, mean: torch.Tensor, spread: torch.Tensor, moves: torch.Tensor
) -> RankAwareFusionNovelty:
    """The Gaussian of some clips, with a limit of 1."""
    novelty = RankAwareFusionNovelty(mean.shape[1], num_directions)
    novelty.floor.copy_(_STILL * spread[moves].square().mean(0).sqrt().nan_to_num(0) + 1e-6)
    values = described(mean.double(), spread.double(), novelty.floor.double())
    whole = values[moves] if moves.any() else values
    still = slice(mean.shape[1], None)
    novelty.centre.copy_(values.mean(0))
    novelty.scale.copy_(values.std(0, correction=0))
    novelty.centre[still] = whole.mean(0)[still].float()
    novelty.scale[still] = whole.std(0, correction=0)[still].float() if moves.any() else _UNSEEN
    novelty.scale[novelty.scale < 1e-6] = 1
    standard = (values - novelty.centre) / novelty.scale
    standard[:, still] = torch.where(moves.unsqueeze(1), standard[:, still], 0.0)
    count, size = novelty.directions.shape
    with torch.random.fork_rng():
        # The directions are found from random ones.
        torch.manual_seed(0)
        _, singular, directions = torch.svd_lowrank(standard, q=min(count + 8, *standard.shape), niter=4)
    found = min(count, len(singular))
    variances = singular[:found].square() / len(standard)
    rest = (standard.square().mean(0).sum() - variances.sum()).clamp_min(0) / max(size - found, 1)
    novelty.directions[:found] = directions[:, :found].T.float()
    novelty.precision[-1:] = 1 / ((1 - _SHRINKAGE) * rest + _SHRINKAGE) / size
    novelty.precision[:found] = (1 / ((1 - _SHRINKAGE) * variances + _SHRINKAGE) / size).float()
    return novelty
