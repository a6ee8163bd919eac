"""The BlEmoRE benchmark: labels, metrics, decoding and submission.

Labels, metrics, thresholds and files follow "BlEmoRE", arXiv 2601.13225, and its official code; decoding by the
expected Score is ours.
"""

from .decoding import (
    BLEND_SHARE,
    THRESHOLD_GRID,
    decode_expected_score,
    decode_thresholds,
    fit_thresholds,
    threshold_grid,
)
from .labels import (
    EMOTION_SETS,
    EMOTIONS,
    LABEL_MATRIX,
    LABEL_SETS,
    LABELS,
    NEUTRAL_INDEX,
    UNLABELLED,
    clip_name,
    decode_label_indices,
    label_indices,
    named_by_labels,
    parse_clip_name,
    prediction_label_indices,
    soft_label,
)
from .metrics import acc_presence, acc_salience, confusion, score
from .submission import check_submission, read_predictions, write_submission

__all__ = [
    "BLEND_SHARE",
    "EMOTIONS",
    "EMOTION_SETS",
    "LABELS",
    "LABEL_MATRIX",
    "LABEL_SETS",
    "NEUTRAL_INDEX",
    "THRESHOLD_GRID",
    "UNLABELLED",
    "acc_presence",
    "acc_salience",
    "check_submission",
    "clip_name",
    "confusion",
    "decode_expected_score",
    "decode_label_indices",
    "decode_thresholds",
    "fit_thresholds",
    "label_indices",
    "named_by_labels",
    "parse_clip_name",
    "prediction_label_indices",
    "read_predictions",
    "score",
    "soft_label",
    "threshold_grid",
    "write_submission",
]
