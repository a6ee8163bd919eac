"""Whether the gate explains a prediction: its weights against what each encoder's absence changes."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from hf_blemo.fusion_training.adaptation import hide_labels
from hf_blemo.fusion_training.cross_validation import train_on_all
from hf_blemo.fusion_training.feature_store import FeatureStore
from hf_blemo.fusion_training.out_of_fold import Truth, paired_bootstrap
from hf_blemo.fusion_training.settings import AblationSettings
from hf_blemo.programs.tables import interval, mean_and_std, plus_minus, table
from hf_blemo.rank_aware_fusion.modeling_rank_aware_fusion import RankAwareFusionModel


def explain(
    accelerator: Accelerator,
    store: FeatureStore,
    settings: AblationSettings,
    truth: Truth,
    labelled: np.ndarray,
    singles: np.ndarray,
    num_epochs: int | None = None,
) -> dict[str, Any]:
    """Measures the gate of models that were trained without the fold they predict.

    Args:
        labelled: (R,) rows of the labelled clips.
        singles: (E, R) how often each encoder alone is right, from 0 to 1.
        num_epochs: to train; those of the settings by default.

    Returns:
        `spearman`, mean and standard deviation over seeds of the mean over folds: the rank correlation, over pairs of
        a clip and one of its encoders, of the gate's weight with the total variation by which the probabilities change
        when the encoder is absent; `top`, how often the encoder ranked first is right alone; and its paired
        differences to a random other present encoder (`against_random`) and to the one of the largest mean weight
        (`against_best`). None for the latter two where no clip has two encoders.
    """
    epochs = num_epochs or settings.num_epochs
    correlations: list[list[float]] = [[] for _ in settings.seeds]
    weights = np.zeros((len(settings.seeds), len(labelled), len(store.config.encoders)))
    for fold in np.unique(truth.folds):
        where = truth.folds == fold
        rows = labelled[where]
        own = replace(settings, resume=False)
        for seed, model in enumerate(train_on_all(accelerator, hide_labels(store, rows), own, epochs)):
            found, changes, present = changes_without(store, model, rows)
            weights[seed, where] = found
            several = present & (present.sum(1, keepdims=True) > 1)
            correlations[seed].append(spearman(found[several], changes[several]))
    present = np.stack([store.present[name].numpy()[labelled] for name in store.config.encoders], 1)
    hits = singles.T
    top, random, best = [], [], []
    several = present.sum(1) > 1
    for weight in weights:
        ranked = np.where(present, weight, -1)
        first = ranked.argmax(1)
        rows = np.arange(len(first))
        right = hits[rows, first]
        others = present.copy()
        others[rows, first] = False
        top.append(right)
        random.append((hits * others).sum(1) / np.maximum(others.sum(1), 1))
        mean = np.array([weight[present[:, place], place].mean() for place in range(present.shape[1])])
        best.append(hits[rows, np.where(present, mean, -1).argmax(1)])

    def difference(other: list[np.ndarray]) -> dict[str, float] | None:
        if not several.any():
            return None
        groups = np.unique(truth.groups[several], return_inverse=True)[1]
        return paired_bootstrap((np.mean(top, 0) - np.mean(other, 0))[several], groups)

    return {
        "epochs": epochs,
        "spearman": mean_and_std([_mean_known(values) for values in correlations]),
        "top": mean_and_std([float(values[several].mean()) for values in top]) if several.any() else None,
        "against_random": difference(random),
        "against_best": difference(best),
        "resampled": truth.grouping,
    }


@torch.inference_mode()
def changes_without(
    store: FeatureStore, model: RankAwareFusionModel, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gate weights, the total variation of `probabilities` without each encoder in turn, and whether a clip has it,
    (R, E)."""
    batch = store.batch(rows, torch.device("cpu"), labels=False)
    present = np.stack([batch["feature_mask"][name].any(1).numpy() for name in store.config.encoders], 1)
    output = model(**batch)
    changes = np.zeros(present.shape)
    for place, name in enumerate(store.config.encoders):
        masks = dict(batch["feature_mask"])
        # A clip that has no other encoder keeps its only one.
        alone = torch.from_numpy(present.sum(1) < 2).view(-1, 1)
        masks[name] = masks[name] & alone
        without = model(features=batch["features"], feature_mask=masks)
        changes[:, place] = 0.5 * (without["probabilities"] - output["probabilities"]).abs().sum(-1).numpy()
    return output["encoder_weights"].float().numpy(), changes, present


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Rank correlation of (N,) and (N,) values, ties at their mean rank; NaN where one of them does not vary."""
    if not len(first):
        return float("nan")
    one, two = _ranks(first), _ranks(second)
    one, two = one - one.mean(), two - two.mean()
    norm = np.sqrt((one**2).sum() * (two**2).sum())
    return float((one * two).sum() / norm) if norm > 0 else float("nan")


def _mean_known(values: list[float]) -> float:
    """Mean without NaN; 0 where nothing is known, as of one encoder, whose weight never varies."""
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else 0.0


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def explanation_table(found: dict[str, Any]) -> str:
    """The numbers as Markdown."""
    rows = [["rank correlation of gate weight and change without the encoder", plus_minus(found["spearman"])]]
    if found["top"] is not None:
        rows.append(["first-ranked encoder right alone", plus_minus(found["top"])])
        for key, name in (("against_random", "a random other"), ("against_best", "the best on average")):
            rows.append([f"the same, minus {name}", interval(found[key])])
    return table(["explanations by the gate", ""], rows, padded=False)
