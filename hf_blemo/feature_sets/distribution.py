"""Reads the official BlEmoRE distribution into a data set."""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hf_blemo.blemore.labels import EMOTIONS, UNLABELLED, is_test_clip, parse_clip_name, prediction_label_indices
from hf_blemo.errors import check_among, check_once

from .feature_files import (
    METADATA_FILE,
    SPLITS,
    ClipSource,
    FeatureFileReader,
    encoder_folders,
    feature_files,
    read_csv,
)
from .folds import deal_by_names
from .writing import refuse_existing, write_dataset

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

METADATA_COLUMNS = (
    "filename", "video_id", "gender", "mix", "emotion_1", "version", "intensity_level", "situation", "emotion_2",
    "emotion_1_salience", "emotion_2_salience", "fold",
)  # fmt: skip
# Names carry the labels: these, which come together or not at all, have to agree with them.
METADATA_LABELS = ("emotion_1", "emotion_1_salience", "emotion_2", "emotion_2_salience")


def build_distribution_dataset(
    root: str | os.PathLike[str],
    output: str | os.PathLike[str],
    encoders: Sequence[str] | None = None,
    split: str = "train",
    feature_dtype: str = "auto",
    aggregate: str | None = None,
    allow_missing: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    folds: int | None = None,
    seed: int = 0,
) -> "datasets.Dataset":
    """Builds a data set from the official distribution or any folder of feature files, clip by clip, resumably.

    Args:
        root: folder with `train_metadata.csv` and `pre_extracted_{train,test}_data/<encoder>_{train,test}/`, or with
            one sub-folder of feature files per encoder.
        output: folder to make, readable by `datasets.load_from_disk`.
        encoders: names without the suffix `_train` or `_test`; all that are there by default.
        split: "train", whose clips, labels and folds are those of the metadata; or "test", unlabelled.
        feature_dtype: "auto" stores float16 where the first clip of an encoder fits its range; "float16"; "float32".
        aggregate: "statistics" stores the seven official statistics, (1, 7 * D), instead of the sequence.
        allow_missing: store null where a clip lacks the file of an encoder, instead of raising.
        overwrite: replace the data set at `output`.
        progress: show a progress bar.
        folds: deal the training clips into so many folds by their names, which carry label and actor; every actor
            stays in one. Needs no `train_metadata.csv`, and replaces its folds.
        seed: of the folds.

    Returns:
        The data set: `clip`, `features`, `labels`, `fold`, and `group`, the actor, where folds are dealt.

    Raises:
        FileNotFoundError: a folder, the metadata or a feature file is missing.
        FileExistsError: `output` is there and `overwrite` is not given.
        ValueError: an option is unknown, the metadata contradicts a clip's name, or a feature file is damaged, holds
            NaN or infinity, or differs in width from the first.
    """
    root, output = Path(root), Path(output)
    if split not in SPLITS:
        raise ValueError(f"split: found {split!r}, expected one of {', '.join(SPLITS)}")
    refuse_existing(output, overwrite)
    if folds is not None and split == "test":
        raise ValueError("--folds is for training clips, found --split test")
    is_official = any(root.glob("pre_extracted_*_data"))
    folders = encoder_folders(root / f"pre_extracted_{split}_data", split) if is_official else encoder_folders(root)
    names = sorted(folders) if encoders is None else list(encoders)
    check_among(str(root), "encoders", sorted(folders), names)
    files = {name: feature_files(folders[name]) for name in names}
    rows = _rows(root, split, files, folds, seed)
    sources = [
        ClipSource(clip, labels, fold, {name: files[name][clip] for name in names if clip in files[name]}, group)
        for clip, labels, fold, group in rows
    ]
    _check_missing(sources, {name: folders[name] for name in names}, allow_missing)
    reader = FeatureFileReader(sources, names, feature_dtype, aggregate)
    plan = {
        "split": split,
        "feature_dtype": feature_dtype,
        "aggregate": aggregate,
        "encoders": {name: list(reader.types[name]) for name in names},
        **({} if folds is None else {"folds": folds, "seed": seed}),
    }
    return write_dataset(
        output, reader.features, len(sources), reader, plan, overwrite, progress, identity=reader.identity
    )


def _rows(
    root: Path, split: str, files: Mapping[str, Mapping[str, Path]], folds: int | None, seed: int
) -> list[tuple[str, np.ndarray, int, str | None]]:
    """Name, soft label, fold and group of every clip."""
    metadata, names = root / METADATA_FILE, sorted({name for paths in files.values() for name in paths})
    if split == "test":
        return [(name, np.full(len(EMOTIONS), UNLABELLED), -1, None) for name in _test_clips(names)]
    if folds is None and not metadata.is_file():
        raise FileNotFoundError(
            f"{metadata}: no such file, expected the clips with their folds; --folds K deals folds by the clips' names"
        )
    if folds is None:
        return [(*row, None) for row in read_metadata(metadata, wants_folds=True)]
    if metadata.is_file():
        names = [name for name, _, _ in read_metadata(metadata)]
        logger.warning("%s: the clips' folds, if any, are replaced by %d that are dealt anew", metadata, folds)
    labels, dealt, actors = deal_by_names(names, folds, seed, str(root))
    return list(zip(names, labels, dealt.tolist(), actors, strict=True))


def read_metadata(path: Path, wants_folds: bool = False) -> list[tuple[str, np.ndarray, int]]:
    """Reads `train_metadata.csv`: `filename` and, where there (or wanted), `fold`, and the labels as a check; returns
    name, soft label and fold (-1 for none) of every clip."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, expected the metadata of the training clips")
    columns, lines = read_csv(path)
    wanted = ["filename", *(["fold"] if wants_folds else [])]
    wanted += METADATA_LABELS if set(METADATA_LABELS) & set(columns) else ()
    hint = "; --folds K deals folds by the clips' names" if wants_folds and "fold" not in columns else ""
    check_among(str(path), "columns", columns, wanted, hint)
    rows = [_metadata_row(row, f"{path}, line {number}") for number, row in lines]
    if not rows:
        raise ValueError(f"{path}: found no clip, expected at least one")
    check_once(f"{path}: clip", (name for name, _, _ in rows))
    return rows


def _metadata_row(row: Mapping[str, str | None], where: str) -> tuple[str, np.ndarray, int]:
    named = parse_clip_name(row["filename"] or "")
    cells = {column: _cell(row.get(column)) for column in ("fold", *METADATA_LABELS)}
    fold = _number(cells["fold"], f"{where}, column fold")
    if "emotion_1" not in row:
        label = [{"emotion": e, "salience": s} for e, s in zip(named.emotions, named.saliences, strict=True)]
    elif cells["emotion_2"] is None:
        label = [{"emotion": cells["emotion_1"], "salience": 100.0}]
    else:
        label = [
            {
                "emotion": cells[f"emotion_{part}"],
                "salience": _number(cells[f"emotion_{part}_salience"], f"{where}, column emotion_{part}_salience"),
            }
            for part in (1, 2)
        ]
    if prediction_label_indices([label])[0] != named.label_index:
        columns = " + ".join(f"{part['emotion']} {part['salience']}" for part in label)
        name = " + ".join(f"{e} {s}" for e, s in zip(named.emotions, named.saliences, strict=True))
        raise ValueError(f"{where}: clip {named.name!r} has the label {columns}, expected {name} as in its name")
    if fold is not None and not (fold.is_integer() and 0 <= fold <= 127):
        raise ValueError(f"{where}: clip {named.name!r} has the fold {fold}, expected a whole number from 0")
    return named.name, named.soft_label, -1 if fold is None else int(fold)


def _cell(text: str | None) -> str | None:
    stripped = (text or "").strip()
    return None if stripped.lower() in ("", "nan") else stripped


def _number(text: str | None, where: str) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        raise ValueError(f"{where}: found {text!r}, expected a number") from None


def _test_clips(names: Sequence[str]) -> Sequence[str]:
    wrong = [repr(name) for name in names if not is_test_clip(name)]
    if wrong:
        raise ValueError(f"clip {', '.join(wrong)}: found among the test features, expected test_0001 to test_0594")
    if not names:
        raise ValueError("found no test clip, expected test_0001 to test_0594")
    return names


def _check_missing(sources: Sequence[ClipSource], folders: Mapping[str, Path], allow_missing: bool) -> None:
    missing = [(source.name, encoder) for source in sources for encoder in folders if encoder not in source.files]
    if missing and not allow_missing:
        clip, encoder = missing[0]
        raise FileNotFoundError(
            f"clip {clip!r}, encoder {encoder!r}: found no feature file, expected {folders[encoder] / clip}.npy (or "
            f".csv); {len(missing)} are missing in all; allow_missing (--allow-missing) leaves them out"
        )
    empty = next((source.name for source in sources if not source.files), None)
    if empty is not None:
        raise FileNotFoundError(f"clip {empty!r}: found no feature file of any encoder, expected at least one")
    for encoder, folder in folders.items():
        if not any(encoder in source.files for source in sources):
            raise FileNotFoundError(
                f"encoder {encoder!r}: found no file of any clip in {folder}, expected at least one"
            )
