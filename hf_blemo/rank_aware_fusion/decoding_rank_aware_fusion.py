"""From probabilities to blends: the benchmark's thresholds and the decoding that maximises the expected Score.

The family travels to the Hub alone, so the two rules stand here beside `hf_blemo.blemore.decoding`; a test holds the
two against each other.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from .configuration_rank_aware_fusion import EMOTIONS

NEUTRAL = EMOTIONS.index("neu")
# Share of blends among the 3,050 clips of BlEmoRE.
BLEND_SHARE = 1660 / 3050

_SALIENCES = (70.0, 50.0, 30.0)


def _single(emotion: int) -> list[dict[str, str | float]]:
    return [{"emotion": EMOTIONS[emotion], "salience": 100.0}]


def _blend(first: int, second: int, salience: float) -> list[dict[str, str | float]]:
    return [
        {"emotion": EMOTIONS[first], "salience": salience},
        {"emotion": EMOTIONS[second], "salience": 100.0 - salience},
    ]


# The 36 valid labels in the order of `joint_probabilities`; to be copied before they are handed out.
LABELS = [
    *(_single(emotion) for emotion in range(len(EMOTIONS))),
    *(
        _blend(first, second, salience)
        for first in range(NEUTRAL)
        for second in range(first + 1, NEUTRAL)
        for salience in _SALIENCES
    ),
]
LABEL_PERCENT = np.array(
    [[{part["emotion"]: part["salience"] for part in label}.get(name, 0) for name in EMOTIONS] for label in LABELS]
).astype(np.int64)


def decode_thresholds(probabilities: np.ndarray, alpha: float, beta: float) -> list[list[dict[str, str | float]]]:
    """Decodes by the official thresholds.

    Args:
        probabilities: (B, 6).
        alpha: presence threshold; an emotion below it is not predicted.
        beta: salience threshold; a difference of at most this much is a 50/50 blend.

    Returns:
        One or two emotions with their salience in per cent for each sample.

    Source: BlEmoRE, arXiv 2601.13225.
    """
    # The official code compares in the precision of the probabilities.
    alpha, beta = probabilities.dtype.type(alpha), probabilities.dtype.type(beta)
    predictions = []
    for row, order in zip(probabilities, np.argsort(-probabilities, axis=1, kind="stable"), strict=True):
        best, second = order[:2]
        if row[second] < alpha or row[second] <= 0:
            chosen = best
        elif NEUTRAL in (best, second):
            other = second if best == NEUTRAL else best
            chosen = other if row[other] >= row[NEUTRAL] else NEUTRAL
        else:
            first, second = sorted((best, second))
            difference = row[first] - row[second]
            salience = 50.0 if abs(difference) <= beta else (70.0 if difference > 0 else 30.0)
            predictions.append(_blend(first, second, salience))
            continue
        predictions.append(_single(chosen))
    return predictions


def decode_expected_score(joint: np.ndarray, blend_share: float = BLEND_SHARE) -> list[list[dict[str, str | float]]]:
    """Decodes to the valid label with the highest expected Score.

    Args:
        joint: (B, 36) probabilities of the valid labels.
        blend_share: share of true blends among the clips to be scored.

    Returns:
        One or two emotions with their salience in per cent for each sample.

    Source: the Score of BlEmoRE (a right set is worth 0.5 / N, a right blend label another 0.5 / N_blends).
    """
    # In float64, as the benchmark's room does: float32 can break near ties the other way.
    joint = joint.astype(np.float64)
    blends = joint[:, 6:].reshape(len(joint), -1, len(_SALIENCES))
    blend_score = 0.5 * blends.sum(-1, keepdims=True) + 0.5 * blends / blend_share
    best = np.concatenate([0.5 * joint[:, :6], blend_score.reshape(len(joint), -1)], 1).argmax(1)
    return [[dict(part) for part in LABELS[index]] for index in best]


def output_probabilities(output: Mapping[str, Any]) -> dict[str, Any]:
    """Turns a model's outputs into probabilities.

    Args:
        output: of a [`RankAwareFusionModel`].

    Returns:
        float32: `probabilities`, and `presence` and `salience` of each head alone, (B, 6); `joint_probabilities`
        (B, 36); `encoder_weights` (B, E).
    """
    return {
        "probabilities": output["probabilities"].float(),
        "presence": output["presence_logits"].float().sigmoid(),
        "salience": output["salience_logits"].float().softmax(-1),
        "joint_probabilities": output["joint_probabilities"].float(),
        "encoder_weights": output["encoder_weights"].float(),
    }
