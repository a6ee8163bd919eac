"""Where image-caption pairs come from: tables read by row number, and shards read in a shuffled stream."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets.packaged_modules.webdataset.webdataset import WebDataset

from hf_blemo import built_in
from hf_blemo.errors import reading
from hf_blemo.loading import download_errors, is_hub_id, load_dataset
from hf_blemo.pairs.settings import READERS, PairSourceSettings
from hf_blemo.programs.fingerprints import fingerprint

READ_AT_ONCE = 8
_CAPTIONS_AT_ONCE, _SAMPLED = 10_000, 16
# Names in WebDataset shards on the Hub, used if the default ones are missing.
WEBDATASET_COLUMNS = (("jpg", "jpeg", "png", "webp"), ("txt", "caption"))
# What a row of a shard may hold; `datasets` would take it from the first rows of the first shard alone.
_SHARD_FEATURES = datasets.Features(
    {
        **{
            name: datasets.Image(decode=False) for suffix in WEBDATASET_COLUMNS[0] for name in (suffix, suffix.upper())
        },
        "txt": datasets.Value("string"),
    }
)


class PairTable:
    """Pairs that are read by row number.

    Args:
        data: columns `image` (not decoded, or the path of a file) and `caption`.
        root: where relative paths begin.
        rows: of the data, if not all; pairs are counted among these, and keep the keys of their rows.
    """

    def __init__(
        self,
        settings: PairSourceSettings,
        data: datasets.Dataset,
        root: Path | None = None,
        rows: Sequence[int] | np.ndarray | None = None,
    ):
        if not len(data):
            raise ValueError(f"data {settings.data!r}: found no pairs")
        self.settings, self.data, self.root, self.rows = settings, data, root, rows

    def __len__(self) -> int:
        return len(self.data if self.rows is None else self.rows)

    def fingerprint(self) -> dict[str, Any]:
        """What tells the content from other content of this name: `rows`, all `captions` and some `images`."""
        found: dict[str, Any] = {"rows": len(self)}
        if "caption" in self.data.column_names:
            captions = self.data.select_columns(["caption"])
            hashes = [fingerprint(batch["caption"]) for batch in captions.iter(batch_size=_CAPTIONS_AT_ONCE)]
            found["captions"] = fingerprint(hashes)
        if self.settings.data not in built_in.PAIRS:
            rows = np.linspace(0, len(self) - 1, _SAMPLED).astype(int)
            found["images"] = fingerprint(*(stored(pair["image"]) for pair in self.pairs(rows.tolist())))
        return found

    def first(self, count: int) -> list[dict[str, Any]]:
        """The first [`pairs`]."""
        return self.pairs(range(min(count, len(self))))

    def pairs(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        """Returns `image` as stored, `caption`, `key` (0 and the row) and `where` (for messages) of each row."""
        rows = [int(row if self.rows is None else self.rows[row]) for row in rows]
        with reading(f"data {self.settings.data!r}", "images with captions"):
            found = self.data[rows]
        return [
            {**_located(pair, self.root, f"{self.settings.data}, row {row}"), "key": (0, row)}
            for row, pair in zip(rows, _unbatched(found), strict=True)
        ]


class PairStream:
    """Pairs of shards, read in turn; for data that is too large to be indexed.

    The shards of a pass are in random order and dealt to the consumers (workers of processes). If there are too few,
    all consumers read all shards, each taking its own rows. Consecutive pairs are shuffled in blocks. The pairs of a
    consumer depend only on the seed, the number of consumers and its own number.

    Args:
        data: columns `image` (not decoded, or the path of a file) and `caption`.
        block_size: pairs that are shuffled together.
        seed: of both orders.
        root: where relative paths begin.
    """

    def __init__(
        self,
        settings: PairSourceSettings,
        data: datasets.IterableDataset,
        block_size: int,
        seed: int,
        root: Path | None = None,
    ):
        self.settings, self.data, self.block_size, self.seed, self.root = settings, data, block_size, seed, root

    def fingerprint(self) -> dict[str, Any]:
        """What tells the content from other content of this name: the number of `shards` and the `first pairs`."""
        parts = [part for pair in self.first(2) for part in (pair.get("caption"), stored(pair["image"]))]
        return {"shards": self.data.num_shards, "first pairs": fingerprint(*parts)}

    def first(self, count: int) -> list[dict[str, Any]]:
        """The first pairs in the order of the shards, of which there is at least one."""
        with reading(f"data {self.settings.data!r}", "images with captions"):
            pairs = [
                _located(pair, self.root, f"{self.settings.data}, row {row}")
                for row, pair in enumerate(_rows_of(self.data.take(count)))
            ]
        if not pairs:
            raise ValueError(f"data {self.settings.data!r}: found an empty stream")
        return pairs

    def read(self, consumer: int, consumers: int, state: Mapping[str, int]) -> Iterator[tuple[dict, dict[str, int]]]:
        """Yields pairs without end, each with the state to resume from after it.

        The pairs hold what a table's pairs hold, and the number of the pass as `visit`. The state is that which
        came with the last pair taken, empty at the start. A whole pass without a pair for this consumer is an
        error.
        """
        state = {"pass": 0, "shard": 0, "row": 0, "taken": 0, **state}
        rows = self._rows(consumer, consumers, state["pass"], state["shard"], state["row"])
        taken = state["taken"]
        begin = {name: state[name] for name in ("pass", "shard", "row")}
        while True:
            block: list[dict] = []
            while len(block) < self.block_size:
                pair, after = next(rows)
                if pair is None:
                    break
                block.append(pair)
            key = [self.seed, consumer, *begin.values()]
            order = np.random.default_rng(key).permutation(len(block))
            for number in range(taken, len(block)):
                last = number + 1 == len(block)
                yield block[order[number]], {**after, "taken": 0} if last else {**begin, "taken": number + 1}
            begin, taken = after, 0

    def _rows(
        self, consumer: int, consumers: int, number: int, shard: int, row: int
    ) -> Iterator[tuple[dict[str, Any] | None, dict[str, int]]]:
        """Yields pairs in the order of the shards, each with the place after it, and None at the end of a pass."""
        count = self.data.num_shards
        while True:
            # A pass read from its beginning must have a pair.
            found = bool(shard or row)
            order = np.random.default_rng([self.seed, number]).permutation(count).tolist()
            # Too few shards to deal out: every consumer reads all and takes every n-th row.
            shared = count < consumers
            own = order if shared else order[consumer::consumers]
            for position in range(shard, len(own)):
                part = self.data.shard(count, own[position]) if count > 1 else self.data
                for offset, pair in enumerate(_rows_of(part.skip(row) if row else part), row):
                    if shared and (offset + position) % consumers != consumer:
                        continue
                    found = True
                    where = f"{self.settings.data}, shard {own[position]}, row {offset}"
                    found_pair = {**_located(pair, self.root, where), "key": (own[position], offset), "visit": number}
                    yield found_pair, {"pass": number, "shard": position, "row": offset + 1}
                row = 0
            if not found:
                raise ValueError(
                    f"data {self.settings.data!r}: found no pairs for consumer {consumer} of {consumers} "
                    f"in {len(own)} shards"
                )
            number, shard = number + 1, 0
            yield None, {"pass": number, "shard": 0, "row": 0}


def open_source(settings: PairSourceSettings, block_size: int = 1000, seed: int = 0) -> PairTable | PairStream:
    """Opens a source of pairs without decoding anything; `block_size` and `seed` are of a stream's order."""
    with reading(f"data {settings.data!r}", "images with captions"):
        settings.check_place()
        data = _load_source(settings)
        if data.features == _SHARD_FEATURES:
            images = list(_SHARD_FEATURES)[:-1]
            caption: str | None = "txt"
        else:
            image, caption = _columns(settings, data)
            images = [image]
    # Must come first: renaming the columns of a stream would decode its images and encode them again, with loss.
    for image in images:
        if getattr((data.features or {}).get(image), "decode", False):
            data = data.cast_column(image, datasets.Image(decode=False))
    data = data.select_columns([*images, *([caption] if caption else [])])
    # The only column of images, or the first that a row has.
    names = {caption: "caption", **({images[0]: "image"} if len(images) == 1 else {})}
    data = data.rename_columns({old: new for old, new in names.items() if old not in (None, new)})
    path = Path(settings.data)
    root = (path if path.is_dir() else path.parent) if path.exists() else None
    if isinstance(data, datasets.IterableDataset):
        return PairStream(settings, data, block_size, seed, root)
    return PairTable(settings, data, root)


def _load_source(settings: PairSourceSettings) -> Any:
    """Loads the data set of a source with all its columns."""
    source = settings.data
    if source in built_in.PAIRS:
        return built_in.load(source, settings.options)
    path = Path(source)
    if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
        try:
            data = datasets.load_from_disk(source)
        except IndexError:
            # `datasets` fails so on a saved data set without rows.
            raise ValueError(f"data {source!r}: found no pairs") from None
        if isinstance(data, datasets.DatasetDict):
            if settings.split not in data:
                raise ValueError(f"data {source!r}: expected a split {settings.split!r}, found {', '.join(data)}")
            data = data[settings.split]
        return data.to_iterable_dataset(max(1, len(data.cache_files))) if settings.streaming else data
    options: dict[str, Any] = {"split": settings.split, "streaming": settings.streaming}
    if path.is_file():
        options |= {"path": READERS[path.suffix], "data_files": {settings.split: str(path)}}
        if path.suffix == ".tsv":
            options["sep"] = "\t"
    else:
        options |= {"path": source, "name": settings.name, "revision": settings.revision}
    where, defaults = f"data {source!r}", PairSourceSettings(settings.data)
    usual = (settings.image_column, settings.caption_column) == (defaults.image_column, defaults.caption_column)
    if usual and _has_shards(settings, path, where):
        data = load_dataset(where=where, features=_SHARD_FEATURES, **options)
        first: dict[str, Any] = next(iter(data.take(1)), {})
        if first.get("txt") is not None and any(first[name] is not None for name in list(_SHARD_FEATURES)[:-1]):
            return data
    return load_dataset(where=where, **options)


def _rows_of(data: datasets.IterableDataset) -> Iterator[dict[str, Any]]:
    # In a worker of a loader, iter(data) would deal the shards out once more and leave most of them unread.
    for batch in data.iter(batch_size=READ_AT_ONCE):
        yield from _unbatched(batch)


def _has_shards(settings: PairSourceSettings, path: Path, where: str) -> bool:
    """Whether a source is of WebDataset shards."""
    if not is_hub_id(settings.data):
        return path.suffix == ".tar" or (path.is_dir() and any(path.rglob("*.tar")))
    with download_errors(where):
        builder = datasets.load_dataset_builder(settings.data, settings.name, revision=settings.revision)
    return isinstance(builder, WebDataset)


def _unbatched(batch: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """The `image` and, if there is one, the `caption` of each row; the image is the first that the row has."""
    images = [column for name, column in batch.items() if name != "caption"]
    captions = batch.get("caption")
    for row, found in enumerate(zip(*images, strict=True)):
        image = next((image for image in found if image is not None), None)
        yield {"image": image} if captions is None else {"image": image, "caption": captions[row]}


def _columns(settings: PairSourceSettings, data: Any) -> tuple[str, str | None]:
    """Finds the two columns, also under the names of WebDataset shards if the default ones are missing."""
    names = data.column_names
    if names is None:
        names = list(next(iter(data.take(1)), {}))
        if not names:
            raise ValueError(f"data {settings.data!r}: found an empty stream")
    found: list[Any] = []
    defaults = PairSourceSettings(settings.data)
    for field, usual in zip(("image_column", "caption_column"), WEBDATASET_COLUMNS, strict=True):
        name = getattr(settings, field)
        if name is None:
            found.append(None)
            continue
        if name not in names and name == getattr(defaults, field):
            name = next((other for other in usual if other in names), name)
        if name not in names:
            hint = "; --caption_column null distils from pictures alone" if field == "caption_column" else ""
            raise ValueError(f"data {settings.data!r}: no column {name!r} ({field}), found {', '.join(names)}{hint}")
        found.append(name)
    return found[0], found[1]


def _located(pair: dict[str, Any], root: Path | None, where: str) -> dict[str, Any]:
    """Adds a pair's place for messages; paths in a table start from the table's folder."""
    image = pair["image"]
    if isinstance(image, str) and root is not None and "://" not in image:
        image = str(root / image)
    return {**pair, "image": image, "where": where}


def stored(image: Any) -> Any:
    """Returns the bytes of an image that is not decoded; its path where there are none."""
    stored = image if isinstance(image, dict) else {"path": image}
    if stored.get("bytes") is not None:
        return stored["bytes"]
    path = str(stored.get("path"))
    return Path(path).read_bytes() if Path(path).is_file() else path
