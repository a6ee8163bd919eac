"""Reads a table with one row per clip into a data set: Parquet, NumPy `.npz` or CSV."""

import hashlib
import os
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hf_blemo.blemore.labels import (
    EMOTIONS,
    LABEL_MATRIX,
    UNLABELLED,
    clip_name,
    is_test_clip,
    label_indices,
    parse_clip_name,
    soft_label,
)  # fmt: skip

from .distribution import METADATA_COLUMNS
from .layout import Clip, FeatureType, arrow_to_arrays, dataset_features, encode_clips
from .writing import refuse_existing, write_dataset

if TYPE_CHECKING:
    import datasets

CLIP_COLUMNS = ("clip", "filename", "filenames")
TABLE_SUFFIXES = (".parquet", ".npz", ".csv")

_NUMBERED_COLUMN = re.compile(r"(?P<name>.+)[._](?P<number>[0-9]+)")
_IGNORED_COLUMNS = {*METADATA_COLUMNS, "__index_level_0__"}
Vectors = list[np.ndarray | None]


class _Table(NamedTuple):
    """The columns of a table: one value, or one (T, D) array or None, per row."""

    scalars: dict[str, list[Any]]
    vectors: dict[str, Vectors]


def build_table_dataset(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    encoders: Sequence[str] | None = None,
    feature_dtype: str = "float32",
    require_labels: bool = True,
    overwrite: bool = False,
    progress: bool = False,
) -> "datasets.Dataset":
    """Builds a data set from a table with one row per clip.

    The clip is in the column `clip`, `filename` or `filenames`; `fold` is optional. Labels are in the column `labels`
    (6 numbers) or else in the clips' names. Every other column is an encoder:

    - Parquet: list columns of D numbers or of (T, D), and the nested column `features` of a data set of this package;
    - `.npz`: arrays (N, D) or (N, T, D); the array `X` of the official aggregation is named after the file;
    - CSV: the columns `<encoder>.0`, `<encoder>.1`, ... or `<encoder>_0`, ...

    The columns of the official metadata are ignored.

    Args:
        path: the table.
        output: folder to make, readable by `datasets.load_from_disk`; by default the data set stays in memory.
        encoders: the columns to take, in this order; all by default.
        feature_dtype: "float32", which keeps float16 sources; "float16"; or "auto", float16 where the first clip fits.
        require_labels: refuse clips without a label, test clips aside; otherwise they are unlabelled.
        overwrite: replace the data set at `output`.
        progress: show a progress bar.

    Returns:
        The data set: `clip`, `features`, `labels`, `fold`.

    Raises:
        FileNotFoundError: there is no such table.
        FileExistsError: `output` is there and `overwrite` is not given.
        ValueError: the table is damaged, lacks a column, names a clip twice, or holds an invalid label or feature; the
            message names the column and the clip.
    """
    import datasets
    import pyarrow as pa

    path = Path(path)
    if output is not None:
        refuse_existing(Path(output), overwrite)
    clips, types = _clips(_read_table(path), path, encoders, feature_dtype, require_labels)
    features = dataset_features(types)
    if output is None:
        batch = encode_clips(clips, features.arrow_schema)
        return datasets.Dataset(pa.Table.from_batches([batch]))
    plan = {
        "table": path.name,
        "feature_dtype": feature_dtype,
        "encoders": {name: list(kind) for name, kind in types.items()},
        "table_digest": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    return write_dataset(Path(output), features, len(clips), clips.__getitem__, plan, overwrite, progress)


def _read_table(path: Path) -> _Table:
    if path.suffix not in TABLE_SUFFIXES:
        raise ValueError(f"{path}: found the suffix {path.suffix!r}, expected one of {', '.join(TABLE_SUFFIXES)}")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, expected a table of clips")
    readers = {".parquet": _read_parquet, ".npz": _read_npz, ".csv": _read_csv}
    return readers[path.suffix](path)


def _read_parquet(path: Path) -> _Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path}: found a damaged table ({_first_line(error)}), expected Parquet") from None
    columns: dict[str, pa.Array] = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        array = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
        if name == "features" and pa.types.is_struct(array.type):
            columns.update(zip((field.name for field in array.type), array.flatten(), strict=True))
        else:
            columns[name] = array
    scalars, vectors = {}, {}
    for name, array in columns.items():
        if pa.types.is_nested(array.type) or isinstance(array, pa.ExtensionArray):
            vectors[name] = arrow_to_arrays(array, f"{path}, column {name!r}")
        else:
            scalars[name] = array.to_pylist()
    return _Table(scalars, vectors)


def _read_npz(path: Path) -> _Table:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: found a damaged table or pickled objects ({_first_line(error)})") from None
    scalars: dict[str, list[Any]] = {}
    vectors: dict[str, Vectors] = {}
    for name, array in arrays.items():
        if array.ndim in (2, 3) and array.dtype.kind in "fiu":
            vectors[path.stem if name == "X" else name] = list(array if array.ndim == 3 else array[:, None, :])
        elif array.ndim == 1:
            scalars[name] = [value.decode() if isinstance(value, bytes) else value for value in array.tolist()]
        else:
            raise ValueError(
                f"{path}, array {name!r}: found {array.dtype} of shape {array.shape}, expected (N,) or (N, [T,] D)"
            )
    return _Table(scalars, vectors)


def _read_csv(path: Path) -> _Table:
    import pyarrow as pa
    import pyarrow.csv

    try:
        table = pyarrow.csv.read_csv(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path}: found a damaged table ({_first_line(error)}), expected CSV") from None
    scalars: dict[str, list[Any]] = {}
    groups: dict[str, dict[int, pa.ChunkedArray]] = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        match = _NUMBERED_COLUMN.fullmatch(name)
        if name in _IGNORED_COLUMNS or match is None:
            scalars[name] = column.to_pylist()
            continue
        if not (
            pa.types.is_floating(column.type) or pa.types.is_integer(column.type) or pa.types.is_null(column.type)
        ):
            raise ValueError(f"{path}, column {name!r}: found {column.type}, expected numbers")
        groups.setdefault(match["name"], {})[int(match["number"])] = column.cast(pa.float64())
    vectors: dict[str, Vectors] = {}
    for name, group in groups.items():
        if sorted(group) != list(range(len(group))):
            absent = min(set(range(len(group))) - set(group))
            raise ValueError(f"{path}: found {len(group)} columns of {name!r}, expected number {absent} among them")
        matrix = np.stack([group[number].to_numpy() for number in range(len(group))], axis=1)
        vectors[name] = [None if np.isnan(row).all() else row[None] for row in matrix]
    return _Table(scalars, vectors)


def _clips(
    table: _Table, path: Path, encoders: Sequence[str] | None, feature_dtype: str, require_labels: bool
) -> tuple[list[Clip], dict[str, FeatureType]]:
    names = _names(table, path)
    lengths = {name: len(column) for name, column in (*table.scalars.items(), *table.vectors.items())}
    for name, length in lengths.items():
        if length != len(names):
            raise ValueError(f"{path}: found {length} rows of {name!r} and {len(names)} clips, expected equal numbers")
    for name in (*CLIP_COLUMNS, "fold"):
        if name in table.vectors:
            raise ValueError(f"{path}: found vectors in the column {name!r}, expected single values")
    if "labels" in table.scalars:
        raise ValueError(f"{path}: found single values in the column 'labels', expected {len(EMOTIONS)} numbers each")
    labels = _labels(table, names, path, require_labels)
    folds = _folds(table, names, path)
    vectors = {name: column for name, column in table.vectors.items() if name != "labels"}
    if encoders is None:
        known = {*CLIP_COLUMNS, "fold", *_IGNORED_COLUMNS}
        for name in table.scalars:
            if name not in known:
                raise ValueError(
                    f"{path}: found the column {name!r} of single values, expected vectors; name the encoders to take"
                )
    for name in encoders or ():
        if name not in vectors:
            raise ValueError(f"{path}: found the encoders {', '.join(vectors)}, expected {name!r} among them")
    chosen = list(vectors) if encoders is None else list(encoders)
    if not chosen:
        raise ValueError(f"{path}: found no encoder, expected at least one column of vectors")
    columns: dict[str, Vectors] = {}
    types: dict[str, FeatureType] = {}
    for encoder in chosen:
        columns[encoder], types[encoder] = _encoder(vectors[encoder], names, f"{path}, {encoder!r}", feature_dtype)
    for row, name in enumerate(names):
        if all(column[row] is None for column in columns.values()):
            raise ValueError(f"{path}: clip {name!r} has no features of any encoder, expected at least one")
    clips = [
        Clip(name, {encoder: column[row] for encoder, column in columns.items()}, labels[row], folds[row])
        for row, name in enumerate(names)
    ]
    return clips, types


def _names(table: _Table, path: Path) -> list[str]:
    column = next((column for column in CLIP_COLUMNS if column in table.scalars), None)
    if column is None:
        raise ValueError(
            f"{path}: found the columns {', '.join([*table.scalars, *table.vectors])}, "
            f"expected one of {', '.join(CLIP_COLUMNS)} with the clips' names"
        )
    names = []
    seen: set[str] = set()
    for row, value in enumerate(table.scalars[column]):
        if not isinstance(value, str) or not value:
            raise ValueError(f"{path}, column {column!r}: row {row} is {value!r}, expected a clip name")
        name = clip_name(value)
        if name in seen:
            raise ValueError(f"{path}: clip {name!r} comes more than once")
        seen.add(name)
        names.append(name)
    if not names:
        raise ValueError(f"{path}: found no clip, expected at least one")
    return names


def _labels(table: _Table, names: Sequence[str], path: Path, require_labels: bool) -> list[np.ndarray]:
    column = table.vectors.get("labels", [None] * len(names))
    labels = []
    for name, given in zip(names, column, strict=True):
        named = soft_label(name, required=False)
        if given is not None:
            labels.append(_given_label(given, named, f"{path}, clip {name!r}"))
            continue
        if require_labels and not is_test_clip(name):
            try:
                parse_clip_name(name)
            except ValueError as error:
                raise ValueError(f"{path}: found no column 'labels' and no label in a name: {error}") from None
        labels.append(named)
    return labels


def _given_label(given: np.ndarray, named: np.ndarray, where: str) -> np.ndarray:
    try:
        indices = label_indices(given)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if len(indices) != 1:
        raise ValueError(f"{where}: found {len(indices)} labels, expected one")
    label = np.full(len(EMOTIONS), UNLABELLED) if indices[0] < 0 else LABEL_MATRIX[indices[0]]
    if UNLABELLED not in (label[0], named[0]) and (label != named).any():
        raise ValueError(f"{where}: found the label {label.tolist()}, expected {named.tolist()} as in the name")
    return label


def _folds(table: _Table, names: Sequence[str], path: Path) -> list[int]:
    folds = []
    for name, fold in zip(names, table.scalars.get("fold", [None] * len(names)), strict=True):
        if fold is None or fold != fold:
            folds.append(-1)
        elif isinstance(fold, (int, float)) and float(fold).is_integer() and -1 <= fold <= 127:
            folds.append(int(fold))
        else:
            raise ValueError(f"{path}: clip {name!r} has the fold {fold!r}, expected a whole number from 0, or -1")
    return folds


def _encoder(column: Vectors, names: Sequence[str], where: str, feature_dtype: str) -> tuple[Vectors, FeatureType]:
    first = next((array for array in column if array is not None), None)
    if first is None or not first.shape[1]:
        raise ValueError(f"{where}: found no features of any clip, expected at least one")
    if first.dtype.kind != "f":
        column = [None if array is None else array.astype(np.float32) for array in column]
    kind = FeatureType.of(first, feature_dtype)
    return [
        None if array is None else kind.stored(array, f"{where}, clip {name!r}")
        for name, array in zip(names, column, strict=True)
    ], kind


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
