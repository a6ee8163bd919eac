"""Teachers' embeddings of image-caption pairs, written once and read by every student."""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from huggingface_hub import DatasetCardData
from torch.nn import functional

from hf_blemo.clip_rd.distillation_clip_rd import features_of
from hf_blemo.clip_rd_training.data_position import DataPosition
from hf_blemo.clip_rd_training.reading import BrokenPairError, PairReader, ReadPair
from hf_blemo.clip_rd_training.settings import EmbeddingSettings
from hf_blemo.errors import one_line
from hf_blemo.files import held, within, write_json, write_text
from hf_blemo.hub.card import merge_card, render_template, without_local_paths
from hf_blemo.hub.uploads import hub_errors, prepare_repository, upload
from hf_blemo.pairs.clip_models import Clip, load_clip
from hf_blemo.pairs.pair_sources import PairTable, open_source
from hf_blemo.pairs.teacher_store import SHARD_FOLDER, STORE_FILE, TOKENIZERS, StoreDescription, check_same_pairs
from hf_blemo.programs.processes import check_shared, of_first, together
from hf_blemo.programs.progress import Progress

SHOWN = 3


@dataclass(eq=False)
class _ShardPairs(torch.utils.data.Dataset):
    """Batches of a shard's pairs, every visit (row, variant) in order."""

    table: PairTable
    source: int
    visits: list[tuple[int, int]]
    reader: PairReader
    batch_size: int

    def __len__(self) -> int:
        return -(-len(self.visits) // self.batch_size)

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Returns a batch's columns, and the inputs of every teacher for the pairs that can be read."""
        visits = self.visits[number * self.batch_size :][: self.batch_size]
        read: list[ReadPair | None] = []
        problems: list[str] = []
        for (_, variant), pair in zip(visits, self.table.pairs([row for row, _ in visits]), strict=True):
            try:
                read.append(self.reader.read({**pair, "visit": variant}, self.source))
            except BrokenPairError as error:
                read.append(None)
                problems.append(one_line(error))
        sound = [pair for pair in read if pair is not None]
        crops = [None if pair is None else pair.crop for pair in read]
        columns = {
            "source": [self.source] * len(visits),
            "row": [row for row, _ in visits],
            "variant": [variant for _, variant in visits],
            "crop": [None if crop is None else [crop.left, crop.top, crop.width, crop.height] for crop in crops],
            "flip": [None if crop is None else crop.flip for crop in crops],
            "caption": [None if pair is None else pair.caption for pair in read],
            "broken": [pair is None for pair in read],
        }
        captions = [pair.caption for pair in sound]
        inputs = [
            {"pixel_values": self.reader.stacked(sound, index), **processor.captions(captions)}
            for index, processor in enumerate(self.reader.processors if sound else [])
        ]
        return {"columns": columns, "inputs": inputs, "problems": problems}


def embed(settings: EmbeddingSettings) -> dict[str, Any]:
    """Fills a store with the embeddings of all pairs by all teachers.

    Shards are dealt to the processes, appear whole, and are kept when a run is started again.

    Returns:
        `pairs`, `rows` and `shards` of the store, and what this run did: `written` shards, `seen` and `broken` pairs
        with `examples`.
    """
    accelerator = Accelerator(mixed_precision=settings.mixed_precision)
    with together(accelerator, settings) as stack:
        return _embed(accelerator, settings, stack)


def _embed(accelerator: Accelerator, settings: EmbeddingSettings, stack: ExitStack) -> dict[str, Any]:
    output = Path(settings.output_dir)
    if settings.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError("mixed_precision 'fp16' needs an accelerator; a CPU has bf16")
    sources = [open_source(source) for source in settings.pair_sources()]
    clips = {
        name: load_clip(source, f"teacher {name!r}", settings.revisions.get(name))
        for name, source in settings.teachers.items()
    }
    sizes = {name: max(clip.processor.image_size) for name, clip in clips.items()}
    decode_size = max([*sizes.values(), settings.image_size or 0]) if settings.augmentation else None
    described = [
        {**entry, "pairs": len(source), "fingerprint": source.fingerprint()}
        for entry, source in zip(settings.described_sources(), sources, strict=True)
        if isinstance(source, PairTable)
    ]
    description = StoreDescription(
        sources=described,
        augmentation=settings.augmentation,
        decode_size=decode_size,
        teachers={
            name: {
                "source": settings.teachers[name],
                "revision": settings.revisions.get(name),
                **clip.description(),
                "dim": clip.dim,
                "image_size": sizes[name],
            }
            for name, clip in clips.items()
        },
        rows_per_shard=settings.rows_per_shard,
    )
    # Wrong settings are found before anything is written.
    reader = PairReader([clip.processor for clip in clips.values()], settings.augmentation, decode_size)
    if (output / STORE_FILE).is_file():
        _check_same(StoreDescription.load(output), description, output)
    elif output.exists() and (not output.is_dir() or _foreign(output)):
        raise FileExistsError(f"output_dir {settings.output_dir!r}: found something that is not a store")
    if settings.push_to_hub is not None:
        prepare_repository(settings.push_to_hub, accelerator, repo_type="dataset")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        stack.enter_context(held(output))
    if accelerator.is_main_process and not (output / STORE_FILE).is_file():
        for name, clip in clips.items():
            if hasattr(clip.processor.tokenizer, "save_pretrained"):
                clip.processor.tokenizer.save_pretrained(within(output / TOKENIZERS, name))
        write_json({output / STORE_FILE: asdict(description)})
    check_shared(accelerator, output)
    for clip in clips.values():
        clip.model.to(accelerator.device)
    position = DataPosition(accelerator, settings.max_broken_share)
    shards = description.shards()
    missing = [number for number in range(len(shards)) if not description.shard_path(output, number).is_file()]
    # The first process's view, since others may already be writing shards.
    missing = of_first(accelerator, lambda: missing)
    own = missing[accelerator.process_index :: accelerator.num_processes]
    total = sum(len(shards[number][1]) for number in own) * description.variants
    with Progress("embedding", "pair", total, shown=accelerator.is_main_process) as bar:
        # Equally many turns on every process, since all add up their counts together.
        for turn in range(-(-len(missing) // accelerator.num_processes)):
            if turn < len(own):
                source, rows = shards[own[turn]]
                table = sources[source]
                assert isinstance(table, PairTable)
                visits = [(row, variant) for row in rows for variant in range(description.variants)]
                part = _ShardPairs(table, source, visits, reader, settings.batch_size)
                columns = _embedded(accelerator, part, clips, settings.num_workers, position, bar)
                description.write_shard(output, own[turn], columns)
            position.share()
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        card = output / "README.md"
        if not card.is_file():
            write_text(card, store_card(output))
        if settings.push_to_hub is not None:
            again = "the same command uploads it again"
            with hub_errors(f"{output} is complete but was not uploaded to {settings.push_to_hub}; {again}"):
                _push_store(output, settings.push_to_hub)
    pairs = sum(source["pairs"] for source in described)
    return {
        "pairs": pairs,
        "rows": pairs * description.variants,
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
    teachers: Mapping[str, Clip],
    num_workers: int,
    position: DataPosition,
    bar: Any,
) -> dict[str, Any]:
    """Embeds the pairs of a shard; returns its columns."""
    columns: dict[str, Any] = {}
    embeds: dict[str, list[np.ndarray]] = {}
    loader = torch.utils.data.DataLoader(
        part, batch_size=None, num_workers=num_workers, pin_memory=accelerator.device.type == "cuda"
    )
    for batch in loader:
        broken = np.array(batch["columns"]["broken"])
        for name, values in batch["columns"].items():
            columns.setdefault(name, []).extend(values)
        for index, (name, teacher) in enumerate(teachers.items()):
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
    """Returns the embeddings of images or texts, of length 1."""
    given = {name: values.to(accelerator.device) for name, values in inputs.items()}
    with accelerator.autocast():
        if side == "image":
            output = model.get_image_features(pixel_values=given["pixel_values"])
        else:
            output = model.get_text_features(input_ids=given["input_ids"], attention_mask=given.get("attention_mask"))
    embeds = functional.normalize(features_of(output).float(), dim=-1).cpu().numpy()
    if not np.isfinite(embeds).all():
        raise ValueError(f"a teacher gives {side} embeddings that are not finite; another mixed_precision may help")
    return embeds.astype(np.float16)


def _foreign(output: Path) -> bool:
    """Whether a folder holds more than a run that was killed at its start leaves."""
    return any(path.name != TOKENIZERS and not path.name.startswith(".") for path in output.iterdir())


def _check_same(found: StoreDescription, made: StoreDescription, output: Path) -> None:
    """Refuses a store of other settings."""
    ours, theirs = ({**asdict(one), "sources": _settings_of(one)} for one in (made, found))
    for key, value in ours.items():
        if theirs[key] != value:
            raise ValueError(f"output_dir {str(output)!r}: a store with {key} {theirs[key]}, this run has {value}")
    for number, (before, now) in enumerate(zip(found.sources, made.sources, strict=True)):
        check_same_pairs(f"output_dir {str(output)!r}: source {number} of the store", before, now)


def _settings_of(description: StoreDescription) -> list[dict[str, Any]]:
    """The sources without the fingerprints of their content."""
    return [{key: value for key, value in source.items() if key != "fingerprint"} for source in description.sources]


def store_card(folder: Path) -> str:
    """Metadata and text of a store's README.md, without folders of this machine."""
    # No licence: the pairs' and the teachers' own decide, and neither is known here.
    data = DatasetCardData(
        tags=["hf_blemo", "clip", "embeddings", "distillation"],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}],
    )
    description = without_local_paths(asdict(StoreDescription.load(folder)))
    description["augmentation"] = json.dumps(description["augmentation"])
    return render_template("teacher_store", data, **description)


def _push_store(folder: Path, repo_id: str) -> None:
    """Uploads a store in one commit to a data set; a new one is private.

    Manual edits of the card on the Hub stay; shards that this store does not have are removed there.
    """
    paths = [folder / STORE_FILE, *(folder / SHARD_FOLDER).glob("*.parquet"), *(folder / TOKENIZERS).rglob("*")]
    files = {path.relative_to(folder).as_posix(): path for path in sorted(paths) if path.is_file()}
    card, message = store_card(folder), "Upload teacher embeddings"
    upload(repo_id, files, message, lambda on_hub: merge_card(on_hub, card), "dataset", replaced=SHARD_FOLDER)
