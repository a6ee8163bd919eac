"""Programs in fresh processes whose Hub is the one on the loopback interface."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from fresh_processes import run_python

import hf_blemo

PACKAGE_FOLDER = Path(hf_blemo.__file__).resolve().parents[1]

# Makes the package unimportable, wherever it may be installed.
WITHOUT_PACKAGE = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hf_blemo":
            raise ImportError("hf_blemo is not installed here")

sys.meta_path.insert(0, Blocker())
try:
    import hf_blemo
except ImportError:
    pass
else:
    sys.exit("hf_blemo could be imported")
"""


def environment(token: str | None = "hf_of_you", **more: str) -> dict[str, str]:
    """The environment of a process on one thread of the CPU that can import this package and the tests' helpers.

    Args:
        token: the Hub's; None for nobody.
        more: variables.
    """
    known = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    given = {} if token is None else {"HF_TOKEN": token}
    path = f"{PACKAGE_FOLDER}:{Path(__file__).parent}"
    return {**known, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": path, **given, **more}


def run_on_hub(
    work: Path,
    program: str,
    *arguments: Any,
    installed: bool = True,
    fails: bool = False,
    token: str | None = "hf_of_you",
) -> Any:
    """Runs Python code in a fresh process and an empty folder, with the Hub of the tests.

    Args:
        work: where the empty folder is made.
        program: its code; its last line of output is JSON.
        arguments: of the command line; `sys.argv[1:]`.
        installed: whether the package may be imported.
        fails: whether an exit code other than 0 is expected.
        token: the Hub's; None for nobody.

    Returns:
        What the last line of its output says; where it fails, the exit code and stderr.
    """
    path = {} if installed else {"PYTHONPATH": ""}
    code = program if installed else WITHOUT_PACKAGE + program
    folder = tempfile.mkdtemp(prefix="empty_", dir=work)
    process = run_python(["-c", code, *arguments], cwd=folder, env=environment(token, **path))
    if fails:
        assert process.returncode != 0, process.stdout
        return process.returncode, process.stderr
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.strip().splitlines()[-1])
