"""Clips to pieces: threads that decode clips and cut them for the encoders, a bounded amount ahead of them."""

import logging
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hf_blemo.encoders.clip_sessions import ClipSessions
from hf_blemo.encoders.encoder import Encoder, Piece
from hf_blemo.errors import MissingExtraError, one_line
from hf_blemo.extraction.clip_sources import as_clip
from hf_blemo.media import MediaError, MediaFile, Thumbnails

logger = logging.getLogger(__name__)

# Clips that may be decoded before the first of them has all its features: this bounds the memory.
CLIPS_AHEAD = 64
# Pieces that wait for the encoders, per decoding thread, and their bytes in all.
_PIECES_AHEAD = 32
_BYTES_AHEAD = 2**27
THREAD_NAME = "decoding-clips"


@dataclass
class ClipFeatures:
    """The features of one clip, by encoder.

    Args:
        name: of the clip.
        features: encoder -> (T, D) float32, without encoders that found nothing to look at.
        times: encoder -> (T,) float64, seconds from the start of the clip at which each row begins.
        duration: seconds, where known.
        notes: sentences on anything unusual about the file.
        thumbnails: JPEG files in the order of time, if requested.
        persons: their numbers, with thumbnails of each, where encoders look at each of them.
        person: number of the one whose features these are; 0 for a clip.
        error: why there are no features; a line that names the clip.
    """

    name: str
    features: dict[str, np.ndarray] = field(default_factory=dict)
    times: dict[str, np.ndarray] = field(default_factory=dict)
    duration: float | None = None
    notes: list[str] = field(default_factory=list)
    thumbnails: list[bytes] = field(default_factory=list)
    persons: dict[int, list[bytes]] = field(default_factory=dict)
    person: int = 0
    error: Exception | None = None

    @property
    def problem(self) -> str | None:
        """Why the features cannot be used, in a line that names the clip; None if they can."""
        if self.error is not None:
            line = one_line(self.error)
            return line if self.name in line else f"{self.name}: {line}"
        for name, values in self.features.items():
            if not np.isfinite(values).all():
                return (
                    f"{self.name}: encoder {name!r} gave NaN or infinity, expected finite features; try dtype float32"
                )
        return None


class ClipDecoder:
    """Decodes clips in threads, each clip once for all encoders, until `stop` is called.

    Args:
        clips, num_thumbnails: as `encode_clips` takes them.
        encoders: name -> encoder.
        num_threads: clips decoded at once.
    """

    def __init__(self, clips: Iterable[Any], encoders: Mapping[str, Encoder], num_threads: int, num_thumbnails: int):
        self._encoders, self._num_thumbnails = encoders, num_thumbnails
        self._sources = enumerate(clips)
        self._lock = threading.Lock()
        self._places = threading.Semaphore(num_threads + CLIPS_AHEAD)
        self._queue = _Queue(_PIECES_AHEAD * num_threads, _BYTES_AHEAD)
        self._stopped = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, name=f"{THREAD_NAME}-{number}", daemon=True)
            for number in range(num_threads)
        ]
        for thread in self._threads:
            thread.start()

    def messages(self) -> Iterator[tuple[int, str, Piece | ClipFeatures]]:
        """Gives the pieces of each clip, then its result without features; clips overlap.

        Returns:
            (number of the clip, encoder, piece) or (number of the clip, "", result).

        Raises:
            Exception: of the iterable of clips.
        """
        working = len(self._threads)
        while working:
            message = self._queue.get()
            if message is None:
                working -= 1
            elif isinstance(message, BaseException):
                raise message
            else:
                yield message

    @property
    def is_ahead(self) -> bool:
        """Whether the threads will soon have to wait, or have ended."""
        return 2 * len(self._queue) >= self._queue.length or not any(thread.is_alive() for thread in self._threads)

    def release(self) -> None:
        """Makes room for another clip."""
        self._places.release()

    def stop(self) -> None:
        """Ends the threads at once."""
        self._stopped.set()
        self._places.release(len(self._threads))
        self._queue.close()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        try:
            while True:
                self._places.acquire()
                if self._stopped.is_set():
                    return
                with self._lock:
                    number, source = next(self._sources, (None, None))
                if number is None:
                    return
                self._decode(number, source)
        except Exception as error:
            self._queue.put(error)
        finally:
            self._queue.put(None)

    def _decode(self, number: int, source: Any) -> None:
        result = ClipFeatures(f"clip {number}")
        try:
            clip = as_clip(source, number)
            result.name = clip.name
            for source, modalities in clip.files():
                # Several clips at once keep all cores busy already.
                num_threads = 0 if len(self._threads) == 1 else 1
                with MediaFile(source, None if isinstance(source, str | Path) else clip.name, num_threads) as media:
                    self._cut(media, number, modalities, result)
                    result.duration = max(result.duration or 0.0, media.duration or 0.0) or None
                    result.notes += media.notes
        except MissingExtraError:
            raise
        # Whatever a library, a file system or a data set raises for a clip ends only that clip.
        except Exception as error:
            is_worded = isinstance(error, (MediaError, OSError))
            result.error = error if is_worded else MediaError(f"{result.name}: cannot be read: {_words(error)}")
            logger.debug("%s: cannot be read", result.name, exc_info=True)
        self._queue.put((number, "", result))

    def _cut(self, media: MediaFile, number: int, modalities: Iterable[str], result: ClipFeatures) -> None:
        present = {kind for kind, there in (("video", media.has_video), ("audio", media.has_audio)) if there}
        thumbnails = Thumbnails(self._num_thumbnails) if self._num_thumbnails else None
        sessions = ClipSessions(self._encoders, present & set(modalities), thumbnails)
        for item in media.read(sessions.with_video, sessions.audio_rates):
            self._send(number, sessions.push(item))
            if self._stopped.is_set():
                return
        self._send(number, sessions.finish())
        result.notes += sessions.notes()
        for person in sessions.persons():
            result.persons[person] = [] if thumbnails is None else thumbnails.chosen(person)
        if thumbnails is not None and sessions.with_video:
            result.thumbnails = thumbnails.chosen()

    def _send(self, number: int, pieces: Iterator[tuple[str, Piece]]) -> None:
        for name, piece in pieces:
            if not self._queue.put((number, name, piece), piece.values.nbytes):
                return


def _words(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "it is damaged, or needs more memory than there is"
    return one_line(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {one_line(error)}"


class _Queue:
    """A queue bounded in items and in bytes; an item larger than that fits while the queue is empty."""

    def __init__(self, length: int, num_bytes: int):
        self.length, self._num_bytes = length, num_bytes
        self._items: deque[tuple[Any, int]] = deque()
        self._size = 0
        self._closed = False
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: Any, num_bytes: int = 0) -> bool:
        """Adds an item once there is room; False if the queue was closed instead."""

        def may_go_on() -> bool:
            fits = not self._items or self._size + num_bytes <= self._num_bytes
            return self._closed or (len(self._items) < self.length and fits)

        with self._changed:
            self._changed.wait_for(may_go_on)
            if self._closed:
                return False
            self._items.append((item, num_bytes))
            self._size += num_bytes
            self._changed.notify_all()
            return True

    def get(self) -> Any:
        """Takes the first item, once there is one."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._items))
            item, num_bytes = self._items.popleft()
            self._size -= num_bytes
            self._changed.notify_all()
            return item

    def close(self) -> None:
        """Drops all items and wakes every thread that waits for room."""
        with self._changed:
            self._closed = True
            self._items.clear()
            self._changed.notify_all()
