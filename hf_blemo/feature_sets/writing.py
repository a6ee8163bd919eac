"""Writes a feature data set to disk: a few clips at a time, resumable, and visible only when complete."""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_blemo.files import held, replace_folder, whole_file, write_text
from hf_blemo.rank_aware_fusion.label_space_rank_aware_fusion import BLEMORE_SPACE, LabelSpace

from .label_spaces import with_label_space
from .layout import Clip, encode_clips

if TYPE_CHECKING:
    import datasets

CLIPS_PER_PART = 128

_BATCH_BYTES = 32 * 2**20
_PLAN_FILE = "build.json"


def is_dataset_folder(path: Path) -> bool:
    """Whether a folder, which need not exist, holds one data set as `datasets.Dataset.save_to_disk` writes it."""
    return (path / "state.json").is_file() and (path / "dataset_info.json").is_file()


def refuse_existing(output: Path, overwrite: bool) -> None:
    """Refuses to write where something exists, unless it is a data set that may be replaced."""
    if not output.exists():
        return
    if not overwrite:
        raise FileExistsError(f"{output}: already exists; pass overwrite=True to replace it")
    if not is_dataset_folder(output):
        raise FileExistsError(f"{output}: exists and is not a data set, so it is not replaced")


def write_dataset(
    output: Path,
    features: "datasets.Features",
    num_clips: int,
    read_clip: Callable[[int], Clip],
    plan: Mapping[str, Any],
    overwrite: bool = False,
    progress: bool = False,
    space: tuple[LabelSpace, str] = (BLEMORE_SPACE, "valid"),
    identity: Callable[[int], Any] = int,
) -> "datasets.Dataset":
    """Writes clips to a folder that `datasets.load_from_disk` reads, holding no more than a few in memory.

    The clips gather in `<output>.partial`, so an interrupted build resumes; the finished data set is then saved from
    there and takes its name. Meanwhile the disk holds the features twice.

    Args:
        read_clip: row number -> clip.
        plan: settings that must match for a build to resume, JSON values only; stored there as `build.json`.
        overwrite: replace a data set that is at `output`, and discard an unfinished build with another plan.
        identity: row number -> what tells its sources from others, such as size and time of its files; JSON values. A
            part of an unfinished build whose rows have other sources now is written again.
    """
    import datasets
    from tqdm.auto import tqdm

    partial = output.with_name(f"{output.name}.partial")
    with held(partial, beside=True):
        refuse_existing(output, overwrite)
        _start(partial, {**plan, "clips_per_part": CLIPS_PER_PART, "num_clips": num_clips}, overwrite)
        parts = []
        with tqdm(total=num_clips, desc=output.name, unit="clip", disable=not progress) as bar:
            for first in range(0, num_clips, CLIPS_PER_PART):
                rows = range(first, min(first + CLIPS_PER_PART, num_clips))
                digest = hashlib.sha256(json.dumps([identity(row) for row in rows]).encode()).hexdigest()
                parts.append(partial / f"clips-{first:08d}-{digest[:16]}.arrow")
                if parts[-1].is_file():
                    bar.update(len(rows))
                else:
                    _write_part(parts[-1], features, rows, read_clip, bar.update)
        whole = partial / "dataset"
        shutil.rmtree(whole, ignore_errors=True)
        shows_bars = not datasets.are_progress_bars_disabled()
        datasets.disable_progress_bars()
        try:
            joined = datasets.concatenate_datasets([datasets.Dataset.from_file(str(part)) for part in parts])
            with_label_space(joined, *space).save_to_disk(whole)
        finally:
            if shows_bars:
                datasets.enable_progress_bars()
        shutil.copy(partial / _PLAN_FILE, whole)

        replace_folder(whole, output)
        shutil.rmtree(partial)
    return datasets.Dataset.load_from_disk(str(output))


def _start(partial: Path, plan: Mapping[str, Any], overwrite: bool) -> None:
    text = json.dumps(plan, indent=2, sort_keys=True)
    plan_file = partial / _PLAN_FILE
    if partial.exists() and not plan_file.is_file():
        raise FileExistsError(f"{partial}: exists and is not an unfinished build, so nothing is written there")
    if partial.exists() and plan_file.read_text(encoding="utf-8") != text:
        if not overwrite:
            raise ValueError(
                f"{partial}: found an unfinished build with other settings or clips; finish it with the same ones, "
                "delete it, or pass overwrite=True to discard it"
            )
        shutil.rmtree(partial)
    partial.mkdir(parents=True, exist_ok=True)
    write_text(plan_file, text)


def _write_part(
    path: Path,
    features: "datasets.Features",
    rows: range,
    read_clip: Callable[[int], Clip],
    advance: Callable[[int], Any],
) -> None:
    import pyarrow as pa

    schema = features.arrow_schema
    with (
        whole_file(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_stream(sink, schema) as writer,
    ):
        batch: list[Clip] = []
        num_bytes = 0
        for row in rows:
            clip = read_clip(row)
            batch.append(clip)
            num_bytes += sum(array.nbytes for array in clip.features.values() if array is not None)
            if num_bytes >= _BATCH_BYTES:
                writer.write_batch(encode_clips(batch, schema))
                batch, num_bytes = [], 0
            advance(1)
        if batch:
            writer.write_batch(encode_clips(batch, schema))
