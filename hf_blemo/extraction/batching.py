"""Batches of pieces for the encoders: run one after the other, or on the CPU several side by side."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from hf_blemo.encoders.encoder import Encoder, Piece

THREAD_NAME = "encoding-clips"

Receiver = Callable[[np.ndarray], None]


class Batches:
    """Collects pieces until there are enough for a batch, and hands out their rows in the order of the pieces.

    Torch's threads wait for each other after each of a network's many small steps, and for cores that are busy
    decoding. So on the CPU, a network that allows it runs several parts of a batch at once, each in a thread of its
    own. Together they are no larger than a batch, and so is their memory. `num_decoding` threads decode at the same
    time.
    """

    def __init__(self, encoders: Mapping[str, Encoder], num_decoding: int):
        self._encoders = encoders
        self._num_threads = torch.get_num_threads()
        self._num_free = max(1, (os.cpu_count() or 1) - num_decoding)
        self._pending: dict[str, list[tuple[Piece, Receiver]]] = {name: [] for name in encoders}
        self._pools: dict[int, ThreadPoolExecutor] = {}
        self._running: deque[tuple[list[Receiver], Future]] = deque()

    def add(self, name: str, piece: Piece, receive: Receiver) -> bool:
        """Takes a piece for an encoder; returns whether that now has enough pieces to run.

        `receive` is called with the piece's rows (t, D) by `run` or `collect`, after those of all earlier pieces.
        """
        self._pending[name].append((piece, receive))
        return len(self._pending[name]) >= self._encoders[name].pieces_at_once

    def run(self, names: Iterable[str], is_ahead: bool = True) -> None:
        """Runs the pieces that wait for some encoders; raises what an encoder does, for one of these pieces or an
        earlier one.

        `is_ahead` says whether the decoding threads have ended, or will soon have to wait.
        """
        for name in names:
            encoder, pending = self._encoders[name], self._pending[name]
            if not pending:
                continue
            self._pending[name] = []
            pieces, receivers = [piece for piece, _ in pending], [receive for _, receive in pending]
            num_workers = min(self._num_threads, encoder.batch_size // encoder.pieces_at_once)
            if num_workers > 1:
                # One part more than there are threads, so that none of them waits.
                self._hand_out(most_left=num_workers)
                self._running.append((receivers, self._pool(num_workers).submit(encoder.run, pieces)))
                continue
            # A batch that cannot be divided gets all threads and all memory.
            self._hand_out()
            on_cpu = encoder.device.type == "cpu"
            # A torch thread waiting for a core that is busy decoding stalls all the others.
            with _torch_threads(self._num_free if on_cpu and not is_ahead else self._num_threads):
                rows = encoder.run(pieces)
            _give(rows, receivers)

    def collect(self, wait: bool = False) -> None:
        """Hands out the rows of batches that are done, or waits for all; raises what an encoder does."""
        if wait:
            self._hand_out()
        while self._running and self._running[0][1].done():
            self._hand_out(most_left=len(self._running) - 1)

    def stop(self) -> None:
        """Ends the threads, even if pieces still wait."""
        for pool in self._pools.values():
            pool.shutdown(cancel_futures=True)
        # A thread that sets its own number of torch threads also sets that of all later threads.
        torch.set_num_threads(torch.get_num_threads())

    def _pool(self, num_workers: int) -> ThreadPoolExecutor:
        if num_workers not in self._pools:
            share = self._num_threads // num_workers
            self._pools[num_workers] = ThreadPoolExecutor(
                num_workers, THREAD_NAME, initializer=torch.set_num_threads, initargs=(share,)
            )
        return self._pools[num_workers]

    def _hand_out(self, most_left: int = 0) -> None:
        while len(self._running) > most_left:
            receivers, future = self._running.popleft()
            _give(future.result(), receivers)


def _give(rows: Sequence[Any], receivers: Sequence[Receiver]) -> None:
    for values, receive in zip(rows, receivers, strict=True):
        receive(values)


@contextmanager
def _torch_threads(most: int) -> Iterator[None]:
    """Limits torch to some number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(most, before))
    try:
        yield
    finally:
        torch.set_num_threads(before)
