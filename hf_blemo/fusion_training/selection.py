"""Chooses epoch and thresholds for every scored fold, and keeps its predictions at that epoch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from hf_blemo.fusion_training.judging import LAST, Judge, Predictions, better
from hf_blemo.fusion_training.lockstep import PREDICTED, Member


@dataclass
class _Choice:
    """The best epoch so far, counted from 1, for one scored fold of one seed: predictions of the scored fold in the
    order of the data, and those on which it was chosen in the order of `judging_rows`."""

    criterion: float = np.inf
    epoch: int = 0
    scored: Predictions = field(default_factory=dict)
    judging: Predictions = field(default_factory=dict)


class Selection:
    """Follows a cross-validation epoch by epoch and keeps, for each seed and fold, the predictions of the best one.

    Its `members` are the models of the protocol: for each seed one per fold and, if honest, one per pair of
    folds.

    Args:
        protocol: `honest`: judged by the inner models on all folds but the scored one. `published_style`: judged on
            the scored fold itself.
        folds: (N,) fold of each row.
        labels: (N, C) shares, all rows labelled.
        selection_metric, decoding: the judge's own by default.
        patience: epochs without a better one after which a fold's choice is closed, even if other folds still improve:
            their judges know its labels; 0 never closes it.
    """

    def __init__(
        self,
        protocol: str,
        folds: np.ndarray,
        labels: np.ndarray,
        seeds: Sequence[int],
        selection_metric: str | None = None,
        decoding: str | None = None,
        patience: int = 0,
        judge: Judge | None = None,
    ):
        self.protocol = protocol
        self.folds = folds
        self.labels = labels
        self.judge = judge or Judge()
        self.metric = self.judge.selection_metric(selection_metric, protocol)
        self.decoding = self.judge.decoding(decoding)
        self.patience = patience
        self.label_indices = self.judge.nearest(labels)
        self.is_blend = self.judge.space.is_blend[self.label_indices]
        names = np.unique(folds).tolist()
        pairs = [(a, b) for a in names for b in names if a < b] if protocol == "honest" else []
        held_out = [*((fold,) for fold in names), *pairs]
        self.members = [Member(seed, hidden) for seed in seeds for hidden in held_out]
        self.position = {(member.seed, member.held_out): index for index, member in enumerate(self.members)}
        self.choices = {(seed, fold): _Choice() for seed in seeds for fold in names}

    def judging_rows(self, fold: int) -> np.ndarray:
        """Rows on which the settings for a scored fold are chosen."""
        return np.flatnonzero(self.folds == fold if self.protocol == "published_style" else self.folds != fold)

    def blend_share(self, fold: int) -> float:
        """Share of blends outside a fold, which expected-score decoding of the fold assumes."""
        return float(self.is_blend[self.folds != fold].mean())

    def loss(self, joint: np.ndarray, rows: np.ndarray | slice = slice(None)) -> float:
        """Mean joint loss of some rows, in nats, under their joint distribution (R, L)."""
        return float(self.judge.losses(joint, self.labels[rows], self.label_indices[rows]).mean())

    def _judging_predictions(self, predictions: Predictions, seed: int, fold: int) -> Predictions:
        """Predictions of the models trained without a fold for the other folds."""
        if self.protocol == "published_style":
            index = self.position[seed, (fold,)]
            return {name: predictions[name][index][self.folds == fold] for name in PREDICTED}
        rows = self.judging_rows(fold)
        owners = {
            other: self.position[seed, (min(other, fold), max(other, fold))] for other in np.unique(self.folds[rows])
        }
        owner = np.array([owners[other] for other in self.folds[rows]])
        return {name: predictions[name][owner, rows] for name in PREDICTED}

    def decode(self, predictions: Predictions, fold: int, decoding: str, judging: Predictions) -> tuple[list, dict]:
        """Blends, decoded with settings fitted on the judging rows: `alpha` and `beta`, or `blend_share`."""
        settings = {}
        if decoding == "expected_score":
            settings = {"blend_share": self.blend_share(fold)}
        elif decoding == "thresholds":
            settings = self.judge.fit_thresholds(judging["probabilities"], self.labels[self.judging_rows(fold)])
        return self.judge.decode(predictions, decoding, settings), settings

    def update(self, epoch: int, predictions: Predictions) -> dict[tuple[int, int], dict[str, float]]:
        """Takes the predictions of an epoch, counted from 1, of all members for all rows, leading shape (M, N).

        Returns:
            (seed, fold) -> on the judging rows, `validation_loss` and `validation_<measure>` of the judge's headline
            and of the measure that chooses.
        """
        report = {}
        for (seed, fold), choice in self.choices.items():
            rows = self.judging_rows(fold)
            judging = self._judging_predictions(predictions, seed, fold)
            loss = self.loss(judging["joint_probabilities"], rows)
            # The distribution itself needs no lists of blends, which would take longer than an epoch of few clips.
            soft = self.decoding == "soft"
            blends = judging["probabilities"] if soft else self.decode(judging, fold, self.decoding, judging)[0]
            measures = {"loss": loss, **self.judge.measure(blends, self.labels[rows], judging)}
            told = dict.fromkeys((self.judge.headline, "loss", *([] if self.metric == LAST else [self.metric])))
            report[seed, fold] = {f"validation_{name}": measures[name] for name in told}
            criterion = -epoch if self.metric == LAST else better(self.metric, measures[self.metric])
            closed = self.patience and epoch - choice.epoch > self.patience
            if criterion < choice.criterion and not closed:
                index = self.position[seed, (fold,)]
                choice.criterion, choice.epoch, choice.judging = criterion, epoch, judging
                choice.scored = {name: predictions[name][index][self.folds == fold] for name in PREDICTED}
        return report

    def stale_epochs(self, epoch: int) -> int:
        """Epochs since any scored fold last found a better one."""
        return epoch - max(choice.epoch for choice in self.choices.values())

    def state(self) -> tuple[dict[str, dict[str, Any]], dict[str, torch.Tensor]]:
        """Returns what a checkpoint keeps: the numbers of every choice, and its arrays by `seed:fold/part/name`."""
        numbers, tensors = {}, {}
        for (seed, fold), choice in self.choices.items():
            numbers[f"{seed}:{fold}"] = {"criterion": choice.criterion, "epoch": choice.epoch}
            for part in ("scored", "judging"):
                for name, value in getattr(choice, part).items():
                    tensors[f"{seed}:{fold}/{part}/{name}"] = torch.from_numpy(np.ascontiguousarray(value))
        return numbers, tensors

    def load_state(self, numbers: Mapping[str, Mapping[str, Any]], tensors: Mapping[str, torch.Tensor]) -> None:
        """Restores what [`state`] returned."""
        for (seed, fold), choice in self.choices.items():
            saved = numbers[f"{seed}:{fold}"]
            choice.criterion, choice.epoch = saved["criterion"], saved["epoch"]
            for part in ("scored", "judging"):
                beginning = f"{seed}:{fold}/{part}/"
                found = {name: value for name, value in tensors.items() if name.startswith(beginning)}
                setattr(choice, part, {name.removeprefix(beginning): found[name].numpy() for name in found})

    def __iter__(self) -> Iterator[tuple[int, int, _Choice]]:
        for (seed, fold), choice in self.choices.items():
            yield seed, fold, choice
