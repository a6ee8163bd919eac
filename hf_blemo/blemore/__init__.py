"""The BlEmoRE benchmark: labels, metrics, decoding and submission.

Labels, metrics, thresholds and files follow "BlEmoRE", arXiv 2601.13225, and its official code; decoding by the
expected Score is ours.
"""

import warnings
from importlib import import_module
from typing import Any

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

_MOVED = (
    "build_distribution_dataset", "build_table_dataset", "encoder_widths", "is_dataset_folder", "load_features",
    "read_features",
)  # fmt: skip


def __getattr__(name: str) -> Any:
    # The readers serve data of any labels and have their own room now.
    if name in _MOVED:
        warnings.warn(f"blemore.{name} has moved to hf_blemo.feature_sets", FutureWarning, stacklevel=2)
        return getattr(import_module("hf_blemo.feature_sets"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
