"""Sound as encoders take it: cut into windows as it is decoded, so that its length does not matter."""

from collections.abc import Iterator
from typing import Any

import numpy as np

# Stretches without sound in the middle of a track are filled with silence, so that times stay true. After longer ones
# the sound begins anew: an error of the time stamps can make hours of nothing.
_SHORTEST_GAP = 0.05
_LONGEST_GAP = 60.0


class SoundBuffer:
    """The sound of a clip that has been decoded and not been used up yet.

    Args:
        rate: samples per second.
    """

    def __init__(self, rate: int):
        self.rate = rate
        self.start_time: float | None = None
        # Number of the first sample that is kept, from the first of the track.
        self.first = 0
        self._parts: list[np.ndarray] = []
        self._length = 0

    @property
    def end(self) -> int:
        """Number of samples so far, used up or not."""
        return self.first + self._length

    def is_far(self, time: float) -> bool:
        """Whether the sound at a time, in seconds from the start of the clip, is too far away to be added."""
        return self.start_time is not None and time - self.seconds(self.end) >= _LONGEST_GAP

    def append(self, time: float, samples: np.ndarray) -> None:
        """Adds a stretch of sound.

        Args:
            time: of its first sample, in seconds from the start of the clip.
            samples: (n,) float32.
        """
        if self.start_time is None:
            self.start_time = time
        gap = time - self.seconds(self.end)
        if _SHORTEST_GAP < gap < _LONGEST_GAP:
            self._add(np.zeros(round(gap * self.rate), np.float32))
        self._add(samples)

    def read(self, first: int, end: int) -> np.ndarray:
        """Samples by their numbers, which must not be dropped yet."""
        if len(self._parts) > 1:
            self._parts = [np.concatenate(self._parts)]
        kept = self._parts[0] if self._parts else np.zeros(0, np.float32)
        return kept[first - self.first : end - self.first]

    def drop(self, first: int) -> None:
        """Forgets samples before a number."""
        kept = self.read(first, self.end).copy()
        self.first, self._parts, self._length = first, [kept], len(kept)

    def seconds(self, sample: Any) -> Any:
        """When a sample, or each of an array of samples, sounds, in seconds from the start of the clip."""
        return (self.start_time or 0.0) + sample / self.rate

    def _add(self, samples: np.ndarray) -> None:
        if len(samples):
            self._parts.append(samples)
            self._length += len(samples)


def windows(buffer: SoundBuffer, window: int, context: int, ended: bool) -> Iterator[tuple[int, int, int, int]]:
    """Windows of a track that can be cut now; sound no window needs any more is dropped.

    A track no longer than one window is one; of a longer one, each window has context on both sides, which belongs to
    its neighbours.

    Args:
        buffer: of the track.
        window: samples at once.
        context: samples of overlap on each side, less than half a window.
        ended: whether the track is over.

    Yields:
        Numbers of samples: start and end of what the encoder hears, and of what is its own.
    """
    while buffer.end - buffer.first > window:
        own = buffer.first + (context if buffer.first else 0)
        end = buffer.first + window
        yield buffer.first, end, own, end - context
        buffer.drop(end - 2 * context)
    if ended and buffer.end > buffer.first:
        own = buffer.first + (context if buffer.first else 0)
        yield buffer.first, buffer.end, own, buffer.end
