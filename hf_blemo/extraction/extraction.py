"""Clips to features: each clip is decoded once for all encoders, while they work on batches of what came before."""

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hf_blemo.encoders.encoder import Encoder, Piece, Session
from hf_blemo.extraction.batching import Batches
from hf_blemo.extraction.bounded_queue import BoundedQueue
from hf_blemo.extraction.clip_sources import NamedClip, SplitClip
from hf_blemo.extraction.row_buffer import RowBuffer
from hf_blemo.media.media import MediaError, MediaFile

# Clips that may be decoded before the first of them has all its features: what bounds the memory.
CLIPS_AHEAD = 64
# Pieces that wait for the encoders, per decoding thread, and what they hold in all.
_PIECES_AHEAD = 32
_BYTES_AHEAD = 2**27
THREAD_NAME = "decoding-clips"
_MODALITIES = {"video": "picture", "audio": "sound"}


@dataclass
class ClipFeatures:
    """What encoders made of one clip.

    Args:
        name: of the clip.
        features: encoder -> (T, D) float32; without encoders that found nothing to look at.
        times: encoder -> (T,) float64, seconds from the start of the clip at which each row begins.
        duration: seconds, where known.
        notes: what is worth knowing about the file, a sentence each.
        error: why there are no features, if so; a line that names the clip.
    """

    name: str
    features: dict[str, np.ndarray] = field(default_factory=dict)
    times: dict[str, np.ndarray] = field(default_factory=dict)
    duration: float | None = None
    notes: list[str] = field(default_factory=list)
    error: Exception | None = None

    def check(self) -> None:
        """Raises the error of a clip that failed.

        Raises:
            MediaError, OSError: as it was met.
        """
        if self.error is not None:
            raise self.error


@dataclass
class _Clip:
    """A clip under way."""

    number: int
    rows: dict[str, RowBuffer]
    times: dict[str, list[np.ndarray]]
    result: ClipFeatures
    # Pieces decoded and not yet run.
    waiting: int = 0
    decoded: bool = False

    def receiver(self, name: str, piece: Piece) -> Callable[[np.ndarray], None]:
        """Takes the rows of a piece by an encoder, for which the clip waits from now on."""
        self.waiting += 1

        def receive(rows: np.ndarray) -> None:
            self.rows[name].append(rows)
            self.times[name].append(piece.times)
            self.waiting -= 1

        return receive


def clip_name(source: Any, number: int = 0) -> str:
    """Name of a clip in results and messages.

    Args:
        source: a path, an address, bytes, or an open file.
        number: its place among the inputs, for sources that have no name.

    Returns:
        File name without suffix, or `clip N`.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        return f"clip {number}"
    text = getattr(source, "name", None) if hasattr(source, "read") else str(source)
    name = Path(str(text).split("?")[0].rstrip("/")).stem if isinstance(text, str) else ""
    return name or f"clip {number}"


def encode_clips(
    clips: Iterable[Any],
    encoders: Mapping[str, Encoder],
    num_threads: int | None = None,
) -> Iterator[ClipFeatures]:
    """Makes the features of any number of clips, one after the other, in bounded memory.

    Frames and sound go from the decoder through each encoder's preparation while the encoders run, on batches that
    may hold pieces of several clips. A clip that cannot be read has an error instead of features.

    Args:
        clips: paths, addresses, bytes of files or open files, as [`MediaFile`] takes them, [`SplitClip`]s, or
            functions that give one of these when it is needed; each may be a [`NamedClip`], else the name is that of
            the file.
        encoders: name -> encoder.
        num_threads: clips decoded at once; by default half of the cores, at most 8, and no more than there are clips.

    Yields:
        Features of each clip, in order.

    Raises:
        MissingExtraError: PyAV is not installed.
        EncoderMemoryError: a device is out of memory for a single piece.
        ValueError: no encoder is given, or the number of threads is not positive.

    Source: this project's choice.
    """
    if not encoders:
        raise ValueError("found no encoder, expected at least one")
    if num_threads is None:
        num_threads = min(8, max(1, (os.cpu_count() or 2) // 2))
        if isinstance(clips, Sized):
            # A clip by itself is decoded by all cores.
            num_threads = max(1, min(num_threads, len(clips)))
    if num_threads < 1:
        raise ValueError(f"num_threads must be at least 1, found {num_threads}")
    decoding = _Decoding(clips, encoders, num_threads)
    batches = Batches(encoders, num_threads)
    clips_under_way: dict[int, _Clip] = {}
    next_number = 0
    try:
        for message in decoding.messages():
            if isinstance(message, tuple):
                name, clip, piece = message
                clips_under_way[clip.number] = clip
                batches.add(name, piece, clip.receiver(name, piece), decoding.is_ahead)
            else:
                message.decoded = True
                clips_under_way[message.number] = message
                if sum(clip.decoded for clip in clips_under_way.values()) >= CLIPS_AHEAD:
                    batches.finish()
            while (clip := clips_under_way.get(next_number)) and clip.decoded and not clip.waiting:
                yield _finished(clips_under_way.pop(next_number), encoders)
                next_number += 1
                decoding.release()
        batches.finish()
        while clips_under_way:
            yield _finished(clips_under_way.pop(next_number), encoders)
            next_number += 1
    finally:
        decoding.stop()
        batches.stop()


def _finished(clip: _Clip, encoders: Mapping[str, Encoder]) -> ClipFeatures:
    result = clip.result
    if result.error is not None:
        return result
    for name in encoders:
        if len(clip.rows[name]):
            result.features[name] = clip.rows.pop(name).take()
            result.times[name] = np.concatenate(clip.times.pop(name))
    if not result.features:
        wanted = " or ".join(sorted({_MODALITIES[encoder.modality] for encoder in encoders.values()}))
        result.error = MediaError(f"{result.name}: found no {wanted}, expected some for {', '.join(encoders)}")
    return result


class _Decoding:
    """Threads that decode clips and cut them into pieces, and the queue of what they have made."""

    def __init__(self, clips: Iterable[Any], encoders: Mapping[str, Encoder], num_threads: int):
        self.encoders = encoders
        self.num_threads = num_threads
        self._sources = enumerate(clips)
        self._lock = threading.Lock()
        self._places = threading.Semaphore(num_threads + CLIPS_AHEAD)
        self._queue = BoundedQueue(_PIECES_AHEAD * num_threads, _BYTES_AHEAD)
        self._stopped = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, name=f"{THREAD_NAME}-{number}", daemon=True)
            for number in range(num_threads)
        ]
        for thread in self._threads:
            thread.start()

    def messages(self) -> Iterator[Any]:
        """(encoder, clip, piece) for each piece, then the clip, for each clip; clips overlap."""
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
        """Ends the threads, whatever they are doing."""
        self._stopped.set()
        self._places.release(self.num_threads)
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
                name, source = source if isinstance(source, NamedClip) else (clip_name(source, number), source)
                self._decode(number, source, name)
        except Exception as error:
            self._queue.put(error)
        finally:
            self._queue.put(None)

    def _decode(self, number: int, source: Any, name: str) -> None:
        result = ClipFeatures(name)
        clip = _Clip(number, {key: RowBuffer() for key in self.encoders}, {key: [] for key in self.encoders}, result)
        try:
            if callable(source):
                source = source()
            parts: list[tuple[Any, tuple[str, ...]]] = [(source, tuple(_MODALITIES))]
            if isinstance(source, SplitClip):
                parts = [(source.video, ("video",)), (source.audio, ("audio",))]
            for part, modalities in parts:
                # Several clips at once keep the cores busy by themselves.
                known = None if isinstance(part, str | Path) else name
                with MediaFile(part, known, num_threads=0 if self.num_threads == 1 else 1) as media:
                    self._cut(media, clip, modalities)
                    result.duration = max(result.duration or 0.0, media.duration or 0.0) or None
                    result.notes += media.notes
        except (MediaError, OSError) as error:
            result.error = error
        self._queue.put(clip)

    def _cut(self, media: MediaFile, clip: _Clip, modalities: Iterable[str]) -> None:
        sessions: dict[str, list[tuple[str, Session]]] = {"video": [], "audio": []}
        present = {"video": media.has_video, "audio": media.has_audio}
        for name, encoder in self.encoders.items():
            if encoder.modality in modalities and present[encoder.modality]:
                sessions[encoder.modality].append((name, encoder.session()))
        rates = {encoder.audio_rate for encoder in self.encoders.values()} - {None}
        wanted_rates = sorted(rate for rate in rates if rate is not None) if sessions["audio"] else []
        for item in media.read(video=bool(sessions["video"]), audio_rates=wanted_rates):
            rate = getattr(item, "rate", None)
            for name, session in sessions["video" if rate is None else "audio"]:
                if rate == self.encoders[name].audio_rate:
                    self._send(name, clip, session.push(item))
            if self._stopped.is_set():
                return
        for name, session in (*sessions["video"], *sessions["audio"]):
            self._send(name, clip, session.finish())

    def _send(self, name: str, clip: _Clip, pieces: Iterator[Piece]) -> None:
        for piece in pieces:
            if not self._queue.put((name, clip, piece), piece.values.nbytes):
                return
