"""The folder of a run: one run at a time, no result replaced unasked, and results that appear whole."""

import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hf_blemo.files import held, read_json, write_json

CHECKPOINTS, SETTINGS_FILE = "checkpoints", "settings.json"
# By these a folder loads and is published: the first to go and the last to come.
_MARKERS = ("config.json", "metrics.json", "model.safetensors")
_CARD = "README.md"
_STAGING = ".results"
_LIST_FILE = ".results.json"
_INPUTS = "inputs"


def check_output(
    folder: str | Path, overwrite: bool, resume: bool, results: Sequence[str] = _MARKERS, work: str = CHECKPOINTS
) -> Path:
    """Refuses a folder with an earlier run's work that this run would neither resume nor replace, or that is a file.

    Args:
        results: files of which one means a result.
        work: file or folder inside from which a run resumes.
    """
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"output_dir {str(folder)!r}: found a file, expected a folder")
    resumable = (path / work).exists()
    if overwrite or (resume and resumable):
        return path
    found = next((name for name in results if (path / name).exists()), CHECKPOINTS if resumable else None)
    if found is not None:
        ways = "resume it (--resume true) or replace it" if resumable else "replace it"
        raise FileExistsError(
            f"output_dir {str(folder)!r}: holds an earlier run ({found}); name another folder, or {ways} "
            "(--overwrite true)"
        )
    return path


def _check_same_run(
    settings: Mapping[str, Any],
    earlier: Mapping[str, Any],
    free: Collection[str],
    output_dir: Path,
    inputs: Mapping[str, Any],
) -> None:
    """Refuses to resume a run of other settings, but those that are free to change, or of other inputs.

    `earlier` has the settings and `inputs` of the interrupted run: what they are -> fingerprint of their content.
    """
    for name, value in settings.items():
        if name not in free and name in earlier and earlier[name] != value:
            raise ValueError(
                f"resume: {name} is {value!r} and was {earlier[name]!r} in the run in {output_dir}; give the same "
                "settings, or start anew: --overwrite true"
            )
    for name, value in inputs.items():
        if (earlier.get(_INPUTS) or {}).get(name) != value:
            raise ValueError(
                f"resume: {name} changed since the run in {output_dir}, under the same name; restore them, or start "
                "anew: --overwrite true"
            )


def earlier_result(
    record: Path, settings: Mapping[str, Any], free: Collection[str], inputs: Mapping[str, Any]
) -> dict[str, Any]:
    """Reads the result of an earlier run that this one goes on with, and refuses one of other settings or inputs.

    The record is a JSON file with `settings`, `inputs` and whatever else the run depends on; see [`_check_same_run`].
    """
    earlier = read_json(record)
    _check_same_run(settings, {**earlier, **earlier["settings"]}, free, record.parent, inputs)
    return earlier


def check_resumable(
    output: Path, settings: Mapping[str, Any], free: Collection[str], inputs: Mapping[str, Any]
) -> bool:
    """Whether a training resumes from checkpoints in its folder; refuses those of another one, see
    [`_check_same_run`]."""
    record = output / CHECKPOINTS / SETTINGS_FILE
    if not settings["resume"] or not record.parent.is_dir() or not any(record.parent.iterdir()):
        return False
    if not record.is_file():
        raise ValueError(f"{record.parent}: found no {SETTINGS_FILE}, which tells whose checkpoints these are")
    _check_same_run(settings, read_json(record), free, output, inputs)
    return True


def named_inputs(what: str, parts: Mapping[str, Any]) -> dict[str, Any]:
    """Words the parts of an input's fingerprint as a message names them."""
    return {f"the {part} of {what}": value for part, value in parts.items()}


@contextmanager
def begin_run(
    output: Path, settings: Mapping[str, Any], free: Collection[str], inputs: Mapping[str, Any]
) -> Iterator[None]:
    """Holds the folder of a training, whose checkpoints of an earlier run go unless they are resumed.

    The settings are those with `resume`, `overwrite` and `checkpoint_every`; the inputs are written before the
    first work.
    """
    with held(output):
        check_output(output, settings["overwrite"], settings["resume"])
        if not check_resumable(output, settings, free, inputs):
            shutil.rmtree(output / CHECKPOINTS, ignore_errors=True)
        if settings["checkpoint_every"]:
            write_json({output / CHECKPOINTS / SETTINGS_FILE: {**settings, _INPUTS: inputs}})
        yield


@contextmanager
def whole_results(output: Path) -> Iterator[Path]:
    """Yields a folder for the results of a run, and puts all of them in place unless an error was raised.

    What an earlier run left as its results goes then, and all else stays. The card in the folder is there to be
    merged. A kill in between leaves a folder that does not load, never one of two runs.
    """
    staging, replaced = output / _STAGING, output / f"{_STAGING}.replaced"
    for leftover in (staging, replaced):
        shutil.rmtree(leftover, ignore_errors=True)
    staging.mkdir(parents=True)
    moved: list[tuple[Path, Path]] = []

    def move(source: Path, target: Path) -> None:
        os.rename(source, target)
        moved.append((source, target))

    try:
        if (output / _CARD).is_file():
            shutil.copy(output / _CARD, staging)
        yield staging
        names = sorted((path.name for path in staging.iterdir()), key=lambda name: (name in _MARKERS, name))
        earlier = read_json(output / _LIST_FILE)["names"] if (output / _LIST_FILE).is_file() else []
        replaced.mkdir()
        for name in [*reversed(names), *sorted({*earlier} - {*names})]:
            if os.path.lexists(output / name):
                move(output / name, replaced / name)
        for name in names:
            move(staging / name, output / name)
        write_json({output / _LIST_FILE: {"names": names}})
    except BaseException:
        for source, target in reversed(moved):
            os.rename(target, source)
        shutil.rmtree(staging, ignore_errors=True)
        raise
    for leftover in (staging, replaced):
        shutil.rmtree(leftover, ignore_errors=True)
