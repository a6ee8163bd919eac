"""The batches of a distillation: a function of seed and step, whichever processes and workers read them."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch

from hf_blemo.clip_rd_training.reading import BrokenPairError, ReadPair
from hf_blemo.clip_rd_training.settings import DistillationSettings
from hf_blemo.clip_rd_training.teachers import Teacher
from hf_blemo.errors import one_line
from hf_blemo.pairs.images import content_id
from hf_blemo.pairs.pair_processor import PairProcessor
from hf_blemo.pairs.pair_sources import PairStream, PairTable

# After this many broken pairs in a row, the data as a whole counts as unreadable.
MOST_IN_A_ROW = 100
SHOWN = 3


class PairBatches(torch.utils.data.IterableDataset):
    """This process's share of the batch of every step.

    Tables: the global batch depends only on seed and step, so any number of processes and workers sees the same
    batches, and any step can come first. Streams: every worker has a position of its own, which comes with each batch.

    Args:
        settings: of the run: `batch_size`, `num_steps`, `seed`, `augmentation` and `num_workers` (0 and 1 read alike).
        sources: of pairs.
        student: processes pairs for the student.
        teacher: adds its part to every batch.
        rank, world: number of this process, and of all.
    """

    def __init__(
        self,
        settings: DistillationSettings,
        sources: Sequence[PairTable | PairStream],
        student: PairProcessor,
        teacher: Teacher,
        rank: int = 0,
        world: int = 1,
    ):
        batch_size = settings.batch_size
        if batch_size % world:
            raise ValueError(f"batch_size {batch_size} is not a multiple of the {world} processes")
        self.counts = _quotas([source.settings.weight for source in sources], batch_size)
        for source, count in zip(sources, self.counts, strict=True):
            if isinstance(source, PairTable) and count > len(source):
                whole = f"batch_size {batch_size}" if len(sources) == 1 else f"the share of {count} pairs in a batch"
                raise ValueError(
                    f"{whole} is larger than the data {source.settings.data!r}, {len(source)} pairs to train on; pass "
                    f"--batch_size {max(1, batch_size * len(source) // count // world) * world} or less"
                )
        self.sources, self.student, self.teacher = sources, student, teacher
        self.num_steps, self.seed = settings.steps, settings.seed
        self.rank, self.world, self.consumers = rank, world, max(settings.num_workers, 1)
        self.reader = teacher.reader(student, settings.augmentation)
        self.images_alone = settings.images_alone
        self.share_duplicates = settings.duplicates == "share"
        self.frozen_text = settings.frozen_text
        self.begin = 0
        # Per consumer of this process, the position in every stream.
        self.states: dict[int, list[dict[str, int]]] = {}
        self.order: dict[int, tuple[int, np.ndarray]] = {}

    def resume(self, begin: int, states: Mapping[int, list[dict[str, int]]]) -> None:
        """Sets the first step, and the positions that came with the batches before it."""
        self.begin, self.states = begin, dict(states)

    def __iter__(self) -> Iterator[tuple[dict[str, torch.Tensor], dict[str, Any]]]:
        """Yields batches, each with a report: pairs `seen`, how many of them were `broken`, `examples` of those, the
        numbers of its `captions` if a frozen text tower reads them, and the `consumer` with its `states` after it. A
        worker that cannot read on sends an `error` as its last report."""
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
                yield {}, {"error": one_line(error)}
                return
            yield batch, {**report, "consumer": consumer, "states": list(states)}

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        """The batch of a step, for tables only."""
        return self._batch(step, {}, [{} for _ in self.sources])[0]

    def rows(self, source: int, step: int) -> tuple[int, np.ndarray]:
        """Returns the pass over a table that a step belongs to, and the rows of its global batch.

        A pass leaves out its incomplete last share.
        """
        count, table = self.counts[source], self.sources[source]
        assert isinstance(table, PairTable)
        number, place = divmod(step, len(table) // count)
        found = self.order.get(source)
        if found is None or found[0] != number:
            key = [self.seed, number] if source == 0 else [self.seed, number, source]
            # Kept for the whole pass: shuffling millions of numbers takes longer than a step.
            found = self.order[source] = number, np.random.default_rng(key).permutation(len(table))
        return number, found[1][place * count :][:count]

    def _batch(
        self, step: int, streams: Mapping[int, Iterator], states: list[dict[str, int]]
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        read: list[ReadPair] = []
        places: list[Any] = []
        problems: list[str] = []
        first = 0
        for index, source in enumerate(self.sources):
            # Slots are dealt to the processes in turn, all sources together.
            own = [slot - first for slot in range(first, first + self.counts[index]) if slot % self.world == self.rank]
            first += self.counts[index]
            if isinstance(source, PairTable):
                number, rows = self.rows(index, step)
                pairs = [{**pair, "visit": number} for pair in source.pairs(rows[own].tolist())]
                queues = [self._candidates(index, step, slot, pair) for slot, pair in zip(own, pairs, strict=True)]
            else:
                queues = [streams[index]] * len(own)
            for candidates in queues:
                pair, found, states[index] = self._first_sound(index, candidates, problems)
                read.append(found)
                places.append(self.teacher.place(index, pair, found))
        captions = {} if self.images_alone else self.student.captions([pair.caption for pair in read])
        numbers = [content_id(pair.caption) for pair in read] if self.share_duplicates or self.frozen_text else []
        if self.share_duplicates:
            captions["image_ids"] = torch.tensor([pair.image_id for pair in read])
            if not self.images_alone:
                captions["text_ids"] = torch.tensor(numbers)
        batch = {"pixel_values": self.reader.stacked(read, 0), **captions}
        batch |= self.teacher.inputs(self.reader, read, places)
        report = {"seen": len(read) + len(problems), "broken": len(problems), "examples": problems[:SHOWN]}
        return batch, report | ({"captions": numbers} if self.frozen_text else {})

    def _candidates(self, index: int, step: int, slot: int, pair: dict[str, Any]) -> Iterator[tuple[dict, dict]]:
        """Yields the pair of a slot and then, in case it is broken, others of its table."""
        yield pair, {}
        table = self.sources[index]
        assert isinstance(table, PairTable)
        others = np.random.default_rng([self.seed, 1, index, step, slot])
        while True:
            [other] = table.pairs([int(others.integers(len(table)))])
            yield {**other, "visit": pair["visit"]}, {}

    def _first_sound(
        self, index: int, candidates: Iterator[tuple[dict, dict]], problems: list[str]
    ) -> tuple[dict[str, Any], ReadPair, dict[str, int]]:
        """Returns the first pair that can be read, as stored and as read, and the state of its stream."""
        for pair, state in islice(candidates, MOST_IN_A_ROW):
            try:
                return pair, self.reader.read(pair, index), state
            except BrokenPairError as error:
                problems.append(one_line(error))
        raise ValueError(f"{MOST_IN_A_ROW} pairs in a row could not be read; the last: {problems[-1]}")


def _quotas(weights: Sequence[float], batch_size: int) -> list[int]:
    """Returns the pairs of each source in a batch: the whole numbers nearest to the shares of the weights."""
    shares = np.array(weights) / sum(weights) * batch_size
    counts = np.floor(shares).astype(int)
    for index in np.argsort(counts - shares, kind="stable")[: batch_size - counts.sum()]:
        counts[index] += 1
    if (counts < 1).any():
        raise ValueError(f"weights {list(weights)}: a source has less than one pair in a batch of {batch_size}")
    return counts.tolist()
