"""Reads the file of a table into its columns: Parquet, NumPy `.npz` or CSV."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hf_blemo.errors import check_among, check_once, reading
from hf_blemo.files import limits

from .distribution import METADATA_COLUMNS
from .layout import arrow_to_arrays, is_list

if TYPE_CHECKING:
    import pyarrow as pa

TABLE_SUFFIXES = (".parquet", ".npz", ".csv")
IGNORED_COLUMNS = {*METADATA_COLUMNS, "__index_level_0__"}

_NUMBERED_COLUMN = re.compile(r"(?P<name>.+)[._](?P<number>[0-9]+)")
Vectors = list[np.ndarray | None]


class Wanted(NamedTuple):
    """Which columns of a table hold no vectors but are to be read.

    Args:
        texts: columns of words, which CSV would take for numbers or dates.
        numbers: other columns of single values.
        labels: column of labels in any form.
        prefix: of columns with votes.
    """

    texts: frozenset[str]
    numbers: frozenset[str]
    labels: str | None
    prefix: str | None

    def __contains__(self, name: object) -> bool:
        return name in self.texts or name in self.numbers or name == self.labels or self.has_prefix(name)

    def has_prefix(self, name: Any) -> bool:
        """Whether a column holds votes."""
        return self.prefix is not None and name.startswith(self.prefix) and name != self.prefix


class Table(NamedTuple):
    """The columns of a table.

    Args:
        singles: one value per row, of the columns that are wanted.
        vectors: one (T, D) array or None per row.
        others: columns that are neither, by name alone.
        classes: names of the class indices in the column of labels, where the file gives them.
    """

    singles: dict[str, list[Any]]
    vectors: dict[str, Vectors]
    others: list[str]
    classes: list[str] | None = None

    def check_has(self, where: str, *columns: str | None) -> None:
        """Refuses a table without single values in these columns, and names all that are missing."""
        others = [name for name in (*self.vectors, *self.others) if name not in columns]
        check_among(where, "columns", [*self.singles, *others], columns)


def read_table(path: Path, wanted: Wanted) -> Table:
    """Reads a `.parquet`, `.npz` or `.csv` into its columns; empty values within vectors are NaN."""
    if path.suffix not in TABLE_SUFFIXES:
        raise ValueError(f"{path}: found the suffix {path.suffix!r}, expected one of {', '.join(TABLE_SUFFIXES)}")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, expected a table of clips")
    read, form = {
        ".parquet": (_read_parquet, "Parquet"),
        ".npz": (_read_npz, "NumPy arrays without pickled objects"),
        ".csv": (_read_csv, "CSV"),
    }[path.suffix]
    with reading(path, f"a table of clips in {form}"):
        return read(path, wanted)


def _read_parquet(path: Path, wanted: Wanted) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    columns: list[tuple[str, pa.Array]] = []
    for name, column in zip(table.column_names, table.columns, strict=True):
        array = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
        if name == "features" and pa.types.is_struct(array.type):
            columns.extend(zip((field.name for field in array.type), array.flatten(), strict=True))
        else:
            columns.append((name, array))
    check_once(f"{path}: column", (name for name, _ in columns))
    found = Table({}, {}, [])
    for name, array in columns:
        if name != wanted.labels and _holds_vectors(array.type):
            found.vectors[name] = arrow_to_arrays(array, f"{path}, column {name!r}", nulls_as_nan=True)
        elif name in wanted:
            found.singles[name] = array.to_pylist()
        else:
            found.others.append(name)
    if wanted.labels in found.singles:
        feature = _stored_features(table.schema.metadata).get(wanted.labels)
        within = feature.get("feature") if isinstance(feature, Mapping) else (feature or [None])[0]
        for entry in (feature, within):
            if isinstance(entry, Mapping) and entry.get("_type") == "ClassLabel" and entry.get("names"):
                return found._replace(classes=list(entry["names"]))
    return found


def _stored_features(metadata: Any) -> Mapping[str, Any]:
    """What `datasets` wrote of the columns."""
    try:
        return json.loads((metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}


def _holds_vectors(arrow_type: "pa.DataType") -> bool:
    import pyarrow as pa

    inner = getattr(arrow_type, "storage_type", arrow_type)
    depth = 0
    while is_list(inner):
        inner, depth = inner.value_type, depth + 1
    return depth in (1, 2) and (pa.types.is_floating(inner) or pa.types.is_integer(inner))


def _read_npz(path: Path, wanted: Wanted) -> Table:
    with np.load(path, allow_pickle=False) as archive:
        unpacked, packed = sum(entry.file_size for entry in archive.zip.infolist()), path.stat().st_size
        if unpacked > max(2**30, limits().max_inflation * packed):
            excess = f"{unpacked:,} bytes of arrays in {packed:,}, {unpacked / packed:,.0f} times as many"
            raise ValueError(limits().excess(str(path), excess, "max_inflation"))
        check_once(f"{path}: column", archive.files)
        arrays = {name: archive[name] for name in archive.files}
    found = Table({}, {}, [])
    for name, array in arrays.items():
        if array.ndim in (2, 3) and array.dtype.kind in "fiu" and name != wanted.labels:
            found.vectors[path.stem if name == "X" else name] = list(array if array.ndim == 3 else array[:, None, :])
        elif array.ndim and name in wanted:
            values = list(array) if array.ndim > 1 else array.tolist()
            found.singles[name] = [value.decode() if isinstance(value, bytes) else value for value in values]
        else:
            found.others.append(name)
    return found


def _read_csv(path: Path, wanted: Wanted) -> Table:
    import pyarrow as pa
    import pyarrow.csv

    texts = {*wanted.texts, *([wanted.labels] if wanted.labels is not None else [])}
    options = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(texts, pa.string()))
    table = pyarrow.csv.read_csv(path, convert_options=options)
    check_once(f"{path}: column", table.column_names)
    found = Table({}, {}, [])
    groups: dict[str, dict[int, tuple[str, pa.ChunkedArray]]] = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        match = _NUMBERED_COLUMN.fullmatch(name)
        if name in wanted:
            found.singles[name] = column.to_pylist()
        elif name in IGNORED_COLUMNS or match is None:
            found.others.append(name)
        else:
            group, number = groups.setdefault(match["name"], {}), int(match["number"])
            if number in group:
                raise ValueError(f"{path}: found the columns {group[number][0]!r} and {name!r}, expected one of them")
            group[number] = name, column
    for name, group in groups.items():
        types = {column: values.type for column, values in group.values()}
        numeric = {column: _is_number(arrow_type) for column, arrow_type in types.items()}
        if not any(numeric.values()) or (len(group) == 1 and 0 not in group):
            found.others.extend(types)
            continue
        if not all(numeric.values()):
            wrong = next(column for column, is_number in numeric.items() if not is_number)
            raise ValueError(f"{path}, column {wrong!r}: found {types[wrong]}, expected numbers")
        if sorted(group) != list(range(len(group))):
            absent = min(set(range(len(group))) - set(group))
            raise ValueError(f"{path}: found {len(group)} columns of {name!r}, expected number {absent} among them")
        matrix = np.stack([group[number][1].cast(pa.float64()).to_numpy() for number in range(len(group))], axis=1)
        found.vectors[name] = [None if np.isnan(row).all() else row[None] for row in matrix]
    return found


def _is_number(arrow_type: "pa.DataType") -> bool:
    import pyarrow as pa

    return pa.types.is_floating(arrow_type) or pa.types.is_integer(arrow_type) or pa.types.is_null(arrow_type)
