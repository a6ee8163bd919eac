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


def hub_environment(hub: Any, work: Path, token: str | None = "hf_of_you", **more: str) -> dict[str, str]:
    """The environment of a process that knows nothing but the Hub given, with empty caches.

    Args:
        hub: the server.
        work: a folder for the caches.
        token: the Hub's; None for nobody.
        more: variables.
    """
    kept = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "HF_TOKEN")}
    environment = {
        **kept,
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": tempfile.mkdtemp(prefix="hf_home_", dir=work),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
        "PYTHONPATH": str(PACKAGE_FOLDER),
        **more,
    }
    return environment if token is None else {**environment, "HF_TOKEN": token}


def run_on_hub(
    hub: Any,
    work: Path,
    program: str,
    *arguments: Any,
    installed: bool = True,
    fails: bool = False,
    token: str | None = "hf_of_you",
    **more: str,
) -> Any:
    """Runs Python code in a fresh process and an empty folder.

    Args:
        hub: the server.
        work: a folder for caches.
        program: its code; its last line of output is JSON.
        arguments: of the command line; `sys.argv[1:]`.
        installed: whether the package may be imported.
        fails: whether an exit code other than 0 is expected.
        token, more: as in [`hub_environment`].

    Returns:
        What the last line of its output says; where it fails, the exit code and stderr.
    """
    environment = hub_environment(hub, work, token, **more)
    if not installed:
        environment["PYTHONPATH"] = ""
        program = WITHOUT_PACKAGE + program
    folder = tempfile.mkdtemp(prefix="empty_", dir=work)
    process = run_python(["-c", program, *arguments], cwd=folder, env=environment)
    if fails:
        assert process.returncode != 0, process.stdout
        return process.returncode, process.stderr
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.strip().splitlines()[-1])
