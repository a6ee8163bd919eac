"""Domain adaptation to a target without labels: drawn clips with a shift, or on real data each fold in turn."""

import copy
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import datasets
import numpy as np
from accelerate import Accelerator

from hf_blemo.fusion_training.cross_validation import train_on_all
from hf_blemo.fusion_training.data import load_data, model_config, with_unlabelled
from hf_blemo.fusion_training.feature_store import FeatureStore
from hf_blemo.fusion_training.out_of_fold import OutOfFold, Truth, paired_bootstrap
from hf_blemo.fusion_training.settings import AblationSettings
from hf_blemo.programs.tables import interval, mean_and_std, plus_minus, table
from hf_blemo.rank_aware_fusion.label_space_rank_aware_fusion import UNLABELLED
from hf_blemo.rank_aware_fusion.modeling_rank_aware_fusion import RankAwareFusionModel

ADAPTATIONS = ("mmd", "coral", "adversarial")


def each_adaptation(settings: AblationSettings) -> Iterator[tuple[str, str, float, AblationSettings]]:
    """The kind, level and weight of each adaptation to compare, none first, and the settings with it."""
    for kind, level in [("none", "fused"), *itertools.product(ADAPTATIONS, settings.adaptation_weights)]:
        weight = settings.adaptation_weights[level].get(kind, 0.0)
        changes = {
            "domain_adaptation": kind,
            "domain_adaptation_level": level,
            "domain_adaptation_weight": weight,
        }
        yield kind, level, weight, replace(settings, model={**settings.model, **changes})


def adapt_to_shift(
    accelerator: Accelerator, settings: AblationSettings, source: datasets.Dataset
) -> Iterator[dict[str, Any]]:
    """Yields a row of built-in data without adaptation, then one per kind and level, all with the same budget.

    Trained on the source with its labels and on one set of target clips without theirs. No label of the target chooses
    anything. A row has `kind`, `level`, `weight`; the Score of each seed on further target clips (`score`) and on the
    same clips without the shift (`unshifted`); and `recovered`, the shares of the loss without adaptation that are won
    back, empty where nothing was lost.
    """
    target = {**settings.synthetic, "domain": "target"}
    seed = settings.synthetic.get("seed", 0)
    both = with_unlabelled(source, load_data("synthetic", {**target, "seed": seed + 1}))
    scored = {
        "score": load_data("synthetic", {**target, "seed": seed + 2}),
        "unshifted": load_data("synthetic", {**target, "seed": seed + 2, "domain": "source"}),
    }
    config = model_config(source, settings)
    stores = {name: FeatureStore(clips, config, progress=False) for name, clips in scored.items()}
    lost = unadapted = np.zeros(len(settings.seeds))
    for kind, level, weight, own in each_adaptation(settings):
        data = source if kind == "none" else both
        store = FeatureStore(data, model_config(source, own), progress=False)
        models = train_on_all(accelerator, store, own, settings.num_epochs)
        row: dict[str, Any] = {"kind": kind, "level": level, "weight": weight}
        for name, clips in stores.items():
            row[name] = [_score(clips, model, store.blend_share) for model in models]
        if kind == "none":
            unadapted = np.array(row["score"])
            lost = np.array(row["unshifted"]) - unadapted
        row["recovered"] = ((np.array(row["score"]) - unadapted) / lost).tolist() if (lost > 0).all() else []
        yield row


def _score(store: FeatureStore, model: RankAwareFusionModel, blend_share: float) -> float:
    """The Score of one model's predictions of all rows."""
    found = {name: values.numpy() for name, values in store.predict([model]).items()}
    blends = store.judge.decode(found, "expected_score", {"blend_share": blend_share})
    return store.judge.measure(blends, store.labels.numpy(), found)["score"]


def adapt_to_folds(
    accelerator: Accelerator,
    settings: AblationSettings,
    data: datasets.Dataset,
    store: FeatureStore,
    truth: Truth,
    labelled: np.ndarray,
) -> Iterator[dict[str, Any]]:
    """Yields a row without adaptation, then one per kind and level, all for the same number of epochs.

    Each fold is scored by models that were trained on the others with labels and, but for the first row, on its own
    clips without. No label of the scored fold chooses anything. A row has `kind`, `level`, `weight`; `measures`,
    mean and sample standard deviation over the seeds; `against_none`, the paired difference of accuracy and loss to
    the first row.
    """
    unadapted: dict[str, np.ndarray] = {}
    for kind, level, weight, own in each_adaptation(settings):
        made = _out_of_fold(accelerator, own, _of_config(store, data, own), truth, labelled)
        per_clip = made.per_clip(truth)
        unadapted = unadapted or per_clip
        yield {
            "kind": kind,
            "level": level,
            "weight": weight,
            "measures": made.measures(truth),
            "against_none": {
                name: paired_bootstrap(values - unadapted[name], truth.groups) for name, values in per_clip.items()
            },
        }


def _of_config(store: FeatureStore, data: datasets.Dataset, settings: AblationSettings) -> FeatureStore:
    """The same clips for a model of other settings."""
    found = copy.copy(store)
    found.config = model_config(data, settings)
    return found


def hide_labels(store: FeatureStore, rows: np.ndarray) -> FeatureStore:
    """The same clips, some of them without labels."""
    found = copy.copy(store)
    found.labels, found.labelled = store.labels.clone(), store.labelled.copy()
    found.labels[rows], found.labelled[rows] = UNLABELLED, False
    return found


def _out_of_fold(
    accelerator: Accelerator, settings: AblationSettings, store: FeatureStore, truth: Truth, labelled: np.ndarray
) -> OutOfFold:
    space = truth.judge.space
    shape = len(settings.seeds), len(labelled)
    probabilities = np.zeros((*shape, len(space.names)), np.float32)
    joint = np.zeros((*shape, len(space)), np.float32)
    folds = np.unique(truth.folds)
    for fold in folds:
        where = truth.folds == fold
        models = train_on_all(accelerator, hide_labels(store, labelled[where]), settings, settings.num_epochs)
        for seed, model in enumerate(models):
            found = store.predict([model], labelled[where])
            probabilities[seed, where] = found["probabilities"].numpy()
            joint[seed, where] = found["joint_probabilities"].numpy()
    return OutOfFold(probabilities, joint, np.zeros((len(settings.seeds), len(folds))))


_SHIFTED = ("Score, shifted", "Score, same clips unshifted", "recovered")


def adaptation_table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows of [`adapt_to_shift`] or [`adapt_to_folds`], at least one, as Markdown; mean ± std over seeds."""
    shifted, measures = "recovered" in rows[0], list(rows[0].get("against_none", ()))
    header = _SHIFTED if shifted else (*measures, *(f"{name} - none" for name in measures))
    cells = []
    for row in rows:
        adapted = row["kind"] != "none"
        line = [row["kind"], *((row["level"], f"{row['weight']:g}") if adapted else ("", ""))]
        if shifted:
            line += [plus_minus(mean_and_std(row[name])) for name in ("score", "unshifted")]
            line.append(plus_minus(mean_and_std(row["recovered"]), 3) if adapted and row["recovered"] else "")
        else:
            line += [plus_minus(row["measures"][name]) for name in measures]
            line += [interval(row["against_none"][name]) if adapted else "" for name in measures]
        cells.append(line)
    title = "domain adaptation" if shifted else "domain adaptation to the scored fold"
    return table([title, "of", "weight", *header], cells, padded=False)
