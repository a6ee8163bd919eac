"""What ends a program with one line, and how the line reads."""

import pytest

from hf_blemo import RankAwareFusionConfig
from hf_blemo.errors import check_known, one_line_errors


def fail(error: Exception):
    raise error


@pytest.mark.parametrize(
    ("run", "line"),
    [
        (lambda folder: fail(ValueError("a\n  b")), "a b"),
        (lambda folder: fail(FileExistsError("a b")), "a b"),
        (lambda folder: fail(MemoryError()), "MemoryError"),
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


@pytest.mark.parametrize("error", [TypeError("bug"), KeyError("bug"), RuntimeError("bug")])
def test_bugs_keep_their_traceback(error):
    with pytest.raises(type(error), match="bug"), one_line_errors():
        raise error


def test_unknown_keys_name_the_nearest_known_one():
    check_known("here", ["rows"], ["rows", "columns"])
    for key, nearest in (("row", "rows"), ("cols", "columns"), ("test", "test_data")):
        with pytest.raises(ValueError, match=f"^here: unknown setting '{key}'; the nearest known one is '{nearest}'$"):
            check_known("here", ["rows", key], ["best", "rows", "columns", "test_data"])
