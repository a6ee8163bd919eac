"""Programs in fresh processes that start with the large libraries imported, which is most of a short program's time.

A server, one per worker of the tests, has imported torch, transformers and their kin, and nothing of this package; it
forks for every program, which then reads its own environment, paths and arguments as if it had been started from
nothing. Every program talks to the Hub on the loopback interface, with an empty cache.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import types
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

BARE = (
    *("torch._dynamo", "torch.distributed.checkpoint", "torch.distributed.tensor"),
    *("matplotlib.figure", "pandas", "PIL.Image", "jinja2", "yaml"),
)
# What reads the variables of the Hub, which are those of the server.
WITH_HUB = (
    *("transformers.modeling_utils", "transformers.pipelines", "transformers.trainer", "datasets", "accelerate"),
    *("peft", "evaluate", "transformers.models.clip.modeling_clip", "transformers.models.clip.processing_clip"),
)
PACKAGE_FOLDER = Path(__file__).resolve().parents[2]


def run_python(
    arguments: Sequence[Any],
    cwd: Path | str,
    env: Mapping[str, str] | None = None,
    timeout: float = 240,
    processes: int = 1,
    installed: bool = True,
    bare: bool = False,
    patience: float = 0,
) -> "Done":
    """Runs `python ARGUMENTS`, as `subprocess.run` with `capture_output` and `text` does.

    Args:
        arguments: `-c CODE ...`, `-m MODULE ...` or `FILE ...`.
        cwd: folder it runs in.
        env: variables on top of those of the tests; the address of the Hub and an empty cache stay the server's.
        timeout: in seconds.
        processes: how many run it together, set up as torchrun does.
        patience: seconds after which the others are killed where one fails.
        installed: whether it can import this package.
        bare: whether it starts without transformers imported, for tests of the order of imports.

    Returns:
        With the output of all processes in their order, and the exit code of the first that failed.

    Raises:
        subprocess.TimeoutExpired: it did not end; it is killed then.
    """
    server, given = _server(bare), [str(argument) for argument in arguments]
    path = {"PYTHONPATH": f"{PACKAGE_FOLDER}:{Path(__file__).parent}"} if installed else {}
    environments = [{**os.environ, "ACCELERATE_USE_CPU": "true", **path, **(env or {})} for _ in range(processes)]
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        for rank, environment in enumerate(environments):
            numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
            environment |= {name: str(value) for name, value in numbers.items()}
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    with tempfile.TemporaryDirectory(prefix="fresh_process_") as folder:
        request = {"arguments": given, "cwd": str(cwd), "envs": environments, "folder": folder}
        request |= {"timeout": timeout, "installed": installed, "patience": patience}
        assert server.stdin is not None and server.stdout is not None
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        code, codes, ended = json.loads(server.stdout.readline())
        printed, errors = (
            "".join(Path(folder, f"{name}_{rank}").read_text() for rank in range(processes))
            for name in ("stdout", "stderr")
        )
    if code is None:
        raise subprocess.TimeoutExpired(given, timeout, printed, errors)
    return Done(given, code, printed, errors, codes, ended)


class Done(subprocess.CompletedProcess):
    """What is left of processes: also the `codes` of all, None for a killed one, and the times they `ended` at."""

    def __init__(self, args: Any, code: int, printed: str, errors: str, codes: list[int | None], ended: list[float]):
        super().__init__(args, code, printed, errors)
        self.codes, self.ended = codes, ended


def run_code(work: Path, code: str, *arguments: Any, installed: bool = True) -> Any:
    """Runs Python code in a fresh process and an empty folder in `work`; returns its last line of output, as JSON."""
    folder = tempfile.mkdtemp(prefix="empty_", dir=work)
    process = run_python(["-c", code, *arguments], cwd=folder, installed=installed)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.strip().splitlines()[-1])


@lru_cache
def _server(bare: bool) -> subprocess.Popen:
    folder = tempfile.mkdtemp(prefix="fresh_processes_")
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env["HF_HOME"] = f"{folder}/home"
    command = [sys.executable, __file__, *(BARE if bare else BARE + WITH_HUB)]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)

    def end() -> None:
        # It ends when nobody can ask any more.
        server.communicate()
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(end)
    return server


def serve() -> None:
    """Forks for every request; returns in the fork, where the program is run."""
    for name in sys.argv[1:]:
        importlib.import_module(name)

    # No collection of a program goes through what it was forked with.
    gc.collect()
    gc.freeze()
    home = Path(os.environ["HF_HOME"])
    for line in sys.stdin:
        request = json.loads(line)
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir()
        children = []
        for rank in range(len(request["envs"])):
            children.append(os.fork())
            if children[-1] == 0:
                _become(request, rank)
                return
        print(json.dumps(_wait(children, request["timeout"], request["patience"])), flush=True)
    # No program is left to run.
    os._exit(0)


def _wait(
    children: Sequence[int], timeout: float, patience: float
) -> tuple[int | None, list[int | None], list[float]]:
    """The exit code of the first child that failed, None where the time is over; the codes of all, and their ends."""
    deadline = time.monotonic() + timeout
    code, codes, ended = 0, [None for _ in children], [0.0 for _ in children]
    running = list(range(len(children)))
    while running:
        for number in list(running):
            found, status = os.waitpid(children[number], os.WNOHANG)
            if found:
                running.remove(number)
                codes[number], ended[number] = os.waitstatus_to_exitcode(status), time.time()
                if codes[number] and not code:
                    code, deadline = codes[number], min(deadline, time.monotonic() + patience)
        if running and time.monotonic() > deadline:
            for child in (children[number] for number in running):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child, signal.SIGKILL)
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            return code or None, codes, ended
        time.sleep(0.005)
    return code, codes, ended


def _become(request: Mapping[str, Any], rank: int) -> None:
    """Gives this process the folder, environment, files and arguments of a program."""
    os.setsid()
    os.chdir(request["cwd"])
    home = os.environ["HF_HOME"]
    os.environ.clear()
    os.environ.update({**request["envs"][rank], "HF_HOME": home})
    nothing = os.open(os.devnull, os.O_RDONLY)
    paths = [Path(request["folder"], f"{name}_{rank}") for name in ("stdout", "stderr")]
    files = [os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for path in paths]
    for number, file in enumerate((nothing, *files)):
        os.dup2(file, number)
        os.close(file)
    sys.argv = list(request["arguments"])
    first = str(Path(sys.argv[0]).parent) if not sys.argv[0].startswith("-") else ""
    if not request["installed"]:
        sys.meta_path.insert(0, _NotInstalled())
    # What this file itself was found by gives way to what a program's would be.
    sys.path[:1] = [first, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]


class _NotInstalled:
    """Makes this package unimportable, wherever it may be installed."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.split(".")[0] == "hf_blemo":
            raise ImportError("hf_blemo is not installed here")


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


def end(code: Any) -> None:
    """Ends this process as the interpreter does, but for taking down one by one the modules it was forked with."""
    threading._shutdown()
    atexit._run_exitfuncs()
    if isinstance(code, str):
        print(code, file=sys.stderr)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    # Processes that run together end in full: how they let go of each other is what may go wrong.
    if "WORLD_SIZE" in os.environ:
        sys.exit(code)
    os._exit(code or 0)


if __name__ == "__main__":
    serve()
    try:
        run_program()
        ended: Any = 0
    except SystemExit as exit_of_program:
        ended = exit_of_program.code
    except Exception:
        traceback.print_exc()
        ended = 1
    end(ended)
