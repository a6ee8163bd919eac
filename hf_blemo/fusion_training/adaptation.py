"""Domain adaptation on real data: each fold in turn is the target, whose clips take part without their labels."""

import copy
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import datasets
import numpy as np
from accelerate import Accelerator

from hf_blemo.fusion_training.cross_validation import train_on_all
from hf_blemo.fusion_training.data import model_config
from hf_blemo.fusion_training.feature_store import FeatureStore
from hf_blemo.fusion_training.out_of_fold import OutOfFold, Truth, paired_bootstrap
from hf_blemo.fusion_training.settings import AblationSettings
from hf_blemo.programs.tables import plus_minus, table
from hf_blemo.rank_aware_fusion.label_space_rank_aware_fusion import UNLABELLED

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


def folds_table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    names = list(rows[0]["against_none"]) if rows else []
    cells = []
    for row in rows:
        adapted = row["kind"] != "none"
        line = [row["kind"], row["level"] if adapted else "", f"{row['weight']:g}" if adapted else ""]
        line += [plus_minus(row["measures"][name]) for name in names]
        for name in names:
            entry = row["against_none"][name]
            found = f"{entry['difference']:+.4f} [{entry['low']:+.4f}, {entry['high']:+.4f}]"
            line.append(found if adapted else "")
        cells.append(line)
    header = ["domain adaptation to the scored fold", "of", "weight", *names, *(f"{name} - none" for name in names)]
    return table(header, cells, padded=False)
