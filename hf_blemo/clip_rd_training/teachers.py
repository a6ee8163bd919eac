"""The teacher of a distillation: a model that runs beside the student, a store of its embeddings, or none."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from hf_blemo.clip_rd.losses_clip_rd import MAXIMAL_LOG_SCALE, CLIPRDLoss
from hf_blemo.clip_rd_training.reading import PairReader, ReadPair
from hf_blemo.clip_rd_training.settings import DistillationSettings
from hf_blemo.files import within
from hf_blemo.loading import download_errors, load_part, local_path
from hf_blemo.pairs.clip_models import Clip, load_clip
from hf_blemo.pairs.pair_processor import PairProcessor
from hf_blemo.pairs.pair_sources import PairStream, PairTable
from hf_blemo.pairs.teacher_store import STORE_FILE, TOKENIZERS, TeacherStore

# Of the search for a scale: it ends within 0.2 %.
_STEPS = 15


class Teacher:
    """No teacher: the student learns from the contrastive loss alone. The other two kinds override their parts.

    Attributes:
        dim: width of the embeddings; None without a teacher.
        processor: of the teacher's pairs; None without one. That of a store has a tokenizer and no image processor.
        model: runs beside the student; None without one.
        logit_scale: CLIP scale, exponentiated; None without a teacher, or if `model` has it.
        description: entry of `metrics.json`.
    """

    dim: int | None = None
    processor: PairProcessor | None = None
    model: Any = None
    logit_scale: float | None = None
    description: dict[str, Any] | None = None

    def check(
        self, settings: DistillationSettings, sources: Sequence[PairTable | PairStream], student: PairProcessor
    ) -> None:
        """Refuses a run for which this teacher has no embeddings.

        Raises:
            ValueError: a store made from other pairs, crops or sizes of images, or from another teacher.
        """

    def reader(self, student: PairProcessor, augmentation: Mapping[str, Any]) -> PairReader:
        """Makes the reader of pairs for the student and this teacher."""
        return PairReader([student], augmentation)

    def place(self, source: int, pair: Mapping[str, Any], read: ReadPair) -> Any:
        """Returns what [`inputs`] needs beside a pair as it was read."""
        return None

    def inputs(self, reader: PairReader, read: Sequence[ReadPair], places: Sequence[Any]) -> dict[str, torch.Tensor]:
        """Returns the teacher's part of a batch."""
        return {}


class _LiveTeacher(Teacher):
    """A model that runs beside the student."""

    def __init__(self, clip: Clip, description: dict[str, Any]):
        self.model, self.processor, self.dim = clip
        self.own_tokens = True
        self.description = description

    def __getstate__(self) -> dict[str, Any]:
        # Workers that read batches need no weights.
        return {**vars(self), "model": None}

    def reader(self, student: PairProcessor, augmentation: Mapping[str, Any]) -> PairReader:
        assert self.processor is not None
        self.own_tokens = not self.processor.same_tokens(student)
        processors = [student] if self.processor.same_images(student) else [student, self.processor]
        return PairReader(processors, augmentation)

    def inputs(self, reader: PairReader, read: Sequence[ReadPair], places: Sequence[Any]) -> dict[str, torch.Tensor]:
        inputs: dict[str, torch.Tensor] = {}
        if len(reader.processors) > 1:
            inputs["teacher_pixel_values"] = reader.stacked(read, 1)
        if self.own_tokens and self.processor is not None and any(pair.caption for pair in read):
            tokens = self.processor.captions([pair.caption for pair in read])
            inputs |= {f"teacher_{name}": values for name, values in tokens.items()}
        return inputs


class _StoredTeacher(Teacher):
    """Embeddings that `hf-blemo embed` wrote, and the tokenizer that came with them."""

    def __init__(self, store: TeacherStore, processor: PairProcessor | None):
        self.store, self.processor = store, processor
        self.dim, self.logit_scale = store.teacher["dim"], store.teacher["logit_scale"]
        kept = ("source", "fingerprint", "parameters", "logit_scale")
        self.description = {**{key: store.teacher[key] for key in kept}, "stored": True}

    def check(
        self, settings: DistillationSettings, sources: Sequence[PairTable | PairStream], student: PairProcessor
    ) -> None:
        where = f"teacher_store {settings.teacher_store!r}"
        made = self.store.teacher
        if settings.teacher is not None and settings.teacher != made["source"]:
            raise ValueError(f"{where}: made with teacher {made['source']!r}, the run names {settings.teacher!r}")
        if settings.teacher_revision not in (None, made["revision"], made["fingerprint"]):
            raise ValueError(
                f"{where}: made with revision {made['revision']!r} of the teacher, the run names "
                f"{settings.teacher_revision!r}"
            )
        described = []
        for entry, source in zip(settings.described_sources(), sources, strict=True):
            if isinstance(source, PairStream):
                raise ValueError(f"data {entry['data']!r}: stored embeddings are found by row, not in a stream")
            described.append({**entry, "pairs": len(source), "fingerprint": source.fingerprint()})
        sizes = [teacher["image_size"] for teacher in self.store.description.teachers.values()]
        self.store.check(described, settings.augmentation, max(max(student.image_size), *sizes))

    def reader(self, student: PairProcessor, augmentation: Mapping[str, Any]) -> PairReader:
        # Even without crops, a visit may only draw an embedded caption.
        description = self.store.description
        return PairReader([student], augmentation, description.decode_size, description.variants)

    def place(self, source: int, pair: Mapping[str, Any], read: ReadPair) -> int:
        return self.store.place(source, pair, read.caption, read.crop)

    def inputs(self, reader: PairReader, read: Sequence[ReadPair], places: Sequence[Any]) -> dict[str, torch.Tensor]:
        return self.store.embeddings(places)


def open_teacher(settings: DistillationSettings) -> Teacher:
    """Loads the teacher, or opens the store, that the settings name; a store on the Hub is downloaded.

    Raises:
        FileNotFoundError: there is no such model or store.
        ValueError: the model is not a CLIP, or the store has no such teacher.
    """
    if settings.teacher_store is not None:
        return _open_store(settings.teacher_store, settings.teacher_name)
    if settings.teacher is None:
        return Teacher()
    clip = load_clip(settings.teacher, "teacher", settings.teacher_revision)
    return _LiveTeacher(clip, {"source": settings.teacher, **clip.description(), "stored": False})


def _open_store(source: str, teacher: str | None) -> Teacher:
    where = f"teacher_store {source!r}"
    folder = local_path(source, where)
    if folder is None:
        from huggingface_hub import snapshot_download

        with download_errors(where):
            folder = Path(snapshot_download(source, repo_type="dataset"))
    if not (folder / STORE_FILE).is_file():
        raise FileNotFoundError(f"{where}: found no {STORE_FILE} there")
    store = TeacherStore(folder, teacher)
    tokenizer = within(folder / TOKENIZERS, store.name, where)
    processor = None
    if tokenizer.is_dir():
        from transformers import AutoTokenizer

        processor = PairProcessor(load_part(AutoTokenizer, str(tokenizer), f"{where}, tokenizer"), None)
    return _StoredTeacher(store, processor)


def tuned_scale(batches: Sequence[tuple[torch.Tensor, torch.Tensor, Mapping[str, torch.Tensor]]]) -> float:
    """The scale at which a teacher's softmax over a batch tells best which text belongs to which image.

    The least mean of CLIP's contrastive loss over the batches, by a golden-section search from 1 to 100: the loss is
    convex in the scale. Every process finds the same, since the loss is that of all pairs.

    Args:
        batches: the teacher's embeddings of this process's images and texts, (n, d) each, and `image_ids` and
            `text_ids` where duplicates share their targets.
    """
    dim = batches[0][0].shape[1]
    loss = CLIPRDLoss(dim, dim, {"task": 1.0}, precision="exact").to(batches[0][0].device)

    @torch.no_grad()
    def mean(exponent: float) -> float:
        found = [loss(image, text, None, None, math.exp(exponent), None, **ids).loss for image, text, ids in batches]
        return torch.stack(found).double().mean().item()

    low, high, ratio = 0.0, MAXIMAL_LOG_SCALE, (math.sqrt(5) - 1) / 2
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = mean(left), mean(right)
    for _ in range(_STEPS):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = mean(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = mean(right)
    return math.exp((low + high) / 2)
