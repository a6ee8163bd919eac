"""Teacher embeddings on disk: Parquet shards beside one JSON file that describes them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from hf_blemo.errors import without_paths
from hf_blemo.files import read_json, whole_file
from hf_blemo.pairs.images import Crop
from hf_blemo.pairs.settings import STORE_FILE

SCHEMA_VERSION = 1
# One folder per teacher, from which a student takes its tokenizer.
TOKENIZERS = "tokenizers"
SHARD_FOLDER = "data"
# Settings of a source that decide which pairs its rows are.
SOURCE_KEYS = ("data", "split", "name", "revision", "image_column", "caption_column", "options")


@dataclass
class StoreDescription:
    """The pairs, crops and teachers of a store.

    Args:
        sources: settings of every source of pairs, each with its number of `pairs` and the `fingerprint` of their
            content.
        augmentation: settings of the crops.
        decode_size: the least side at which a JPEG's crop was decoded.
        teachers: name -> `source`, `revision`, `fingerprint`, `dim`, `logit_scale` and `image_size`.
        rows_per_shard: pairs of a shard.
    """

    sources: list[dict[str, Any]]
    augmentation: dict[str, Any]
    decode_size: int | None
    teachers: dict[str, dict[str, Any]]
    rows_per_shard: int
    schema_version: int = SCHEMA_VERSION

    @property
    def variants(self) -> int:
        """Number of crops of every image; 1 without augmentation."""
        return self.augmentation.get("variants", 1) if self.augmentation else 1

    def shards(self) -> list[tuple[int, range]]:
        """Returns the source and the rows of every shard."""
        return [
            (number, range(start, min(start + self.rows_per_shard, source["pairs"])))
            for number, source in enumerate(self.sources)
            for start in range(0, source["pairs"], self.rows_per_shard)
        ]

    def shard_path(self, folder: Path, number: int) -> Path:
        """Returns the path of a shard."""
        return folder / SHARD_FOLDER / f"train-{number:05d}-of-{len(self.shards()):05d}.parquet"

    def write_shard(self, folder: Path, number: int, columns: Mapping[str, Any]) -> None:
        """Writes a shard so that it appears whole.

        Its columns are `source`, `row`, `variant`, `crop`, `flip`, `caption` and `broken`, a list each; of a teacher
        NAME also `NAME_image_embeds` and `NAME_text_embeds`, (n, d), normalised.
        """
        types = [
            ("source", pa.int32()),
            ("row", pa.int64()),
            ("variant", pa.int32()),
            ("crop", pa.list_(pa.int32(), 4)),
            ("flip", pa.bool_()),
            ("caption", pa.string()),
            ("broken", pa.bool_()),
        ]
        arrays = [pa.array(columns[name], type=kind) for name, kind in types]
        for name, teacher in self.teachers.items():
            for side in ("image", "text"):
                types.append((f"{name}_{side}_embeds", pa.list_(pa.float16(), teacher["dim"])))
                flat = pa.array(columns[types[-1][0]].reshape(-1), type=pa.float16())
                arrays.append(pa.FixedSizeListArray.from_arrays(flat, teacher["dim"]))
        with whole_file(self.shard_path(folder, number)) as temporary:
            pq.write_table(pa.Table.from_arrays(arrays, schema=pa.schema(types)), temporary, compression="zstd")

    @classmethod
    def load(cls, folder: Path) -> "StoreDescription":
        """Reads the JSON file."""
        path = folder / STORE_FILE
        if not path.is_file():
            raise FileNotFoundError(f"teacher_store {str(folder)!r}: found no {STORE_FILE} there")
        content = read_json(path)
        if content.get("schema_version") != SCHEMA_VERSION:
            raise ValueError(
                f"{path}: expected schema_version {SCHEMA_VERSION}, found {content.get('schema_version')!r}"
            )
        try:
            return cls(**content)
        except TypeError as error:
            raise ValueError(f"{path}: not a description of a store: {error}") from None


def check_same_pairs(where: str, made: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Refuses a source of a run whose pairs have another `fingerprint` than those that a store was made of."""
    if not isinstance(made.get("fingerprint"), Mapping):
        raise ValueError(f"{where}: {made.get('data')!r} has no fingerprint; embed it anew")
    for part, value in made["fingerprint"].items():
        if found["fingerprint"].get(part) != value:
            raise ValueError(f"{where} was made of other {part}: {made['data']!r} has changed since; embed it anew")


def _damaged(paths: Sequence[Path]) -> str:
    """Returns the name of the first shard that cannot be read."""
    for path in paths:
        try:
            pq.read_table(path)
        except (pa.ArrowException, OSError):
            return path.name
    return "a shard"


class TeacherStore:
    """Embeddings of one teacher, found by source, row and variant.

    Args:
        folder: of the store.
        teacher: its name in the store; may be omitted if there is only one.
    """

    def __init__(self, folder: str | Path, teacher: str | None = None):
        self.folder, self.where = Path(folder), f"teacher_store {str(folder)!r}"
        self.description = StoreDescription.load(self.folder)
        teachers = self.description.teachers
        if teacher is None and len(teachers) > 1:
            names = f"{', '.join(teachers)} (--teacher_name), or several (--teachers)"
            raise ValueError(f"{self.where}: name one of its teachers, {names}")
        self.name = next(iter(teachers)) if teacher is None else teacher
        if self.name not in teachers:
            raise ValueError(f"{self.where}: no teacher {teacher!r}, found {', '.join(teachers)}")
        self.teacher = teachers[self.name]
        shards = self.description.shards()
        paths = [self.description.shard_path(self.folder, number) for number in range(len(shards))]
        missing = [path.name for path in paths if not path.is_file()]
        if missing:
            raise FileNotFoundError(
                f"{self.where}: {len(missing)} of {len(paths)} shards are missing, {missing[0]} first; run hf-blemo "
                "embed again to resume"
            )
        try:
            data = datasets.load_dataset("parquet", data_files={"train": [str(path) for path in paths]}, split="train")
        except datasets.exceptions.DatasetGenerationError as error:
            raise ValueError(
                f"{self.where}: {_damaged(paths)} cannot be read: {error.__cause__}; delete it and run hf-blemo embed "
                "again"
            ) from error
        # Only the columns of one teacher are read from disk.
        self.embeds = [f"{self.name}_{side}_embeds" for side in ("image", "text")]
        self.meta = data.select_columns(["crop", "flip", "caption", "broken"])
        self.data = data.select_columns(self.embeds).with_format("numpy")
        pairs = [source["pairs"] for source in self.description.sources]
        self.first = np.concatenate([[0], np.cumsum(pairs)]) * self.description.variants
        if len(data) != self.first[-1]:
            raise ValueError(f"{self.where}: expected {self.first[-1]} rows, found {len(data)}")

    def check(self, sources: Sequence[Mapping[str, Any]], augmentation: Mapping[str, Any], decode_size: int) -> None:
        """Refuses a store that was made from other pixels than a run would see.

        Args:
            sources: settings of the run's sources, each with its number of `pairs` and their `fingerprint`.
            augmentation: of the run.
            decode_size: side of the largest images that the run's student or the store's teachers take.
        """
        where, made = self.where, self.description
        if len(sources) != len(made.sources):
            raise ValueError(f"{where}: made of {len(made.sources)} sources, the run has {len(sources)}")
        for number, (mine, theirs) in enumerate(zip(sources, made.sources, strict=True)):
            for key in (*SOURCE_KEYS, "pairs"):
                # A published store names its data without folders.
                if mine.get(key) != theirs.get(key) and without_paths(str(mine.get(key))) != theirs.get(key):
                    raise ValueError(
                        f"{where}: source {number} had {key} {theirs.get(key)!r}, the run has {mine.get(key)!r}"
                    )
            check_same_pairs(f"{where}: source {number}", theirs, mine)
        if dict(augmentation) != made.augmentation:
            raise ValueError(
                f"{where}: made with augmentation {made.augmentation}, the run has {dict(augmentation)}; the pixels "
                "would not be those that were embedded"
            )
        if made.augmentation and decode_size != made.decode_size:
            raise ValueError(
                f"{where}: made for images of {made.decode_size} pixels, the run reads {decode_size}; embed again "
                f"with image_size {decode_size}"
            )

    def place(self, source: int, pair: Mapping[str, Any], caption: str, crop: Crop | None) -> int:
        """Returns the row of the embeddings of a visit of a pair, whose caption and crop must be those embedded."""
        variants = self.description.variants
        place = int(self.first[source]) + pair["key"][1] * variants + pair["visit"] % variants
        found = self.meta[place]
        stored = None
        if found["crop"] is not None:
            left, top, width, height = found["crop"]
            stored = Crop(left, top, width, height, found["flip"])
        if found["broken"] or (found["caption"], stored) != (caption, crop):
            seen = "a broken pair" if found["broken"] else f"{found['caption']!r} and {stored}"
            raise ValueError(
                f"{self.where}: {pair['where']}: embedded {seen}, found {caption!r} and {crop}; "
                "the data has changed since"
            )
        return place

    def embeddings(self, places: Sequence[int]) -> dict[str, torch.Tensor]:
        """Returns `teacher_image_embeds` and `teacher_text_embeds`, (n, d) float32."""
        rows = self.data[list(places)]
        names = ("teacher_image_embeds", "teacher_text_embeds")
        return {
            name: torch.from_numpy(np.stack(list(rows[column])).astype(np.float32))
            for name, column in zip(names, self.embeds, strict=True)
        }
