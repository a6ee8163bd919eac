"""The labels of BlEmoRE: six emotions, 36 labels, and the clip names that carry them."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

EMOTIONS = ("ang", "disg", "fea", "hap", "sad", "neu")
"""The six names, in the order of every row of labels: anger, disgust, fear, happiness, sadness, neutral."""
NEUTRAL_INDEX = 5
"""Place of `neu`, which never blends."""
UNLABELLED = -100.0
"""Every entry of the label of an unlabelled clip."""
NUM_TEST_CLIPS = 594

_PAIRS = tuple(combinations(range(NEUTRAL_INDEX), 2))
_BLEND_SALIENCES = ((70.0, 30.0), (50.0, 50.0), (30.0, 70.0))

EMOTION_SETS: tuple[tuple[str, ...], ...] = (
    *((emotion,) for emotion in EMOTIONS),
    *((EMOTIONS[first], EMOTIONS[second]) for first, second in _PAIRS),
)
"""The 16 sets of names that a label can have: six of one name, ten pairs."""

# The decoders build their predictions from these tuples, so that a caller who edits a prediction, or LABELS itself,
# cannot change what the next call returns.
_LABEL_PARTS: tuple[tuple[tuple[str, float], ...], ...] = (
    *(((emotion, 100.0),) for emotion in EMOTIONS),
    *(
        ((EMOTIONS[first], salience_1), (EMOTIONS[second], salience_2))
        for first, second in _PAIRS
        for salience_1, salience_2 in _BLEND_SALIENCES
    ),
)
_LABEL_INDEX = {parts: index for index, parts in enumerate(_LABEL_PARTS)}

LABELS: tuple[list[dict[str, Any]], ...] = tuple(
    [{"emotion": emotion, "salience": salience} for emotion, salience in parts] for parts in _LABEL_PARTS
)
"""The 36 valid labels, in the order of joint probabilities: the six names, then each pair as 70/30, 50/50, 30/70."""


LABEL_MATRIX = np.array(
    [[dict(parts).get(emotion, 0.0) / 100.0 for emotion in EMOTIONS] for parts in _LABEL_PARTS], dtype=np.float64
)
"""The shares of the six names in each of the valid labels: (36, 6), rows of sum 1."""
LABEL_SETS = np.array([EMOTION_SETS.index(tuple(emotion for emotion, _ in parts)) for parts in _LABEL_PARTS])
"""For each of the 36 valid labels the place of its emotions in `EMOTION_SETS`: (36,) whole numbers."""
# Index of the 70/30 label of every ordered pair, -1 where the two do not blend.
FIRST_BLEND_LABELS = np.full((len(EMOTIONS), len(EMOTIONS)), -1)
for _number, _pair in enumerate(_PAIRS):
    FIRST_BLEND_LABELS[_pair] = len(EMOTIONS) + len(_BLEND_SALIENCES) * _number
for _table in (LABEL_MATRIX, LABEL_SETS, FIRST_BLEND_LABELS):
    _table.flags.writeable = False

_GRAMMAR = (
    "A<actor>_<emotion>_int<1-4>_ver<k>, A<actor>_neu_sit<1-4>_ver<k> or A<actor>_mix_<e1>_<e2>_<s1>_<s2>_ver<k> "
    "with s1_s2 one of 70_30, 50_50, 30_70"
)
_BLENDING = "|".join(EMOTIONS[:NEUTRAL_INDEX])
_CLIP = re.compile(
    rf"(?P<actor>A[0-9]+)_"
    rf"(?:(?P<single>{_BLENDING})_int(?P<intensity>[1-4])"
    rf"|neu_sit(?P<situation>[1-4])"
    rf"|mix_(?P<first>{_BLENDING})_(?P<second>{_BLENDING})_(?P<saliences>70_30|50_50|30_70))"
    rf"_ver(?P<version>[1-9][0-9]*)"
)
_TEST_CLIP = re.compile(r"test_[0-9]{4}")
_FILE_SUFFIX = re.compile(r"\.(mov|mp4|m4v|avi|mkv|webm|wav|mp3|flac|m4a|ogg|npy|npz|csv|json|txt)$", re.IGNORECASE)


@dataclass(frozen=True)
class _ClipLabel:
    """The parts of a training clip's name.

    Args:
        name: clip name without directory and suffix.
        actor: actor as in the metadata's `video_id`, e.g. "A102".
        emotions: one emotion, or the two of a blend in the order of `EMOTIONS`.
        saliences: per cent, one for each emotion; (100.0,) for a single emotion.
        intensity: 1-4 for a single emotion other than neutral.
        situation: 1-4 for neutral.
        version: take number, from 1.
    """

    name: str
    actor: str
    emotions: tuple[str, ...]
    saliences: tuple[float, ...]
    intensity: int | None
    situation: int | None
    version: int

    @property
    def is_blend(self) -> bool:
        return len(self.emotions) == 2

    @property
    def label_index(self) -> int:
        return _LABEL_INDEX[tuple(zip(self.emotions, self.saliences, strict=True))]

    @property
    def soft_label(self) -> np.ndarray:
        return LABEL_MATRIX[self.label_index].copy()


def clip_name(name: str | os.PathLike[str]) -> str:
    """Strips the directory and the media or feature suffix from a clip's file name.

    Args:
        name: clip name or path, e.g. "videos/A102_ang_int1_ver1.mov".

    Returns:
        The bare name, e.g. "A102_ang_int1_ver1".
    """
    return _FILE_SUFFIX.sub("", re.split(r"[\\/]", os.fspath(name))[-1])


def is_test_clip(name: str | os.PathLike[str]) -> bool:
    """Whether a clip, by its name or path, is one of the official test set, test_0001 to test_0594, whose names
    carry no label."""
    bare = clip_name(name)
    return bool(_TEST_CLIP.fullmatch(bare)) and 1 <= int(bare[5:]) <= NUM_TEST_CLIPS


def parse_clip_name(name: str | os.PathLike[str]) -> _ClipLabel:
    """Reads actor, emotions, saliences, intensity or situation, and version from a training clip's name.

    Args:
        name: clip name or path; a directory and a media or feature suffix are ignored.

    Returns:
        The parts of the name.

    Raises:
        ValueError: the name is a test clip's, breaks the grammar, or blends emotions out of order.
    """
    bare = clip_name(name)
    if is_test_clip(bare):
        raise ValueError(f"clip {bare!r}: test clips carry no label in their name")
    match = _CLIP.fullmatch(bare)
    if match is None:
        raise ValueError(f"clip {bare!r}: found a name outside the grammar, expected {_GRAMMAR}")
    emotions: tuple[str, ...]
    saliences: tuple[float, ...]
    if match["first"]:
        emotions = (match["first"], match["second"])
        if EMOTIONS.index(emotions[0]) >= EMOTIONS.index(emotions[1]):
            raise ValueError(
                f"clip {bare!r}: found the blend {emotions[0]}_{emotions[1]}, "
                f"expected two different emotions in the order {', '.join(EMOTIONS[:NEUTRAL_INDEX])}"
            )
        saliences = tuple(float(salience) for salience in match["saliences"].split("_"))
    else:
        emotions = (match["single"] or EMOTIONS[NEUTRAL_INDEX],)
        saliences = (100.0,)
    return _ClipLabel(
        name=bare,
        actor=match["actor"],
        emotions=emotions,
        saliences=saliences,
        intensity=int(match["intensity"]) if match["intensity"] else None,
        situation=int(match["situation"]) if match["situation"] else None,
        version=int(match["version"]),
    )


def soft_label(name: str | os.PathLike[str], required: bool = True) -> np.ndarray:
    """The soft label a training clip's name stands for.

    Args:
        name: clip name or path.
        required: refuse a name without a label; otherwise its clip is unlabelled.

    Returns:
        (6,) float64 in the order of `EMOTIONS`: one-hot, or salience / 100 on the two emotions of a blend; all -100
        for an unlabelled clip.

    Raises:
        ValueError: see `parse_clip_name`.
    """
    try:
        return parse_clip_name(name).soft_label
    except ValueError:
        if required:
            raise
        return np.full(len(EMOTIONS), UNLABELLED)


def named_by_labels(clips: Sequence[str], labels: np.ndarray) -> bool:
    """Whether clips are BlEmoRE's, as far as their names show: those of labelled clips say the label.

    Args:
        clips: N names.
        labels: (N, 6) soft labels, -100 everywhere for clips without one.

    Returns:
        False, too, where no clip has a label, unless all have names of the test set.
    """
    labels = np.asarray(labels, dtype=np.float64)
    labelled = np.flatnonzero((labels != UNLABELLED).any(1)).tolist()
    if not labelled:
        return all(map(is_test_clip, clips))
    named = np.stack([soft_label(clips[row], required=False) for row in labelled])
    return bool((np.abs(named - labels[labelled]) < 1e-3).all())


def label_indices(labels: Any, required: bool = False) -> np.ndarray:
    """The index into `LABELS` of every label, whatever its form.

    Args:
        labels: (N, 6) soft labels, all -100 in unlabelled rows; an entry may be off by 0.001, which float16 needs. Or
            N clip names, or N labels in the form of predictions.
        required: refuse unlabelled rows.

    Returns:
        (N,) int64, -1 for unlabelled rows.

    Raises:
        ValueError: the shape is not (N, 6), a row is neither one of the 36 labels nor all -100, a name carries no
            label, or a row is unlabelled and that is not allowed.
    """
    rows: Any = np.asarray(labels) if hasattr(labels, "__array__") else list(labels)
    if isinstance(rows, np.ndarray) and rows.dtype.kind not in "fiub":
        rows = list(rows)
    if not len(rows):
        return np.zeros(0, dtype=np.int64)
    if isinstance(rows[0], str):
        return np.array([parse_clip_name(row).label_index for row in rows], dtype=np.int64)
    if isinstance(rows, list) and isinstance(rows[0], Sequence) and any(isinstance(part, Mapping) for part in rows[0]):
        indices = prediction_label_indices(rows)
        if (indices < 0).any():
            row = int(np.argmin(indices))
            raise ValueError(f"labels: row {row} is {rows[row]}, expected one of the {len(LABELS)} labels")
        return indices
    indices = _soft_label_indices(np.asarray(rows, dtype=np.float64))
    if required and (indices < 0).any():
        raise ValueError(f"labels: row {int(np.argmin(indices))} is unlabelled, expected only labelled clips to score")
    return indices


def _soft_label_indices(matrix: np.ndarray) -> np.ndarray:
    if matrix.ndim != 2 or matrix.shape[1] != len(EMOTIONS):
        raise ValueError(f"labels: found shape {matrix.shape}, expected (N, {len(EMOTIONS)})")
    rows = np.arange(len(matrix))
    finite = np.where(np.isfinite(matrix), matrix, 0.0)
    top = np.argsort(-finite, axis=1, kind="stable")[:, :2]
    first, second = top.min(axis=1), top.max(axis=1)
    blend = FIRST_BLEND_LABELS[first, second]
    step = np.clip(np.rint((0.7 - finite[rows, first]) / 0.2), 0, 2).astype(np.int64)
    is_blend = (finite[rows, top[:, 1]] > 0.1) & (blend >= 0)
    indices = np.where(is_blend, blend + step, top[:, 0])
    indices[(matrix == UNLABELLED).all(axis=1)] = -1
    # Written so that a NaN counts as a mismatch.
    matches = (np.abs(matrix - LABEL_MATRIX[indices]) <= 1e-3).all(axis=1) | (indices == -1)
    if not matches.all():
        row = int(np.argmin(matches))
        raise ValueError(
            f"labels: row {row} is {matrix[row].tolist()}, "
            f"expected one of the {len(LABELS)} soft labels, or all {UNLABELLED:.0f} where unlabelled"
        )
    return indices


def decode_label_indices(indices: Any) -> list[list[dict[str, Any]]]:
    """The predictions that indices into `LABELS` stand for, as fresh lists.

    Args:
        indices: (N,) integers from 0 to 35.

    Returns:
        N predictions, each one or two {"emotion": str, "salience": per cent} in the order of `EMOTIONS`.

    Raises:
        ValueError: an index is outside 0 to 35.
    """
    array = np.asarray(indices)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(f"label indices: found {array.dtype} of shape {array.shape}, expected integers of shape (N,)")
    outside = np.flatnonzero((array < 0) | (array >= len(_LABEL_PARTS)))
    if outside.size:
        raise ValueError(
            f"label indices: entry {outside[0]} is {array[outside[0]]}, expected 0 to {len(_LABEL_PARTS) - 1}"
        )
    return [
        [{"emotion": emotion, "salience": salience} for emotion, salience in _LABEL_PARTS[index]]
        for index in array.tolist()
    ]


def prediction_label_indices(predictions: Sequence[Sequence[Mapping[str, Any]]]) -> np.ndarray:
    """The index into `LABELS` of every prediction, saliences rounded to whole per cent as the metric does.

    Args:
        predictions: N lists of {"emotion": str, "salience": per cent}, in any order of emotions.

    Returns:
        (N,) int64, -1 where a prediction is not one of the 36 labels.
    """
    return np.fromiter((_prediction_label_index(prediction) for prediction in predictions), dtype=np.int64)


def _prediction_label_index(prediction: Any) -> int:
    try:
        parts = sorted(
            # Python's round and the metric's np.round both round halves to even.
            ((part["emotion"], float(round(part["salience"]))) for part in prediction),
            key=lambda part: EMOTIONS.index(part[0]),
        )
    except (TypeError, KeyError, ValueError, OverflowError):
        return -1
    return _LABEL_INDEX.get(tuple(parts), -1)
