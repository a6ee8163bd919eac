"""The Arrow layout of a feature data set: writes clips to it, and reads them back without Python lists."""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hf_blemo.rank_aware_fusion.label_space_rank_aware_fusion import BLEMORE_SPACE

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

logger = logging.getLogger(__name__)

_FEATURE_DTYPES = ("auto", "float16", "float32")

_SMALL_BYTES = 2**20


class Clip(NamedTuple):
    """One row of a feature data set.

    Args:
        name: clip name without directory and suffix.
        features: encoder -> (T, D), None where the clip lacks the encoder.
        labels: (C,) shares of the names, all -100 where unlabelled.
        fold: fold from 0, -1 where there is none.
        group: what the clip belongs to, such as its actor, where the data set keeps it.
    """

    name: str
    features: Mapping[str, np.ndarray | None]
    labels: np.ndarray
    fold: int
    group: str | None = None


class FeatureType(NamedTuple):
    """How a data set stores the features of one encoder.

    Args:
        width: D.
        dtype: "float16" or "float32".
    """

    width: int
    dtype: str

    @classmethod
    def of(cls, first: np.ndarray, feature_dtype: str) -> "FeatureType":
        """Chooses the type by an encoder's first array (T, D).

        `feature_dtype` is "float16"; "float32"; or "auto", which is float16 where the array fits its range. float16
        sources stay float16 in any case, since widening them adds nothing.
        """
        if feature_dtype not in _FEATURE_DTYPES:
            raise ValueError(f"feature_dtype: found {feature_dtype!r}, expected one of {', '.join(_FEATURE_DTYPES)}")
        narrow = first.dtype == np.float16 or feature_dtype == "float16"
        if feature_dtype == "auto":
            narrow = narrow or bool((np.abs(first) <= np.finfo(np.float16).max).all())
        return cls(first.shape[1], "float16" if narrow else "float32")

    def stored(self, array: np.ndarray, where: str | os.PathLike[str]) -> np.ndarray:
        """Converts one clip's features (T, D) to this dtype; refuses another width, no time step, and values that are
        not finite or do not fit, and names `where` they are from."""
        if array.shape[1] != self.width:
            raise ValueError(
                f"{where}: found features of width {array.shape[1]}, expected {self.width} as in the first clip"
            )
        if not len(array):
            raise ValueError(f"{where}: found no time step, expected at least one")
        if not np.isfinite(array).all():
            raise ValueError(f"{where}: found NaN or infinity, expected finite features")
        with np.errstate(over="ignore"):
            stored = array.astype(self.dtype)
        if stored.dtype.itemsize < array.dtype.itemsize and not np.isfinite(stored).all():
            raise ValueError(
                f"{where}: found {np.abs(array).max():g}, expected at most {np.finfo(self.dtype).max:g} as the data "
                f"set stores {self.dtype}; pass a wider feature_dtype"
            )
        return stored


def read_features(dataset: "datasets.Dataset", indices: Iterable[int] | None = None) -> list[dict[str, np.ndarray]]:
    """Reads the features of some clips straight from the Arrow buffers.

    Args:
        dataset: a data set with the nested column `features`.
        indices: rows to read, in this order; all by default.

    Returns:
        For each row: encoder -> (T, D) float32, without the encoders the clip lacks.

    Raises:
        ValueError: there is no nested column `features`, or an encoder's rows differ in width within a clip.
    """
    import pyarrow as pa

    _feature_types(dataset)
    rows: Any = range(len(dataset)) if indices is None else indices
    if not isinstance(rows, range):
        rows = [int(row) for row in rows]
    if not len(rows):
        return []
    column = dataset.with_format("arrow", columns=["features"])[rows].column("features")
    # Rows that are not neighbours come as one chunk each; joining small ones costs less than visiting every chunk.
    small = column.num_chunks > 1 and column.nbytes <= _SMALL_BYTES
    result: list[dict[str, np.ndarray]] = []
    for chunk in [pa.concat_arrays(column.chunks)] if small else column.chunks:
        first = len(result)
        result.extend({} for _ in range(len(chunk)))
        for field, values in zip(chunk.type, chunk.flatten(), strict=True):
            for row, array in enumerate(arrow_to_arrays(values, field.name), start=first):
                if array is not None:
                    result[row][field.name] = array.astype(np.float32)
    return result


def encoder_widths(dataset: "datasets.Dataset") -> dict[str, int]:
    """The width of every encoder's features.

    Args:
        dataset: a data set with the nested column `features`.

    Returns:
        Encoder -> D, in the order of the data set.

    Raises:
        ValueError: there is no nested column `features`, or an encoder has neither features nor a declared width.
    """
    widths = {name: _declared_width(feature) for name, feature in _feature_types(dataset).items()}
    unknown = {name for name, width in widths.items() if width is None}
    for row in range(len(dataset)):
        if not unknown:
            break
        for name, array in read_features(dataset, [row])[0].items():
            if name in unknown:
                widths[name] = array.shape[1]
                unknown.discard(name)
    if unknown:
        raise ValueError(f"encoder {sorted(unknown)[0]!r}: no clip has its features, expected at least one")
    return {name: width for name, width in widths.items() if width is not None}


def check_known_encoders(dataset: "datasets.Dataset", known: Iterable[str], what: str = "the data") -> None:
    """Refuses a data set without any encoder that a model knows; warns of those that one of the two lacks."""
    known, found = list(known), list(encoder_widths(dataset))
    ignored = [name for name in found if name not in known]
    absent = [name for name in known if name not in found]
    if len(ignored) == len(found):
        raise ValueError(f"found the encoders {', '.join(found)} in {what}, expected some of {', '.join(known)}")
    if ignored:
        logger.warning("ignored these encoders of %s, which the model does not know: %s", what, ", ".join(ignored))
    if absent:
        logger.warning("predicting without these encoders, which %s lacks: %s", what, ", ".join(absent))


def arrow_to_arrays(column: "pa.Array", where: str, nulls_as_nan: bool = False) -> list[np.ndarray | None]:
    """Views each row of a nested Arrow column as an array (T, D) of its memory, (1, D) for a vector, None for a null.

    Args:
        column: rows of vectors (D,), or of sequences of vectors (T, D), of any numeric type.
        nulls_as_nan: read nulls among numbers as NaN instead of refusing them.
    """
    import pyarrow as pa

    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    valid = column.is_valid().to_numpy(zero_copy_only=False)
    nested = is_list(column.type) and is_list(column.type.value_type)
    vectors = column.values if nested else column
    numbers = vectors.values if is_list(vectors.type) else vectors
    if numbers is vectors or not (pa.types.is_floating(numbers.type) or pa.types.is_integer(numbers.type)):
        raise ValueError(f"{where}: found {column.type}, expected vectors or sequences of vectors of numbers")
    flat = numbers.to_numpy(zero_copy_only=False)
    vector_starts = _starts(column) if nested else range(len(column) + 1)
    number_starts = _starts(vectors)

    arrays: list[np.ndarray | None] = []
    for row in range(len(column)):
        if not valid[row]:
            arrays.append(None)
            continue
        first_vector, last_vector = int(vector_starts[row]), int(vector_starts[row + 1])
        first, last = int(number_starts[first_vector]), int(number_starts[last_vector])
        length = last_vector - first_vector
        if not isinstance(number_starts, range):
            row_widths = np.diff(number_starts[first_vector : last_vector + 1])
            if length and (row_widths != row_widths[0]).any():
                raise ValueError(
                    f"{where}: row {row} has widths of {row_widths.min()} to {row_widths.max()}, expected one width"
                )
        if not nulls_as_nan and numbers.null_count and numbers.slice(first, last - first).null_count:
            raise ValueError(f"{where}: row {row} has an empty value among its numbers, expected numbers only")
        arrays.append(flat[first:last].reshape(length, (last - first) // length if length else 0))
    return arrays


def dataset_features(
    encoders: Mapping[str, tuple[int, str]], num_names: int = len(BLEMORE_SPACE.names), groups: bool = False
) -> "datasets.Features":
    """The column types of a feature data set, of encoders (D, "float16" or "float32") and C names: `clip` string,
    `features` encoder -> (T, D), `labels` C float32, `fold` int8, and with groups `group` string.

    A list of fixed-size lists is plain Arrow, so every reader supports it. It states the width in the schema, may be
    null as a whole, survives Parquet, and reads as fast as `datasets.Array2D`.
    """
    import datasets

    return datasets.Features(
        {
            "clip": datasets.Value("string"),
            "features": {
                name: datasets.List(datasets.List(datasets.Value(dtype), length=width))
                for name, (width, dtype) in encoders.items()
            },
            "labels": datasets.List(datasets.Value("float32"), length=num_names),
            "fold": datasets.Value("int8"),
            **({"group": datasets.Value("string")} if groups else {}),
        }
    )


def dataset_of(clips: Sequence[Clip], features: "datasets.Features") -> "datasets.Dataset":
    """Clips as a data set in memory."""
    import datasets
    import pyarrow as pa

    return datasets.Dataset(pa.Table.from_batches([encode_clips(clips, features.arrow_schema)]))


def encode_clips(clips: Sequence[Clip], schema: "pa.Schema") -> "pa.RecordBatch":
    """Lays clips, whose features have the widths and dtypes of the schema, out as one Arrow record batch."""
    import pyarrow as pa

    struct = schema.field("features").type
    labels = np.concatenate([clip.labels for clip in clips]).astype(np.float32)
    columns = [
        pa.array([clip.name for clip in clips], schema.field("clip").type),
        pa.StructArray.from_arrays(
            [_encode_column([clip.features.get(field.name) for clip in clips], field.type) for field in struct],
            fields=list(struct),
        ),
        pa.FixedSizeListArray.from_arrays(pa.array(labels), type=schema.field("labels").type),
        pa.array([clip.fold for clip in clips], schema.field("fold").type),
    ]
    if "group" in schema.names:
        columns.append(pa.array([clip.group for clip in clips], schema.field("group").type))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _encode_column(arrays: Sequence[np.ndarray | None], arrow_type: "pa.DataType") -> "pa.Array":
    import pyarrow as pa

    inner = arrow_type.value_type
    present = [array for array in arrays if array is not None]
    flat = np.concatenate([array.reshape(-1) for array in present]) if present else np.zeros(0)
    values = pa.FixedSizeListArray.from_arrays(pa.array(flat, type=inner.value_type), type=inner)
    offsets = np.cumsum([0, *(0 if array is None else len(array) for array in arrays)], dtype=np.int32)
    mask = pa.array([array is None for array in arrays])
    return pa.ListArray.from_arrays(pa.array(offsets), values, type=arrow_type, mask=mask)


def _feature_types(dataset: "datasets.Dataset") -> Mapping[str, Any]:
    feature = dataset.features.get("features")
    if not isinstance(feature, Mapping) or not feature:
        raise ValueError(f"found the columns {dataset.column_names}, expected a nested column 'features' of encoders")
    return feature


def _declared_width(feature: Any) -> int | None:
    """D as the type states it: `List(List(..., length=D))`, `List(..., length=D)` or `Array2D((T, D))`."""
    shape = getattr(feature, "shape", None)
    if shape is not None:
        return int(shape[-1])
    inner = getattr(feature, "feature", None)
    length = getattr(inner if hasattr(inner, "feature") else feature, "length", -1)
    return length if length > 0 else None


def _starts(column: "pa.Array") -> "range | np.ndarray":
    """Offsets of a list column's rows among its values, N + 1 numbers."""
    import pyarrow as pa

    if pa.types.is_fixed_size_list(column.type):
        size = column.type.list_size
        return range(column.offset * size, (column.offset + len(column) + 1) * size, size)
    return column.offsets.to_numpy()


def is_list(arrow_type: "pa.DataType") -> bool:
    """Whether an Arrow type is a list of any kind."""
    import pyarrow as pa

    types = pa.types
    return types.is_list(arrow_type) or types.is_large_list(arrow_type) or types.is_fixed_size_list(arrow_type)
