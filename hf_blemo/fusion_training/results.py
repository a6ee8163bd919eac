"""Results of a cross-validation as plain numbers (metrics, ensemble, gate) and as a table for the terminal."""

from collections.abc import Sequence
from functools import cache, cached_property
from typing import Any

import numpy as np

from hf_blemo.fusion_training.lockstep import PREDICTED
from hf_blemo.fusion_training.selection import Selection
from hf_blemo.fusion_training.settings import PROTOCOLS
from hf_blemo.programs.tables import mean_and_std, plus_minus, table


class CrossValidationResults:
    """Scores of one or more [`Selection`]s of the same data and protocol, one per group of seeds trained together."""

    def __init__(self, selections: Sequence[Selection], clips: Sequence[str]):
        first = selections[0]
        self.first = first
        self.judge = first.judge
        self.clips = list(clips)
        self.choices = {(seed, fold): choice for selection in selections for seed, fold, choice in selection}
        self.seeds = sorted({seed for seed, _ in self.choices})
        self.folds = sorted({fold for _, fold in self.choices})
        # Cached, since metrics, files and plots need the same decoding.
        self.fold_rows = cache(self._fold_rows)
        self.ensemble = cache(self._ensemble)

    def _fold_rows(self, decoding: str) -> list[dict[str, Any]]:
        """One row per seed and fold: epoch, settings, metrics."""
        rows = []
        for (seed, fold), choice in sorted(self.choices.items()):
            blends, settings = self.first.decode(choice.scored, fold, decoding, choice.judging)
            metrics = self.judge.measure(blends, self.first.labels[self.first.folds == fold], choice.scored)
            clips = int((self.first.folds == fold).sum())
            row = {"seed": seed, "fold": fold, "epoch": choice.epoch, **settings, **self.judge.shown(metrics)}
            rows.append({**row, "clips": clips})
        return rows

    def _ensemble(self, decoding: str) -> tuple[list[dict[str, Any]], list]:
        """The mean prediction of all seeds: a row per fold, and the blends of all clips in the order of the data."""
        rows: list[dict[str, Any]] = []
        blends: list = [None] * len(self.clips)
        for fold in self.folds:
            choices = [self.choices[seed, fold] for seed in self.seeds]
            judging = _mean_predictions([choice.judging for choice in choices])
            scored = _mean_predictions([choice.scored for choice in choices])
            decoded, settings = self.first.decode(scored, fold, decoding, judging)
            where = np.flatnonzero(self.first.folds == fold)
            metrics = self.judge.measure(decoded, self.first.labels[where], scored)
            rows.append({"fold": fold, **settings, **self.judge.shown(metrics)})
            for row, blend in zip(where, decoded, strict=True):
                blends[row] = blend
        return rows, blends

    def pooled(self, seeds: Sequence[int] | None = None) -> dict[str, np.ndarray]:
        """Out-of-fold predictions of all rows, averaged over seeds."""
        seeds = self.seeds if seeds is None else seeds
        pooled: dict[str, np.ndarray] = {}
        for fold in self.folds:
            part = _mean_predictions([self.choices[seed, fold].scored for seed in seeds])
            for name, values in part.items():
                pooled.setdefault(name, np.zeros((len(self.clips), *values.shape[1:]), values.dtype))
                pooled[name][self.first.folds == fold] = values
        return pooled

    def over_seeds(self, decoding: str) -> dict[str, dict[str, float]]:
        """Mean and standard deviation over the seeds of every metric's mean over the folds."""
        rows = self.fold_rows(decoding)
        return _spread(
            [
                {
                    name: float(np.mean([row[name] for row in rows if row["seed"] == seed]))
                    for name in self.judge.columns
                }
                for seed in self.seeds
            ],
            self.judge.columns,
        )

    def over_folds(self, decoding: str) -> dict[str, dict[str, float]]:
        """Mean and standard deviation over the folds of every metric of the ensemble."""
        return _spread(self.ensemble(decoding)[0], self.judge.columns)

    def best_epochs(self) -> int:
        """Mean of the chosen epochs, at least 1: the epochs of the final models."""
        return max(1, round(float(np.mean([choice.epoch for choice in self.choices.values()]))))

    def losses(self) -> list[float]:
        """For each seed, the joint loss of all clips under their out-of-fold joint distribution, in nats.

        A Score counts exact hits and is coarse; the likelihood of the same predictions separates two methods much
        earlier.
        """
        return [self.first.loss(self.pooled([seed])["joint_probabilities"]) for seed in self.seeds]

    @cached_property
    def gate(self) -> dict[str, np.ndarray]:
        """Mean gate weight and selection frequency per set of names and encoder: `weights` and `selected`, (S, E), NaN
        for a set without clips; `mean_weight` and `mean_selected`, (E,)."""
        weights, chosen = [], []
        for seed in self.seeds:
            pooled = self.pooled([seed])
            weights.append(pooled["encoder_weights"])
            places = np.arange(weights[-1].shape[1])
            chosen.append((pooled["selected_encoders"][..., None] == places).any(1))
        weight, selected = np.mean(weights, 0), np.mean(chosen, 0)
        sets = self.judge.space.set_of_label[self.first.label_indices]
        table = {"mean_weight": weight.mean(0), "mean_selected": selected.mean(0)}
        for name, values in (("weights", weight), ("selected", selected)):
            table[name] = np.full((len(self.judge.space.sets), values.shape[1]), np.nan)
            for index in np.unique(sets):
                table[name][index] = values[sets == index].mean(0)
        return table

    def summary(self, decoding: str) -> dict[str, Any]:
        """The cross-validation's part of `metrics.json`."""
        rows = self.fold_rows(decoding)
        return {
            "protocol": self.first.protocol,
            "protocol_description": PROTOCOLS[self.first.protocol],
            "decoding": decoding,
            "seeds": self.seeds,
            "summary": _spread(rows, self.judge.columns),
            "over_seeds": self.over_seeds(decoding),
            "ensemble": self.over_folds(decoding) if len(self.seeds) > 1 else None,
            "alternatives": {name: _spread(self.fold_rows(name), self.judge.columns) for name in self.judge.decodings},
            "folds": rows,
        }


def _spread(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Mean and sample standard deviation of every metric over rows."""
    return {name: mean_and_std([row[name] for row in rows]) for name in names}


def _mean_predictions(parts: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Mean of probabilities and weights over models; a selection has no mean, so the first model's is taken."""
    return {
        name: parts[0][name] if name == "selected_encoders" else np.mean([part[name] for part in parts], 0)
        for name in PREDICTED
    }


def results_table(metrics: dict[str, Any]) -> str:
    """The table of a run's `metrics.json` for the terminal; one sentence if nothing was scored."""
    rows = []
    name = metrics["protocol"].replace("_", " ")
    columns = metrics["measures"]
    if metrics["summary"]:
        num_seeds, num_folds = len(metrics["seeds"]), len(metrics["data"]["folds"])
        rows.append([f"{name}, ± over {num_folds} folds x {num_seeds} seeds"])
        rows[-1] += [plus_minus(metrics["summary"][metric]) for metric in columns]
        rows.append([f"{name}, mean over folds, ± over {num_seeds} seeds"])
        rows[-1] += [plus_minus(metrics["over_seeds"][metric]) for metric in columns]
        if metrics["ensemble"]:
            rows.append([f"{name}, ensemble of the seeds, ± over folds"])
            rows[-1] += [plus_minus(metrics["ensemble"][metric]) for metric in columns]
        for decoding, entry in metrics["alternatives"].items():
            if decoding != metrics["decoding"]:
                rows.append([f"{name}, decoded by {decoding}"] + [plus_minus(entry[metric]) for metric in columns])
    test = metrics.get("test", {})
    if columns[0] in test:
        cells = [f"{test[metric]:.4f}" if metric in test else "" for metric in columns]
        rows.append([f"test data, {test['clips']} clips", *cells])
    if not rows:
        return "Trained on all clips; nothing was scored."
    return table(["", *columns], rows)
