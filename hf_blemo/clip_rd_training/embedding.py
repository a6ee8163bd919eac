"""Teachers' embeddings of image-caption pairs, written once and read by every student."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch.nn import functional

from hf_blemo.clip_rd.distillation_clip_rd import features_of
from hf_blemo.clip_rd_training.data_position import DataPosition
from hf_blemo.clip_rd_training.reading import BrokenPairError, PairReader, ReadPair
from hf_blemo.clip_rd_training.settings import EmbeddingSettings
from hf_blemo.hub.teacher_stores import push_store, store_card
from hf_blemo.hub.uploads import hub_errors, prepare_repository
from hf_blemo.pairs.clip_models import Clip, load_clip
from hf_blemo.pairs.pair_sources import PairTable, open_source
from hf_blemo.pairs.teacher_store import STORE_FILE, TOKENIZERS, StoreDescription
from hf_blemo.programs.processes import end_training
from hf_blemo.programs.progress import Progress

SHOWN = 3


class _ShardPairs(torch.utils.data.Dataset):
    """Batches of a shard's pairs, each visit of each row in order.

    Args:
        table: of pairs.
        source: its number.
        rows: of the shard.
        variants: visits of each row.
        reader: of pairs.
        teachers: whose inputs are made.
        batch_size: pairs at once.
    """

    def __init__(
        self,
        table: PairTable,
        source: int,
        rows: range,
        variants: int,
        reader: PairReader,
        teachers: list[Clip],
        batch_size: int,
    ):
        self.table, self.source, self.reader, self.teachers, self.batch_size = (
            table,
            source,
            reader,
            teachers,
            batch_size,
        )
        self.visits = [(row, variant) for row in rows for variant in range(variants)]

    def __len__(self) -> int:
        return -(-len(self.visits) // self.batch_size)

    def __getitem__(self, number: int) -> dict[str, Any]:
        """What is stored of a batch, with the inputs of every teacher for the pairs that can be read."""
        visits = self.visits[number * self.batch_size :][: self.batch_size]
        read: list[ReadPair] = []
        problems: list[str] = []
        columns: dict[str, list] = {name: [] for name in ("row", "variant", "crop", "flip", "caption", "broken")}
        pairs = self.table.pairs([row for row, _ in visits])
        for (row, variant), pair in zip(visits, pairs, strict=True):
            found = None
            try:
                found = self.reader.read({**pair, "visit": variant}, self.source)
                read.append(found)
            except BrokenPairError as error:
                problems.append(str(error))
            crop = None if found is None else found.crop
            columns["row"].append(row)
            columns["variant"].append(variant)
            columns["crop"].append(None if crop is None else [crop.left, crop.top, crop.width, crop.height])
            columns["flip"].append(None if crop is None else crop.flip)
            columns["caption"].append(None if found is None else found.caption)
            columns["broken"].append(found is None)
        inputs: list[dict[str, torch.Tensor]] = []
        if read:
            captions = [pair.caption for pair in read]
            inputs = [
                {"pixel_values": self.reader.stacked(read, index), **teacher.processor.captions(captions)}
                for index, teacher in enumerate(self.teachers)
            ]
        return {"columns": columns, "inputs": inputs, "problems": problems}


def embed(settings: EmbeddingSettings) -> dict[str, Any]:
    """Fills a store with the embeddings of all pairs by all teachers.

    Shards are dealt to the processes, appear whole, and are kept when a run is started again.

    Args:
        settings: of the run.

    Returns:
        `pairs`, `rows` and `shards` of the store, and what this run did: `written` shards, `seen` and `broken` pairs
        with `examples`.

    Raises:
        ValueError, FileNotFoundError: settings, data or teachers are not usable, the folder holds a store of other
            settings, or more pairs are broken than `max_broken_share` allows; shards that were written stay.
    """
    output = Path(settings.output_dir)
    accelerator = Accelerator(mixed_precision=settings.mixed_precision)
    if settings.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError("mixed_precision 'fp16' needs an accelerator; a CPU has bf16")
    sources = [open_source(source) for source in settings.pair_sources()]
    names = list(settings.teachers)
    clips = [load_clip(settings.teachers[name], f"teacher {name!r}", settings.revisions.get(name)) for name in names]
    sizes = [max(clip.processor.image_size) for clip in clips]
    decode_size = max([*sizes, settings.image_size or 0]) if settings.augmentation else None
    pairs = [len(source) for source in sources if isinstance(source, PairTable)]
    description = StoreDescription(
        sources=[{**entry, "pairs": count} for entry, count in zip(settings.described_sources(), pairs, strict=True)],
        augmentation=settings.augmentation,
        decode_size=decode_size,
        teachers={
            name: {
                "source": settings.teachers[name],
                "revision": settings.revisions.get(name),
                **clip.description(),
                "dim": clip.dim,
                "image_size": size,
            }
            for name, clip, size in zip(names, clips, sizes, strict=True)
        },
        rows_per_shard=settings.rows_per_shard,
    )
    # Whatever is wrong with the settings is found before the folder is begun.
    reader = PairReader([clip.processor for clip in clips], settings.augmentation, decode_size)
    if (output / STORE_FILE).is_file():
        _check_same(StoreDescription.load(output), description, output)
    elif output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"output_dir {settings.output_dir!r}: found something that is no store")
    if settings.push_to_hub is not None:
        prepare_repository(settings.push_to_hub, accelerator, repo_type="dataset")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process and not (output / STORE_FILE).is_file():
        for name, clip in zip(names, clips, strict=True):
            if hasattr(clip.processor.tokenizer, "save_pretrained"):
                clip.processor.tokenizer.save_pretrained(output / TOKENIZERS / name)
        description.save(output)
    accelerator.wait_for_everyone()
    for clip in clips:
        clip.model.to(accelerator.device)
    position = DataPosition(accelerator, settings.max_broken_share)
    shards = description.shards()
    missing = [number for number in range(len(shards)) if not description.shard_path(output, number).is_file()]
    # As the first process found it: another may have written a shard by the time the last one looks.
    missing = broadcast_object_list([missing])[0]
    own = missing[accelerator.process_index :: accelerator.num_processes]
    total = sum(len(shards[number][1]) for number in own) * description.variants
    with Progress("embedding", "pair", total, shown=accelerator.is_main_process) as bar:
        # Every process comes by here as often, so that they can add up what they have read.
        for turn in range(-(-len(missing) // accelerator.num_processes)):
            if turn < len(own):
                source, rows = shards[own[turn]]
                table = sources[source]
                assert isinstance(table, PairTable)
                part = _ShardPairs(table, source, rows, description.variants, reader, clips, settings.batch_size)
                columns = _embedded(accelerator, part, names, settings.num_workers, position, bar)
                columns["source"] = [source] * len(part.visits)
                description.write_shard(output, own[turn], columns)
            position.share()
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        card = output / "README.md"
        if not card.is_file():
            card.write_text(store_card(output), encoding="utf-8", newline="\n")
        if settings.push_to_hub is not None:
            again = "the same command uploads it again"
            with hub_errors(f"{output} is complete but was not uploaded to {settings.push_to_hub}; {again}"):
                push_store(output, settings.push_to_hub)
    accelerator.wait_for_everyone()
    end_training(accelerator)
    return {
        "pairs": sum(pairs),
        "rows": sum(pairs) * description.variants,
        "shards": len(shards),
        "written": len(missing),
        "seen": position.seen,
        "broken": position.broken,
        "examples": position.examples,
    }


@torch.no_grad()
def _embedded(
    accelerator: Accelerator,
    part: _ShardPairs,
    names: list[str],
    num_workers: int,
    position: DataPosition,
    bar: Any,
) -> dict[str, Any]:
    """The columns of a shard."""
    columns: dict[str, Any] = {}
    embeds: dict[str, list[np.ndarray]] = {}
    loader = torch.utils.data.DataLoader(
        part, batch_size=None, num_workers=num_workers, pin_memory=accelerator.device.type == "cuda"
    )
    for batch in loader:
        broken = np.array(batch["columns"]["broken"])
        for name, values in batch["columns"].items():
            columns.setdefault(name, []).extend(values)
        for index, (name, teacher) in enumerate(zip(names, part.teachers, strict=True)):
            for side in ("image", "text"):
                rows = np.zeros((len(broken), teacher.dim), np.float16)
                if not broken.all():
                    rows[~broken] = _side(accelerator, teacher.model, batch["inputs"][index], side)
                embeds.setdefault(f"{name}_{side}_embeds", []).append(rows)
        problems = batch["problems"]
        position.count(len(broken), len(problems), problems[:SHOWN])
        bar.update(len(broken))
    return {**columns, **{name: np.concatenate(parts) for name, parts in embeds.items()}}


def _side(accelerator: Accelerator, model: Any, inputs: dict[str, torch.Tensor], side: str) -> np.ndarray:
    """Embeddings of images or texts, of length 1."""
    given = {name: values.to(accelerator.device) for name, values in inputs.items()}
    with accelerator.autocast():
        if side == "image":
            output = model.get_image_features(pixel_values=given["pixel_values"])
        else:
            output = model.get_text_features(input_ids=given["input_ids"], attention_mask=given.get("attention_mask"))
    return functional.normalize(features_of(output).float(), dim=-1).cpu().numpy().astype(np.float16)


def _check_same(found: StoreDescription, made: StoreDescription, output: Path) -> None:
    """Refuses to go on with a store of other settings."""
    one, two = asdict(found), asdict(made)
    for key, value in two.items():
        if one[key] != value:
            raise ValueError(f"output_dir {str(output)!r}: a store with {key} {one[key]}, this run has {value}")
