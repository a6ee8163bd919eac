"""Pairs held out of training for an evaluation, chosen by the content of their pictures."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from accelerate import Accelerator

from hf_blemo.clip_evaluation.evaluator import RetrievalTask
from hf_blemo.clip_evaluation.tasks import StoredImages
from hf_blemo.pairs.pair_sources import PairStream, PairTable, stored
from hf_blemo.programs.fingerprints import fingerprint
from hf_blemo.programs.processes import of_first

TASK = "held_out"
_AT_ONCE = 100


class Split(NamedTuple):
    """Sources to train on, and what was held out of them.

    Args:
        training: the sources, tables without the rows held out.
        pictures: the rows of every picture held out, each as number of the source and of the row.
    """

    training: list[PairTable | PairStream]
    pictures: list[list[tuple[int, int]]]

    @property
    def num_pairs(self) -> int | None:
        """Pairs to train on; None where a stream does not know them."""
        pairs = [len(source) for source in self.training if isinstance(source, PairTable)]
        return sum(pairs) if len(pairs) == len(self.training) else None

    def description(self) -> dict[str, Any]:
        """Returns the sources, their pairs to train on, and the numbers of `pairs` and `pictures` held out."""
        return {
            "sources": [
                {
                    "data": source.settings.data,
                    "weight": source.settings.weight,
                    "pairs": len(source) if isinstance(source, PairTable) else None,
                }
                for source in self.training
            ],
            "pairs": self.num_pairs,
            "held_out": {"pairs": sum(map(len, self.pictures)), "pictures": len(self.pictures)},
        }


def hold_out(accelerator: Accelerator, share: float, sources: Sequence[PairTable | PairStream]) -> Split:
    """Holds out a share, below 1, of the pairs of all sources together; 0 holds out none and reads nothing.

    The hashes of the pictures decide, so that neither the order of the rows nor a seed matters, and all rows of one
    picture stay on one side. Every picture is read once, by the first process, and all get what it chose. Rows without
    a caption are trained on, where they are counted as broken.
    """
    if not share:
        return Split(list(sources), [])
    for source in sources:
        if isinstance(source, PairStream):
            raise ValueError(
                f"evaluation_share: data {source.settings.data!r} is a stream, from which nothing can be held out; "
                "pass --evaluation_share 0, and name tasks in `evaluation`"
            )
    tables = [source for source in sources if isinstance(source, PairTable)]
    pictures = of_first(accelerator, lambda: _choose(tables, share))
    training: list[PairTable | PairStream] = []
    for number, table in enumerate(tables):
        held = [row for places in pictures for source, row in places if source == number]
        if len(held) == len(table):
            raise ValueError(f"evaluation_share {share}: holds out all pairs of data {table.settings.data!r}")
        rows = np.delete(np.arange(len(table)), held)
        training.append(PairTable(table.settings, table.data, table.root, rows) if held else table)
    return Split(training, pictures)


def retrieval_task(sources: Sequence[PairTable | PairStream], pictures: Sequence[Sequence[tuple[int, int]]]) -> Any:
    """Makes the task of finding pictures and captions held out of some sources by each other."""
    tables = [source for source in sources if isinstance(source, PairTable)]
    captions: list[list[str]] = []
    for places in pictures:
        found = [caption for source, row in places for caption in _texts(tables[source].pairs([row])[0]["caption"])]
        captions.append(list(dict.fromkeys(found)))
    first = [(tables[source], row) for (source, row), *_ in pictures]
    return RetrievalTask(StoredImages(first), captions, ", ".join({table.settings.data: 0 for table in tables}))


def _choose(tables: Sequence[PairTable], share: float) -> list[list[tuple[int, int]]]:
    """The rows of each picture to hold out, in the order of their hashes."""
    groups: dict[str, list[tuple[int, int]]] = {}
    for number, table in enumerate(tables):
        for start in range(0, len(table), _AT_ONCE):
            rows = range(start, min(start + _AT_ONCE, len(table)))
            for row, pair in zip(rows, table.pairs(rows), strict=True):
                if _texts(pair["caption"]):
                    groups.setdefault(fingerprint(stored(pair["image"])), []).append((number, row))
    total = sum(map(len, tables))
    wanted, count = max(1, round(share * total)), 0
    chosen = []
    for _, places in sorted(groups.items()):
        if count + len(places) <= wanted:
            chosen.append(places)
            count += len(places)
    if not chosen:
        raise ValueError(
            f"evaluation_share {share}: {wanted} of {total} pairs would be held out, but every picture has more rows "
            "than that; pass a larger share, or 0"
        )
    return chosen


def _texts(caption: Any) -> list[str]:
    captions = caption if isinstance(caption, list) else [caption]
    return [text for text in captions if isinstance(text, str) and text.strip()]
