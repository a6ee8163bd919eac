"""Batches of pieces on their way through the encoders: one after the other, or on the CPU several side by side."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from hf_blemo.encoders.encoder import Encoder, Piece

THREAD_NAME = "encoding-clips"

Receiver = Callable[[np.ndarray], None]


class Batches:
    """Collects pieces until there are enough for a batch, and hands out their rows in the order they came.

    The threads that torch has for a single product wait for each other after each of a network's many small steps, and
    for cores that decode meanwhile. So on the CPU, a network that allows it takes parts of a batch, in a thread each,
    as many at once as there are threads and as make up a batch: no more is in memory than with a whole batch.

    Args:
        encoders: name -> encoder.
        num_decoding: threads that decode beside.

    Source: this project's choice.
    """

    def __init__(self, encoders: Mapping[str, Encoder], num_decoding: int):
        self._encoders = encoders
        self._num_threads = torch.get_num_threads()
        self._num_free = max(1, (os.cpu_count() or 1) - num_decoding)
        self._pending: dict[str, list[tuple[Piece, Receiver]]] = {name: [] for name in encoders}
        self._pools: dict[int, ThreadPoolExecutor] = {}
        self._running: deque[tuple[list[Receiver], Future]] = deque()

    def add(self, name: str, piece: Piece, receive: Receiver, is_ahead: bool) -> None:
        """Takes a piece; may wait for earlier ones.

        Args:
            name: of the encoder.
            piece: of any clip.
            receive: called in this thread with the piece's rows (t, D), once they are there and those of all earlier
                pieces of the encoder.
            is_ahead: whether the threads that decode will soon have to wait, or have ended.

        Raises:
            Exception: of the encoder, for this piece or an earlier one.
        """
        pending, encoder = self._pending[name], self._encoders[name]
        pending.append((piece, receive))
        if len(pending) >= self._size(encoder):
            self._start(name, is_ahead)
        while self._running and self._running[0][1].done():
            self._finish_first()

    def finish(self) -> None:
        """Runs what is waiting, and hands out all rows.

        Raises:
            Exception: of an encoder.
        """
        for name, pending in self._pending.items():
            if pending:
                self._start(name, is_ahead=True)
        self._finish_running()

    def stop(self) -> None:
        """Ends the threads, whatever is waiting."""
        for pool in self._pools.values():
            pool.shutdown(cancel_futures=True)
        # The number that a thread sets for itself is also that of threads which begin later.
        torch.set_num_threads(torch.get_num_threads())

    @staticmethod
    def _size(encoder: Encoder) -> int:
        """Pieces of a part, or of a batch that has none; what fits a core's cache is also faster there than more."""
        if encoder.part_size is None or encoder.device.type != "cpu":
            return encoder.batch_size
        return min(encoder.part_size, encoder.batch_size)

    def _start(self, name: str, is_ahead: bool) -> None:
        encoder = self._encoders[name]
        num_workers = min(self._num_threads, encoder.batch_size // self._size(encoder))
        pieces = [piece for piece, _ in self._pending[name]]
        receivers = [receive for _, receive in self._pending[name]]
        self._pending[name] = []
        if num_workers > 1:
            # One part more than there are threads, so that none of them waits.
            while len(self._running) > num_workers:
                self._finish_first()
            self._running.append((receivers, self._pool(num_workers).submit(encoder.run, pieces)))
            return
        # What is not shared has all the threads and the memory.
        self._finish_running()
        on_cpu = encoder.device.type == "cpu"
        # A thread of torch's that waits for a core which decodes holds up all others.
        with _torch_threads(self._num_free if on_cpu and not is_ahead else self._num_threads):
            _hand_out(encoder.run(pieces), receivers)

    def _pool(self, num_workers: int) -> ThreadPoolExecutor:
        if num_workers not in self._pools:
            share = self._num_threads // num_workers
            self._pools[num_workers] = ThreadPoolExecutor(
                num_workers, THREAD_NAME, initializer=torch.set_num_threads, initargs=(share,)
            )
        return self._pools[num_workers]

    def _finish_first(self) -> None:
        receivers, future = self._running.popleft()
        _hand_out(future.result(), receivers)

    def _finish_running(self) -> None:
        while self._running:
            self._finish_first()


def _hand_out(rows: Sequence[Any], receivers: Sequence[Receiver]) -> None:
    for values, receive in zip(rows, receivers, strict=True):
        receive(values)


@contextmanager
def _torch_threads(most: int) -> Iterator[None]:
    """No more threads of torch's than a number."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(most, before))
    try:
        yield
    finally:
        torch.set_num_threads(before)
