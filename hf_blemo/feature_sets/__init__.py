"""Data sets of features: their layout, how they are written, and the readers that build them."""

from .distribution import build_distribution_dataset
from .layout import encoder_widths, read_features
from .readers import load_features
from .tables import build_table_dataset
from .writing import is_dataset_folder

__all__ = [
    "build_distribution_dataset",
    "build_table_dataset",
    "encoder_widths",
    "is_dataset_folder",
    "load_features",
    "read_features",
]
