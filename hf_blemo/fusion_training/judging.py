"""How predictions are decoded, measured and compared under the label space of a run."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from hf_blemo import blemore
from hf_blemo.errors import did_you_mean, listed
from hf_blemo.metrics.measures import LOWER_IS_BETTER, blends_to_saliences, measure, nearest
from hf_blemo.rank_aware_fusion.configuration_rank_aware_fusion import RankAwareFusionConfig
from hf_blemo.rank_aware_fusion.decoding_rank_aware_fusion import (
    decode_expected_score,
    decode_soft,
    decode_thresholds,
)
from hf_blemo.rank_aware_fusion.label_space_rank_aware_fusion import BLEMORE_SPACE, Blend, LabelSpace

Predictions = dict[str, np.ndarray]

# The `selection_metric` that takes the last epoch.
LAST = "last"


class Judge:
    """What follows from the labels of a run: its measures, decodings, loss and thresholds."""

    def __init__(self, space: LabelSpace = BLEMORE_SPACE, kind: str = "valid", presence_share: float = 0.0):
        self.space = space
        self.kind = kind
        self.presence_share = presence_share

    @classmethod
    def of(cls, config: RankAwareFusionConfig) -> "Judge":
        """That of a model's labels."""
        return cls(config.label_space, config.label_kind, config.presence_share)

    @property
    def is_benchmark(self) -> bool:
        """Whether the labels are BlEmoRE's, so that its official measures count."""
        return self.space == BLEMORE_SPACE and self.kind == "valid"

    @cached_property
    def measures(self) -> tuple[str, ...]:
        """All that [`measure`] returns of predictions with both kinds of probabilities."""
        blends = ("acc_salience",) * bool(self.space.blend_percents) + ("score",) * self.is_benchmark
        losses = ("nll", "kl") if self.kind == "valid" else ("kl", "js_distance", "mae")
        return ("accuracy", "uar", "macro_f1", "acc_presence", *blends, *losses)

    @property
    def columns(self) -> tuple[str, ...]:
        """The measures of tables and files: the official three for BlEmoRE."""
        if self.is_benchmark:
            return ("acc_presence", "acc_salience", "score")
        return tuple(name for name in self.measures if name != "kl" or self.kind == "soft")

    @property
    def headline(self) -> str:
        """The measure that learning curves show."""
        return "score" if self.is_benchmark else "accuracy"

    @property
    def decodings(self) -> tuple[str, ...]:
        """Decodings to report, the default one first; thresholds only where something blends."""
        thresholds = ("thresholds",) * bool(self.space.blend_percents)
        return ("soft", "expected_score", *thresholds) if self.kind == "soft" else ("expected_score", *thresholds)

    def decoding(self, given: str | None) -> str:
        """The decoding of a run; refuses thresholds where nothing blends."""
        if given == "thresholds" and not self.space.blend_percents:
            raise ValueError("decoding 'thresholds' tells blends apart, but nothing blends: expected expected_score")
        return self.decodings[0] if given is None else given

    def selection_metric(self, given: str | None, protocol: str) -> str:
        """What chooses an epoch: `loss`, or the name of a measure; refuses one that these labels do not have."""
        if given is not None and given not in ("loss", LAST, *self.measures):
            known = ("loss", LAST, *self.measures)
            where = "selection_metric" if self.is_benchmark else "selection_metric for these labels"
            raise ValueError(f"{where}: found {given!r}, expected {listed(known)}{did_you_mean(given, known)}")
        if protocol == "published_style" and self.is_benchmark:
            return "score"
        if given is not None:
            return given
        if self.kind == "soft":
            return "kl"
        return "accuracy" if protocol == "published_style" else "loss"

    def nearest(self, shares: np.ndarray) -> np.ndarray:
        """Numbers (N,) of the valid labels nearest to (N, C) shares."""
        return nearest(self.space, shares)

    def losses(self, joint: np.ndarray, labels: np.ndarray, nearest: np.ndarray) -> np.ndarray:
        """The joint loss (R,) of each row, in nats, as the model's: the negative log-likelihood of its label, or its
        expectation under the shares where labels are soft and nothing blends.

        Args:
            joint: (R, L).
            labels: (R, C) shares.
            nearest: (R,) numbers of their nearest valid labels.
        """
        logs = -np.log(np.maximum(joint, 1e-30))
        if self.kind == "soft" and not self.space.blend_percents:
            return (labels * logs).sum(-1)
        return logs[np.arange(len(joint)), nearest]

    def measure(self, blends: Any, labels: np.ndarray, predictions: Mapping[str, np.ndarray]) -> dict[str, float]:
        """All measures of R decoded predictions, against labels (R, C) and with the probabilities that there are."""
        probabilities, joint = (predictions.get(name) for name in ("probabilities", "joint_probabilities"))
        return measure(self.space, labels, blends, probabilities, joint, self.kind, self.presence_share)

    def shown(self, measures: Mapping[str, float]) -> dict[str, float]:
        """Those of [`columns`]."""
        return {name: measures[name] for name in self.columns if name in measures}

    def fit_thresholds(self, probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """`alpha` and `beta` with the best mean of presence and salience accuracy, on a tie the lowest."""
        presence, salience = self.threshold_grid(probabilities, labels)
        row, column = np.unravel_index(np.argmax(0.5 * presence + 0.5 * salience), presence.shape)
        return {"alpha": float(blemore.THRESHOLD_GRID[row]), "beta": float(blemore.THRESHOLD_GRID[column])}

    def threshold_grid(self, probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Presence and salience accuracy at every alpha (rows) and beta (columns) of the official grid, (20, 20)."""
        if self.is_benchmark:
            return blemore.threshold_grid(probabilities, labels)
        grid, sets = blemore.THRESHOLD_GRID, self.space.set_of_label
        truth = self.nearest(labels)
        top = -np.sort(-probabilities, axis=1)[:, : self.space.largest_set]
        presence = np.zeros((len(grid), len(grid)))
        salience = np.zeros_like(presence)
        is_blend = self.space.is_blend[truth]
        found = np.zeros((len(grid), len(probabilities)), dtype=np.int64)
        before = np.full(len(probabilities), -1)
        for row, alpha in enumerate(grid):
            # Only rows that lose a name decode differently.
            kept = (top >= probabilities.dtype.type(alpha)).sum(1)
            changed = np.flatnonzero(kept != before)
            before = kept
            for column, beta in enumerate(grid):
                if len(changed):
                    blends = decode_thresholds(probabilities[changed], alpha, beta, self.space)
                    found[column, changed] = [self._index(blend) for blend in blends]
                presence[row, column] = (sets[found[column]] == sets[truth]).mean()
                if is_blend.any():
                    salience[row, column] = (found[column] == truth)[is_blend].mean()
        return presence, salience

    @cached_property
    def _indices(self) -> dict[tuple, int]:
        return {_key(self.space.blend(index)): index for index in range(len(self.space))}

    def _index(self, blend: Blend) -> int:
        return self._indices[_key(blend)]

    def decode(self, predictions: Predictions, decoding: str, settings: Mapping[str, float]) -> list[Blend]:
        """Blends, of `probabilities` (R, C) and `joint_probabilities` (R, L); the settings are those that the rule
        needs: `alpha` and `beta`, or `blend_share`."""
        if decoding == "expected_score":
            return decode_expected_score(predictions["joint_probabilities"], settings["blend_share"], self.space)
        if decoding == "soft":
            return decode_soft(predictions["probabilities"], self.space)
        if self.is_benchmark:
            return blemore.decode_thresholds(predictions["probabilities"], settings["alpha"], settings["beta"])
        return decode_thresholds(predictions["probabilities"], settings["alpha"], settings["beta"], self.space)

    def sets_of(self, blends: Any, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the sets of (N,) labels and of (N,) predictions: those of the nearest valid labels."""
        sets = self.space.set_of_label
        return sets[self.nearest(labels)], sets[self.nearest(self.shares_of(blends))]

    def shares_of(self, blends: Any) -> np.ndarray:
        """Blends as (N, C) shares."""
        return blends_to_saliences(blends, self.space.names)


def better(metric: str, value: float) -> float:
    """A measure as a number to minimise."""
    return value if metric == "loss" or metric in LOWER_IS_BETTER else -value


def _key(blend: Blend) -> tuple:
    return tuple((part["emotion"], part["salience"]) for part in blend)
