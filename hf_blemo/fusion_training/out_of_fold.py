"""Out-of-fold predictions of the rows of a table, their measures, and paired comparisons of two rows."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import datasets
import numpy as np
from safetensors.numpy import load_file, save_file

from hf_blemo import blemore
from hf_blemo.files import whole_file
from hf_blemo.fusion_training.judging import Judge, Predictions
from hf_blemo.fusion_training.results import CrossValidationResults
from hf_blemo.metrics.measures import LOWEST, divergences, largest
from hf_blemo.programs.tables import mean_and_std

RESAMPLES = 10_000
_PREDICTED = ("probabilities", "joint_probabilities")


@dataclass
class Truth:
    """What all rows of a table are measured against.

    Args:
        labels: (N, C) shares of the labelled clips.
        folds: (N,).
        groups: (N,) numbers of what is resampled together.
        grouping: what that is, in words.
    """

    judge: Judge
    labels: np.ndarray
    folds: np.ndarray
    groups: np.ndarray
    grouping: str

    @classmethod
    def of(cls, data: datasets.Dataset, judge: Judge, labels: np.ndarray, labelled: np.ndarray) -> "Truth":
        """That of a data set: groups are its column `group`, for BlEmoRE's names the actors, else single clips."""
        folds = np.asarray(data["fold"][:])[labelled]
        names = data["group"][:] if "group" in data.column_names else [None] * len(data)
        grouping = "groups"
        if any(names[row] is None for row in labelled):
            try:
                names, grouping = [blemore.parse_clip_name(clip).actor for clip in data["clip"][:]], "actors"
            except ValueError:
                names, grouping = list(range(len(data))), "clips"
        groups = np.unique(np.asarray(names)[labelled], return_inverse=True)[1]
        return cls(judge, labels[labelled].astype(np.float64), folds, groups, f"{groups.max() + 1:,} {grouping}")

    @property
    def loss(self) -> str:
        """Name of the loss of a clip: `nll`, for soft labels `kl`."""
        return "kl" if self.judge.kind == "soft" else "nll"

    def blends(self, predictions: Predictions) -> list:
        """Decoded by the judge's default; the share of blends is that of the other folds."""
        decoding = self.judge.decodings[0]
        blends: list = [None] * len(self.folds)
        is_blend = self.judge.space.is_blend[self.judge.nearest(self.labels)]
        for fold in np.unique(self.folds):
            rows = np.flatnonzero(self.folds == fold)
            share = float(is_blend[self.folds != fold].mean())
            part = {name: values[rows] for name, values in predictions.items()}
            for row, blend in zip(rows, self.judge.decode(part, decoding, {"blend_share": share}), strict=True):
                blends[row] = blend
        return blends


@dataclass
class OutOfFold:
    """Predictions of one row of a table for S seeds; a method without chance has one.

    Args:
        probabilities: (S, N, C).
        joint_probabilities: (S, N, L); (S, N, 0) where there are none.
        judging: (S, F) loss on which each scored fold was chosen, of the clips outside it.
    """

    probabilities: np.ndarray
    joint_probabilities: np.ndarray
    judging: np.ndarray

    @classmethod
    def of(cls, results: CrossValidationResults) -> "OutOfFold":
        """Those of a cross-validation."""
        pooled = [results.pooled([seed]) for seed in results.seeds]
        first, judging = results.first, np.zeros((len(results.seeds), len(results.folds)))
        for place, seed in enumerate(results.seeds):
            for column, fold in enumerate(results.folds):
                joint = results.choices[seed, fold].judging["joint_probabilities"]
                judging[place, column] = first.loss(joint, first.judging_rows(fold))
        probabilities, joint = (np.stack([part[name] for part in pooled]) for name in _PREDICTED)
        return cls(probabilities, joint, judging)

    def save(self, path: Path) -> None:
        """Writes a safetensors file."""
        with whole_file(path) as temporary:
            save_file({part.name: np.ascontiguousarray(getattr(self, part.name)) for part in fields(self)}, temporary)

    @classmethod
    def load(cls, path: Path) -> "OutOfFold":
        """Reads what [`save`] wrote."""
        return cls(**load_file(path))

    def _of_seed(self, seed: int) -> Predictions:
        parts = {name: getattr(self, name)[seed] for name in _PREDICTED}
        return {name: values for name, values in parts.items() if values.shape[-1]}

    def measures(self, truth: Truth, by_fold: bool = False) -> dict[str, dict[str, float]]:
        """Mean and sample standard deviation over the seeds of every measure: of all clips, or `by_fold` of the
        means over folds."""
        parts = [truth.folds == fold for fold in np.unique(truth.folds)] if by_fold else [truth.folds >= 0]
        rows = []
        for seed in range(len(self.probabilities)):
            predictions = self._of_seed(seed)
            blends = truth.blends(predictions)
            found = []
            for part in parts:
                chosen = {name: values[part] for name, values in predictions.items()}
                own = [blends[row] for row in np.flatnonzero(part)]
                found.append(truth.judge.measure(own, truth.labels[part], chosen))
            rows.append({name: float(np.mean([row[name] for row in found])) for name in found[0]})
        return {name: mean_and_std([row[name] for row in rows]) for name in rows[0]}

    def per_clip(self, truth: Truth) -> dict[str, np.ndarray]:
        """`accuracy` and the loss of every clip, (N,), means over the seeds."""
        hits, losses = [], []
        nearest = truth.judge.nearest(truth.labels)
        for seed in range(len(self.probabilities)):
            predictions = self._of_seed(seed)
            shares = truth.judge.shares_of(truth.blends(predictions))
            probabilities = predictions["probabilities"].astype(np.float64)
            hits.append(largest(shares) == largest(truth.labels))
            if truth.loss == "kl":
                losses.append(divergences(truth.labels, probabilities))
            else:
                joint = predictions["joint_probabilities"].astype(np.float64)
                losses.append(-np.log(np.maximum(joint[np.arange(len(joint)), nearest], LOWEST)))
        return {"accuracy": np.mean(hits, 0), truth.loss: np.mean(losses, 0)}


def chosen_inside(rows: Sequence[OutOfFold], folds: np.ndarray) -> tuple[OutOfFold, np.ndarray]:
    """Takes for each seed and scored fold the row that judged best outside the fold; also returns its number, (S,
    F)."""
    judging = np.stack([row.judging for row in rows])
    best = judging.argmin(0)
    made = OutOfFold(*(np.zeros_like(getattr(rows[0], part.name)) for part in fields(OutOfFold)))
    made.judging = judging.min(0)
    for seed, column in np.ndindex(best.shape):
        where = folds == np.unique(folds)[column]
        for name in _PREDICTED:
            getattr(made, name)[seed, where] = getattr(rows[best[seed, column]], name)[seed, where]
    return made, best


def paired_bootstrap(differences: np.ndarray, groups: np.ndarray) -> dict[str, float]:
    """`difference`, the mean of the clips' differences (N,), and its 95 % interval, `low` to `high`, when whole
    groups are drawn anew; the same for the same numbers. `groups` (N,) count from 0."""
    sums, counts = np.bincount(groups, differences), np.bincount(groups)
    drawn = np.random.default_rng(0).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), RESAMPLES)
    low, high = np.quantile(drawn @ sums / (drawn @ counts), [0.025, 0.975])
    return {"difference": float(differences.mean()), "low": float(low), "high": float(high)}
