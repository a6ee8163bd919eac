"""Fusions without a gate, by softmax regression: what a sample-wise choice of encoders has to beat.

Everything is chosen inside the training folds of a scored fold, and nothing depends on chance.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property

import numpy as np
import torch

from hf_blemo.fusion_training.feature_store import FeatureStore, correlation_ratio
from hf_blemo.fusion_training.out_of_fold import OutOfFold, Truth
from hf_blemo.rank_aware_fusion.pooling_rank_aware_fusion import squashed

# Weights of the L2 term beside the mean cross-entropy, strongest first.
L2 = tuple(10.0 ** (power / 2) for power in range(2, -9, -1))
_NUM_STEPS = 100
_SMALLEST = 1e-12


def _fit(inputs: torch.Tensor, targets: torch.Tensor, l2: float, start: torch.Tensor) -> torch.Tensor:
    """Weights and, in the last row, biases (P + 1, K) of a softmax regression; the biases are free."""

    def loss(weights: torch.Tensor) -> torch.Tensor:
        logits = torch.addmm(weights[-1], inputs, weights[:-1])
        return -(targets * logits.log_softmax(-1)).sum(-1).mean() + 0.5 * l2 * weights[:-1].square().sum()

    return _minimised(loss, start, tolerance=1e-6)


def _minimised(
    loss: Callable[[torch.Tensor], torch.Tensor], start: torch.Tensor, tolerance: float = 1e-7
) -> torch.Tensor:
    weights = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weights], max_iter=_NUM_STEPS, tolerance_grad=tolerance, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss(weights)
        value.backward()
        return value

    optimizer.step(closure)
    return weights.detach()


class Regressions:
    """Softmax regressions of one matrix of inputs, nested by folds.

    Args:
        inputs: (N, P), NaN where an encoder is missing; standardised by the training rows of each regression, then
            zero where missing.
        targets: (N, K) distributions.
        folds: (N,).
        scale: (P,) factor of each standardised column.
        treated: whether columns are squashed and weighted by their relevance, as the method's options do.
    """

    def __init__(
        self,
        inputs: np.ndarray,
        targets: np.ndarray,
        folds: np.ndarray,
        scale: np.ndarray | None = None,
        treated: bool = False,
    ):
        self.inputs = torch.from_numpy(inputs).double()
        self.targets = torch.from_numpy(targets).double()
        self.folds = folds
        self.scale = torch.ones(inputs.shape[1]).double() if scale is None else torch.from_numpy(scale).double()
        self.treated = treated
        self._known: dict[tuple[int, ...], np.ndarray] = {}

    def without(self, *held_out: int) -> np.ndarray:
        """(number of L2 weights, N, K) probabilities by the models that were trained without some folds."""
        key = tuple(sorted(set(held_out)))
        if key not in self._known:
            train = torch.from_numpy(~np.isin(self.folds, key))
            mean = self.inputs[train].nanmean(0)
            centred = self.inputs - mean
            std = centred[train].square().nanmean(0).sqrt()
            values = torch.nan_to_num(centred / std.clamp_min(1e-9)) * (std > 1e-9)
            if self.treated:
                values = squashed(values)
                values = values * correlation_ratio(values[train], self.targets[train])
            values = values * self.scale
            if self.treated:
                # As long as without the weights, so that the same L2 weights suit.
                values = values * (self.scale.square().sum() / values[train].square().sum(1).mean()).sqrt()
            start = torch.zeros(values.shape[1] + 1, self.targets.shape[1]).double()
            start[-1] = self.targets[train].mean(0).clamp_min(1e-6).log()
            found = []
            for l2 in L2:
                # From strong to weak: each starts where the last one ended.
                start = _fit(values[train], self.targets[train], l2, start)
                found.append(torch.addmm(start[-1], values, start[:-1]).softmax(-1).numpy())
            self._known[key] = np.stack(found)
        return self._known[key]

    def for_fold(self, fold: int) -> tuple[np.ndarray, float]:
        """What may be known of all rows when a fold is scored.

        Returns:
            (N, K) probabilities: of a training fold by the model without it and the scored one, of the scored fold by
            the model of all others, with the L2 weight of the lowest loss on the training folds; and that loss.
        """
        others = [other for other in np.unique(self.folds) if other != fold]
        found = np.array(self.without(fold))
        for other in others:
            where = self.folds == other
            found[:, where] = self.without(fold, other)[:, where]
        judged = self.folds != fold
        targets = self.targets.numpy()[judged]
        losses = [-(targets * np.log(np.maximum(part[judged], _SMALLEST))).sum(1).mean() for part in found]
        best = int(np.argmin(losses))
        return found[best], float(losses[best])


class NaiveFusions:
    """The naive fusions of a data set, each made when it is asked for: of pooled features, or of the mean over time
    of encoders pooled by attention."""

    def __init__(self, store: FeatureStore, labelled: np.ndarray, truth: Truth):
        self.truth = truth
        self.folds = np.unique(truth.folds).tolist()
        judge = truth.judge
        # The regression is over the valid labels, or over the names where labels are soft.
        self.targets = truth.labels
        if judge.kind == "valid":
            self.targets = np.eye(len(judge.space))[judge.nearest(truth.labels)]
        self.features: dict[str, np.ndarray] = {}
        for name in store.config.encoders:
            values = store.vectors(name)[labelled].double().numpy()
            self.features[name] = np.where(store.present[name].numpy()[labelled, None], values, np.nan)

    def rows(self) -> dict[str, Callable[[], OutOfFold]]:
        """Name of a row -> what makes it."""
        makers = [
            *(self._single(name) for name in self.features),
            lambda: self._combined(self._mean),
            lambda: self._combined(self._weighted),
            lambda: self._combined(self._stacked),
            lambda: self._concatenated(scaled=False),
            lambda: self._concatenated(scaled=True),
            lambda: self._concatenated(scaled=True, treated=True),
        ]
        return dict(zip(naive_names(list(self.features)), makers, strict=True))

    @cached_property
    def present(self) -> np.ndarray:
        """(E, N) whether a clip has an encoder."""
        return np.stack([~np.isnan(values[:, 0]) for values in self.features.values()])

    @cached_property
    def singles(self) -> dict[str, dict[int, tuple[np.ndarray, float]]]:
        """Encoder -> scored fold -> [`Regressions.for_fold`] of the encoder alone."""
        found = {}
        for name, values in self.features.items():
            regressions = Regressions(values, self.targets, self.truth.folds)
            found[name] = {fold: regressions.for_fold(fold) for fold in self.folds}
        return found

    def _single(self, name: str) -> Callable[[], OutOfFold]:
        return lambda: self._made(self.singles[name][fold] for fold in self.folds)

    def _concatenated(self, scaled: bool, treated: bool = False) -> OutOfFold:
        widths = [values.shape[1] for values in self.features.values()]
        scale = np.concatenate([np.full(width, width**-0.5 if scaled else 1.0) for width in widths])
        inputs = np.concatenate(list(self.features.values()), 1)
        regressions = Regressions(inputs, self.targets, self.truth.folds, scale, treated)
        return self._made(regressions.for_fold(fold) for fold in self.folds)

    def _combined(self, combine: Callable[[int, np.ndarray], tuple[np.ndarray, float]]) -> OutOfFold:
        """Combines the probabilities of the single encoders: (E, N, K) for each scored fold."""
        stacks = {fold: np.stack([self.singles[name][fold][0] for name in self.features]) for fold in self.folds}
        return self._made(combine(fold, stack) for fold, stack in stacks.items())

    def _mean(self, fold: int, stack: np.ndarray) -> tuple[np.ndarray, float]:
        return self._weigh(fold, stack, torch.zeros(len(stack)).double())

    def _weighted(self, fold: int, stack: np.ndarray) -> tuple[np.ndarray, float]:
        """One weight per encoder, learned on what the training folds' own out-of-fold probabilities say of them."""
        judged = self.truth.folds != fold
        targets = torch.from_numpy(self.targets[judged]).double()
        probabilities = torch.from_numpy(stack[:, judged]).double()
        present = torch.from_numpy(self.present[:, judged])

        def loss(scores: torch.Tensor) -> torch.Tensor:
            mixed = _mixed(probabilities, present, scores).clamp_min(_SMALLEST)
            return -(targets * mixed.log()).sum(-1).mean() + 1e-4 * scores.square().sum()

        return self._weigh(fold, stack, _minimised(loss, torch.zeros(len(stack)).double()))

    def _weigh(self, fold: int, stack: np.ndarray, scores: torch.Tensor) -> tuple[np.ndarray, float]:
        found = _mixed(torch.from_numpy(stack).double(), torch.from_numpy(self.present), scores).numpy()
        judged = self.truth.folds != fold
        logs = np.log(np.maximum(found[judged], _SMALLEST))
        return found, float(-(self.targets[judged] * logs).sum(1).mean())

    def _stacked(self, fold: int, stack: np.ndarray) -> tuple[np.ndarray, float]:
        """A softmax regression on the encoders' log-probabilities; its training rows are all out of fold."""
        logs = np.log(np.maximum(stack, 1e-6))
        logs[~self.present] = np.nan
        return Regressions(np.concatenate(list(logs), 1), self.targets, self.truth.folds).for_fold(fold)

    def _made(self, found: Iterator[tuple[np.ndarray, float]]) -> OutOfFold:
        space, valid = self.truth.judge.space, self.truth.judge.kind == "valid"
        joint = np.zeros(self.targets.shape)
        judging = np.zeros((1, len(self.folds)))
        for column, (fold, (values, loss)) in enumerate(zip(self.folds, found, strict=True)):
            where = self.truth.folds == fold
            joint[where], judging[0, column] = values[where], loss
        probabilities = joint @ (space.percent / 100) if valid else joint
        if not valid and space.blend_percents:
            joint = joint[:, :0]
        return OutOfFold(probabilities[None].astype(np.float32), joint[None].astype(np.float32), judging)


def _mixed(probabilities: torch.Tensor, present: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """(E, N, K) -> (N, K), weighted by the softmax of the scores over the encoders that a clip has."""
    weights = torch.where(present, scores.unsqueeze(1), -torch.inf).softmax(0)
    return (weights.unsqueeze(-1) * probabilities).sum(0)


_FUSIONS = (
    "mean of probabilities",
    "static weights",
    "stacking",
    "linear concatenation",
    "linear concatenation, block-scaled",
    "linear concatenation, block-scaled, squashed, weighted by relevance",
)


def naive_names(encoders: Sequence[str]) -> list[str]:
    """Names of the rows of [`NaiveFusions`]."""
    return [*(f"linear, single encoder: {name}" for name in encoders), *_FUSIONS]


def naive_fusions(rows: Iterable[str]) -> list[str]:
    """Those of some rows that fuse without a gate, linear or not."""
    return [name for name in rows if name in (*_FUSIONS, "mean of all", "concatenation of all")]
