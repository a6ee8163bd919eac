"""The batches of a distillation, a function of seed and step, whoever reads them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from hf_blemo.clip_rd_training.reading import BrokenPairError, PairReader, ReadPair
from hf_blemo.pairs.pair_processor import PairProcessor
from hf_blemo.pairs.pair_sources import PairStream, PairTable, quotas
from hf_blemo.pairs.teacher_store import TeacherStore

# So many broken pairs in a row mean that the data as a whole cannot be read.
MOST_IN_A_ROW = 100
SHOWN = 3


class PairBatches(torch.utils.data.IterableDataset):
    """This process's share of the batch of every step.

    Tables: the global batch depends on seed and step alone, so that any number of processes and workers sees the same
    batches and any step can be begun with. Streams: every worker has a position of its own, which comes with each
    batch.

    Args:
        sources: of pairs.
        student: processes pairs for the student.
        teacher: processes them for the teacher; None where there is none or its embeddings are stored.
        batch_size: pairs of a global batch.
        num_steps: steps of the run.
        seed: of the order.
        augmentation: of the images; see [`PairReader`].
        rank, world: of this process, and their number.
        num_workers: of the loader; 0 and 1 read alike.
        store: the teacher's embeddings of these sources.

    Raises:
        ValueError: fewer pairs than their share of a batch, a batch that the processes cannot share evenly, or a
            stream with stored embeddings.
    """

    def __init__(
        self,
        sources: Sequence[PairTable | PairStream],
        student: PairProcessor,
        teacher: PairProcessor | None,
        batch_size: int,
        num_steps: int,
        seed: int = 0,
        augmentation: Mapping[str, Any] | None = None,
        rank: int = 0,
        world: int = 1,
        num_workers: int = 0,
        store: TeacherStore | None = None,
    ):
        if batch_size % world:
            raise ValueError(f"batch_size {batch_size} is not a multiple of the {world} processes")
        self.counts = quotas([source.settings.weight for source in sources], batch_size)
        for source, count in zip(sources, self.counts, strict=True):
            if isinstance(source, PairTable) and count > len(source):
                whole = f"batch_size {batch_size}" if len(sources) == 1 else f"the share of {count} pairs in a batch"
                raise ValueError(f"{whole} is larger than the data {source.settings.data!r}, {len(source)} pairs")
            if isinstance(source, PairStream) and store is not None:
                raise ValueError(f"data {source.settings.data!r}: stored embeddings are found by row, not in a stream")
        self.sources, self.student, self.teacher, self.store = sources, student, teacher, store
        self.batch_size, self.num_steps, self.seed = batch_size, num_steps, seed
        self.rank, self.world, self.consumers = rank, world, max(num_workers, 1)
        processors = [student]
        if teacher is not None and not teacher.same_images(student):
            processors.append(teacher)
        decode_size = store.decode_size if store is not None else None
        self.reader = PairReader(processors, augmentation or {}, decode_size)
        if store is not None:
            # Without crops, too, a visit may only draw a caption that was embedded.
            self.reader.variants = store.description.variants
        self.teacher_tokens = teacher is not None and not teacher.same_tokens(student)
        self.begin = 0
        # Per consumer of this process, the position in every stream.
        self.states: dict[int, list[dict[str, int]]] = {}
        self.order: dict[int, tuple[int, np.ndarray]] = {}

    def go_on(self, begin: int, states: Mapping[int, list[dict[str, int]]]) -> None:
        """Sets the step to begin with and the positions that came with the batches before it."""
        self.begin, self.states = begin, dict(states)

    def __iter__(self) -> Iterator[tuple[dict[str, torch.Tensor], dict[str, Any]]]:
        """Batches, each with a report: pairs `seen`, how many of them were `broken`, `examples` of those, and the
        `consumer` with its `states` after it. Where a worker of a loader cannot go on, its last report says nothing
        but the `error`."""
        worker = torch.utils.data.get_worker_info()
        number = 0 if worker is None else worker.id
        # The loader asks its workers in turn, beginning with the first.
        consumer = (self.begin + number) % self.consumers
        states = list(self.states.get(consumer) or [{} for _ in self.sources])
        streams = {
            index: source.read(self.rank * self.consumers + consumer, self.world * self.consumers, states[index])
            for index, source in enumerate(self.sources)
            if isinstance(source, PairStream)
        }
        for step in range(self.begin + number, self.num_steps, self.consumers):
            try:
                batch, report = self._batch(step, streams, states)
            except ValueError as error:
                if worker is None:
                    raise
                # Raised here, it would reach the run inside the worker's traceback.
                yield {}, {"error": str(error)}
                return
            yield batch, {**report, "consumer": consumer, "states": list(states)}

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        """The batch of a step, of tables alone."""
        return self._batch(step, {}, [{} for _ in self.sources])[0]

    def rows(self, source: int, step: int) -> tuple[int, np.ndarray]:
        """Which pass over a table a step belongs to, and the rows that the global batch takes from it; a pass leaves
        its incomplete last share out."""
        count, table = self.counts[source], self.sources[source]
        assert isinstance(table, PairTable)
        number, place = divmod(step, len(table) // count)
        found = self.order.get(source)
        if found is None or found[0] != number:
            key = [self.seed, number] if source == 0 else [self.seed, number, source]
            # The order of the pass under way: shuffling millions of numbers takes longer than a step.
            found = self.order[source] = number, np.random.default_rng(key).permutation(len(table))
        return number, found[1][place * count :][:count]

    def _batch(
        self, step: int, streams: Mapping[int, Iterator], states: list[dict[str, int]]
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        read: list[tuple[ReadPair, Any]] = []
        problems: list[str] = []
        first = 0
        for index, source in enumerate(self.sources):
            # Slots are dealt to the processes in turn, all sources together.
            own = [slot - first for slot in range(first, first + self.counts[index]) if slot % self.world == self.rank]
            first += self.counts[index]
            if isinstance(source, PairTable):
                number, rows = self.rows(index, step)
                for slot, stored in zip(own, source.pairs(rows[own].tolist()), strict=True):
                    read.append(self._from_table(index, stored, number, step, slot, problems))
            else:
                for _ in own:
                    pair, states[index] = self._from_stream(index, streams[index], problems)
                    read.append((pair, None))
        pairs = [pair for pair, _ in read]
        captions = [pair.caption for pair in pairs]
        batch = {"pixel_values": self.reader.stacked(pairs, 0), **self.student.captions(captions)}
        if self.store is not None:
            batch |= self.store.embeddings([place for _, place in read])
        elif self.teacher is not None:
            if len(self.reader.processors) > 1:
                batch["teacher_pixel_values"] = self.reader.stacked(pairs, 1)
            if self.teacher_tokens:
                tokens = self.teacher.captions(captions)
                batch |= {f"teacher_{name}": values for name, values in tokens.items()}
        report = {"seen": len(pairs) + len(problems), "broken": len(problems), "examples": problems[:SHOWN]}
        return batch, report

    def _from_table(
        self, index: int, pair: dict[str, Any], number: int, step: int, slot: int, problems: list[str]
    ) -> tuple[ReadPair, Any]:
        """The pair as read, or, where it is broken, one drawn in its stead."""
        table = self.sources[index]
        assert isinstance(table, PairTable)
        others: np.random.Generator | None = None
        for _ in range(MOST_IN_A_ROW):
            try:
                found = self.reader.read(pair, index, number)
                place = None
                if self.store is not None:
                    row = pair["key"][1]
                    place = self.store.place(index, row, number, found.caption, found.crop, pair["where"])
                return found, place
            except BrokenPairError as error:
                problems.append(str(error))
            if others is None:
                others = np.random.default_rng([self.seed, 1, index, step, slot])
            pair = table.pairs([int(others.integers(len(table)))])[0]
        raise ValueError(f"{MOST_IN_A_ROW} pairs in a row could not be read; the last: {problems[-1]}")

    def _from_stream(self, index: int, stream: Iterator, problems: list[str]) -> tuple[ReadPair, dict[str, int]]:
        for _ in range(MOST_IN_A_ROW):
            pair, state = next(stream)
            try:
                return self.reader.read(pair, index, pair["visit"]), state
            except BrokenPairError as error:
                problems.append(str(error))
        raise ValueError(f"{MOST_IN_A_ROW} pairs in a row could not be read; the last: {problems[-1]}")
