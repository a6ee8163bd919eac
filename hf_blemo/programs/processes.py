"""The processes of a run end together: what fails in one of them ends all, with one line that names it."""

import atexit
import gc
import hmac
import json
import os
import secrets
import selectors
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from hf_blemo.errors import is_user_error, one_line, say

# Seconds in which a process ends by itself after another has failed; then it is ended where it is.
_GRACE = 4.0
# A RuntimeError may be only the echo of another process's end, so it waits this long for another cause.
_ECHO = 1.0
_CONNECTING = 60.0
# A network file system may show a new file late.
_SEEN_WITHIN = 5.0
_LONGEST_LINE, _SHOWN = 4000, 200
# What the first process says once all have come, before the news; that is empty where all are done.
_READY: list[Any] = ["ready"]
_LOCAL = ("127.0.0.1", "localhost")
# A machine that is gone is noticed after about half a minute of silence.
_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}

_active: "_Watch | None" = None


class _Cause(NamedTuple):
    """Why a run ends: which process failed, in a line, and the code with which all exit."""

    rank: int
    line: str
    code: int


@contextmanager
def together(accelerator: Accelerator, settings: Any) -> Iterator[ExitStack]:
    """Runs what follows on all processes, of which none outlives another's failure, and ends them.

    Beside the process group every process has a connection to the first one, on which nothing is sent while all goes
    well. Where one raises, or its connection breaks since it was killed, the others print one line that names it and
    exit with its code within seconds, whatever they are waiting for; so does the one that failed, even if a caller
    catches its error. No process returns before all are done.

    Drop every reference to a prepared model inside: a `DistributedDataParallel` model that outlives its process group
    holds the last reference to the group. Freeing it can hang in torch 2.13 with gloo: the freeing thread holds
    Python's lock while it waits for the group's threads, which need that lock to free their tensors.

    Args:
        accelerator: of the run. Inside another `together`, the process group is left to that one.
        settings: of the run, a dataclass.

    Returns:
        A stack for what is to be closed at the end.

    Raises:
        ValueError: the processes have different settings, or do not know of each other.
        SystemExit: another process failed; with its code.
    """
    global _active
    started = int(os.environ.get("WORLD_SIZE", 1)) if "LOCAL_RANK" in os.environ else 1
    if _active is None and started > 1 == accelerator.num_processes:
        raise ValueError(
            f"{started} processes were started (WORLD_SIZE), each of which would run alone; without a GPU for each, "
            "start them as ACCELERATE_USE_CPU=true torchrun ..."
        )
    if _active is not None or accelerator.num_processes == 1:
        with ExitStack() as stack:
            yield stack
        _end_training(accelerator, group=_active is None)
        # What comes next may read what only one process has written.
        accelerator.wait_for_everyone()
        return
    _active = watch = _Watch(accelerator)
    try:
        check_same(accelerator, asdict(settings))
        with ExitStack() as stack:
            yield stack
        _end_training(accelerator)
        watch.done()
    except BaseException as error:
        watch.failed(error)
        raise
    finally:
        _active = None


def of_first(accelerator: Accelerator, make: Callable[[], Any]) -> Any:
    """What the first process makes, on all of them."""
    made = [make() if accelerator.is_main_process else None]
    return broadcast_object_list(made)[0] if accelerator.num_processes > 1 else made[0]


def check_same(accelerator: Accelerator, facts: Mapping[str, Any]) -> None:
    """Refuses processes that know different things, which would wait for each other or mix two runs.

    What has to be the same has a `repr` that says what it is; the message names a process and both values.
    """
    if accelerator.num_processes == 1:
        return
    first, *others = gather_object([{name: repr(value) for name, value in facts.items()}])
    for rank, found in enumerate(others, start=1):
        for name, value in found.items():
            if value != first[name]:
                raise ValueError(
                    f"{name} is {first[name][:_SHOWN]} on process 0 and {value[:_SHOWN]} on "
                    f"{_name(rank, accelerator.num_processes)}: start all with the same settings and data"
                )


def check_shared(accelerator: Accelerator, folder: Path) -> None:
    """Refuses a folder that is not the same one on all machines, where what one process writes others do not find.

    It is made if missing; the message names a process that does not see what the first one writes there.
    """
    if accelerator.num_processes == 1:
        return
    probe = folder / of_first(accelerator, lambda: f".{uuid.uuid4().hex}")
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
    accelerator.wait_for_everyone()
    deadline = time.monotonic() + _SEEN_WITHIN
    while not (seen := probe.exists()) and time.monotonic() < deadline:
        # Network file systems look again at a folder that is listed.
        with suppress(OSError):
            os.listdir(next(path for path in (folder, *folder.parents) if path.is_dir()))
        time.sleep(0.1)
    blind = [rank for rank, sees in enumerate(gather_object([seen])) if not sees]
    if accelerator.is_main_process:
        probe.unlink()
    if blind:
        raise ValueError(
            f"{folder}: {_name(blind[0], accelerator.num_processes)} does not see what process 0 writes there; "
            "several machines need a folder that all of them share"
        )


def _end_training(accelerator: Accelerator, group: bool = True) -> None:
    """Ends trackers and, with `group`, processes."""
    if accelerator.num_processes > 1:
        accelerator.free_memory()
        # Wrapped models are parts of reference cycles.
        gc.collect()
    if group:
        accelerator.end_training()
    else:
        for tracker in accelerator.trackers:
            tracker.finish()


class _Watch:
    """This process's connection to the first one, and the thread that waits for its news."""

    def __init__(self, accelerator: Accelerator):
        self.rank, self.size = accelerator.process_index, accelerator.num_processes
        self.cause: _Cause | None = None
        self.ready, self.news = threading.Event(), threading.Event()
        self.hub: threading.Thread | None = None
        address: list[Any] = [None]
        if self.rank == 0:
            host = os.environ.get("MASTER_ADDR") or socket.gethostname()
            single = host in _LOCAL or os.environ.get("LOCAL_WORLD_SIZE") == str(self.size)
            host = _LOCAL[0] if single else host
            listener, token = _listener(single), secrets.token_hex(16)
            self.hub = threading.Thread(target=_Hub(listener, token, self.size).run, daemon=True)
            self.hub.start()
            address = [(host, listener.getsockname()[1], token)]
        host, port, token = broadcast_object_list(address)[0]
        self.connection = socket.create_connection((host, port), timeout=_CONNECTING)
        self.connection.settimeout(None)
        _keep_alive(self.connection)
        # A worker of this process must not keep the connection alive when this process is killed.
        os.register_at_fork(after_in_child=self.connection.close)
        self._send({"rank": self.rank, "token": token})
        atexit.register(self._at_exit)
        threading.Thread(target=self._listen, daemon=True).start()
        # One that fails at once must not be gone before the others could hear of it.
        self.ready.wait()
        if self.cause is not None:
            raise SystemExit(self.cause.code)

    def _send(self, message: Mapping[str, Any]) -> None:
        with suppress(OSError):
            self.connection.sendall(json.dumps(message).encode() + b"\n")

    def _listen(self) -> None:
        found = _next(self.connection)
        if found == _READY:
            self.ready.set()
            found = _next(self.connection)
        if found:
            self._end(_Cause(*found))
        self.connection.close()
        self.news.set()
        self.ready.set()
        if found:
            time.sleep(_GRACE)
            _exit(found[-1])

    def _end(self, cause: _Cause) -> None:
        self.cause = cause
        if cause.rank != self.rank:
            say(f"{Path(sys.argv[0]).name}: error: {_name(cause.rank, self.size)}: {cause.line}", error=True)

    def done(self) -> None:
        """Waits until all processes are done."""
        self._send({"done": True})
        self.news.wait()
        if self.hub is not None:
            self.hub.join(_GRACE)
        if self.cause is not None:
            raise SystemExit(self.cause.code)

    def failed(self, error: BaseException) -> None:
        """Tells the others; raises where it was another process that failed first."""
        if self.cause is None:
            line = "interrupted" if isinstance(error, KeyboardInterrupt) else one_line(error)
            if _code(error) == 1:
                line = f"{type(error).__name__}: {line}"
            self._send({"failed": [self.rank, line[: _LONGEST_LINE // 8], _code(error)], "echo": _is_echo(error)})
            self.news.wait(_ECHO + _GRACE)
        if self.hub is not None:
            # The news reach all before this process, which brings them, ends.
            self.hub.join(_ECHO)
        if self.cause is not None and self.cause.rank != self.rank:
            raise SystemExit(self.cause.code) from error
        error.process = _name(self.rank, self.size)  # type: ignore[attr-defined]

    def _at_exit(self) -> None:
        # Taking down a process group whose other members are gone may hang or abort.
        if self.cause is not None:
            _exit(self.cause.code)


class _Hub:
    """Runs on the first process: hears of the first failure, or that all are done, and tells everyone."""

    def __init__(self, listener: socket.socket, token: str, size: int):
        self.listener, self.token, self.size = listener, token, size
        self.selector = selectors.DefaultSelector()
        self.selector.register(listener, selectors.EVENT_READ)
        self.texts: dict[socket.socket, bytes] = {}
        self.ranks: dict[socket.socket, int] = {}
        self.done: set[int] = set()
        # The news: a cause, or nothing where all are done.
        self.news: list[Any] | None = None
        self.echo: list[Any] | None = None
        self.deadline = time.monotonic() + _CONNECTING

    def run(self) -> None:
        """Serves until everyone has the news."""
        os.register_at_fork(after_in_child=self._close)
        while self.news is None:
            left = self.deadline - time.monotonic()
            waits = self.echo is not None or len(self.ranks) < self.size
            for key, _ in self.selector.select(max(left, 0) if waits else None):
                self._hear(key.fileobj)
            if len(self.done) == self.size:
                self.news = []
            elif self.news is None and waits and time.monotonic() >= self.deadline:
                missing = set(range(self.size)) - set(self.ranks.values())
                self.news = self.echo or [min(missing), "it found no way to the first process", 1]
        self._tell(self.news)
        for connection in self.ranks:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_WR)
        # Closing with something unread could take the news back.
        for connection in list(self.ranks):
            with suppress(OSError):
                while connection.recv(_LONGEST_LINE):
                    pass
        self._close()

    def _tell(self, message: list[Any]) -> None:
        for connection in self.ranks:
            with suppress(OSError):
                connection.sendall(json.dumps(message).encode() + b"\n")

    def _close(self) -> None:
        for connection in [self.listener, *self.texts]:
            connection.close()

    def _hear(self, connection: Any) -> None:
        if connection is self.listener:
            accepted, _ = self.listener.accept()
            self.selector.register(accepted, selectors.EVENT_READ)
            self.texts[accepted] = b""
            return
        part = b""
        with suppress(OSError):
            part = connection.recv(_LONGEST_LINE)
        *lines, self.texts[connection] = (self.texts[connection] + part).split(b"\n")
        for line in lines:
            self._take(connection, line)
        if not part or len(self.texts[connection]) > _LONGEST_LINE:
            self.selector.unregister(connection)
            if connection in self.ranks:
                self._decide(_died(self.ranks[connection]))
            else:
                connection.close()

    def _take(self, connection: socket.socket, line: bytes) -> None:
        try:
            message = json.loads(line)
            known = connection in self.ranks
            if not known and hmac.compare_digest(str(message["token"]), self.token):
                self.ranks[connection] = int(message["rank"])
                if len(self.ranks) == self.size:
                    self._tell(_READY)
        except (ValueError, TypeError, KeyError):
            # Not one of ours.
            return
        if not known:
            return
        if message.get("done"):
            self.done.add(self.ranks[connection])
        elif not message["echo"]:
            self._decide(message["failed"])
        elif self.echo is None:
            self.echo, self.deadline = message["failed"], time.monotonic() + _ECHO

    def _decide(self, cause: list[Any]) -> None:
        if self.news is None:
            self.news = cause


def _listener(single: bool) -> socket.socket:
    """On the loopback interface where all processes are on this machine."""
    if single or not socket.has_dualstack_ipv6():
        listener = socket.create_server((_LOCAL[0] if single else "", 0), backlog=1024)
    else:
        listener = socket.create_server(("", 0), backlog=1024, family=socket.AF_INET6, dualstack_ipv6=True)
    # What it accepts inherits this.
    _keep_alive(listener)
    return listener


def _keep_alive(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _next(connection: socket.socket) -> list[Any]:
    """What the first process says next; where it is gone, that."""
    line = b""
    with suppress(OSError):
        # Byte by byte, so that nothing of the line after it is taken.
        while not line.endswith(b"\n") and (part := connection.recv(1)):
            line += part
    return json.loads(line) if line.endswith(b"\n") else _died(0)


def _died(rank: int) -> list[Any]:
    return [rank, "it ended without a word (killed, or out of memory?)", 1]


def _is_echo(error: BaseException) -> bool:
    """Whether another process may have failed first; what a loss says of another one may have got a place in front."""
    if isinstance(error, RuntimeError) or hasattr(error, "of_another_process"):
        return True
    return error.__cause__ is not None and hasattr(error.__cause__, "of_another_process")


def _name(rank: int, size: int) -> str:
    return f"process {rank} of {size}"


def _code(error: BaseException) -> int:
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, KeyboardInterrupt):
        return 130
    return 2 if is_user_error(error) else 1


def _exit(code: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
