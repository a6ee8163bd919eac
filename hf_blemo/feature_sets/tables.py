"""Builds a data set from a table with one row per clip: Parquet, NumPy `.npz` or CSV."""

import hashlib
import logging
import os
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
from hf_blemo.errors import check_among, check_once, reading
from hf_blemo.rank_aware_fusion.label_space_rank_aware_fusion import BLEMORE_SPACE, LabelSpace

from .folds import check_classes, deal_folds, group_in_two_folds
from .label_reading import LabelOptions, columns_with_prefix, read_labels, read_votes
from .label_spaces import with_label_space
from .layout import Clip, FeatureType, dataset_features, dataset_of
from .table_files import IGNORED_COLUMNS, Table, Vectors, Wanted, read_table
from .writing import refuse_existing, write_dataset

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

CLIP_COLUMNS = ("clip", "filename", "filenames")
GROUP_COLUMNS = ("actor", "speaker", "subject", "group")
NAN_POLICIES = ("error", "missing")


def build_table_dataset(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    encoders: Sequence[str] | None = None,
    feature_dtype: str = "float32",
    require_labels: bool = True,
    overwrite: bool = False,
    progress: bool = False,
    label_column: str | None = None,
    label_prefix: str | None = None,
    names: Sequence[str] | None = None,
    label_kind: str = "valid",
    blend_percents: Sequence[Sequence[int] | str] | None = None,
    unblended: Sequence[str] = (),
    folds: int | None = None,
    group: str | None = None,
    seed: int = 0,
    clip_column: str | None = None,
    nan: str = "error",
) -> "datasets.Dataset":
    """Builds a data set from a table with one row per clip.

    The clip is in the column `clip`, `filename` or `filenames`, a word or a number; `fold` is optional. Every column
    of vectors is an encoder:

    - Parquet: list columns of D numbers or of (T, D), and the nested column `features` of a data set of this package;
    - `.npz`: arrays (N, D) or (N, T, D); the array `X` of the official aggregation is named after the file;
    - CSV: the columns `<encoder>.0`, `<encoder>.1`, ... or `<encoder>_0`, ...

    Labels are in `label_column` or in the columns with `label_prefix`. Without either they are BlEmoRE's: in the
    column `labels` (6 numbers), or else in the clips' names. Other columns are left out, and named in one line of the
    log.

    Args:
        path: the table.
        output: folder to make, readable by `datasets.load_from_disk`; by default the data set stays in memory.
        encoders: the columns to take, in this order; all by default.
        feature_dtype: "float32", which keeps float16 sources; "float16"; or "auto", float16 where the first clip fits.
        require_labels: without a column of labels, refuse clips without BlEmoRE's label, test clips aside, and clips
            without any features; otherwise they are unlabelled, and a prediction says that they have none.
        overwrite: replace the data set at `output`.
        progress: show a progress bar.
        label_column, label_prefix, names, label_kind, blend_percents, unblended: where labels are and how they are
            read, see `LabelOptions`.
        folds: deal the labelled clips into so many folds, even in size and labels, in place of the table's own.
        group: column of what stays within one fold, such as the actor; kept as the column `group`. By default the
            actor of BlEmoRE's names where folds are dealt, and a column `actor`, `speaker`, `subject` or `group` of
            which no value is in two of the table's own folds.
        seed: of the folds.
        clip_column: column of the clips' names.
        nan: "error" refuses NaN, infinity and empty values within a vector; "missing" takes the encoder for missing
            in that row.

    Returns:
        The data set: `clip`, `features`, `labels`, `fold`, and `group` where groups are known.

    Raises:
        FileNotFoundError: there is no such table.
        FileExistsError: `output` is there and `overwrite` is not given.
        ValueError: the table is damaged, lacks a column, names a clip twice, or holds an invalid label or feature; a
            group is in two folds, or a class in one alone; the message names the column and the clip.
    """
    path = Path(path)
    if output is not None:
        refuse_existing(Path(output), overwrite)
    if nan not in NAN_POLICIES:
        raise ValueError(f"nan: found {nan!r}, expected one of {', '.join(NAN_POLICIES)}")
    options = LabelOptions(label_column, label_prefix, names, label_kind, blend_percents, unblended)
    with reading(path, "a table of clips"):
        table = read_table(path, wanted_columns(options, clip_column, group))
        clip_names = _names(table, path, clip_column)
        _check_columns(table, len(clip_names), path, options, clip_column, group)
        found = read_label_columns(table, clip_names, path, options, folds, group, seed, require_labels)
        columns, types = _encoders(table, clip_names, path, encoders, feature_dtype, nan, require_labels)
        _say_left_out(table, {*CLIP_COLUMNS, "fold", clip_column, *found.columns}, path)
        clips = [
            Clip(
                name,
                {encoder: column[row] for encoder, column in columns.items()},
                found.labels[row],
                int(found.folds[row]),
                found.groups[row],
            )
            for row, name in enumerate(clip_names)
        ]
    features = dataset_features(types, len(found.space.names), found.has_groups)
    if output is None:
        return with_label_space(dataset_of(clips, features), found.space, label_kind)
    plan: dict[str, Any] = {
        "table": path.name,
        "feature_dtype": feature_dtype,
        "encoders": {name: list(kind) for name, kind in types.items()},
        "table_digest": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    read_by = {"labels": vars(options), "folds": folds, "group": group, "clip": clip_column, "nan": nan}
    if options.given or folds is not None or group is not None or clip_column is not None or nan != "error":
        plan["read_by"] = {**read_by, "seed": seed}
    return write_dataset(
        Path(output), features, len(clips), clips.__getitem__, plan, overwrite, progress, (found.space, label_kind)
    )


class LabelColumns(NamedTuple):
    """Labels, folds and groups of the clips of a table.

    Args:
        labels: (N, C) shares, -100 where unlabelled.
        folds: (N,), -1 for none.
        groups: N names; None for a clip without one.
        columns: of the table that were read for these.
    """

    space: LabelSpace
    labels: np.ndarray
    folds: np.ndarray
    groups: list[str | None]
    columns: set[str | None]

    @property
    def has_groups(self) -> bool:
        """Whether any clip has a group."""
        return any(group is not None for group in self.groups)


def read_label_columns(
    table: Table,
    names: Sequence[str],
    path: Path,
    options: LabelOptions,
    folds: int | None = None,
    group: str | None = None,
    seed: int = 0,
    require_labels: bool = True,
) -> LabelColumns:
    """Reads what a table says of its clips apart from their features; options and errors as of
    `build_table_dataset`."""
    columns: set[str | None] = {options.column}
    if options.given:
        space, labels = _labels_of_columns(table, names, path, options)
        columns |= set(columns_with_prefix(table.singles, options.prefix)) if options.prefix is not None else set()
    else:
        space, labels = BLEMORE_SPACE, _blemore_labels(table, names, path, require_labels)
        columns |= {"labels"} if "labels" in table.vectors and _is_blemore_width(table.vectors["labels"]) else set()
    dealt = _own_folds(table, names, path)
    kept, groups = _groups(table, names, labels, dealt, path, group, folds is not None)
    if folds is not None:
        if (dealt >= 0).any():
            logger.warning("%s: the column 'fold' is replaced by %d folds that are dealt anew", path, folds)
        known = None if groups is None else ["" if name is None else name for name in groups]
        try:
            dealt = deal_folds(labels, known, folds, seed)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    if options.given:
        check_classes(space.names, labels, dealt, str(path))
    return LabelColumns(space, labels, dealt, [None] * len(names) if groups is None else groups, columns | {kept})


def wanted_columns(options: LabelOptions, clip_column: str | None = None, group: str | None = None) -> Wanted:
    """The columns of a table that hold no vectors and that `build_table_dataset` reads."""
    texts = {*CLIP_COLUMNS, *GROUP_COLUMNS, clip_column, group} - {None}
    numbers = {"fold"} if options.given else {"fold", "labels"}
    return Wanted(frozenset(filter(None, texts)), frozenset(numbers), options.column, options.prefix)


def _names(table: Table, path: Path, clip_column: str | None) -> list[str]:
    chosen = CLIP_COLUMNS if clip_column is None else (clip_column,)
    column = next((column for column in chosen if column in table.singles), None)
    if column is None:
        for taken in chosen:
            if taken in table.vectors:
                raise ValueError(f"{path}: found vectors in the column {taken!r}, expected single values")
        raise ValueError(
            f"{path}: found the columns {', '.join([*table.singles, *table.vectors, *table.others])}, "
            f"expected one of {', '.join(chosen)} with the clips' names"
            + ("; --clip-column names another" if clip_column is None else "")
        )
    names: list[str] = []
    for row, value in enumerate(table.singles[column]):
        name = clip_name(value) if isinstance(value, str) else _word(value)
        if not name:
            raise ValueError(f"{path}, column {column!r}: row {row} is {value!r}, expected a clip name")
        names.append(name)
    if not names:
        raise ValueError(f"{path}: found no clip, expected at least one")
    check_once(f"{path}: clip", names)
    return names


def _word(value: Any) -> str | None:
    """A single value as a word; None where it is empty."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return None if value is None or value != value or value == "" else str(value)


def _check_columns(
    table: Table, num_rows: int, path: Path, options: LabelOptions, clip_column: str | None, group: str | None
) -> None:
    lengths = {name: len(column) for name, column in (*table.singles.items(), *table.vectors.items())}
    for name, length in lengths.items():
        if length != num_rows:
            raise ValueError(f"{path}: found {length} rows of {name!r} and {num_rows} clips, expected equal numbers")
    for single in (*CLIP_COLUMNS, "fold", clip_column, group):
        if single in table.vectors:
            raise ValueError(f"{path}: found vectors in the column {single!r}, expected single values")
    table.check_has(str(path), group, options.column)


def _labels_of_columns(
    table: Table, names: Sequence[str], path: Path, options: LabelOptions
) -> tuple[LabelSpace, np.ndarray]:
    if options.prefix is not None:
        columns = columns_with_prefix(table.singles, options.prefix)
        if not columns:
            raise ValueError(
                f"{path}: found the columns {', '.join([*table.singles, *table.vectors, *table.others])}, expected "
                f"single numbers in some that begin with {options.prefix!r}"
            )
        return read_votes({name: table.singles[column] for column, name in columns.items()}, names, options, str(path))
    assert options.column is not None
    values = table.singles[options.column]
    if table.classes is not None:
        # Sets of classes are lists of their indices.
        values = [[table.classes[place] for place in value] if isinstance(value, list) else value for value in values]
    return read_labels(values, names, options, str(path), table.classes)


def _is_blemore_width(column: Vectors) -> bool:
    return all(row is None or row.shape[1] == len(EMOTIONS) for row in column)


def _blemore_labels(table: Table, names: Sequence[str], path: Path, require_labels: bool) -> np.ndarray:
    column: Vectors = table.vectors.get("labels", [None] * len(names))
    if require_labels and "labels" in table.singles:
        raise ValueError(
            f"{path}: found single values in the column 'labels', expected {len(EMOTIONS)} numbers each; "
            "--label-column labels reads them"
        )
    if not require_labels and not _is_blemore_width(column):
        column = [None] * len(names)
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
                raise ValueError(
                    f"{path}: found no column 'labels' and no label in a name: {error}; --label-column or "
                    "--label-prefix names the columns of other labels"
                ) from None
        labels.append(named)
    return np.stack(labels)


def _given_label(given: np.ndarray, named: np.ndarray, where: str) -> np.ndarray:
    try:
        indices = label_indices(given)
    except ValueError as error:
        raise ValueError(f"{where}: {error}; --label-column labels with --names reads labels of other names") from None
    if len(indices) != 1:
        raise ValueError(f"{where}: found {len(indices)} labels, expected one")
    label = np.full(len(EMOTIONS), UNLABELLED) if indices[0] < 0 else LABEL_MATRIX[indices[0]]
    if UNLABELLED not in (label[0], named[0]) and (label != named).any():
        raise ValueError(f"{where}: found the label {label.tolist()}, expected {named.tolist()} as in the name")
    return label


def _own_folds(table: Table, names: Sequence[str], path: Path) -> np.ndarray:
    folds = []
    for name, fold in zip(names, table.singles.get("fold", [None] * len(names)), strict=True):
        if fold is None or fold != fold:
            folds.append(-1)
        elif isinstance(fold, (int, float)) and float(fold).is_integer() and -1 <= fold <= 127:
            folds.append(int(fold))
        else:
            raise ValueError(f"{path}: clip {name!r} has the fold {fold!r}, expected a whole number from 0, or -1")
    return np.array(folds)


def _groups(
    table: Table,
    names: Sequence[str],
    labels: np.ndarray,
    folds: np.ndarray,
    path: Path,
    column: str | None,
    are_dealt: bool,
) -> tuple[str | None, list[str | None] | None]:
    """The column of groups and the group of each clip, where they are given or known."""
    if column is not None:
        groups = list(map(_word, table.singles[column]))
        if None in groups:
            raise ValueError(f"{path}: clip {names[groups.index(None)]!r} has no {column}, expected a group")
        split = None if are_dealt else group_in_two_folds(groups, folds)
        if split is not None:
            raise ValueError(
                f"{path}: found {column} {split[0]!r} in the folds {', '.join(map(str, split[1]))}, expected a group "
                "in one fold only; --folds deals them anew"
            )
        return column, groups
    if are_dealt:
        actors = [_actor(name) for name in names]
        labelled = [actors[row] for row in np.flatnonzero((labels >= 0).all(1)).tolist()]
        if labelled and None not in labelled:
            return None, actors
        hint = next(
            (f"; --group {name} would keep each {name} in one" for name in GROUP_COLUMNS if name in table.singles), ""
        )
        logger.warning("%s: folds are dealt by label alone and are not group-disjoint%s", path, hint)
        return None, None
    leak = None
    if (folds >= 0).any():
        for name in GROUP_COLUMNS:
            groups = list(map(_word, table.singles.get(name, [None])))
            if None in groups:
                continue
            split = group_in_two_folds(groups, folds)
            if split is None:
                if name != "group":
                    logger.warning("%s: the column %r is kept as `group`; no value of it is in two folds", path, name)
                return name, groups
            leak = leak or (path, name, split[0], ", ".join(map(str, split[1])), name)
    if leak:
        logger.warning(
            "%s: %s %r is in the folds %s, so they are not group-disjoint; --folds with --group %s deals anew",
            *leak,
        )
    return None, None


def _actor(name: str) -> str | None:
    try:
        return parse_clip_name(name).actor
    except ValueError:
        return None


def _encoders(
    table: Table,
    names: Sequence[str],
    path: Path,
    encoders: Sequence[str] | None,
    feature_dtype: str,
    nan: str,
    require: bool,
) -> tuple[dict[str, Vectors], dict[str, FeatureType]]:
    vectors = {name: column for name, column in table.vectors.items() if name != "labels"}
    unnamed = next((name for name in vectors if not name or not name.isprintable()), None)
    if unnamed is not None:
        raise ValueError(f"{path}: found vectors in the column {unnamed!r}, expected the name of an encoder")
    check_among(str(path), "encoders", vectors, encoders or ())
    chosen = list(vectors) if encoders is None else list(encoders)
    if not chosen:
        found = ", ".join([*table.singles, *table.others])
        raise ValueError(f"{path}: found no encoder among {found}, expected at least one column of vectors of numbers")
    columns: dict[str, Vectors] = {}
    types: dict[str, FeatureType] = {}
    dropped: dict[str, int] = {}
    for encoder in chosen:
        where, column = f"{path}, {encoder!r}", vectors[encoder]
        broken = {row for row, array in enumerate(column) if array is not None and not np.isfinite(array).all()}
        if broken and nan == "error":
            raise ValueError(
                f"{where}, clip {names[min(broken)]!r}: found NaN or infinity or an empty value, expected finite "
                "features; --nan missing takes the encoder for missing in such rows"
            )
        if broken:
            column = [None if row in broken else array for row, array in enumerate(column)]
            dropped[encoder] = len(broken)
        if require or any(array is not None for array in column):
            columns[encoder], types[encoder] = _encoder(column, names, where, feature_dtype)
    if not columns:
        raise ValueError(f"{path}: found no features of any clip, expected some in {', '.join(chosen)}")
    if dropped:
        counts = ", ".join(f"{encoder} in {count}" for encoder, count in dropped.items())
        logger.warning("%s: taken as missing for NaN or infinity, of %d rows: %s", path, len(names), counts)
    for row, name in enumerate(names):
        if require and all(column[row] is None for column in columns.values()):
            raise ValueError(f"{path}: clip {name!r} has no features of any encoder, expected at least one")
    return columns, types


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


def _say_left_out(table: Table, used: set[str | None], path: Path) -> None:
    singles = [name for name in (*table.singles, *table.others) if name not in used | IGNORED_COLUMNS]
    if "labels" in table.vectors and "labels" not in used:
        singles.append("labels")
    if singles:
        logger.warning(
            "%s: left out the columns %s, which are neither vectors nor clip, fold, label or group",
            path, ", ".join(singles),
        )  # fmt: skip
