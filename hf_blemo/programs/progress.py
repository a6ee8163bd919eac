"""Progress of long jobs on stderr: one bar on a terminal, elsewhere a line every ten seconds."""

import logging
import os
import sys
import time
from datetime import datetime, timedelta
from typing import Any

from hf_blemo.errors import printable, say, without_secrets

SECONDS_BETWEEN_LINES = 10.0

_program_is_quiet = False


def quiet_libraries() -> None:
    """Turns off the bars of transformers and datasets in a program, and off a terminal those of downloads, too."""
    global _program_is_quiet
    _program_is_quiet = True
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_OneLine())
    # Libraries that are imported later, and child processes, read these.
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    if not sys.stderr.isatty():
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    if "datasets" in sys.modules:
        import datasets

        datasets.disable_progress_bars()
    if "transformers" in sys.modules:
        from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
        from transformers.utils.logging import disable_progress_bar

        shows_downloads = sys.stderr.isatty() and not are_progress_bars_disabled()
        # Turns off those of downloads as well.
        disable_progress_bar()
        if shows_downloads:
            enable_progress_bars()


class _OneLine(logging.Formatter):
    """Formats a warning as `say` prints a line."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(without_secrets(super().format(record)))


class Progress:
    """How far a job is: a bar on a terminal; elsewhere a line every ten seconds, so none for a short job.

    Args:
        description: of the job, at the start of bar or line.
        unit: counted unit, in the singular.
        total, done: how many there are, None where that is not known, and how many were done before.
        shown: whether to show anything; False on all processes but the first.
        holds: what each unit holds and how many of it, for instance `("pairs", 64)`, whose speed is shown as well.
    """

    def __init__(
        self,
        description: str,
        unit: str,
        total: int | None = None,
        done: int = 0,
        shown: bool = True,
        holds: tuple[str, int] | None = None,
    ):
        self.unit, self.total, self.done, self.shown, self.holds = unit, total, done, shown, holds
        self.description = printable(description)
        self._values: dict[str, Any] = {}
        self._bar: Any = None
        self._begun = self._last_line = time.monotonic()
        self._done_before = done
        if shown and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=done, desc=self.description, unit=unit, file=sys.stderr)
        if _program_is_quiet:
            # By now the libraries have been imported.
            quiet_libraries()

    def update(self, count: int = 1, **values: Any) -> None:
        """Counts what has been done since the last call, and shows values beside the numbers from now on."""
        self.done += count
        self._values |= values
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join([*self._held(), *self._shown_values()]), refresh=False)
            self._bar.update(count)
        elif self.shown and time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            say(self._line(), error=True)

    def clear(self) -> None:
        """Makes room for a line of the program's own."""
        if self._bar is not None:
            self._bar.clear()

    def close(self) -> None:
        """Leaves the bar as it is."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _line(self) -> str:
        counted = self.total if self.total is not None else self.done
        number = f"{self.done} of {self.total}" if self.total is not None else str(self.done)
        speed = self._speed()
        pace = f"{speed:.3g} {self.unit}s/s" if speed >= 1 or not speed else f"{1 / speed:.3g} s/{self.unit}"
        units = self.unit if counted == 1 else f"{self.unit}s"
        parts = [f"{number} {units}", pace, *self._held(), *self._shown_values()]
        if self.total is not None and speed:
            left = (self.total - self.done) / speed
            parts.append(f"done at {datetime.now() + timedelta(seconds=left):%a %H:%M} (in {duration(left)})")
        return f"{self.description}: {', '.join(parts)}"

    def _held(self) -> list[str]:
        return [] if self.holds is None else [f"{self._speed() * self.holds[1]:.3g} {self.holds[0]}/s"]

    def _shown_values(self) -> list[str]:
        return [f"{name} {value}" for name, value in self._values.items()]

    def _speed(self) -> float:
        return (self.done - self._done_before) / max(time.monotonic() - self._begun, 1e-9)


def duration(seconds: float) -> str:
    """Writes seconds for people, for instance `48 s`, `2 min 5 s` or `3 h 20 min`."""
    units = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))
    left = round(seconds)
    parts: list[str] = []
    for name, size in units:
        if left >= size or parts:
            parts.append(f"{left // size} {name}")
            left %= size
        if len(parts) == 2:
            break
    return " ".join(part for part in parts if not part.startswith("0 ")) or "0 s"
