"""The clips of a folder, a list or a data set, with what is known of them."""

import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hf_blemo import blemore
from hf_blemo.blemore.dataset_writing import is_dataset_folder
from hf_blemo.blemore.distribution import read_metadata
from hf_blemo.blemore.feature_files import read_csv
from hf_blemo.loading import load_dataset
from hf_blemo.media.media import is_media
from hf_blemo.media.sources import is_address

if TYPE_CHECKING:
    import datasets

METADATA_FILE = "train_metadata.csv"
LIST_SUFFIX = ".csv"
_COLUMN_TYPES = {"video": "Video", "audio": "Audio"}


class SplitClip(NamedTuple):
    """A clip whose picture and sound are in two files.

    Args:
        video: source of the picture.
        audio: source of the sound.
    """

    video: Any
    audio: Any


class NamedClip(NamedTuple):
    """A clip with the name it is to have in results.

    Args:
        name: of the clip.
        source: path, address, bytes, open file, [`SplitClip`], or a function that gives one of these.
    """

    name: str
    source: Any


class ClipEntry(NamedTuple):
    """A clip to be encoded.

    Args:
        name: of the clip.
        labels: (6,) soft label, all -100 where unlabelled.
        fold: fold from 0, -1 where there is none.
        load: gives the path, bytes or [`SplitClip`] when it is needed.
    """

    name: str
    labels: np.ndarray
    fold: int
    load: Callable[[], Any]

    @property
    def named(self) -> NamedClip:
        """The clip alone."""
        return NamedClip(self.name, self.load)


def find_clips(
    source: str | os.PathLike[str],
    split: str = "train",
    video_column: str | None = None,
    audio_column: str | None = None,
) -> list[ClipEntry]:
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
        FileNotFoundError: there is nothing of the kind, or a clip of the metadata is missing.
        ValueError: no clip, two of one name, a column that is not there, or labels that are none.

    Source: this project's choice.
    """
    path = Path(source)
    if path.is_dir() and not is_dataset_folder(path):
        entries = _folder_entries(path)
    elif path.is_file() and path.suffix == LIST_SUFFIX:
        entries = _list_entries(path, video_column, audio_column)
    elif path.is_file():
        entries = [_file_entry(path)]
    else:
        entries = _dataset_entries(_load_dataset(path, split), str(source), video_column, audio_column)
    if not entries:
        raise ValueError(f"{source}: found no clip, expected at least one")
    seen: set[str] = set()
    for entry in entries:
        if entry.name in seen:
            raise ValueError(f"{source}: found two clips named {entry.name!r}, expected different names")
        seen.add(entry.name)
    return entries


def _file_entry(path: Path) -> ClipEntry:
    return ClipEntry(path.stem, blemore.soft_label(path.stem, required=False), -1, partial(Path, path))


def _folder_entries(folder: Path) -> list[ClipEntry]:
    found = sorted(path for path in folder.rglob("*") if is_media(path) and path.is_file())
    files = [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    if not (folder / METADATA_FILE).is_file():
        return [_file_entry(path) for path in files]
    by_name: dict[str, list[Path]] = {}
    for path in files:
        by_name.setdefault(path.stem, []).append(path)
    entries = []
    for name, labels, fold in read_metadata(folder / METADATA_FILE):
        if name not in by_name:
            raise FileNotFoundError(f"{folder}: found no file of clip {name!r}, which {METADATA_FILE} names")
        path, *others = by_name[name]
        if others:
            raise ValueError(f"{folder}: found {path} and {others[0]}, expected one file of clip {name!r}")
        entries.append(ClipEntry(name, labels, fold, partial(Path, path)))
    return entries


def _list_entries(path: Path, video_column: str | None, audio_column: str | None) -> list[ClipEntry]:
    columns, rows = read_csv(path)
    chosen = chosen_columns(str(path), columns, {}, video_column, audio_column)
    entries = []
    for number, row in rows:
        texts = {kind: text for kind, column in chosen.items() if (text := (row[column] or "").strip())}
        if not texts:
            raise ValueError(f"{path}, line {number}: found no path in {' or '.join(chosen.values())}")
        files = {kind: text if is_address(text) else path.parent / text for kind, text in texts.items()}
        name = blemore.clip_name((row.get("clip") or "").strip()) or _stem(next(iter(texts.values())))
        entries.append(ClipEntry(name, blemore.soft_label(name, required=False), -1, partial(_joined, files)))
    return entries


def _stem(path: str) -> str:
    """Name of a file without folders and suffix; of an address without its query."""
    return Path(path.split("?")[0] if is_address(path) else path).stem


def _load_dataset(path: Path, split: str) -> "datasets.Dataset":
    import datasets

    if path.is_dir():
        return datasets.Dataset.load_from_disk(str(path))
    return load_dataset(str(path), str(path), split=split)


def _dataset_entries(
    dataset: "datasets.Dataset", where: str, video_column: str | None, audio_column: str | None
) -> list[ClipEntry]:
    import datasets

    types = {name: type(feature).__name__ for name, feature in dataset.features.items()}
    chosen = chosen_columns(where, dataset.column_names, types, video_column, audio_column)
    for column in chosen.values():
        if types[column] in _COLUMN_TYPES.values():
            # Files as they are: decoding is done here.
            dataset = dataset.cast_column(column, getattr(datasets, types[column])(decode=False))
    kept = [name for name in ("clip", "labels", "fold") if name in dataset.column_names]
    known = dataset.select_columns(kept) if kept else None
    files = dataset.select_columns(list(chosen.values()))
    entries = []
    for row in range(len(dataset)):
        values = known[row] if known is not None else {}
        name = blemore.clip_name(str(values.get("clip") or "")) or _file_name(files, row) or f"clip_{row:06d}"
        label = _label(values.get("labels"), name, where)
        fold = -1 if values.get("fold") is None else int(values["fold"])
        entries.append(ClipEntry(name, label, fold, partial(_load_row, files, row, chosen, name)))
    return entries


def _label(labels: Any, name: str, where: str) -> np.ndarray:
    if labels is None:
        return blemore.soft_label(name, required=False)
    expected = f"expected the saliences of {len(blemore.EMOTIONS)} emotions"
    try:
        label = np.asarray(labels, np.float64)
    except (ValueError, TypeError):
        raise ValueError(f"{where}: clip {name!r} has the labels {labels!r}, {expected}") from None
    if label.shape != (len(blemore.EMOTIONS),):
        raise ValueError(f"{where}: clip {name!r} has the labels {labels!r}, {expected}")
    return label


def chosen_columns(
    where: str, columns: Iterable[str], types: dict[str, str], video_column: str | None, audio_column: str | None
) -> dict[str, str]:
    """Which columns hold clips.

    Args:
        where: what to name in an error.
        columns: names of all columns.
        types: column -> name of its type, where known.
        video_column, audio_column: as asked for; those named so, or else of these types, by default.

    Returns:
        `video`, `audio` or both -> name of the column.

    Raises:
        ValueError: there is none, or not the one that was asked for.
    """
    columns = list(columns)
    chosen = {}
    for kind, given in (("video", video_column), ("audio", audio_column)):
        if given is not None:
            if given not in columns:
                raise ValueError(f"{where}: found the columns {', '.join(columns)}, expected {given!r} among them")
            chosen[kind] = given
        else:
            typed = [name for name in columns if types.get(name) == _COLUMN_TYPES[kind]]
            if kind in columns or typed:
                chosen[kind] = kind if kind in columns else typed[0]
    if not chosen:
        raise ValueError(f"{where}: found the columns {', '.join(columns)}, expected one of videos or of sound")
    return chosen


def _file_name(dataset: "datasets.Dataset", row: int) -> str | None:
    """Name of the first file of a row whose path is known, without reading the files."""
    import pyarrow.compute as pc
    from pyarrow import types

    table = dataset.with_format("arrow")[row]
    for column in table.columns:
        if types.is_struct(column.type) and column.type.get_field_index("path") >= 0:
            column = pc.struct_field(column, "path")
        if types.is_string(column.type) or types.is_large_string(column.type):
            path = column[0].as_py()
            if path and _stem(path):
                return _stem(path)
    return None


def _load_row(dataset: "datasets.Dataset", row: int, columns: Mapping[str, str], name: str) -> Any:
    return row_source(dataset[row], columns, name)


def row_source(values: Mapping[str, Any], columns: Mapping[str, str], name: str) -> Any:
    """The clip of a row of a data set whose files are not decoded.

    Args:
        values: of the row; a file is its path, its bytes, or a dictionary of the two, where bytes win.
        columns: `video`, `audio` or both -> name of the column.
        name: of the clip, for messages.

    Returns:
        A path, bytes, or a [`SplitClip`].

    Raises:
        FileNotFoundError: there is none.
    """
    files = {}
    for kind, column in columns.items():
        value = values.get(column)
        if isinstance(value, Mapping):
            value = value.get("path") if value.get("bytes") is None else value["bytes"]
        if value is not None:
            files[kind] = value
    if not files:
        raise FileNotFoundError(f"{name}: found nothing in {' or '.join(columns.values())}, expected a clip")
    return _joined(files)


def _joined(files: dict[str, Any]) -> Any:
    """One source, or two where picture and sound are apart."""
    return SplitClip(files["video"], files["audio"]) if len(files) == 2 else next(iter(files.values()))
