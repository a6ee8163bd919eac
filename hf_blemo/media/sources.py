"""Sources of media (a file, an address, bytes or a file object), each as one file that several readers share."""

import io
import tempfile
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hf_blemo.errors import MissingExtraError, check_regular, one_line, readable, without_secrets
from hf_blemo.files import limits

EXPECTED = "expected a video or audio file"
# Up to 16 MiB of a remote file are kept: enough for the several places at which a file with long tracks is read.
_BLOCK_SIZE, _NUM_BLOCKS = 2**20, 16
_REMOTE_CACHE = {"cache_type": "blockcache", "cache_options": {"maxblocks": _NUM_BLOCKS}}


class MediaError(ValueError):
    """A clip cannot be read; one line names it and says what was found and expected."""


def check_seconds(name: str, seconds: float) -> None:
    """Refuses a clip that is longer than `Limits.max_seconds`; a single wrong time stamp can claim years."""
    if seconds > limits().max_seconds:
        raise MediaError(limits().excess(name, f"something {seconds:,.0f} s after its start", "max_seconds"))


class MediaSource:
    """A source of media as a file of known size.

    A source that can only be read from beginning to end, such as a pipe or a server without ranges, is first copied
    to a temporary file.

    Args:
        source: see [`MediaFile`].
        name: for messages; by default the path, or the address without its query.
    """

    def __init__(self, source: Any, name: str | None = None):
        self.name = _name_of(source) if name is None else name
        self._lock = threading.Lock()
        self._file, self._owned = _opened(source, self.name)
        try:
            self.size = self._measured()
            if not self.size:
                raise MediaError(f"{self.name}: an empty file, {EXPECTED}")
        except BaseException:
            self.close()
            raise

    def reader(self, hint: str) -> "_Reader":
        """Returns a file object with its own place; decoders may look at the `hint`, a file name or an empty text."""
        return _Reader(self, hint)

    def read_at(self, place: int, size: int) -> bytes:
        """Reads at most `size` bytes from a place on."""
        with self._lock:
            self._file.seek(place)
            return self._file.read(size)

    def close(self) -> None:
        """Closes the file, unless the caller opened it."""
        if self._owned:
            self._file.close()

    def _measured(self) -> int:
        try:
            if not isinstance(self._file.read(0), bytes):
                raise MediaError(f"{self.name}: a file object in text mode, expected one in binary mode")
            # Without a size from the server, fsspec calls a file seekable and then fails to seek.
            if self._file.seekable() and getattr(self._file, "size", 0) is not None:
                return self._file.seek(0, io.SEEK_END)
            with ExitStack() as unless_it_fails:
                copy = unless_it_fails.enter_context(tempfile.TemporaryFile())
                while block := self._file.read(_BLOCK_SIZE):
                    copy.write(block)
                    if copy.tell() > limits().max_bytes:
                        found = f"more than {copy.tell():,} bytes without an end"
                        raise MediaError(limits().excess(self.name, found, "max_bytes"))
                unless_it_fails.pop_all()
        except MediaError:
            raise
        # Every file system has its own errors.
        except Exception as error:
            raise MediaError(f"{self.name}: cannot be read: {one_line(error)}") from error
        self.close()
        self._file, self._owned = copy, True
        return copy.tell()


class _Reader:
    """A place in a [`MediaSource`], as the file object that PyAV reads."""

    def __init__(self, source: MediaSource, name: str):
        self.name = name
        # The first error of reading, as not every decoder reports errors.
        self.error: Exception | None = None
        self._source = source
        self._place = 0

    def read(self, size: int = -1) -> bytes:
        try:
            content = self._source.read_at(self._place, size)
        except Exception as error:
            self.error = self.error or error
            raise
        self._place += len(content)
        return content

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._source.size}[whence]
        self._place = max(0, base + offset)
        return self._place

    def tell(self) -> int:
        return self._place

    def seekable(self) -> bool:
        return True


def is_address(source: Any) -> bool:
    """Whether a source is text of the form `kind://...`."""
    return isinstance(source, str) and "://" in source


def _name_of(source: Any) -> str:
    if is_address(source):
        return without_secrets(source)
    if isinstance(source, (str, Path)):
        return readable(str(source))
    if isinstance(source, (bytes, bytearray, memoryview)):
        return "bytes"
    name = getattr(source, "name", None)
    return readable(name) if isinstance(name, str) else "file object"


def _opened(source: Any, name: str) -> tuple[Any, bool]:
    """A binary file, and whether to close it in the end."""
    if isinstance(source, (str, Path)):
        return _open(source, name), True
    if isinstance(source, (bytes, bytearray, memoryview)):
        return io.BytesIO(source), True
    if not callable(getattr(source, "read", None)):
        raise TypeError(f"expected a path, an address, bytes or a binary file object, found {type(source).__name__}")
    return source, False


def _open(source: str | Path, name: str) -> Any:
    try:
        if is_address(source):
            import fsspec

            system, path = fsspec.core.url_to_fs(source)
            if "file" in system.protocol:
                _check_regular(path, name)
            return system.open(path, "rb", block_size=_BLOCK_SIZE, **_REMOTE_CACHE)
        _check_regular(source, name)
        # The decoders have their own buffer.
        return open(source, "rb", buffering=0)
    except FileNotFoundError as error:
        cause = error.__cause__
        if cause is not None and getattr(cause, "status", None) not in (404, 410):
            # fsspec also raises this for a server that refuses or cannot be reached.
            raise MediaError(f"{name}: cannot be opened: {one_line(cause)}") from error
        raise FileNotFoundError(f"{name}: no such file, {EXPECTED}") from error
    except IsADirectoryError as error:
        raise IsADirectoryError(f"{name}: a folder, {EXPECTED}") from error
    except PermissionError as error:
        raise PermissionError(f"{name}: may not be read, {EXPECTED}") from error
    except ImportError as error:
        raise MissingExtraError(f"{name}: {one_line(error)}") from error
    except MediaError:
        raise
    # Every file system has its own errors.
    except Exception as error:
        raise MediaError(f"{name}: cannot be opened: {one_line(error)}") from error


def _check_regular(path: str | Path, name: str) -> None:
    try:
        check_regular(path, EXPECTED.removeprefix("expected "))
    except ValueError as error:
        raise MediaError(f"{name}: {one_line(error).removeprefix(f'{path}: ')}") from None
