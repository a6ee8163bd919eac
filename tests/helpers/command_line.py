"""`hf-blemo` and the programs of `training/`, run in this process."""

import runpy
from typing import Any

from fresh_processes import PACKAGE_FOLDER

from hf_blemo import cli


def run(capsys: Any, *arguments: object) -> tuple[int, str, str]:
    """Runs the command: its exit code, and what it printed on both streams."""
    capsys.readouterr()
    code = cli.main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


def refused(capsys: Any, *arguments: object) -> str:
    """Runs a command that must fail with one line and exit code 2, and returns that line."""
    code, _, err = run(capsys, *arguments)
    assert code == 2 and err.count("\n") == 1 and err.startswith("hf-blemo"), err
    return err


def run_training(monkeypatch: Any, name: str, *arguments: object) -> None:
    """Runs `python training/NAME ARGUMENTS`; its exit code is that of the SystemExit raised, if any."""
    path = str(PACKAGE_FOLDER / "training" / name)
    monkeypatch.setattr("sys.argv", [path, *map(str, arguments)])
    runpy.run_path(path, run_name="__main__")
