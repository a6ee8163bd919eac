"""Errors of users, worded in one line: what was found, what was expected, and where; and what is shown of any text."""

import functools
import inspect
import os
import re
import stat
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


class MissingExtraError(ImportError):
    """A package that an optional feature needs is not installed; the message names it and how to get it."""


USER_ERRORS = (MissingExtraError, ValueError, OSError, MemoryError)

# Why a stream was given up.
_unshown: list[OSError] = []

LONGEST_VALUE, LONGEST_LINE = 200, 1000
# As many names are listed where none is near.
_FEW = 12

# A quoted value that is too long to show.
_LONG_VALUE = re.compile(rf"""(['"])(?:(?!\1)[^\\]|\\.){{{LONGEST_VALUE},}}\1""")
# Addresses, of chained ones each, and parameters of signed ones that have lost their beginning.
_ADDRESS = re.compile(
    r"[A-Za-z][\w+.-]*://(?:(?!::)[^\s'\"<>])+|"
    r"(?i:[?&](?:x-(?:amz|goog)-[\w-]+|signature|sig|[\w-]*token|[\w-]*key|password)=[^\s'\"<>]*)"
)
_GRANTS = re.compile(r"(?<=://)[^/]*@|(?:\?|^&).*?(?=[.,:;)\]}]*$)|#[^=]*=.*?(?=[.,:;)\]}]*$)")
# How a path with a root begins: nothing, an address of a file, a home, a drive or a host.
_ROOT = r"(?:file:|~[\w.-]*|(?:[\w.-]+@)?[\w.-]+:)?[\\/]{1,3}"
# With spaces, but not those before an option or after a file's suffix.
_SPACED = r"""[^\s\\/'"<>|:,;](?:(?!\s-|\.\w{1,5}\s)[^\n\\/'"<>|:,;]){0,253}(?<!\s)"""
_FOLDER = rf"""(?:[^\s\\/'"<>|]{{1,255}}|{_SPACED})[\\/]+"""
_ONE_PATH = re.compile(rf"(?![A-Za-z][\w+.-]+://(?<!file://)){_ROOT}[^\\/\n]+[\\/]")
_SENTENCE = re.compile(r"[:,;]\s|\s[\\/~]|\n")
_PLACES = re.compile(
    r"(?P<address>(?!file:)[A-Za-z][\w+.-]*://(?:(?!::)[^\s'\"<>])+)|"
    rf"(?:(?<![\w/.~:<\\@-])|(?<=::)){_ROOT}(?:{_FOLDER})+[^\s\\/'\"]*"
)
# Beside ASCII's and Latin-1's: separators of lines, orders to write from right to left, and halves of characters.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_IRREGULAR = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}

_SAYS_WHAT_TO_DO = re.compile(", expected |; did you mean |; the nearest known one is ")

# Extra -> what needs it, and its packages: name to import -> name to install.
_EXTRAS = {
    "media": ("reading media", {"av": "av"}),
    "face": ("finding faces", {"cv2": "opencv-python-headless"}),
    "onnx": ("ONNX", {name: name for name in ("onnx", "onnxruntime", "onnxscript")}),
    "demo": ("the demo page", {"gradio": "gradio"}),
    "emoji": ("data 'emoji'", {"emoji": "emoji"}),
    "completion": ("completion", {"shtab": "shtab"}),
    "opensmile": ("openSMILE", {"opensmile": "opensmile"}),
    "openclip": ("open_clip", {"open_clip": "open_clip_torch"}),
    "sets": ("standard zero-shot sets", {"clip_benchmark": "clip_benchmark"}),
}
# Of which only files are read, and whose own needs are large.
_FILES_ALONE = ("sets",)


@contextmanager
def reading(where: str | os.PathLike[str], expected: str) -> Iterator[None]:
    """The door through which something is read: whatever a library raises there becomes a user's error.

    Args:
        where: the file or folder, or what messages call it. A path that is neither a regular file nor a folder is
            refused, since a pipe or a device may never end.
        expected: what should be there.

    Raises:
        ValueError: anything was raised that does not name `where` in words for a user; the cause is kept.
        OSError: the system refused, such as for a full disk or a missing permission; the message names the file.
    """
    try:
        if isinstance(where, os.PathLike):
            check_regular(where, expected)
        yield
    except MissingExtraError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            if error.filename is None:
                raise OSError(error.errno, error.strerror or str(error), str(where)) from error
            raise
        text, is_ours = one_line(error), isinstance(error, USER_ERRORS) and _raised_here(error)
        if is_ours and str(where) in text:
            if text != str(error):
                error.args = (text,)
            raise
        if is_ours and _SAYS_WHAT_TO_DO.search(text):
            raise ValueError(_cut(f"{where}: {text}")) from error
        kind = "" if isinstance(error, USER_ERRORS) and str(error) else f"{type(error).__name__}: "
        raise ValueError(_cut(f"{where}: expected {expected}, found: {kind}{text}")) from error


def _raised_here(error: BaseException) -> bool:
    """Whether this package raised an error, so that its message is worded for users."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__")).startswith("hf_blemo")


def reads(expected: str) -> Callable[[Function], Function]:
    """A function whose first argument is the path of what it reads, as a door: see `reading`."""

    def decorate(function: Function) -> Function:
        first = next(iter(inspect.signature(function).parameters))

        @functools.wraps(function)
        def door(*arguments: Any, **options: Any) -> Any:
            with reading(Path(arguments[0] if arguments else options[first]), expected):
                return function(*arguments, **options)

        return door  # type: ignore[return-value]

    return decorate


def check_regular(path: str | os.PathLike[str], expected: str = "a file") -> None:
    """Refuses a pipe, a device or a socket, which may never end, also among the files right in a folder.

    Args:
        path: of a file or folder; links are followed, and a path without anything passes.
        expected: what should be there.

    Raises:
        ValueError: it is none of these.
    """
    paths = [os.fspath(path)]
    if os.path.isdir(path):
        with os.scandir(path) as entries:
            paths = [entry.path for entry in entries if not entry.is_file() and not entry.name.startswith(".")]
    for found in paths:
        try:
            kind = stat.S_IFMT(os.stat(found).st_mode)
        except (OSError, ValueError):
            # Whoever opens it says what is wrong.
            continue
        if kind in _IRREGULAR:
            raise ValueError(f"{found}: found {_IRREGULAR[kind]}, expected {expected}")


@contextmanager
def one_line_errors(program: str | None = None) -> Iterator[None]:
    """Ends a program after a user's error, or Ctrl-C, with one line on stderr; other errors keep their traceback.

    Args:
        program: name at the start of the line; by default that of the running script.

    Raises:
        SystemExit: code 2, after one of `USER_ERRORS` or a value that a config refused; 130 after Ctrl-C.
    """
    _unshown.clear()
    try:
        yield
        if _unshown:
            raise _unshown[0]
    except KeyboardInterrupt as error:
        # Whoever has something to say of what is done raises it anew with a message.
        words = f": {one_line(error)}" if str(error) else ""
        say(f"{program or Path(sys.argv[0]).name}: interrupted{words}", error=True)
        raise SystemExit(130) from None
    except Exception as error:
        if not is_user_error(error):
            raise
        # Of a process that ran together with others.
        process = f"{error.process}: " if hasattr(error, "process") else ""
        say(f"{program or Path(sys.argv[0]).name}: error: {process}{one_line(error)}", error=True)
        raise SystemExit(2) from None


def is_user_error(error: BaseException) -> bool:
    """Whether an error is a user's: one of `USER_ERRORS`, or a value that a config refused."""
    # Only a process that has imported the library can have met its error, and importing it takes long.
    library = sys.modules.get("huggingface_hub.errors")
    return isinstance(error, USER_ERRORS) or (library is not None and isinstance(error, library.StrictDataclassError))


def one_line(error: BaseException) -> str:
    """The message of an error in one line, long values cut; for an error of the system, the file and the reason."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return _cut(f"{error.filename}: {error.strerror}")
    library = sys.modules.get("huggingface_hub.errors")
    if library and isinstance(error, library.StrictDataclassClassValidationError) and error.__cause__ is not None:
        # The check of a config has said it all; which of its methods that was is no user's concern.
        error = error.__cause__
    return _cut(" ".join(str(error).split())) or type(error).__name__


def _cut(text: str) -> str:
    """A line whose quoted values, and which as a whole, are no longer than one can read."""
    text = _LONG_VALUE.sub(lambda found: f"{found[0][:LONGEST_VALUE]}...{found[1]}", without_secrets(text))
    if len(text) <= LONGEST_LINE:
        return text
    # The end says what was expected.
    return f"{text[: LONGEST_LINE - LONGEST_VALUE]} ... {text[-LONGEST_VALUE:]}"


def without_secrets(text: str) -> str:
    """Cuts from every address in a text what may grant access: user and password, query, fragment with values."""
    return _ADDRESS.sub(lambda found: _GRANTS.sub("", found[0]), text) if "://" in text or "?" in text else text


def without_paths(text: str) -> str:
    """A text that can be published: addresses without secrets, and of paths on this machine only the last name.

    Paths with a root are cut: `/home/me/a b/x`, `~/x`, `C:\\x`, `file:///x` and `host:/x`; relative ones and addresses
    stay. A text that is one path may hold any character; inside a sentence, folders may hold spaces.
    """
    if _ONE_PATH.match(text) and not _SENTENCE.search(text):
        return _last_name(text)
    return _PLACES.sub(lambda found: without_secrets(found[0]) if found["address"] else _last_name(found[0]), text)


def _last_name(path: str) -> str:
    *folders, name = re.split(r"[\\/]+", path.rstrip("\\/"))
    # The last name of a home is that of its owner.
    return "~" if folders[-1:] in (["home"], ["Users"]) else name


def printable(text: object) -> str:
    """A text in one line with its control characters escaped, which could command a terminal or hide what it says."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), str(text))


def say(*lines: object, error: bool = False) -> None:
    """Prints lines as they can be shown; nothing else in this package prints.

    A stream that cannot be written, as its reader is gone or its disk full, is given up: what is computed goes on and
    is kept, and `one_line_errors` says so in the end.

    Args:
        lines: each may hold names, paths and messages from anywhere.
        error: whether to print on stderr.
    """
    stream = sys.stderr if error else sys.stdout
    encoding = getattr(stream, "encoding", None) or "utf-8"
    text = "\n".join(map(printable, lines))
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)  # noqa: T201
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or str(problem)
        _unshown.append(OSError(f"{'stderr' if error else 'stdout'}: cannot be written: {reason}"))
        # What waits in its buffer would fail once more when the process ends.
        with suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())


def csv_cell(value: Any) -> Any:
    """A value for a table that a spreadsheet opens: a text that it would run as a formula gets an apostrophe."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def check_extra(extra: str, needed_by: str = "", load: bool = True) -> None:
    """Checks that the packages of an extra are installed.

    Args:
        extra: `media`, `face`, `onnx`, `demo`, `emoji`, `completion`, `opensmile`, `openclip` or `sets`.
        needed_by: what messages say needs it; by default the extra's feature.
        load: also import them, which says whether what they need is there, too, but takes time.

    Raises:
        MissingExtraError: a package, or one that it needs, is missing; the message names it and the line to run.
    """
    feature, packages = _EXTRAS[extra]
    for module in packages:
        try:
            if load:
                __import__(module)
            elif find_spec(module) is None:
                raise ModuleNotFoundError(name=module)
        except ImportError as error:
            install = _install_line(extra, packages.values())
            raise MissingExtraError(f"{needed_by or feature} needs {error.name or module}: {install}") from error


def _install_line(extra: str, packages: Iterable[str]) -> str:
    """What installs an extra's packages with the bounds of the installed metadata, quoted for every shell."""
    from importlib.metadata import PackageNotFoundError, requires

    from packaging.requirements import Requirement

    try:
        wanted = [(need, need.marker) for need in map(Requirement, requires("hf_blemo") or ())]
    except PackageNotFoundError:
        wanted = []
    names = [
        f"{need.name}{need.specifier}"
        for need, marker in wanted
        if marker and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""})
    ]
    return f"pip install {'--no-deps ' * (extra in _FILES_ALONE)}" + " ".join(
        f'"{name}"' for name in names or packages
    )


def readable(name: str) -> str:
    """A name that can be written anywhere: %XX for a byte of a file name that is not UTF-8."""
    return re.sub("[\ud800-\udfff]", lambda found: f"%{ord(found[0]) & 0xFF:02X}", name)


def check_once(where: str, names: Iterable[str]) -> None:
    """Refuses names that come twice, of which one would be lost, and says which; names that are empty are none."""
    twice = [repr(name) for name, count in Counter(names).items() if name and count > 1]
    if twice:
        verb = "comes" if len(twice) == 1 else "come"
        raise ValueError(f"{where} {', '.join(twice)} {verb} more than once, expected each once")


def check_among(where: str, kind: str, found: Iterable[str], expected: Iterable[str | None], hint: str = "") -> None:
    """Refuses what lacks expected names (None is none) of a kind, such as `columns`, and says which, all at once."""
    found = list(found)
    missing = [repr(name) for name in dict.fromkeys(expected) if name is not None and name not in found]
    if missing:
        there = f"the {kind} {', '.join(found)}" if found else f"no {kind}"
        raise ValueError(f"{where}: found {there}, expected {', '.join(missing)} among them{hint}")


def check_known(where: str, keys: Iterable[Any], known: Iterable[str]) -> None:
    """Refuses a key that is none of the known settings, and names the nearest of these."""
    known = list(known)
    for key in keys:
        if key not in known:
            nearest = nearest_name(str(key), known, 0.5 if len(known) <= _FEW else 0.0)
            hint = f"; the nearest known one is {nearest!r}" if nearest else f", expected {listed(known)}"
            raise ValueError(f"{where}: unknown setting {str(key)!r}{hint}")


def check_choice(where: str, found: Any, known: Iterable[str]) -> None:
    """Refuses a value that is none of the known choices, and names the nearest of these."""
    known = list(known)
    if found not in known:
        raise ValueError(f"{where}: found {found!r}, expected {listed(known)}{did_you_mean(found, known)}")


def listed(names: Iterable[str]) -> str:
    """Names as a sentence lists them: a, b or c; nothing where there are none."""
    *others, last = list(names) or ["nothing"]
    return " or ".join([", ".join(others), last] if others else [last])


def nearest_name(name: str, known: Iterable[str], least: float = 0.5) -> str | None:
    """The known name that somebody may have meant: one that begins so, else the most similar one, if its similarity
    (0 to 1) is `least` or more."""
    # Upper case and the sign between words are what people get wrong most.
    names = {_folded(known_name): known_name for known_name in known}
    folded = _folded(name)
    begun = [known_name for known_name in names if folded and known_name.startswith(folded)]
    close = get_close_matches(folded, begun or names, 1, 0.0 if begun else least)
    return names[close[0]] if close else None


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """What to add to a message on an unknown name: the nearest known one, or nothing where none is near."""
    nearest = nearest_name(str(name), known)
    return f"; did you mean {nearest!r}?" if nearest else ""


def _folded(name: str) -> str:
    return name.casefold().replace("_", "-")
