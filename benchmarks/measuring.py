"""What the benchmarks share: options, the sides of a comparison in turn, processes of their own, and peak memory."""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def make_parser(description: str | None, **options: tuple[Any, str]) -> argparse.ArgumentParser:
    """A parser of options by name, each with its default and what it is."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, (default, text) in options.items():
        parser.add_argument(f"--{name}", type=type(default), default=default, help=f"{text} (default: {default})")
    return parser


def interleaved(
    sides: Mapping[Any, Callable[[], Any]], rounds: int, warm_up: int = 1
) -> tuple[dict[Any, float], dict[Any, list[Any]]]:
    """Runs all sides in turn, round after round.

    Returns:
        The median seconds of each side without the rounds to warm up, and what it returned in every round.
    """
    times: dict[Any, list[float]] = {name: [] for name in sides}
    found: dict[Any, list[Any]] = {name: [] for name in sides}
    for _ in range(warm_up + rounds):
        for name, side in sides.items():
            start = time.perf_counter()
            found[name].append(side())
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[warm_up:]) for name, values in times.items()}, found


def apart(*arguments: object, **environment: str) -> Any:
    """Runs Python with arguments in a process of its own, whose last line is JSON."""
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


class PeakMemory:
    """Peak growth of this process's resident memory since entering, in bytes."""

    def __enter__(self) -> "PeakMemory":
        self.before, self.peak = self._now(), 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stopped.set()
        self._thread.join()

    def _now(self) -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    def _watch(self) -> None:
        while not self._stopped.wait(0.001):
            self.peak = max(self.peak, self._now() - self.before)
