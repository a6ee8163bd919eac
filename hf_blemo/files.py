"""JSON files read with a clear error, files and folders that appear whole or not at all, and bounds of files."""

import errno
import hashlib
import json
import logging
import math
import os
import re
import shutil
import socket
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hf_blemo.errors import check_known, check_once, check_regular, reading

try:
    import fcntl
except ImportError:  # not on Windows, where nothing is locked
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

# Names joined by slashes, each other than `.` and `..`, without what only other systems or no system takes.
_NAME = r"(?!\.{1,2}(?:/|$))[^/\\\x00-\x1f\x7f]+"
_INSIDE = re.compile(f"{_NAME}(?:/{_NAME})*")

_READ_AT_ONCE = 2**20
_LOCK_FILE = ".lock"


def read_json(path: Path, where: str | None = None) -> dict[str, Any]:
    """Reads a JSON object without a key that comes twice; messages call it `where`, by default its path."""
    with reading(where or str(path), "JSON"):
        check_regular(path, "JSON")
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_object)
    if not isinstance(content, dict):
        raise ValueError(f"{where or path}: expected a JSON object, found {type(content).__name__}")
    return content


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        check_once("key", (key for key, _ in pairs))
    return found


def write_json(contents: Mapping[Path, Any]) -> None:
    """Writes files so that each appears whole, and none before all of them could be written; NaN becomes null."""
    with ExitStack() as stack:
        for path, content in contents.items():
            text = json.dumps(_without_nan(content), indent=2)
            stack.enter_context(whole_file(path)).write_text(text + "\n", encoding="utf-8")


def _without_nan(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def within(folder: Path, name: str, where: str | None = None) -> Path:
    """The path of a file or folder whose name was not chosen here, such as one from a config.

    Slashes make it one of a folder inside; a name that could lead out of the folder is refused. Messages call the
    place that gave it `where`, by default the folder.
    """
    if not isinstance(name, str) or not _INSIDE.fullmatch(name):
        raise ValueError(f"{where or folder}: found the name {name!r}, expected one inside the folder")
    return folder / name


def write_text(path: Path, text: str) -> None:
    """Writes a text file so that it appears whole; an error leaves what was there."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path to write to, and moves the file to its place unless an error was raised.

    Its folder is created if missing. A link stays one, and the file that it names is replaced. A device or pipe takes
    what is written as it comes.
    """
    target = _target(path)
    if target.exists() and not target.is_file() and not target.is_dir():
        yield target
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = _sibling(target)
    try:
        yield temporary
        if target.is_file():
            shutil.copymode(target, temporary)
        os.replace(temporary, target)
    except OSError as error:
        if error.filename == str(temporary):
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def held(folder: Path, beside: bool = False) -> Iterator[None]:
    """Holds a folder for this process: another that wants to hold it is refused until this one ends, however it ends.

    The lock is in the folder, which is made if missing; or beside it, where the folder is not made and may be
    deleted. The message names the process that holds it.
    """
    path = folder.with_name(f".{folder.name}{_LOCK_FILE}") if beside else folder / _LOCK_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(file, folder)
            # The process that held it before has removed the file that this one waited for.
            if os.fstat(file).st_nlink == 0:
                continue
            started = time.strftime("%Y-%m-%d %H:%M")
            holder = f"{Path(sys.argv[0]).name} (process {os.getpid()} on {socket.gethostname()}, since {started})"
            os.ftruncate(file, 0)
            os.write(file, holder.encode())
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return
        finally:
            os.close(file)


def _lock(file: int, folder: Path) -> None:
    """Locks an open file for this process alone, not for those that it forks: they may outlive it."""
    if fcntl is None:
        return
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            logger.warning("%s cannot be locked (%s): start no second run there", folder, error.strerror)
            return
        holder = os.read(file, 1000).decode(errors="replace") or "another run"
        raise FileExistsError(f"{folder}: {holder} writes there; wait until it ends, or name another folder") from None


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(_READ_AT_ONCE):
            digest.update(part)
    return digest.hexdigest()


def replace_folder(made: Path, output: Path) -> None:
    """Moves a finished folder, best on the same file system, to its place; the one that was there is deleted only
    after that.

    A link stays one, and the folder that it names is replaced.
    """
    output = _target(output)
    replaced, beside = _sibling(output), _sibling(output)
    try:
        if made.stat().st_dev != output.parent.stat().st_dev:
            made = Path(shutil.move(made, beside))
        if output.exists():
            os.rename(output, replaced)
        os.rename(made, output)
    finally:
        if replaced.exists() and not output.exists():
            os.rename(replaced, output)
        for leftover in (replaced, beside):
            shutil.rmtree(leftover, ignore_errors=True)


def _target(path: Path) -> Path:
    """What a link names, where the path is one."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def _sibling(path: Path) -> Path:
    """A hidden name that nothing beside the path has; short, as the path's own may be as long as a name can be."""
    return path.with_name(f".{uuid.uuid4().hex[:16]}.tmp")


@dataclass(frozen=True)
class Limits:
    """The most that a file may hold; a file of a few bytes can claim any amount.

    Args:
        max_pixels: of a picture; the default fits 8192 x 4320.
        max_aspect: of the sides of a picture, the longer by the shorter. Encoders resize by the shorter one.
        min_rate, max_rate: of recorded samples per second.
        max_seconds: of a clip.
        max_windows: of a timeline.
        max_bytes: of a source without a size, such as a pipe, which is copied before it is read.
        max_labels: of a model, each of which transformers gives a name.
        max_inflation: size of unpacked arrays by that of their file; up to 1 GiB any passes.
    """

    max_pixels: float = 36e6
    max_aspect: float = 100
    min_rate: float = 1e3
    max_rate: float = 1e6
    max_seconds: float = 86400
    max_windows: float = 1e5
    max_bytes: float = 2**36
    max_labels: float = 1e5
    max_inflation: float = 100

    def excess(self, where: str, found: str, name: str) -> str:
        """Says in a line that something was found in a file beyond the limit of a name."""
        kind, value = ("least", "lowers") if name.startswith("min") else ("most", "raises")
        bound = getattr(self, name)
        return f"{where}: found {found}, expected at {kind} {bound:,.10g} (limits.{name} {value} it)"


_current = Limits()


def limits() -> Limits:
    """The bounds that hold now."""
    return _current


@contextmanager
def limited(changes: Mapping[str, float]) -> Iterator[None]:
    """Sets other bounds, fields of `Limits`, for a while, in all threads."""
    global _current
    check_known("limits", changes, asdict(_current))
    for name, value in changes.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise ValueError(f"limits: {name} is {value!r}, expected a positive number")
    before, _current = _current, replace(_current, **changes)
    try:
        yield
    finally:
        _current = before
