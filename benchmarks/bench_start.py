"""How long `hf-blemo` takes to start: its help, a refusal, and the blend of one clip by the built-in model.

Example:
    python benchmarks/bench_start.py
"""

import resource
import statistics
import subprocess
import sys
import time

from measuring import make_parser

from hf_blemo.built_in import CLIPS

COMMANDS = {
    "help of all commands": (["--help"], 0),
    "help of a command": (["predict", "--help"], 0),
    "help of a training program": (["train", "--help"], 0),
    "a missing model": (["predict", CLIPS[0], "--model", "no_model"], 2),
    "a missing clip": (["predict", "no_clip.mp4", "--built-in"], 2),
    "missing data of a training": (["train", "--data", "no_data"], 2),
    "the blend of a clip": (["predict", CLIPS[0], "--built-in"], 0),
}


def measured(arguments: list[str], expected: int) -> tuple[float, float]:
    """Seconds by the clock, and of the processor, until the command has ended."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "hf_blemo.cli", *arguments], capture_output=True, text=True)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != expected:
        raise RuntimeError(f"{arguments}: exit code {done.returncode}, expected {expected}: {done.stderr}")
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    rounds = make_parser(__doc__, rounds=(5, "starts of each command, interleaved")).parse_args().rounds
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    for _ in range(rounds):
        for name, command in COMMANDS.items():
            found[name].append(measured(*command))
    print(f"Medians of {rounds} starts, in seconds\n\n| command | clock | processor |\n|---|---|---|")
    for name, times in found.items():
        clock, processor = (statistics.median(column) for column in zip(*times, strict=True))
        print(f"| {name} | {clock:.2f} | {processor:.2f} |")


if __name__ == "__main__":
    main()
