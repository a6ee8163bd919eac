"""Data sets of features: their layout, how they are written, and the readers that build them."""

from .description import describe
from .distribution import build_distribution_dataset
from .folds import with_folds
from .label_spaces import concatenate, label_space, with_label_space
from .layout import encoder_widths, read_features
from .readers import check_features, load_features
from .tables import build_table_dataset
from .writing import is_dataset_folder

__all__ = [
    "build_distribution_dataset",
    "build_table_dataset",
    "check_features",
    "concatenate",
    "describe",
    "encoder_widths",
    "is_dataset_folder",
    "label_space",
    "load_features",
    "read_features",
    "with_folds",
    "with_label_space",
]
