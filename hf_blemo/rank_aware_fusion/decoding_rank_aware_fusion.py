"""From probabilities to predictions over any label space: expected score, thresholds, or the distribution itself.

For the space of BlEmoRE the first two are the rules of `hf_blemo.blemore.decoding`; a test holds them against each
other.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from .label_space_rank_aware_fusion import BLEMORE_SPACE, Blend, LabelSpace

DECODINGS = ("expected_score", "thresholds", "soft")
# Share of blends among the 3,050 clips of BlEmoRE.
BLEND_SHARE = 1660 / 3050


def default_blend_share(space: LabelSpace) -> float:
    """The share of blends to assume where none was measured: BlEmoRE's own for its space, else a half."""
    if space == BLEMORE_SPACE:
        return BLEND_SHARE
    return 0.5 if space.blend_percents else 0.0


def check_finite(name: str, values: Any, clips: Sequence[str] | None = None) -> None:
    """Refuses values (B, ...), numpy's or torch's, that are not finite; the message names the sample, by number or
    `clips`."""
    finite = torch.as_tensor(values).flatten(1).isfinite().all(1)
    if not finite.all():
        row = int(finite.long().argmin())
        clip = f"sample {row}" if clips is None else clips[row]
        raise ValueError(
            f"{clip}: the model gives {name} that are not finite numbers: its weights are damaged, or the features "
            "are too large for its precision"
        )


def decode_thresholds(
    probabilities: np.ndarray, alpha: float, beta: float, space: LabelSpace = BLEMORE_SPACE
) -> list[Blend]:
    """Decodes by thresholds; for the space of BlEmoRE these are the official rules.

    The most probable names are kept, as many as the largest set of the space has, and of them those that reach alpha,
    at least one. A name that never blends stands alone if it is the most probable of them, and is dropped otherwise
    (on a tie too). The set gets the even split where its probabilities differ by at most beta, else the nearest of the
    other splits of its size to the renormalised probabilities; without one of its size it loses its least probable
    name.

    Args:
        probabilities: (B, C).
        alpha: presence threshold; a name below it is not predicted.
        beta: salience threshold; a difference of at most this much is an even split.
        space: the names and the valid labels.

    Returns:
        For each sample the names predicted, with their salience in per cent.

    Raises:
        ValueError: a probability is not finite.

    Source: BlEmoRE, arXiv 2601.13225; sets of other sizes and other splits are ours.
    """
    check_finite("probabilities", probabilities)
    # The official code compares in the precision of the probabilities.
    alpha, beta = probabilities.dtype.type(alpha), probabilities.dtype.type(beta)
    orders = np.argsort(-probabilities, axis=1, kind="stable")[:, : space.largest_set]
    never = np.array([name in space.unblended for name in space.names])
    blends = []
    for row, order in zip(probabilities, orders, strict=True):
        kept = [order[0], *(place for place in order[1:] if row[place] >= alpha and row[place] > 0)]
        blending = [place for place in kept if not never[place]]
        if len(kept) > 1:
            kept = blending if blending and row[blending[0]] >= row[kept[0]] or not never[kept[0]] else kept[:1]
        while not space.splits(len(kept)):
            kept.pop()
        places = sorted(kept)
        blends.append(space.blend(space.index(places, _split(row[places], beta, space))))
    return blends


def _split(values: np.ndarray, beta: Any, space: LabelSpace) -> tuple[int, ...]:
    """The split of a set whose names have these probabilities."""
    splits = space.splits(len(values))
    even = [split for split in splits if max(split) - min(split) <= 1]
    if even and values.max() - values.min() <= beta:
        return even[0]
    others = [split for split in splits if split not in even] or splits
    shares = values.astype(np.float64) / values.sum(dtype=np.float64)
    return min(others, key=lambda split: np.abs(shares - np.array(split) / 100).sum())


def decode_expected_score(
    joint: np.ndarray, blend_share: float = BLEND_SHARE, space: LabelSpace = BLEMORE_SPACE
) -> list[Blend]:
    """Decodes to the valid label with the highest expected score.

    A right set is worth 0.5 / N, a right blend label another 0.5 / N_blends: for the space of BlEmoRE that is its
    Score. Without blends it is the most probable label.

    Args:
        joint: (B, L) probabilities of the valid labels.
        blend_share: share of true blends among the clips to be scored, from 0 to 1; with 0 only sets count.
        space: the names and the valid labels.

    Returns:
        For each sample a valid label.

    Raises:
        ValueError: a probability is not finite.

    Source: the Score of BlEmoRE, arXiv 2601.13225; the rule is ours.
    """
    check_finite("joint probabilities", joint)
    # In float64, as the benchmark's room does: float32 can break near ties the other way.
    joint = joint.astype(np.float64)
    names = len(space.names)
    parts, start = [0.5 * joint[:, :names]], names
    for size, count in space.num_sets.items():
        labels = joint[:, start : start + count * len(space.splits(size))].reshape(len(joint), count, -1)
        score = 0.5 * labels.sum(-1, keepdims=True) + (0.5 * labels / blend_share if blend_share > 0 else 0 * labels)
        parts.append(score.reshape(len(joint), -1))
        start += parts[-1].shape[1]
    return [space.blend(index) for index in np.concatenate(parts, 1).argmax(1)]


def decode_soft(probabilities: np.ndarray, space: LabelSpace = BLEMORE_SPACE) -> list[Blend]:
    """The distributions (B, C) themselves: every name with its share in per cent."""
    check_finite("probabilities", probabilities)
    return [
        [{"emotion": name, "salience": 100 * value} for name, value in zip(space.names, row, strict=True)]
        for row in probabilities.tolist()
    ]


def output_probabilities(output: Mapping[str, Any], clips: Sequence[str] | None = None) -> dict[str, Any]:
    """Turns the outputs of a [`RankAwareFusionModel`] into probabilities, which have to be finite.

    Returns:
        float32: `probabilities`, and `presence` and `salience` of each head alone, (B, C); `joint_probabilities`
        (B, L); `encoder_weights` (B, E); `novelty` (B, E) of a model that knows it.
    """
    found = {
        "probabilities": output["probabilities"].float(),
        "presence": output["presence_logits"].float().sigmoid(),
        "salience": output["salience_logits"].float().softmax(-1),
        "joint_probabilities": output["joint_probabilities"].float(),
        "encoder_weights": output["encoder_weights"].float(),
    }
    if output.get("novelty") is not None:
        found["novelty"] = output["novelty"].float()
    check_finite("probabilities", torch.cat([*found.values()], 1), clips)
    return found
