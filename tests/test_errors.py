"""What ends a program with one line, and how the line reads."""

import errno
import os
import re
from pathlib import Path

import pytest

from hf_blemo import RankAwareFusionConfig
from hf_blemo.errors import (
    LONGEST_LINE,
    check_choice,
    check_known,
    csv_cell,
    one_line,
    one_line_errors,
    printable,
    reading,
    reads,
    say,
    without_secrets,
)


def fail(error: Exception):
    raise error


@pytest.mark.parametrize(
    ("run", "line"),
    [
        (lambda folder: fail(ValueError("a\n  b")), "a b"),
        (lambda folder: fail(FileExistsError("a b")), "a b"),
        (lambda folder: fail(MemoryError()), "MemoryError"),
        (lambda folder: fail(OSError(errno.ENOSPC, "No space left", "a")), "a: No space left"),
        (lambda folder: (folder / ("x" * 300)).read_text(), "File name too long"),
        (lambda folder: fail(ValueError(f"found {'x' * 9999!r}, expected y")), f"found '{'x' * 199}...', expected y"),
        # An error of the system has the file and the reason, not its number.
        (lambda folder: (folder / "gone").read_text(), "gone: No such file or directory"),
        (
            lambda folder: RankAwareFusionConfig(encoders={"voice": {"feature_size": 4}}, top_n=0),
            "top_n must be at least 1, found 0",
        ),
    ],
)
def test_user_errors_become_one_line(capsys, tmp_path, run, line):
    with pytest.raises(SystemExit) as stop, one_line_errors("program"):
        run(tmp_path)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("program: error: ") and error.endswith(f"{line}\n") and error.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("http://user:p@ss@host/x.mp4: no", "http://host/x.mp4: no"),
        (
            "https://b.example/x.mp4?X-Amz-Signature=abc&x=1: 403, url='https://b/x?sig=1'",
            "https://b.example/x.mp4: 403, url='https://b/x'",
        ),
        ("zip://a.mp4::https://u:p@h/f.zip?sig=1", "zip://a.mp4::https://h/f.zip"),
        ("see (https://a.b/c?d=1).", "see (https://a.b/c)."),
        ("with url: /p/x?X-Goog-Signature=abc (Caused by", "with url: /p/x (Caused by"),
        ("https://h/back#access_token=1 x", "https://h/back x"),
        (
            "hf://datasets/o/n@main/x, https://docs/x#top; why? a@b",
            "hf://datasets/o/n@main/x, https://docs/x#top; why? a@b",
        ),
    ],
)
def test_what_an_address_grants_is_not_repeated(text, left):
    assert without_secrets(text) == one_line(ValueError(text)) == one_line(OSError(text)) == left


def test_names_command_no_terminal_and_no_spreadsheet(capsys):
    name = "\x1b]0;a\x07\r\n\x9b2J\u202eb\udc80é"
    assert printable(name) == r"\x1b]0;a\x07\r\n\x9b2J\u202eb\udc80é"
    say(name, "c")
    say(name, error=True)
    assert capsys.readouterr() == (f"{printable(name)}\nc\n", f"{printable(name)}\n")
    cells = ["=HYPERLINK(1)", "+1", "-1", "@a", "a\x1b", "a=b", -1.0, None]
    assert [*map(csv_cell, cells)] == ["'=HYPERLINK(1)", "'+1", "'-1", "'@a", r"a\x1b", "a=b", -1.0, None]


@pytest.mark.parametrize("error", [TypeError("bug"), KeyError("bug"), RuntimeError("bug")])
def test_bugs_keep_their_traceback(error):
    with pytest.raises(type(error), match="bug"), one_line_errors():
        raise error


def test_unknown_keys_name_the_nearest_known_one():
    check_known("here", ["rows"], ["rows", "columns"])
    for key, nearest in (("row", "rows"), ("cols", "columns"), ("test", "test_data")):
        with pytest.raises(ValueError, match=f"^here: unknown setting '{key}'; the nearest known one is '{nearest}'$"):
            check_known("here", ["rows", key], ["best", "rows", "columns", "test_data"])


class Refusal(Exception):
    """An error of a library that nobody has listed."""


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (Refusal("torn"), ValueError, "x.bin: expected a table, found: Refusal: torn"),
        (KeyError("k"), ValueError, "x.bin: expected a table, found: KeyError: 'k'"),
        (RecursionError("too deep"), ValueError, "x.bin: expected a table, found: RecursionError: too deep"),
        (MemoryError(), ValueError, "x.bin: expected a table, found: MemoryError: MemoryError"),
        (ValueError("a\nb"), ValueError, "x.bin: expected a table, found: a b"),
        (OSError("torn"), ValueError, "x.bin: expected a table, found: torn"),
        (OSError(errno.ENOSPC, "No space left"), OSError, "[Errno 28] No space left: 'x.bin'"),
        (FileNotFoundError(errno.ENOENT, "No such file", "y"), FileNotFoundError, "[Errno 2] No such file: 'y'"),
    ],
)
def test_whatever_a_library_raises_at_a_door_names_the_file(error, kind, message):
    # Raised outside the package, as a library would.
    with pytest.raises(kind) as caught, reading("x.bin", "a table"):
        raise error
    assert str(caught.value) == message

    @reads("a table")
    def read(path, _=None):
        raise error

    with pytest.raises(kind) as caught:
        read("x.bin", 1)
    assert str(caught.value) == message
    with pytest.raises(kind), reading("y.bin", "another"):
        read(path="x.bin")


def test_choices_are_listed_with_the_nearest():
    check_choice("here", "rows", ["rows", "columns"])
    for found, known, said in (
        ("Colums", ["rows", "columns"], "'Colums', expected rows or columns; did you mean 'columns'?"),
        ("x", ["rows", "columns", "cells"], "'x', expected rows, columns or cells"),
        (None, [], "None, expected nothing"),
    ):
        with pytest.raises(ValueError, match=f"^here: found {re.escape(said)}$"):
            check_choice("here", found, known)


def test_a_door_leaves_the_words_of_the_package_as_they_are():
    with pytest.raises(ValueError, match="^x: found: unknown setting 'row'; ") as caught, reading("x", "a table"):
        check_known("x: found", ["row"], ["rows"])
    assert caught.value.__cause__ is None
    with pytest.raises(ValueError, match="^x: y: unknown setting 'row'; the nearest"), reading("x", "a table"):
        check_known("y", ["row"], ["rows"])
    with pytest.raises(ValueError) as caught, reading("x", "a table"):
        raise Refusal(f"found {'v' * 5000}")
    assert len(str(caught.value)) <= LONGEST_LINE + 5


@pytest.mark.parametrize(("make", "found"), [(os.mkfifo, "a named pipe"), (None, "a device")])
def test_only_regular_files_are_read(tmp_path, make, found):
    path = tmp_path / "x"
    if make is None:
        path.symlink_to("/dev/zero")
    else:
        make(path)
    with pytest.raises(ValueError, match=f"x: found {found}, expected a table"), reading(path, "a table"):
        Path(path).read_bytes()
