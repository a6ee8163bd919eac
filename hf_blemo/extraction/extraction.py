"""Clips to features: encoders run on decoded batches while decoding continues."""

import os
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sized
from dataclasses import replace
from typing import Any

import numpy as np

from hf_blemo.encoders.encoder import Encoder, Piece
from hf_blemo.extraction.batching import Batches
from hf_blemo.extraction.decoding import CLIPS_AHEAD, ClipDecoder, ClipFeatures
from hf_blemo.media import MediaError

# Larger blocks are not carved out of a common heap, where blocks that stay leave holes between those that go.
_LARGEST_BLOCK = 2**26


def encode_clips(
    clips: Iterable[Any],
    encoders: Mapping[str, Encoder],
    num_threads: int | None = None,
    num_thumbnails: int = 0,
) -> Generator[ClipFeatures, None, None]:
    """Makes the features of any number of clips, one after the other, in bounded memory.

    Frames and sound go from the decoder through each encoder's preparation while the encoders run, on batches that
    may hold pieces of several clips. A clip that cannot be read has an error instead of features.

    Args:
        clips: each a [`MediaClip`], or what `as_clip` makes one of: a path, an address, bytes, an open file, or a row
            of a data set.
        encoders: name -> encoder.
        num_threads: clips decoded at once; by default half of the cores, at most 8, or with a network on a GPU all
            cores, at most 16; and no more than there are clips.
        num_thumbnails: pictures of each clip to keep, at most; they come from the same decoding.

    Yields:
        Features of each clip, in order. Where an encoder looks at all persons, one for each, named `CLIP person N`.

    Raises:
        MissingExtraError: PyAV is not installed.
        EncoderMemoryError: a device is out of memory for a single piece.
        ValueError: there is no encoder, or the number of threads is not positive.
    """
    if not encoders:
        raise ValueError("found no encoder, expected at least one")
    if num_threads is None:
        cores = os.cpu_count() or 2
        is_on_gpu = any(encoder.device.type == "cuda" for encoder in encoders.values())
        num_threads = min(16, cores) if is_on_gpu else min(8, max(1, cores // 2))
        if isinstance(clips, Sized):
            # All cores decode a single clip.
            num_threads = max(1, min(num_threads, len(clips)))
    if num_threads < 1:
        raise ValueError(f"num_threads must be at least 1, found {num_threads}")
    decoder = ClipDecoder(clips, encoders, num_threads, num_thumbnails)
    batches = Batches(encoders, num_threads)
    under_way: dict[int, _ClipRows] = {}
    next_number = 0
    try:
        for number, name, item in decoder.messages():
            clip = under_way.setdefault(number, _ClipRows(encoders))
            if isinstance(item, ClipFeatures):
                clip.result = item
                if sum(clip.result is not None for clip in under_way.values()) >= CLIPS_AHEAD:
                    batches.run(encoders)
                    batches.collect(wait=True)
            elif batches.add(name, item, clip.receiver(name, item)):
                batches.run([name], decoder.is_ahead)
            batches.collect()
            while next_number in under_way and under_way[next_number].is_complete:
                yield from under_way.pop(next_number).finish()
                next_number += 1
                decoder.release()
        batches.run(encoders)
        batches.collect(wait=True)
        while under_way:
            yield from under_way.pop(next_number).finish()
            next_number += 1
    finally:
        decoder.stop()
        batches.stop()


class _ClipRows:
    """The rows of a clip so far, and its result once it is decoded."""

    def __init__(self, encoders: Mapping[str, Encoder]):
        self.result: ClipFeatures | None = None
        self._encoders = encoders
        # (encoder, person)
        self._rows: defaultdict[tuple[str, int], _RowBuffer] = defaultdict(_RowBuffer)
        self._times: defaultdict[tuple[str, int], list[np.ndarray]] = defaultdict(list)
        self._waiting = 0

    @property
    def is_complete(self) -> bool:
        return self.result is not None and not self._waiting

    def receiver(self, name: str, piece: Piece) -> Callable[[np.ndarray], None]:
        """Makes a function that takes the rows of a piece, for which the clip waits from now on."""
        self._waiting += 1

        def receive(rows: np.ndarray) -> None:
            self._rows[name, piece.person].append(rows)
            self._times[name, piece.person].append(piece.times)
            self._waiting -= 1

        return receive

    def finish(self) -> Iterator[ClipFeatures]:
        """The features of the clip, or of each person in it with what they share, such as the sound."""
        result = self.result
        assert result is not None
        if result.error is not None:
            yield result
            return
        self._fill(result, 0)
        if not result.persons and not result.features:
            wanted = " or ".join(sorted({encoder.sight for encoder in self._encoders.values()}))
            names = ", ".join(self._encoders)
            found = "; ".join([f"found no {wanted}", *result.notes])
            result.error = MediaError(f"{result.name}: {found}, expected some for {names}")
        if not result.persons:
            yield result
        for person, thumbnails in result.persons.items():
            own = replace(result, name=f"{result.name} person {person}", thumbnails=thumbnails, person=person)
            self._fill(own, person)
            yield own

    def _fill(self, result: ClipFeatures, person: int) -> None:
        """Adds the features of a person, in the order of the encoders."""
        features, times = result.features, result.times
        result.features, result.times = {}, {}
        for name in self._encoders:
            rows = self._rows.pop((name, person), None)
            if rows:
                result.features[name] = rows.take()
                result.times[name] = np.concatenate(self._times.pop((name, person)))
            elif name in features:
                result.features[name], result.times[name] = features[name], times[name]


class _RowBuffer:
    """Collects rows (D,) without keeping their source arrays alive, in blocks that double in size."""

    def __init__(self) -> None:
        self._blocks: list[np.ndarray] = []
        # Filled rows of the last block.
        self._filled = 0

    def __len__(self) -> int:
        return sum(map(len, self._blocks[:-1])) + self._filled

    def append(self, rows: np.ndarray) -> None:
        """Adds rows (t, D) at the end."""
        while len(rows):
            if not self._blocks or self._filled == len(self._blocks[-1]):
                most = max(1, _LARGEST_BLOCK // max(1, rows[0].nbytes))
                size = min(most, max(len(rows), 2 * len(self._blocks[-1]) if self._blocks else 0))
                self._blocks.append(np.empty((size, *rows.shape[1:]), rows.dtype))
                self._filled = 0
            block = self._blocks[-1]
            part = rows[: len(block) - self._filled]
            block[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            rows = rows[len(part) :]

    def take(self) -> np.ndarray:
        """Empties the buffer into one array (T, D), block by block, so that the rows are not in memory twice."""
        rows = np.empty((len(self), *self._blocks[0].shape[1:]), self._blocks[0].dtype)
        end = len(rows)
        while self._blocks:
            block = self._blocks.pop()[: self._filled]
            rows[end - len(block) : end] = block
            end -= len(block)
            self._filled = len(self._blocks[-1]) if self._blocks else 0
        return rows
