"""Programs in fresh processes that begin with torch imported, which is most of what a short program's start takes.

A server, one per worker of the tests, has imported torch and nothing of Hugging Face or of this package; it forks for
every program, which then reads its own environment, paths and arguments as if it had been started from nothing.
"""

import atexit
import gc
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import types
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any


def run_python(
    arguments: Sequence[Any], cwd: Path | str, env: Mapping[str, str], timeout: float = 240
) -> subprocess.CompletedProcess:
    """Runs `python ARGUMENTS`, as `subprocess.run` with `capture_output` and `text` does.

    Args:
        arguments: `-c CODE ...`, `-m MODULE ...` or `FILE ...`.
        cwd: folder it runs in.
        env: its whole environment.
        timeout: in seconds.

    Raises:
        subprocess.TimeoutExpired: it did not end; it is killed then.
    """
    server = _server()
    given = [str(argument) for argument in arguments]
    with tempfile.TemporaryDirectory(prefix="fresh_process_") as folder:
        out, err = (Path(folder, name) for name in ("stdout", "stderr"))
        request = {"arguments": given, "cwd": str(cwd), "env": dict(env), "stdout": str(out), "stderr": str(err)}
        assert server.stdin is not None and server.stdout is not None
        server.stdin.write(json.dumps({**request, "timeout": timeout}) + "\n")
        server.stdin.flush()
        code = json.loads(server.stdout.readline())
        printed, errors = out.read_text(), err.read_text()
    if code is None:
        raise subprocess.TimeoutExpired(given, timeout, printed, errors)
    return subprocess.CompletedProcess(given, code, printed, errors)


@lru_cache(maxsize=1)
def _server() -> subprocess.Popen:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, __file__]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
    # It ends where nobody can ask any more.
    atexit.register(server.communicate)
    return server


def serve() -> None:
    """Forks for every request; returns in the fork, where the program is run."""
    import torch._dynamo
    import torch.distributed.checkpoint
    import torch.distributed.tensor  # noqa: F401

    # No collection of a program goes through what it was forked with.
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            _become(request)
            return
        print(json.dumps(_exit_code(child, request["timeout"])), flush=True)
    # No program is left to run.
    os._exit(0)


def _exit_code(child: int, timeout: float) -> int | None:
    """As `subprocess` gives it; None where the time is over."""
    deadline = time.monotonic() + timeout
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(0.005)


def _become(request: Mapping[str, Any]) -> None:
    """Gives this process the folder, environment, files and arguments of a program."""
    os.setsid()
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    nothing = os.open(os.devnull, os.O_RDONLY)
    files = [os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for name in ("stdout", "stderr")]
    for number, file in enumerate((nothing, *files)):
        os.dup2(file, number)
        os.close(file)
    sys.argv = list(request["arguments"])
    first = str(Path(sys.argv[0]).parent) if not sys.argv[0].startswith("-") else ""
    # What this file itself was found by gives way to what a program's would be.
    sys.path[:1] = [first, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]


def run_program() -> None:
    """Runs what `sys.argv` says, as the interpreter does."""
    if sys.argv[0] == "-m":
        module = sys.argv.pop(1)
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    elif sys.argv[0] == "-c":
        code = sys.argv.pop(1)
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(code, "<string>", "exec"), main.__dict__)
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    serve()
    try:
        run_program()
    except Exception:
        traceback.print_exc()
        sys.exit(1)
