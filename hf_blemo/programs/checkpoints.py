"""How a training run is kept: whole checkpoints, and its trackers."""

import logging
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from hf_blemo.files import file_digest, read_json, replace_folder, write_json
from hf_blemo.programs.processes import check_shared, of_first

logger = logging.getLogger(__name__)

KEPT_CHECKPOINTS = 2
MANIFEST_FILE = "manifest.json"


class Checkpoints:
    """Checkpoints of one phase of a run, which all processes make together in a folder that they share.

    Args:
        folder: of this phase; `None` writes none.
        every: epochs or steps between checkpoints; 0 writes none.
        unit: name of the counted unit, with which names of checkpoints begin.
    """

    def __init__(self, accelerator: Accelerator, folder: Path | None, every: int, unit: str = "epoch"):
        self.accelerator = accelerator
        self.folder = folder if every > 0 else None
        self.every = every
        if self.folder is not None:
            check_shared(accelerator, self.folder)
        self.prefix = f"{unit}_"

    def found(self) -> list[Path]:
        """Checkpoints by their names, oldest first; a copy that somebody made is none."""
        if self.folder is None or not self.folder.is_dir():
            return []
        named = re.compile(rf"{self.prefix}\d{{5,}}").fullmatch
        return sorted((path for path in self.folder.iterdir() if named(path.name)), key=self._number)

    def _number(self, path: Path) -> int:
        return int(path.name.removeprefix(self.prefix))

    def due(self, number: int, last: bool) -> bool:
        """Whether one is written after an epoch or step."""
        return self.folder is not None and (number % self.every == 0 or last)

    def save(self, number: int, last: bool) -> None:
        """Saves after an epoch or step when it is due, or at the end; drops all but the newest."""
        if self.folder is None or not self.due(number, last):
            return
        partial = self.folder / f"partial_{number:05d}"
        if self.accelerator.is_main_process:
            # What a killed run left there would become part of this checkpoint.
            shutil.rmtree(partial, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(partial), safe_serialization=True)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            _write_manifest(partial)
            replace_folder(partial, self.folder / f"{self.prefix}{number:05d}")
            for old in self.found()[:-KEPT_CHECKPOINTS]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()

    def restore(self, at_most: int) -> int:
        """Restores the newest whole checkpoint that is not after `at_most` epochs or steps, on all processes the same;
        returns the epoch or step it was saved after, 0 without a checkpoint."""
        path = of_first(self.accelerator, lambda: self._newest_whole(at_most))
        if path is None:
            return 0
        if not path.is_dir():
            raise FileNotFoundError(f"{path}: not there, expected the checkpoint that the first process resumes from")
        self.accelerator.load_state(str(path))
        return self._number(path)

    def _newest_whole(self, at_most: int) -> Path | None:
        problems: list[str] = []
        for path in reversed(self.found()):
            if self._number(path) > at_most:
                continue
            problem = _problem(path)
            if problem is None:
                if problems:
                    logger.warning("%s; resuming from %s", "; ".join(problems), path.name)
                return path
            problems.append(f"{path} is not whole: {problem}")
        if problems:
            raise ValueError(f"{problems[0]}; no other is: copy the checkpoints again, or start anew with overwrite")
        return None


def _write_manifest(checkpoint: Path) -> None:
    """Lists the files of a checkpoint, with sizes and hashes, so that a half-copied one is noticed."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    entries = {
        path.relative_to(checkpoint).as_posix(): {"size": path.stat().st_size, "sha256": file_digest(path)}
        for path in files
    }
    write_json({checkpoint / MANIFEST_FILE: {"files": entries}})


def _problem(checkpoint: Path) -> str | None:
    """What a checkpoint lacks of what its manifest lists."""
    if not (checkpoint / MANIFEST_FILE).is_file():
        return f"it has no {MANIFEST_FILE}"
    try:
        entries = read_json(checkpoint / MANIFEST_FILE)["files"].items()
        for name, entry in entries:
            path = checkpoint / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != entry["size"]:
                return f"{name} has {path.stat().st_size} bytes, expected {entry['size']}"
            if file_digest(path) != entry["sha256"]:
                return f"{name} has other content than was saved"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST_FILE} is damaged"
    return None


def start_trackers(accelerator: Accelerator, settings: Any, project: str) -> None:
    """Starts the trackers that a dataclass of settings names in `trackers`, under a project's name."""
    if settings.trackers:
        accelerator.init_trackers(project, config=_flat(asdict(settings)))


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings as trackers take them: numbers and text by dotted names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, int | float | str | bool) else str(value)
    return flat
