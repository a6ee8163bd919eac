"""The metrics of BlEmoRE for `compute_metrics` of transformers' Trainer."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from hf_blemo import blemore

_DECODINGS = ("expected_score", "thresholds")


def blemore_metrics(
    predicted: Any,
    decoding: str = "expected_score",
    alpha: float = 0.1,
    beta: float = 0.1,
    blend_share: float = blemore.BLEND_SHARE,
) -> dict[str, float]:
    """Scores a [`RankAwareFusionModel`] under Trainer; pass it as `compute_metrics`.

    For other settings pass `functools.partial(blemore_metrics, decoding="thresholds", alpha=..., beta=...)`.

    Args:
        predicted: Trainer's predictions.
        decoding: `expected_score` reads the joint probabilities, `thresholds` the six probabilities.
        alpha, beta: of `thresholds`; fit them with `blemore.fit_thresholds` on clips that are not evaluated.
        blend_share: share of blends that `expected_score` assumes.

    Returns:
        `acc_presence`, `acc_salience` and `score` over the labelled rows.

    Raises:
        ValueError: unknown decoding, predictions of another model, or no labelled row.

    Source: the metrics are those of BlEmoRE, arXiv 2601.13225.
    """
    if decoding not in _DECODINGS:
        raise ValueError(f"decoding {decoding!r} is not one of {', '.join(_DECODINGS)}")
    probabilities, joint = _probabilities(predicted.predictions)
    labels = np.asarray(predicted.label_ids, dtype=np.float64)
    labelled = labels[:, 0] != blemore.UNLABELLED
    if not labelled.any():
        raise ValueError(f"found {len(labels)} rows, none of them labelled, expected labelled rows to evaluate")
    if decoding == "thresholds":
        blends = blemore.decode_thresholds(probabilities[labelled], alpha, beta)
    else:
        blends = blemore.decode_expected_score(joint[labelled], blend_share)
    return {
        "acc_presence": blemore.acc_presence(blends, labels[labelled]),
        "acc_salience": blemore.acc_salience(blends, labels[labelled]),
        "score": blemore.score(blends, labels[labelled]),
    }


def _probabilities(predictions: Any) -> tuple[np.ndarray, np.ndarray]:
    """Finds the six and the 36 probabilities among Trainer's predictions."""
    parts = list(predictions.values()) if isinstance(predictions, Mapping) else list(predictions)
    for first, second in zip(parts, parts[1:], strict=False):
        widths = [np.shape(part)[-1] if np.ndim(part) == 2 else None for part in (first, second)]
        if widths == [len(blemore.EMOTIONS), len(blemore.LABELS)]:
            return np.asarray(first), np.asarray(second)
    raise ValueError(
        f"found predictions of the shapes {[np.shape(part) for part in parts]}, expected probabilities (N, 6) and "
        "joint probabilities (N, 36) of a RankAwareFusionModel"
    )
