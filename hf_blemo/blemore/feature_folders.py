"""A folder of feature files: which encoders and clips it holds, and reading them as rows of a data set."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .feature_files import FEATURE_SUFFIXES, aggregate_statistics, load_feature_file
from .features import Clip, dataset_features, fits_float16, stored_dtype, to_stored

SPLITS = ("train", "test")
AGGREGATES = (None, "statistics")


class ClipSource(NamedTuple):
    """Where the parts of one clip are.

    Args:
        name: clip name.
        labels: (6,) soft label, all -100 where unlabelled.
        fold: fold from 0, -1 where there is none.
        files: encoder -> file, without the encoders the clip lacks.
    """

    name: str
    labels: np.ndarray
    fold: int
    files: Mapping[str, Path]


class FeatureFileReader:
    """Reads clips from one file per clip and encoder, and knows the types of the data set they make.

    The first clip that has an encoder fixes its width and, with "auto", its dtype.

    Args:
        sources: the clips, at least one.
        encoders: names of the encoders, each in at least one clip.
        feature_dtype: "auto", "float16" or "float32", see `stored_dtype`.
        aggregate: None for the sequences as they are, "statistics" for `aggregate_statistics` of each.

    Raises:
        ValueError: an option is unknown, or the first file of an encoder is damaged.

    Source: this project's choice.
    """

    def __init__(
        self,
        sources: Sequence[ClipSource],
        encoders: Sequence[str],
        feature_dtype: str,
        aggregate: str | None,
    ):
        if aggregate not in AGGREGATES:
            raise ValueError(f"aggregate: found {aggregate!r}, expected None or 'statistics'")
        self.sources = sources
        self.feature_dtype = feature_dtype
        self.aggregate = aggregate
        self.types: dict[str, tuple[int, str]] = {}
        for encoder in encoders:
            array = self._load(next(source.files[encoder] for source in sources if encoder in source.files))
            self.types[encoder] = (array.shape[1], stored_dtype(array.dtype, fits_float16(array), feature_dtype))
        self.features = dataset_features(self.types)

    def __call__(self, row: int) -> Clip:
        source = self.sources[row]
        features: dict[str, np.ndarray | None] = {}
        for encoder, (width, dtype) in self.types.items():
            features[encoder] = None
            if encoder in source.files:
                path = source.files[encoder]
                array = self._load(path)
                if self.feature_dtype == "float32" and dtype == "float16" != array.dtype:
                    raise ValueError(f"{path}: found {array.dtype}, expected float16 as in the first clip")
                features[encoder] = to_stored(array, width, dtype, path)
        return Clip(source.name, features, source.labels, source.fold)

    def _load(self, path: Path) -> np.ndarray:
        array = load_feature_file(path)
        if self.aggregate is None or not len(array):
            return array
        if not np.isfinite(array).all():
            raise ValueError(f"{path}: found NaN or infinity, expected finite features")
        return aggregate_statistics(array)


def encoder_folders(folder: Path, split: str | None = None) -> dict[str, Path]:
    """Finds the encoders of a folder, one sub-folder each.

    Args:
        folder: a folder of folders of feature files.
        split: "train" or "test" to take only sub-folders with that suffix; any sub-folder of feature files by default.

    Returns:
        Encoder (the sub-folder's name without `_train` or `_test`) -> sub-folder.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds no encoder, or one twice.

    Source: spec blemore_protocol, Features as distributed.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder, expected the pre-extracted features")
    folders: dict[str, Path] = {}
    for path in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        if not (path.name.endswith(f"_{split}") if split else feature_files(path)):
            continue
        encoder = encoder_name(path)
        if encoder in folders:
            raise ValueError(
                f"{folder}: found {folders[encoder].name} and {path.name}, expected encoder {encoder!r} once"
            )
        folders[encoder] = path
    if not folders:
        expected = f"<encoder>_{split}" if split else "<encoder>"
        raise ValueError(f"{folder}: found no encoder, expected sub-folders {expected} with one file per clip")
    return folders


def encoder_name(folder: Path) -> str:
    """The encoder whose features a folder holds.

    Args:
        folder: folder named after the encoder, with or without the suffix `_train` or `_test`.

    Returns:
        The name without that suffix, otherwise as it stands.

    Source: spec blemore_protocol, Features as distributed.
    """
    name, _, suffix = folder.name.rpartition("_")
    return name if suffix in SPLITS and name else folder.name


def feature_files(folder: Path) -> dict[str, Path]:
    """Finds the feature files of a folder.

    Args:
        folder: a folder with one `.npy` or `.csv` per clip.

    Returns:
        Clip name -> file.

    Raises:
        ValueError: a clip has two files.

    Source: spec blemore_protocol, Features as distributed.
    """
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix not in FEATURE_SUFFIXES or path.name.startswith("."):
            continue
        if path.stem in files:
            raise ValueError(f"{folder}: found {files[path.stem].name} and {path.name}, expected one file per clip")
        files[path.stem] = path
    return files
