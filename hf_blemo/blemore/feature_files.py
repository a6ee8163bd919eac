"""One clip's features of one encoder, read from the file the distribution holds them in."""

import csv
import os
from pathlib import Path

import numpy as np

FEATURE_SUFFIXES = (".npy", ".csv")
PERCENTILES = (10, 25, 50, 75, 90)

_OPENFACE_COLUMNS = ("emotion_index", "gaze_yaw", "gaze_pitch")
_ACTION_UNITS = "action_units"
_NUM_ACTION_UNITS = 8


def load_feature_file(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads one clip's features.

    Args:
        path: a `.npy` with (T, D), (T, 1, D), whose middle axis is dropped, or (D,), which counts as one time step; or
            the `.csv` of OpenFace 3.

    Returns:
        (T, D) in the file's floating dtype, float32 for whole numbers and for OpenFace.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or holds something else.

    Source: spec blemore_protocol, Features as distributed.
    """
    file = Path(path)
    if file.suffix == ".npy":
        return _load_npy(file)
    if file.suffix == ".csv":
        return _load_openface(file)
    raise ValueError(f"{file}: found the suffix {file.suffix!r}, expected {' or '.join(FEATURE_SUFFIXES)}")


def read_csv(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str | None]]]]:
    """Reads a CSV file with a header.

    Args:
        path: the file.

    Returns:
        The columns, and for every row its line number and its cells by column (None where the row ends early).

    Raises:
        ValueError: the file is not text.

    Source: this project's choice.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            columns = [column.strip() for column in reader.fieldnames or ()]
            reader.fieldnames = columns
            return columns, [(reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: found a damaged file ({error}), expected CSV") from None


def aggregate_statistics(features: np.ndarray) -> np.ndarray:
    """The seven statistics over time of the official baselines.

    Args:
        features: (T, D).

    Returns:
        (1, 7 * D) float32: mean, standard deviation, 10th, 25th, 50th, 75th and 90th percentile, in this order.

    Source: spec blemore_protocol, Features as distributed.
    """
    # float16 sums overflow, so statistics are taken in float32 at least.
    values = features.astype(np.promote_types(features.dtype, np.float32))
    statistics = [values.mean(axis=0), values.std(axis=0), *np.percentile(values, PERCENTILES, axis=0)]
    return np.concatenate(statistics)[None, :].astype(np.float32)


def _load_npy(path: Path) -> np.ndarray:
    try:
        array = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except (ValueError, EOFError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{path}: found a damaged or foreign file ({reason}), expected a complete .npy array"
        ) from None
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
    """Frames without a face hold NaN; they get the clip's mean of that column, which leaves its mean as it was.

    A column without any number in the clip becomes 0, since there is nothing to estimate it from.
    """
    columns, lines = read_csv(path)
    missing = [column for column in (*_OPENFACE_COLUMNS, _ACTION_UNITS) if column not in columns]
    if missing:
        raise ValueError(f"{path}: found the columns {columns}, expected {missing[0]!r} among them (OpenFace 3)")
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
