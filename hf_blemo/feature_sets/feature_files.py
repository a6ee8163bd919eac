"""Reads feature files, one per clip and encoder as in the distribution, into rows of a data set."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hf_blemo.errors import check_among, check_once, readable, reading, reads

from .layout import Clip, FeatureType, dataset_features

SPLITS = ("train", "test")
METADATA_FILE = "train_metadata.csv"

_SUFFIXES = (".npy", ".csv")
_PERCENTILES = (10, 25, 50, 75, 90)
_OPENFACE_COLUMNS = ("emotion_index", "gaze_yaw", "gaze_pitch")
_ACTION_UNITS = "action_units"
_NUM_ACTION_UNITS = 8


class ClipSource(NamedTuple):
    """Labels, fold and feature files of one clip, as of [`Clip`]; `files` lacks the encoders that the clip lacks."""

    name: str
    labels: np.ndarray
    fold: int
    files: Mapping[str, Path]
    group: str | None = None


class FeatureFileReader:
    """Reads clips from one file per clip and encoder, and infers the types of their data set.

    The first clip that has an encoder fixes its width and, with "auto", its dtype.

    Args:
        sources, encoders: the clips, at least one, and names of the encoders, each in at least one clip.
        feature_dtype: see `FeatureType.of`.
        aggregate: None for the sequences as they are; "statistics" for mean, standard deviation and percentiles 10,
            25, 50, 75 and 90 over time, as in the official baselines: (1, 7 * D).
        nan: "error" refuses NaN and infinity; "missing" takes the encoder for missing in that clip.
    """

    def __init__(
        self,
        sources: Sequence[ClipSource],
        encoders: Sequence[str],
        feature_dtype: str,
        aggregate: str | None,
        nan: str = "error",
    ):
        if aggregate not in (None, "statistics"):
            raise ValueError(f"aggregate: found {aggregate!r}, expected None or 'statistics'")
        self.sources = sources
        self.feature_dtype = feature_dtype
        self.aggregate = aggregate
        self.nan = nan
        first_files = {
            encoder: next(source.files[encoder] for source in sources if encoder in source.files)
            for encoder in encoders
        }
        self.types = {
            encoder: FeatureType.of(self._load(path), feature_dtype) for encoder, path in first_files.items()
        }
        has_groups = any(source.group is not None for source in sources)
        self.features = dataset_features(self.types, len(sources[0].labels), has_groups)

    def __call__(self, row: int) -> Clip:
        source = self.sources[row]
        features: dict[str, np.ndarray | None] = dict.fromkeys(self.types)
        for encoder, path in source.files.items():
            if encoder not in self.types:
                continue
            array, kind = self._load(path), self.types[encoder]
            if self.nan == "missing" and not np.isfinite(array).all():
                continue
            if self.feature_dtype == "float32" and kind.dtype == "float16" != array.dtype:
                raise ValueError(f"{path}: found {array.dtype}, expected float16 as in the first clip")
            features[encoder] = kind.stored(array, path)
        return Clip(source.name, features, source.labels, source.fold, source.group)

    def identity(self, row: int) -> list[Any]:
        """What tells a row's sources from others: its name and labels, and size and time of each of its files."""
        source = self.sources[row]
        files = {name: path.stat() for name, path in sorted(source.files.items()) if name in self.types}
        stamps = {name: [found.st_size, found.st_mtime_ns] for name, found in files.items()}
        return [source.name, source.labels.tolist(), int(source.fold), source.group, stamps]

    def _load(self, path: Path) -> np.ndarray:
        array = _load_npy(path) if path.suffix == ".npy" else _load_openface(path)
        if self.aggregate is None or not len(array):
            return array
        if not np.isfinite(array).all():
            raise ValueError(f"{path}: found NaN or infinity, expected finite features")
        return _statistics(array)


def encoder_folders(folder: Path, split: str | None = None) -> dict[str, Path]:
    """Finds the encoders of a folder of sub-folders with feature files, of a split those with its suffix; or the one
    encoder whose folder it is. Encoder (the folder's name without `_train` or `_test`) -> folder."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder, expected the pre-extracted features")
    if split is None and feature_files(folder):
        return {_encoder_name(folder): folder}
    folders: dict[str, Path] = {}
    for path in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        if not (path.name.endswith(f"_{split}") if split else feature_files(path)):
            continue
        encoder = _encoder_name(path)
        if encoder in folders:
            raise ValueError(
                f"{folder}: found {folders[encoder].name} and {path.name}, expected encoder {encoder!r} once"
            )
        folders[encoder] = path
    if not folders:
        expected = f"<encoder>_{split}" if split else "<encoder>"
        raise ValueError(f"{folder}: found no encoder, expected sub-folders {expected} with one file per clip")
    return folders


def _encoder_name(folder: Path) -> str:
    name, _, suffix = folder.name.rpartition("_")
    return name if suffix in SPLITS and name else folder.name


def feature_files(folder: Path) -> dict[str, Path]:
    """Clip name -> file, of a folder with one `.npy` or `.csv` per clip; refuses a clip with two files."""
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix not in _SUFFIXES or path.name.startswith(".") or path.name == METADATA_FILE:
            continue
        clip = readable(path.stem)
        if clip in files:
            raise ValueError(f"{folder}: found {files[clip].name} and {path.name}, expected one file per clip")
        files[clip] = path
    return files


@reads("CSV with a header")
def read_csv(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str | None]]]]:
    """Reads a CSV file with a header, in which no column comes twice: the columns, and for every row its line
    number and its cells by column (None where the row ends early)."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, skipinitialspace=True)
        columns = [column.strip() for column in reader.fieldnames or ()]
        check_once(f"{path}: column", columns)
        reader.fieldnames = columns
        return columns, [(reader.line_num, row) for row in reader]


def _statistics(features: np.ndarray) -> np.ndarray:
    # float16 sums overflow, so statistics are taken in float32 at least.
    values = features.astype(np.promote_types(features.dtype, np.float32))
    statistics = [values.mean(axis=0), values.std(axis=0), *np.percentile(values, _PERCENTILES, axis=0)]
    return np.concatenate(statistics)[None, :].astype(np.float32)


def _load_npy(path: Path) -> np.ndarray:
    with reading(path, "a complete .npy array"):
        array = np.load(path, allow_pickle=False)
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        raise ValueError(
            f"{path}: found {getattr(array, 'dtype', type(array).__name__)}, expected an array of numbers"
        )
    shape = array.shape
    if array.ndim == 3 and shape[1] == 1:
        array = array[:, 0]
    elif array.ndim == 1:
        array = array[None]
    if array.ndim != 2 or array.shape[1] == 0:
        raise ValueError(f"{path}: found shape {shape}, expected (T, D), (T, 1, D) or (D,)")
    return array if array.dtype.kind == "f" else array.astype(np.float32)


def _load_openface(path: Path) -> np.ndarray:
    """Replaces the NaN of frames without a face by the clip's mean of the column, which keeps the mean.

    A column without any number in the clip becomes 0, since there is nothing to estimate it from.
    """
    columns, lines = read_csv(path)
    check_among(str(path), "columns", columns, (*_OPENFACE_COLUMNS, _ACTION_UNITS), hint=" (OpenFace 3)")
    rows = [_openface_row(row, f"{path}, line {number}") for number, row in lines]
    frames = np.array(rows, dtype=np.float32).reshape(len(rows), len(_OPENFACE_COLUMNS) + _NUM_ACTION_UNITS)
    if np.isinf(frames).any():
        raise ValueError(f"{path}: found infinity, expected finite numbers or nan")
    known = ~np.isnan(frames)
    counts = known.sum(axis=0)
    means = np.where(known, frames, 0.0).sum(axis=0) / np.maximum(counts, 1)
    return np.where(known, frames, means).astype(np.float32)


def _openface_row(row: dict[str, str | None], where: str) -> list[float]:
    units = (row[_ACTION_UNITS] or "").strip(" []()\n").replace(",", " ").split() or ["nan"] * _NUM_ACTION_UNITS
    if len(units) != _NUM_ACTION_UNITS:
        raise ValueError(f"{where}: found {len(units)} action units, expected {_NUM_ACTION_UNITS}")
    try:
        return [float(text or "nan") for text in (*(row[column] for column in _OPENFACE_COLUMNS), *units)]
    except ValueError as error:
        raise ValueError(f"{where}: {error}, expected numbers or nan") from None
