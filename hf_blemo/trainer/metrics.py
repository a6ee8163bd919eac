"""Measures of a fusion for `compute_metrics` of transformers' Trainer."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch

from hf_blemo.metrics.measures import measure
from hf_blemo.rank_aware_fusion.label_space_rank_aware_fusion import UNLABELLED, LabelSpace
from hf_blemo.rank_aware_fusion.processing_rank_aware_fusion import RankAwareFusionProcessor


def fusion_metrics(
    source: Any,
    decoding: str | None = None,
    alpha: float | None = None,
    beta: float | None = None,
    blend_share: float | None = None,
    presence_share: float | None = None,
) -> Callable[[Any], dict[str, float]]:
    """Makes the `compute_metrics` of a [`RankAwareFusionModel`] of any labels.

    Args:
        source: config or processor of the model, which know the labels.
        decoding, alpha, beta, blend_share: as of [`RankAwareFusionProcessor`]; by default the processor's own, or its
            defaults for a config.
        presence_share: a name is present where its share is above this; by default the config's, 0 for a processor.

    Returns:
        A function of Trainer's predictions that returns what `hf_blemo.metrics.measure` measures over the labelled
        rows. It raises ValueError for predictions of another model, or without a labelled row.

    Raises:
        ValueError: `source` is neither, or a setting is not valid.
    """
    if not hasattr(source, "label_space"):
        raise ValueError(f"expected a config or a processor of a fusion, found {type(source).__name__}")
    given = {"decoding": decoding, "alpha": alpha, "beta": beta, "blend_share": blend_share}
    options = {name: getattr(source, name, None) if value is None else value for name, value in given.items()}
    processor = RankAwareFusionProcessor.from_config(source, **{k: v for k, v in options.items() if v is not None})
    if presence_share is None:
        presence_share = getattr(source, "presence_share", 0.0)
    return partial(_measured, processor=processor, presence_share=presence_share)


def blemore_metrics(predicted: Any) -> dict[str, float]:
    """Scores a [`RankAwareFusionModel`] on BlEmoRE under Trainer; pass it as `compute_metrics`.

    It decodes by the expected Score. For another decoding or other labels, [`fusion_metrics`].

    Args:
        predicted: Trainer's predictions.

    Returns:
        `acc_presence`, `acc_salience` and `score` over the labelled rows.

    Raises:
        ValueError: predictions of another model, or no labelled row.

    Source: the metrics are those of BlEmoRE, arXiv 2601.13225.
    """
    found = _measured(predicted, RankAwareFusionProcessor({}), 0.0)
    return {name: found[name] for name in ("acc_presence", "acc_salience", "score")}


def _measured(predicted: Any, processor: RankAwareFusionProcessor, presence_share: float) -> dict[str, float]:
    space = processor.label_space
    predictions, labels = predicted.predictions, predicted.label_ids
    if isinstance(predictions, list) and predictions and isinstance(predictions[0], tuple):
        # `eval_do_concat_batches=False` keeps the batches apart.
        predictions = tuple(np.concatenate(parts) for parts in zip(*predictions, strict=True))
        labels = np.concatenate(labels)
    probabilities, joint = _probabilities(predictions, space)
    labels = np.asarray(labels, dtype=np.float64)
    labelled = ~(labels == UNLABELLED).all(1)
    if not labelled.any():
        raise ValueError(f"found {len(labels)} rows, none of them labelled, expected labelled rows to evaluate")
    labels, probabilities, joint = labels[labelled], probabilities[labelled], joint[labelled]
    outputs = {"probabilities": torch.from_numpy(probabilities), "joint_probabilities": torch.from_numpy(joint)}
    blends = processor.post_process_blends(outputs)
    return measure(space, labels, blends, probabilities, joint, processor.label_kind, presence_share)


def _probabilities(predictions: Any, space: LabelSpace) -> tuple[np.ndarray, np.ndarray]:
    """Finds the probabilities of the names and of the valid labels among Trainer's predictions."""
    if isinstance(predictions, Mapping) and {"probabilities", "joint_probabilities"} <= set(predictions):
        return np.asarray(predictions["probabilities"]), np.asarray(predictions["joint_probabilities"])
    parts = list(predictions.values()) if isinstance(predictions, Mapping) else list(predictions)
    widths = [len(space.names), len(space)]
    found: list[np.ndarray] = []
    for part in map(np.asarray, parts):
        # Logits may be as wide, but are no distributions.
        if len(found) < 2 and part.ndim == 2 and part.shape[1] == widths[len(found)] and _is_distribution(part):
            found.append(part)
    if len(found) < 2:
        raise ValueError(
            f"found predictions of the shapes {[np.shape(part) for part in parts]}, expected probabilities "
            f"(N, {widths[0]}) and joint probabilities (N, {widths[1]}) of a RankAwareFusionModel"
        )
    return found[0], found[1]


def _is_distribution(rows: np.ndarray) -> bool:
    # Written so that a NaN passes, which is refused by name later.
    return not ((rows < 0).any() or (np.abs(rows.sum(1) - 1) > 1e-2).any())
