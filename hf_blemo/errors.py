"""Errors of users, worded in one line: what was found, what was expected, and where."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any


class MissingExtraError(ImportError):
    """A package that an optional feature needs is not installed; the message names it and how to get it."""


USER_ERRORS = (
    MissingExtraError,
    ValueError,
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
    PermissionError,
    MemoryError,
)


# Extra -> beginning of the message, and its packages.
_EXTRAS = {
    "media": ("media need", "av"),
    "onnx": ("ONNX needs", "onnx", "onnxruntime", "onnxscript"),
    "demo": ("the demo page needs", "gradio"),
}


@contextmanager
def one_line_errors(program: str | None = None) -> Iterator[None]:
    """Ends a program after a user's error with one line on stderr; other errors keep their traceback.

    Args:
        program: name at the start of the line; by default that of the running script.

    Raises:
        SystemExit: code 2, after one of `USER_ERRORS` or a value that a config refused.
    """
    try:
        yield
    except Exception as error:
        # Only a process that has imported the library can have met its error, and importing it takes long.
        library = sys.modules.get("huggingface_hub.errors")
        if not isinstance(error, USER_ERRORS) and not (library and isinstance(error, library.StrictDataclassError)):
            raise
        print(f"{program or Path(sys.argv[0]).name}: error: {one_line(error)}", file=sys.stderr)
        raise SystemExit(2) from None


def one_line(error: BaseException) -> str:
    """The message of an error in one line; for an error of the system, the file and the reason."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    library = sys.modules.get("huggingface_hub.errors")
    if library and isinstance(error, library.StrictDataclassClassValidationError) and error.__cause__ is not None:
        # The check of a config has said it all; which of its methods that was is no user's concern.
        error = error.__cause__
    return " ".join(str(error).split()) or type(error).__name__


def check_extra(extra: str) -> None:
    """Checks that the packages of an extra are installed.

    Args:
        extra: `media`, `onnx` or `demo`.

    Raises:
        MissingExtraError: a package, or one that it needs, is missing; the message names it.
    """
    feature, *packages = _EXTRAS[extra]
    for package in packages:
        try:
            __import__(package)
        except ImportError as error:
            raise MissingExtraError(f"{feature} {error.name or package}: pip install hf_blemo[{extra}]") from error


def check_known(where: str, keys: Iterable[Any], known: Iterable[str]) -> None:
    """Refuses an unknown key, and names the nearest known one.

    Args:
        where: the keys were found.
        keys: found.
        known: names of settings.

    Raises:
        ValueError: a key is unknown.
    """
    known = list(known)
    for key in keys:
        if key not in known:
            begun = [name for name in known if key and name.startswith(str(key))]
            nearest = get_close_matches(str(key), begun or known, 1, 0.0)[0]
            raise ValueError(f"{where}: unknown setting {str(key)!r}; the nearest known one is {nearest!r}")
