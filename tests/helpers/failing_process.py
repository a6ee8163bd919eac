"""Runs a program as one of several processes, and makes it fail at some place.

`python failing_process.py JSON PROGRAM ARGUMENTS...`: `place` is `module:name` of a function of this package, `rank`
the process that fails, `call` which call of the function fails there, counted from 1, and `how` an error's name,
`kill` or `exit`.
"""

import errno
import functools
import importlib
import json
import os
import runpy
import signal
import sys
import time
from typing import Any

FAILED = "made to fail"
ERRORS = {
    "ValueError": ValueError(FAILED),
    "RuntimeError": RuntimeError(FAILED),
    "KeyError": KeyError(FAILED),
    "MemoryError": MemoryError(FAILED),
    "OSError": OSError(errno.ENOSPC, "No space left on device", FAILED),
    "KeyboardInterrupt": KeyboardInterrupt(),
}


def fail(how: str) -> None:
    """Fails, after the time of it on stderr."""
    print(f"fails at {time.time()}", file=sys.stderr, flush=True)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "exit":
        os._exit(3)
    raise ERRORS[how]


def owner_of(place: str) -> tuple[Any, str]:
    """The module or class that has the function, and the function's name."""
    module, _, path = place.partition(":")
    *owners, name = path.split(".")
    return functools.reduce(getattr, owners, importlib.import_module(f"hf_blemo.{module}")), name


def arm(place: str, call: int, how: str) -> None:
    """Replaces the function by one that fails."""
    owner, name = owner_of(place)
    original, calls = getattr(owner, name), 0

    def failing(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            fail(how)
        return original(*arguments, **options)

    setattr(owner, name, failing)


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    sys.argv = sys.argv[2:]
    if os.environ.get("RANK") == str(given["rank"]):
        arm(given["place"], given["call"], given["how"])
    runpy.run_path(sys.argv[0], run_name="__main__")
