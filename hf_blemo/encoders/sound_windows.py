"""Cuts sound into windows for encoders while it is decoded, so that memory does not grow with its length."""

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np

from hf_blemo.encoders.encoder import Piece, Session

# Silence fills short gaps in a track, so that times stay true. After a longer gap the sound starts anew, because wrong
# time stamps can claim hours of silence.
_SHORTEST_GAP = 0.05
_LONGEST_GAP = 60.0


class _SoundBuffer:
    """The part of a clip's decoded sound that is still needed."""

    def __init__(self, rate: int):
        self.rate = rate
        self.start_time: float | None = None
        # Number of the first sample that is kept, from the first of the track.
        self.first = 0
        self._parts: list[np.ndarray] = []
        self._length = 0

    @property
    def end(self) -> int:
        """Number of samples so far, kept or dropped."""
        return self.first + self._length

    def is_far(self, time: float) -> bool:
        """Whether the sound at a time, in seconds from the start of the clip, is too far away to be added."""
        return self.start_time is not None and time - self.seconds(self.end) >= _LONGEST_GAP

    def append(self, time: float, samples: np.ndarray) -> None:
        """Adds samples (n,) float32 whose first is at a time, in seconds from the start of the clip."""
        if self.start_time is None:
            self.start_time = time
        gap = time - self.seconds(self.end)
        if _SHORTEST_GAP < gap < _LONGEST_GAP:
            self._add(np.zeros(round(gap * self.rate), np.float32))
        self._add(samples)

    def read(self, first: int, end: int) -> np.ndarray:
        """Samples by number; all of them must still be kept."""
        if len(self._parts) > 1:
            self._parts = [np.concatenate(self._parts)]
        kept = self._parts[0] if self._parts else np.zeros(0, np.float32)
        return kept[first - self.first : end - self.first]

    def seconds(self, sample: Any) -> Any:
        """Time of a sample, or of each of an array of samples, in seconds from the start of the clip."""
        return (self.start_time or 0.0) + sample / self.rate

    def windows(self, window: int, context: int, ended: bool) -> Iterator[tuple[int, int, int, int]]:
        """Cuts the windows that can be cut now, and drops the sound that no later window needs.

        A track no longer than one window is one; of a longer one, each window has context on both sides, which belongs
        to its neighbours. Yields numbers of samples: start and end of the sound that the encoder hears, and of the
        part that is its own.
        """
        while self.end - self.first > window:
            own = self.first + (context if self.first else 0)
            end = self.first + window
            yield self.first, end, own, end - context
            self._drop(end - 2 * context)
        if ended and self.end > self.first:
            own = self.first + (context if self.first else 0)
            yield self.first, self.end, own, self.end

    def _drop(self, first: int) -> None:
        kept = self.read(first, self.end).copy()
        self.first, self._parts, self._length = first, [kept], len(kept)

    def _add(self, samples: np.ndarray) -> None:
        if len(samples):
            self._parts.append(samples)
            self._length += len(samples)


class SoundSession(Session):
    """Cuts the sound of one clip into windows of some samples, with `context` samples of overlap on each side."""

    def __init__(self, rate: int, window: int, context: int = 0):
        self.buffer = _SoundBuffer(rate)
        self.window, self.context = window, context

    def push(self, item: Any) -> Iterator[Piece]:
        """Adds a stretch of sound."""
        if self.buffer.is_far(item.time):
            yield from self.finish()
            self.buffer = _SoundBuffer(self.buffer.rate)
        self.buffer.append(item.time, item.samples)
        yield from self._pieces(ended=False)

    def finish(self) -> Iterator[Piece]:
        """Cuts the last window."""
        yield from self._pieces(ended=True)

    def _pieces(self, ended: bool) -> Iterator[Piece]:
        for start, end, own_start, own_end in self.buffer.windows(self.window, self.context, ended):
            is_last = ended and own_end == end
            yield from self.piece(start, self.buffer.read(start, end), own_start, own_end, is_last)

    @abstractmethod
    def piece(self, start: int, samples: np.ndarray, own_start: int, own_end: int, is_last: bool) -> Iterator[Piece]:
        """Makes the piece of a window, if any row of features is its own.

        Args:
            start: number of its first sample, from the first of the track.
            samples: (n,) of the window, context included; they belong to the buffer.
            own_start, own_end: numbers of the first sample that is the window's own, and of the first after those.
            is_last: whether the track ends with this window.
        """
