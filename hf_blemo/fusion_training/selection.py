"""Chooses epoch and thresholds for every scored fold, and keeps its predictions at that epoch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from hf_blemo import blemore
from hf_blemo.fusion_training.lockstep import PREDICTED, Member

Predictions = dict[str, np.ndarray]


def measure(predictions: Sequence, labels: np.ndarray) -> dict[str, float]:
    """`acc_presence`, `acc_salience` and their mean, `score`."""
    presence = blemore.acc_presence(predictions, labels)
    salience = blemore.acc_salience(predictions, labels)
    return {"acc_presence": presence, "acc_salience": salience, "score": 0.5 * presence + 0.5 * salience}


@dataclass
class _Choice:
    """The best epoch so far for one scored fold of one seed.

    Args:
        criterion: minimised value.
        epoch: counted from 1.
        scored: predictions for the scored fold, rows in the order of the data.
        judging: predictions on which it was chosen, in the order of `judging_rows`.
    """

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
        labels: (N, 6) soft labels, all rows labelled.
        seeds: one complete cross-validation each.
        selection: `loss` or `score`; the published style always uses the score.
        decoding: decoding rule of the score.
        patience: epochs without a better one after which a fold's choice is closed, even if other folds still improve:
            their judges know its labels; 0 never closes it.
    """

    def __init__(
        self,
        protocol: str,
        folds: np.ndarray,
        labels: np.ndarray,
        seeds: Sequence[int],
        selection: str,
        decoding: str,
        patience: int = 0,
    ):
        self.protocol = protocol
        self.folds = folds
        self.labels = labels
        self.selection = "score" if protocol == "published_style" else selection
        self.decoding = decoding
        self.patience = patience
        self.label_indices = blemore.label_indices(labels)
        self.is_blend = (labels > 0).sum(1) == 2
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
        """Share of blends outside a fold, which expected-score decoding of the fold assumes; BlEmoRE's if there are
        none."""
        return float(self.is_blend[self.folds != fold].mean()) or blemore.BLEND_SHARE

    def loss(self, joint: np.ndarray, rows: np.ndarray | slice = slice(None)) -> float:
        """Mean negative log-likelihood of the labels of some rows, in nats, under their joint distribution (R, 36)."""
        picked = joint[np.arange(len(joint)), self.label_indices[rows]]
        return float(-np.log(np.maximum(picked, 1e-30)).mean())

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
        if decoding == "expected_score":
            share = self.blend_share(fold)
            return blemore.decode_expected_score(predictions["joint_probabilities"], share), {"blend_share": share}
        fitted = blemore.fit_thresholds(judging["probabilities"], self.labels[self.judging_rows(fold)])
        blends = blemore.decode_thresholds(predictions["probabilities"], fitted.alpha, fitted.beta)
        return blends, {"alpha": fitted.alpha, "beta": fitted.beta}

    def update(self, epoch: int, predictions: Predictions) -> dict[tuple[int, int], dict[str, float]]:
        """Takes the predictions of an epoch.

        Args:
            epoch: counted from 1.
            predictions: of all members for all rows, leading shape (M, N).

        Returns:
            (seed, fold) -> `validation_score` and `validation_loss` on the judging rows.
        """
        report = {}
        for (seed, fold), choice in self.choices.items():
            rows = self.judging_rows(fold)
            judging = self._judging_predictions(predictions, seed, fold)
            loss = self.loss(judging["joint_probabilities"], rows)
            blends, _ = self.decode(judging, fold, self.decoding, judging)
            score = measure(blends, self.labels[rows])["score"]
            report[seed, fold] = {"validation_score": score, "validation_loss": loss}
            criterion = loss if self.selection == "loss" else -score
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
