"""The metrics of BlEmoRE as `compute_metrics` of transformers' Trainer."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from hf_blemo import blemore

DECODINGS = ("expected_score", "thresholds")


def make_blemore_metrics(
    decoding: str = "expected_score",
    alpha: float = 0.1,
    beta: float = 0.1,
    blend_share: float = blemore.BLEND_SHARE,
) -> Callable[[Any], dict[str, float]]:
    """Make `compute_metrics` for a [`RankAwareFusionModel`] under Trainer.

    Args:
        decoding: `expected_score` reads the joint probabilities, `thresholds` the six probabilities.
        alpha, beta: of `thresholds`; fitted by `blemore.fit_thresholds` on other clips than those evaluated.
        blend_share: share of blends that `expected_score` assumes.

    Returns:
        A function of Trainer's predictions to `acc_presence`, `acc_salience` and `score`, over the labelled rows.

    Raises:
        ValueError: an unknown decoding; from the function, predictions of another model or no labelled row.

    Source: the metrics are those of BlEmoRE, arXiv 2601.13225.
    """
    if decoding not in DECODINGS:
        raise ValueError(f"decoding {decoding!r} is not one of {', '.join(DECODINGS)}")

    def compute_metrics(predicted: Any) -> dict[str, float]:
        probabilities, joint = _probabilities(predicted.predictions)
        labels = np.asarray(predicted.label_ids, dtype=np.float64)
        labelled = labels[:, 0] != blemore.UNLABELLED
        if not labelled.any():
            raise ValueError(f"found {len(labels)} rows without labels to evaluate, expected some with")
        if decoding == "thresholds":
            blends = blemore.decode_thresholds(probabilities[labelled], alpha, beta)
        else:
            blends = blemore.decode_expected_score(joint[labelled], blend_share)
        return {
            "acc_presence": blemore.acc_presence(blends, labels[labelled]),
            "acc_salience": blemore.acc_salience(blends, labels[labelled]),
            "score": blemore.score(blends, labels[labelled]),
        }

    return compute_metrics


def blemore_metrics(predicted: Any) -> dict[str, float]:
    """`compute_metrics` with the default decoding; see [`make_blemore_metrics`]."""
    return make_blemore_metrics()(predicted)


def _probabilities(predictions: Any) -> tuple[np.ndarray, np.ndarray]:
    """The six and the 36 probabilities among what Trainer collected."""
    parts = list(predictions.values()) if isinstance(predictions, Mapping) else list(predictions)
    for first, second in zip(parts, parts[1:], strict=False):
        widths = [np.shape(part)[-1] if np.ndim(part) == 2 else None for part in (first, second)]
        if widths == [len(blemore.EMOTIONS), len(blemore.LABELS)]:
            return np.asarray(first), np.asarray(second)
    raise ValueError(
        f"found predictions of the shapes {[np.shape(part) for part in parts]}, expected probabilities (N, 6) and "
        "joint probabilities (N, 36) of a RankAwareFusionModel"
    )
