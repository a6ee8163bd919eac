"""Clips of a folder, a list or a data set, with their names, labels and folds."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hf_blemo import blemore
from hf_blemo.errors import check_among, check_once, check_regular, readable, without_secrets
from hf_blemo.feature_sets.distribution import METADATA_FILE, read_metadata
from hf_blemo.feature_sets.feature_files import read_csv
from hf_blemo.feature_sets.label_reading import LabelOptions
from hf_blemo.feature_sets.table_files import Table, Wanted
from hf_blemo.feature_sets.tables import read_label_columns, wanted_columns
from hf_blemo.feature_sets.writing import is_dataset_folder
from hf_blemo.loading import load_dataset
from hf_blemo.media import is_address, is_media
from hf_blemo.programs.fingerprints import fingerprint
from hf_blemo.rank_aware_fusion.label_space_rank_aware_fusion import LabelSpace

if TYPE_CHECKING:
    import datasets

KINDS = ("video", "audio")

_COLUMN_TYPES = {"video": "Video", "audio": "Audio"}


@dataclass(eq=False)
class MediaClip:
    """A clip of picture, sound or both that is not decoded yet.

    Args:
        name: in results and messages.
        source: path, address, bytes or open file; or a function that gives one of these, or a pair (source, sound),
            when it is needed.
        sound: source of the sound, where it is in a file of its own.
        labels: (C,) shares, all -100 where unlabelled; by default BlEmoRE's, those in the name, if any.
        fold: fold from 0, -1 where there is none.
        group: what it belongs to, such as its actor, where that is known.
    """

    name: str
    source: Any
    sound: Any = None
    labels: np.ndarray = None  # type: ignore[assignment]
    fold: int = -1
    group: str | None = None

    def __post_init__(self) -> None:
        self.name = readable(self.name)
        if self.labels is None:
            self.labels = blemore.soft_label(self.name, required=False)

    def files(self) -> list[tuple[Any, tuple[str, ...]]]:
        """The sources to decode, and which of `video` and `audio` to take from each; raises what the function of a
        source does."""
        source, sound = self.source() if callable(self.source) else self.source, self.sound
        if isinstance(source, tuple):
            source, sound = source
        if sound is None:
            return [(source, KINDS)]
        return [(source, KINDS[:1]), (sound, KINDS[1:])]

    def identity(self) -> list[Any]:
        """What tells its files from others of the same names: for each file its size and time, or a hash of bytes,
        or the address; None for a file that is gone."""
        found: list[Any] = []
        for source, _ in self.files():
            if isinstance(source, bytes):
                found.append(fingerprint(source))
            elif isinstance(source, str | Path) and not is_address(source):
                stat = Path(source).stat() if Path(source).exists() else None
                found.append(stat and [stat.st_size, stat.st_mtime_ns])
            else:
                found.append(str(getattr(source, "name", source)))
        return found


def as_clip(item: Any, number: int = 0) -> MediaClip:
    """Makes a clip of anything that holds one, named after its file.

    Args:
        item: a [`MediaClip`], which is returned as it is; a path, an address, bytes or an open file; or a row of a
            data set with `video`, `audio` or both, and optionally `clip`, its name. A file in a row is its path, its
            bytes, or a dictionary of the two; a row without a file becomes a clip that cannot be read.
        number: place among the inputs; an item without a name is called `clip N`.
    """
    if isinstance(item, MediaClip):
        return item
    if not isinstance(item, Mapping):
        return MediaClip(_file_name(item) or f"clip {number}", item)
    columns = {kind: kind for kind in KINDS if kind in item}
    values = [item[kind] for kind in columns]
    paths = [value.get("path") if isinstance(value, Mapping) else value for value in values]
    name = str(item.get("clip") or next(filter(None, map(_file_name, paths)), f"clip {number}"))
    return MediaClip(name, partial(_row_files, item, columns, name))


def _file_name(source: Any) -> str:
    """Name of a file without folders and suffix; empty where it has none."""
    source = getattr(source, "name", None) if hasattr(source, "read") else source
    if not isinstance(source, str | Path):
        return ""
    return Path(without_secrets(str(source)) if is_address(source) else source).stem


class Reading(NamedTuple):
    """How labels, folds and groups of clips are read from columns of a list or data set.

    Args:
        options: columns of the labels, which are given, and how to read them.
        folds, group, seed: as `feature_sets.build_table_dataset` takes them.
    """

    options: LabelOptions
    folds: int | None = None
    group: str | None = None
    seed: int = 0


def find_labelled_clips(
    source: str | os.PathLike[str],
    reading: Reading,
    split: str = "train",
    video_column: str | None = None,
    audio_column: str | None = None,
) -> tuple[list[MediaClip], LabelSpace]:
    """Lists clips with labels of any space, without opening any, as `find_clips` lists others; and the label space.

    The source is a `.csv` or data set with the columns of labels, which `feature_sets.build_table_dataset` could read.
    """
    wanted = wanted_columns(reading.options, group=reading.group)
    clips, table = _found(source, split, video_column, audio_column, wanted)
    names = [clip.name for clip in clips]
    if table is None:
        raise ValueError(f"{source}: found clips without columns, expected a .csv or data set with columns of labels")
    where = Path(source)
    table.check_has(str(source), reading.options.column, reading.group)
    found = read_label_columns(table, names, where, reading.options, reading.folds, reading.group, reading.seed)
    for row, clip in enumerate(clips):
        clip.labels, clip.fold, clip.group = found.labels[row], int(found.folds[row]), found.groups[row]
    return clips, found.space


def find_clips(
    source: str | os.PathLike[str],
    split: str = "train",
    video_column: str | None = None,
    audio_column: str | None = None,
) -> list[MediaClip]:
    """Lists clips, without opening any.

    Args:
        source: a folder of clips, searched through all its sub-folders but hidden ones; with `train_metadata.csv` of
            BlEmoRE in it, exactly the clips named there, with their labels and folds. Or one clip; a `.csv` with a
            column `video` or `audio` of paths, from the folder it is in, or addresses, and optionally `clip` of names;
            a saved data set; the id of a data set on the Hub.
        split: of a data set on the Hub.
        video_column, audio_column: of a list or data set; those named so or of these types by default. A row with
            both has its picture in one file and its sound in the other.

    Returns:
        The clips. Labels come from a column `labels`, else from the names where they carry one.

    Raises:
        FileNotFoundError: the source does not exist, or a clip of the metadata is missing.
        ValueError: no clip, two of one name, a missing column, or invalid labels.
    """
    return _found(source, split, video_column, audio_column)[0]


def _found(
    source: str | os.PathLike[str],
    split: str,
    video_column: str | None,
    audio_column: str | None,
    wanted: Wanted | None = None,
) -> tuple[list[MediaClip], Table | None]:
    """The clips; and what is wanted of their columns, where they have columns."""
    path, table = Path(source), None
    if path.is_dir() and not is_dataset_folder(path):
        clips = _folder_clips(path)
    elif path.is_file() and path.suffix == ".csv":
        clips, table = _list_clips(path, video_column, audio_column, wanted)
    elif path.is_file():
        clips = [MediaClip(path.stem, path)]
    else:
        # Not before: whatever lies in a folder of clips is a clip of its own, with its own error.
        check_regular(path, "clips")
        import datasets

        where = os.fspath(source)
        dataset: Any = (
            datasets.Dataset.load_from_disk(where) if path.is_dir() else load_dataset(where, where, split=split)
        )
        clips, table = _dataset_clips(dataset, where, video_column, audio_column, wanted)
    if not clips:
        raise ValueError(f"{source}: found no clip, expected at least one")
    check_once(f"{source}: clip", [clip.name for clip in clips])
    return clips, table


def _folder_clips(folder: Path) -> list[MediaClip]:
    found = sorted(path for path in folder.rglob("*") if is_media(path) and not path.is_dir())
    files = [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    if not (folder / METADATA_FILE).is_file():
        return [MediaClip(path.stem, path) for path in files]
    by_name: dict[str, list[Path]] = {}
    for path in files:
        by_name.setdefault(path.stem, []).append(path)
    clips, rows = [], read_metadata(folder / METADATA_FILE)
    missing = [repr(name) for name, _, _ in rows if name not in by_name]
    if missing:
        raise FileNotFoundError(
            f"{folder}: found no file of {len(missing)} of the {len(rows)} clips that {METADATA_FILE} names: "
            f"{', '.join(missing)}; fetch them, or delete their rows"
        )
    for name, labels, fold in rows:
        path, *others = by_name[name]
        if others:
            raise ValueError(f"{folder}: found {path} and {others[0]}, expected one file of clip {name!r}")
        clips.append(MediaClip(name, path, labels=labels, fold=fold))
    return clips


def _list_clips(
    path: Path, video_column: str | None, audio_column: str | None, wanted: Wanted | None
) -> tuple[list[MediaClip], Table]:
    columns, rows = read_csv(path)
    chosen = _chosen_columns(str(path), columns, {}, video_column, audio_column)
    clips = []
    for number, row in rows:
        texts = {kind: text for kind, column in chosen.items() if (text := (row[column] or "").strip())}
        if not texts:
            raise ValueError(f"{path}, line {number}: found no path in {' or '.join(chosen.values())}")
        files = [text if is_address(text) else path.parent / text for text in texts.values()]
        name = blemore.clip_name((row.get("clip") or "").strip()) or _file_name(next(iter(texts.values())))
        clips.append(MediaClip(name, files[0], files[1] if len(files) > 1 else None))
    table = Table({}, {}, [])
    for column in columns:
        if wanted is None or column not in wanted:
            table.others.append(column)
            continue
        is_text = column in wanted.texts or column == wanted.labels
        cells = [(row[column] or "").strip() or None for _, row in rows]
        table.singles[column] = cells if is_text else list(map(_number, cells))
    return clips, table


def _number(cell: str | None) -> float | str | None:
    try:
        return None if cell is None else float(cell)
    except ValueError:
        return cell


def _dataset_clips(
    dataset: "datasets.Dataset",
    where: str,
    video_column: str | None,
    audio_column: str | None,
    wanted: Wanted | None,
) -> tuple[list[MediaClip], Table]:
    dataset, columns = undecoded(dataset, where, video_column, audio_column)
    table = Table({}, {}, [])
    for column in dataset.column_names:
        if wanted is None or column not in wanted or column in columns.values():
            table.others.append(column)
        else:
            table.singles[column] = dataset[column][:]
            table = table._replace(classes=_classes(dataset, column) if column == wanted.labels else table.classes)
    # Labels and folds of these columns are read above, if at all, where something is wanted.
    kept = ["clip"] if wanted is not None else ["clip", "labels", "fold"]
    kept = [name for name in kept if name in dataset.column_names]
    known = dataset.select_columns(kept) if kept else None
    files = dataset.select_columns(list(columns.values()))
    clips = []
    for row in range(len(dataset)):
        values = known[row] if known is not None else {}
        name = blemore.clip_name(str(values.get("clip") or "")) or _stored_name(files, row) or f"clip_{row:06d}"
        fold = -1 if values.get("fold") is None else int(values["fold"])
        source = partial(_stored_files, files, row, columns, name)
        clips.append(MediaClip(name, source, labels=_label(values.get("labels"), name, where), fold=fold))
    return clips, table


def _classes(dataset: "datasets.Dataset", column: str) -> list[str] | None:
    """Names of a column's class indices, where it has `ClassLabel`s or lists of these."""
    feature = dataset.features[column]
    names = getattr(feature, "names", None) or getattr(getattr(feature, "feature", None), "names", None)
    return None if names is None else list(names)


def _label(labels: Any, name: str, where: str) -> Any:
    if labels is None:
        return None
    expected = f"expected the saliences of {len(blemore.EMOTIONS)} emotions; label_column labels reads others"
    try:
        label = np.asarray(labels, np.float64)
    except (ValueError, TypeError):
        raise ValueError(f"{where}: clip {name!r} has the labels {labels!r}, {expected}") from None
    if label.shape != (len(blemore.EMOTIONS),):
        raise ValueError(f"{where}: clip {name!r} has the labels {labels!r}, {expected}")
    return label


def undecoded(
    dataset: Any, where: str = "data set", video_column: str | None = None, audio_column: str | None = None
) -> tuple[Any, dict[str, str]]:
    """Finds the columns of a data set, streamed or not, that hold clips, and keeps `datasets` from decoding them.

    Args:
        where: name of the data set in errors.
        video_column, audio_column: as `find_clips` takes them.

    Returns:
        The data set, and its column for `video`, `audio` or both, of which there is one at least.
    """
    import datasets

    # A stream may not know its columns.
    features, known = dataset.features or {}, dataset.column_names or KINDS
    types = {name: type(feature).__name__ for name, feature in features.items()}
    columns = _chosen_columns(where, known, types, video_column, audio_column)
    for column in columns.values():
        if types.get(column) in _COLUMN_TYPES.values():
            dataset = dataset.cast_column(column, getattr(datasets, types[column])(decode=False))
    return dataset, columns


def _chosen_columns(
    where: str, names: Iterable[str], types: dict[str, str], video_column: str | None, audio_column: str | None
) -> dict[str, str]:
    """`video`, `audio` or both -> name of the column: the given one, else by name, else by type."""
    names = list(names)
    check_among(where, "columns", names, (video_column, audio_column))
    chosen = {}
    for kind, given in zip(KINDS, (video_column, audio_column), strict=True):
        if given is not None:
            chosen[kind] = given
        else:
            typed = [name for name in names if types.get(name) == _COLUMN_TYPES[kind]]
            if kind in names or typed:
                chosen[kind] = kind if kind in names else typed[0]
    if not chosen:
        raise ValueError(f"{where}: found the columns {', '.join(names)}, expected one of videos or of sound")
    return chosen


def _stored_name(dataset: "datasets.Dataset", row: int) -> str:
    """Name of the first file of a row that has one, without reading the files."""
    import pyarrow.compute as pc
    from pyarrow import types

    for column in dataset.with_format("arrow")[row].columns:
        if types.is_struct(column.type) and column.type.get_field_index("path") >= 0:
            column = pc.struct_field(column, "path")
        is_text = types.is_string(column.type) or types.is_large_string(column.type)
        if is_text and (name := _file_name(column[0].as_py())):
            return name
    return ""


def _stored_files(dataset: "datasets.Dataset", row: int, columns: Mapping[str, str], name: str) -> Any:
    return _row_files(dataset[row], columns, name)


def _row_files(values: Mapping[str, Any], columns: Mapping[str, str], name: str) -> Any:
    """The file of a row, or the pair of picture and sound; of a dictionary of path and bytes, the bytes win."""
    files = []
    for column in columns.values():
        value = values.get(column)
        if isinstance(value, Mapping):
            value = value.get("path") if value.get("bytes") is None else value["bytes"]
        if value is not None:
            files.append(value)
    if not files:
        raise FileNotFoundError(f"{name}: found nothing in {' or '.join(columns.values())}, expected a clip")
    return tuple(files) if len(files) == 2 else files[0]
