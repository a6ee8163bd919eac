"""The BlEmoRE benchmark: labels, metrics, decoding, submission, and its features as a data set.

Labels, metrics, thresholds and files follow "BlEmoRE", arXiv 2601.13225, and its official code; decoding by the
expected Score is ours.
"""

from .dataset_writing import is_dataset_folder
from .decoding import (
    BLEND_SHARE,
    THRESHOLD_GRID,
    decode_expected_score,
    decode_thresholds,
    fit_thresholds,
    threshold_grid,
)
from .distribution import build_distribution_dataset
from .features import encoder_widths, read_features
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
    parse_clip_name,
    prediction_label_indices,
    soft_label,
)
from .metrics import acc_presence, acc_salience, confusion, score
from .readers import load_features
from .submission import check_submission, read_predictions, write_submission
from .tables import build_table_dataset

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
    "build_distribution_dataset",
    "build_table_dataset",
    "check_submission",
    "clip_name",
    "confusion",
    "decode_expected_score",
    "decode_label_indices",
    "decode_thresholds",
    "encoder_widths",
    "fit_thresholds",
    "is_dataset_folder",
    "label_indices",
    "load_features",
    "parse_clip_name",
    "prediction_label_indices",
    "read_features",
    "read_predictions",
    "score",
    "soft_label",
    "threshold_grid",
    "write_submission",
]
