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
from hf_blemo.blemore.labels import label_or_unlabelled
from hf_blemo.encoders.media import is_media

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
        source: a folder of clips, searched through all its sub-folders; with `train_metadata.csv` of BlEmoRE in it,
            exactly the clips named there, with their labels and folds. Or one clip; a `.csv` with a column `video` or
            `audio` of paths, from the folder it is in; a saved data set; the id of a data set on the Hub.
        split: of a data set on the Hub.
        video_column, audio_column: of a list or data set; those named so or of these types by default. A row with
            both has its picture in one file and its sound in the other.

    Returns:
        The clips. Labels come from a column `labels`, else from the names where they carry one.

    Raises:
        FileNotFoundError: there is nothing of the kind, or a clip of the metadata is missing.
        ValueError: no clip, two of one name, or a column that is not there.

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
    return ClipEntry(path.stem, label_or_unlabelled(path.stem), -1, partial(Path, path))


def _folder_entries(folder: Path) -> list[ClipEntry]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and is_media(path))
    if not (folder / METADATA_FILE).is_file():
        return [_file_entry(path) for path in files if not path.name.startswith(".")]
    by_name = {path.stem: path for path in files}
    entries = []
    for name, labels, fold in read_metadata(folder / METADATA_FILE):
        if name not in by_name:
            raise FileNotFoundError(f"{folder}: found no file of clip {name!r}, which {METADATA_FILE} names")
        entries.append(ClipEntry(name, labels, fold, partial(Path, by_name[name])))
    return entries


def _list_entries(path: Path, video_column: str | None, audio_column: str | None) -> list[ClipEntry]:
    columns, rows = read_csv(path)
    chosen = _chosen_columns(str(path), columns, {}, video_column, audio_column)
    entries = []
    for number, row in rows:
        files = {kind: path.parent / text for kind, name in chosen.items() if (text := (row[name] or "").strip())}
        if not files:
            raise ValueError(f"{path}, line {number}: found no path in {' or '.join(chosen.values())}")
        name = (row.get("clip") or "").strip() or next(iter(files.values())).stem
        entries.append(ClipEntry(name, label_or_unlabelled(name), -1, partial(_joined, files)))
    return entries


def _load_dataset(path: Path, split: str) -> "datasets.Dataset":
    import datasets

    if path.is_dir():
        return datasets.Dataset.load_from_disk(str(path))
    text = str(path)
    if text.count("/") != 1 or text.startswith((".", "/")):
        raise FileNotFoundError(f"{path}: no such file or folder, and no id of a Hub data set (owner/name)")
    try:
        return datasets.load_dataset(text, split=split)
    except (ConnectionError, datasets.exceptions.DatasetNotFoundError, ValueError) as error:
        raise FileNotFoundError(f"{path}: no such file or folder, and from the Hub: {error}") from error


def _dataset_entries(
    dataset: "datasets.Dataset", where: str, video_column: str | None, audio_column: str | None
) -> list[ClipEntry]:
    import datasets

    types = {name: type(feature).__name__ for name, feature in dataset.features.items()}
    chosen = _chosen_columns(where, dataset.column_names, types, video_column, audio_column)
    for name in chosen.values():
        if types[name] in _COLUMN_TYPES.values():
            # Files as they are: decoding is done here.
            dataset = dataset.cast_column(name, getattr(datasets, types[name])(decode=False))
    kept = [name for name in ("clip", "labels", "fold") if name in dataset.column_names]
    known = dataset.select_columns(kept) if kept else None
    files = dataset.select_columns(list(chosen.values()))
    entries = []
    for row in range(len(dataset)):
        values = known[row] if known is not None else {}
        name = values.get("clip") or _file_name(files[row].values()) or f"clip_{row:06d}"
        name = blemore.clip_name(name)
        labels = values.get("labels")
        label = label_or_unlabelled(name) if labels is None else np.asarray(labels, np.float64)
        fold = -1 if values.get("fold") is None else int(values["fold"])
        entries.append(ClipEntry(name, label, fold, partial(_load_row, files, row, chosen)))
    return entries


def _chosen_columns(
    where: str, columns: Iterable[str], types: dict[str, str], video_column: str | None, audio_column: str | None
) -> dict[str, str]:
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


def _file_name(values: Iterable[Any]) -> str | None:
    """Name of the first file whose path is known."""
    for value in values:
        path = value.get("path") if isinstance(value, Mapping) else value
        if isinstance(path, str) and path:
            return Path(path).name
    return None


def _load_row(dataset: "datasets.Dataset", row: int, columns: Mapping[str, str]) -> Any:
    return row_source(dataset[row], columns)


def row_source(values: Mapping[str, Any], columns: Mapping[str, str]) -> Any:
    """The clip of a row of a data set whose files are not decoded.

    Args:
        values: of the row; a file is its path, its bytes, or a dictionary of the two, where bytes win.
        columns: `video`, `audio` or both -> name of the column.

    Returns:
        A path, bytes, or a [`SplitClip`].

    Raises:
        FileNotFoundError: there is none.
    """
    files = {}
    for kind, name in columns.items():
        value = values.get(name)
        if isinstance(value, Mapping):
            value = value.get("path") if value.get("bytes") is None else value["bytes"]
        if value is not None:
            files[kind] = value
    if not files:
        raise FileNotFoundError(f"found nothing in {' or '.join(columns.values())}, expected a clip")
    return _joined(files)


def _joined(files: dict[str, Any]) -> Any:
    """One source, or two where picture and sound are apart."""
    return SplitClip(files["video"], files["audio"]) if len(files) == 2 else next(iter(files.values()))
