"""Opens features of clips, labelled or not: a built data set, a table, or a folder."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from hf_blemo.blemore.labels import soft_label
from hf_blemo.errors import reads

from .feature_files import ClipSource, FeatureFileReader, encoder_folders, feature_files
from .layout import encode_clips, encoder_widths
from .table_files import TABLE_SUFFIXES
from .tables import build_table_dataset
from .writing import is_dataset_folder

if TYPE_CHECKING:
    import datasets


@reads("features of clips")
def check_features(path: str | os.PathLike[str]) -> Path:
    """Checks that a path looks like features of clips, as [`load_features`] takes it, before anything is imported to
    read them; returns it.

    Raises:
        FileNotFoundError: there is nothing at `path`, or no feature file in the folder.
        ValueError: the form is not supported.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder, expected features")
    if path.is_file() and path.suffix not in TABLE_SUFFIXES:
        raise ValueError(f"{path}: found the suffix {path.suffix!r}, expected one of {', '.join(TABLE_SUFFIXES)}")
    if path.is_file() or is_dataset_folder(path):
        return path
    if (path / "dataset_dict.json").is_file():
        raise ValueError(f"{path}: found a data set of several splits, expected the folder of one of them")
    inner = sorted(folder.name for folder in path.glob("pre_extracted_*_data"))
    if inner:
        raise ValueError(f"{path}: found the whole distribution, expected one folder of it: {' or '.join(inner)}")
    encoder_folders(path.resolve())
    return path


@reads("features of clips")
def load_features(path: str | os.PathLike[str], nan: str = "error") -> "datasets.Dataset":
    """Opens features of clips in any supported form.

    Args:
        path: the folder of a built data set; a table (`.parquet`, `.npz`, `.csv`); a folder with one sub-folder of
            feature files per encoder, with or without the suffix `_train` or `_test`; or the folder of one encoder.
        nan: "error" refuses NaN and infinity within features; "missing" takes the encoder for missing in that clip.

    Returns:
        The data set: `clip`, `features`, `labels`, `fold`. A clip whose name carries no label is unlabelled (-100). A
        clip need not have every encoder. Columns of a table that are no vectors are left out.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        ValueError: the form is not supported, or a file is damaged.
    """
    path = check_features(path)
    if path.is_file():
        return build_table_dataset(path, require_labels=False, nan=nan)
    import datasets
    import pyarrow as pa

    if is_dataset_folder(path):
        dataset = datasets.Dataset.load_from_disk(str(path))
        if "clip" not in dataset.column_names:
            raise ValueError(f"{path}: found the columns {dataset.column_names}, expected 'clip' and 'features'")
        encoder_widths(dataset)
        return dataset
    files = {name: feature_files(folder) for name, folder in encoder_folders(path.resolve()).items()}
    clips = sorted({clip for paths in files.values() for clip in paths})
    sources = []
    for clip in clips:
        own = {name: paths[clip] for name, paths in files.items() if clip in paths}
        sources.append(ClipSource(clip, soft_label(clip, required=False), -1, own))
    reader = FeatureFileReader(sources, list(files), "auto", aggregate=None, nan=nan)
    batches = [encode_clips([reader(row)], reader.features.arrow_schema) for row in range(len(sources))]
    return datasets.Dataset(pa.Table.from_batches(batches))
