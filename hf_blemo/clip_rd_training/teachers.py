"""The teacher of a distillation: a model that runs beside the student, a store of its embeddings, or none."""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from hf_blemo.clip_rd.distillation_clip_rd import CLIPRDDistiller, teacher_prefix
from hf_blemo.clip_rd.losses_clip_rd import CLIPRDLoss
from hf_blemo.clip_rd.weights_clip_rd import CLIP_RD_WEIGHTS
from hf_blemo.clip_rd_training.reading import PairReader, ReadPair
from hf_blemo.clip_rd_training.settings import OWN_SCALE, DistillationSettings
from hf_blemo.files import within
from hf_blemo.loading import download_errors, load_part, local_path
from hf_blemo.pairs.clip_models import Clip, load_clip
from hf_blemo.pairs.pair_processor import PairProcessor
from hf_blemo.pairs.pair_sources import PairStream, PairTable
from hf_blemo.pairs.teacher_store import STORE_FILE, TOKENIZERS, TeacherStore

# Of the search for a scale, which ends within 0.2 %, and batches that it looks at.
_STEPS, _BATCHES = 15, 4


class _LiveTeacher:
    """A model that runs beside the student, its processor, and its entry of `metrics.json`."""

    # The model knows it.
    logit_scale = None

    def __init__(self, clip: Clip, description: dict[str, Any]):
        self.model, self.processor, self.dim = clip
        self.description = description
        self.own_tokens = True
        # Number of its processor in the reader; the first is the student's.
        self.number = 0

    def __getstate__(self) -> dict[str, Any]:
        # Workers that read batches need no weights.
        return {**vars(self), "model": None}

    def join(self, processors: list[PairProcessor]) -> None:
        """Adds its processor to the reader's, unless one of those gives the same pixels."""
        self.own_tokens = not self.processor.same_tokens(processors[0])
        same = [number for number, other in enumerate(processors) if self.processor.same_images(other)]
        self.number = same[0] if same else len(processors)
        if not same:
            processors.append(self.processor)

    def inputs(self, reader: PairReader, read: Sequence[ReadPair], places: Sequence[Any]) -> dict[str, torch.Tensor]:
        inputs: dict[str, torch.Tensor] = {}
        if self.number:
            inputs["teacher_pixel_values"] = reader.stacked(read, self.number)
        if self.own_tokens and any(pair.caption for pair in read):
            tokens = self.processor.captions([pair.caption for pair in read])
            inputs |= {f"teacher_{name}": values for name, values in tokens.items()}
        return inputs


class _StoredTeacher:
    """Embeddings that `hf-blemo embed` wrote, and the tokenizer that came with them."""

    model = None

    def __init__(self, store: TeacherStore, processor: PairProcessor | None):
        self.store, self.processor = store, processor
        self.dim, self.logit_scale = store.teacher["dim"], store.teacher["logit_scale"]
        kept = ("source", "fingerprint", "parameters", "logit_scale")
        self.description = {**{key: store.teacher[key] for key in kept}, "stored": True}

    def inputs(self, reader: PairReader, read: Sequence[ReadPair], places: Sequence[Any]) -> dict[str, torch.Tensor]:
        return self.store.embeddings(places)


class Teacher:
    """The teachers of a student: none, which leaves the contrastive loss alone, one, or several.

    Args:
        members: all live or all of one store; where one alone is asked for, it is the first.
        scales: of the logits of several, as the settings say.
    """

    def __init__(self, members: Sequence[Any] = (), scales: Sequence[float | str | None] = ()):
        self.members, self.scales, self.several = members, scales, len(members) > 1
        self.store = getattr(members[0], "store", None) if members else None
        # One a teacher.
        self.descriptions: list[dict[str, Any]] = [one.description for one in members]

    @property
    def dim(self) -> Any:
        """Width of the embeddings; None without a teacher, of several a list."""
        return [one.dim for one in self.members] if self.several else self._first("dim")

    @property
    def processor(self) -> PairProcessor | None:
        """Of the teacher's pairs; None without one. That of a store has a tokenizer and no image processor."""
        return self._first("processor")

    @property
    def model(self) -> Any:
        """Runs beside the student; None without one."""
        return self._first("model")

    @property
    def models(self) -> Any:
        """What [`CLIPRDDistiller`] takes as its teacher."""
        return None if self.model is None else [one.model for one in self.members]

    @property
    def logit_scale(self) -> Any:
        """CLIP scale, exponentiated; None without a teacher, or if `model` has it. Of several a list."""
        if not self.several:
            return self._first("logit_scale")
        pairs = zip(self.scales, self.descriptions, strict=True)
        return [one if isinstance(one, float | int) else description["logit_scale"] for one, description in pairs]

    def _first(self, name: str) -> Any:
        return getattr(self.members[0], name) if self.members else None

    def check(
        self, settings: DistillationSettings, sources: Sequence[PairTable | PairStream], student: PairProcessor
    ) -> None:
        """Refuses a store without embeddings for a run: of other pairs, crops, sizes of images or another teacher."""
        if self.store is None:
            return
        made = self.store.teacher
        if settings.teacher is not None and settings.teacher != made["source"]:
            where = f"teacher_store {settings.teacher_store!r}"
            raise ValueError(f"{where}: made with teacher {made['source']!r}, the run names {settings.teacher!r}")
        described = []
        for entry, source in zip(settings.described_sources(), sources, strict=True):
            if isinstance(source, PairStream):
                raise ValueError(f"data {entry['data']!r}: stored embeddings are found by row, not in a stream")
            described.append({**entry, "pairs": len(source), "fingerprint": source.fingerprint()})
        sizes = [teacher["image_size"] for teacher in self.store.description.teachers.values()]
        self.store.check(described, settings.augmentation, max(max(student.image_size), *sizes))

    def reader(self, student: PairProcessor, augmentation: Mapping[str, Any]) -> PairReader:
        """Makes the reader of pairs for the student and the teachers."""
        if self.store is not None:
            # Even without crops, a visit may only draw an embedded caption.
            made = self.store.description
            return PairReader([student], augmentation, made.decode_size, made.variants)
        processors = [student]
        for one in self.members:
            one.join(processors)
        return PairReader(processors, augmentation)

    def place(self, source: int, pair: Mapping[str, Any], read: ReadPair) -> Any:
        """Returns what [`inputs`] needs beside a pair as it was read."""
        return None if self.store is None else self.store.place(source, pair, read.caption, read.crop)

    def inputs(self, reader: PairReader, read: Sequence[ReadPair], places: Sequence[Any]) -> dict[str, torch.Tensor]:
        """Returns the teachers' part of a batch."""
        return {
            name.replace("teacher_", teacher_prefix(number), 1): values
            for number, one in enumerate(self.members)
            for name, values in one.inputs(reader, read, places).items()
        }

    def tune(self, distiller: CLIPRDDistiller, batches: Iterable[Any], chunk_size: int) -> None:
        """Chooses the scales of several teachers on the first batches."""
        if self.several and not all(self.scales):
            scales, embeds = self.logit_scale, _first_embeddings(distiller, batches, chunk_size)
            for number, asked in enumerate(self.scales):
                if asked is None:
                    pairs = [(taught[2 * number], taught[2 * number + 1], ids) for taught, ids in embeds]
                    scales[number] = tuned_scale(pairs, scales[number])
            distiller.set_teacher_scales(scales)

    def described(self, distiller: CLIPRDDistiller) -> list[dict[str, Any]]:
        """Entries of `metrics.json`, one a teacher."""
        if distiller.teacher_scales is None:
            return self.descriptions
        how = ["tuned" if asked is None else "own" if asked == OWN_SCALE else "given" for asked in self.scales]
        scales = distiller.teacher_scales.tolist()
        return [
            {**description, "scale": round(scale, 4), "scale_is": word}
            for description, scale, word in zip(self.descriptions, scales, how, strict=True)
        ]


@torch.no_grad()
def embeddings_of(distiller: CLIPRDDistiller, batch: Mapping[str, Any], chunk_size: int = 0) -> list[torch.Tensor]:
    """What student and teachers make of a batch in evaluation mode, in the order of [`CLIPRDDistiller`]."""
    training, device, size = distiller.training, distiller.step.device, chunk_size or len(batch["pixel_values"])
    distiller.eval()
    parts = [
        distiller({name: values[start : start + size].to(device) for name, values in batch.items()}, return_loss=False)
        for start in range(0, len(batch["pixel_values"]), size)
    ]
    distiller.train(training)
    return [torch.cat(column) for column in zip(*parts, strict=True)]


def _first_embeddings(
    distiller: CLIPRDDistiller, batches: Iterable[Any], chunk_size: int
) -> list[tuple[list[torch.Tensor], dict[str, torch.Tensor]]]:
    """The teachers' embeddings of the first batches, and the ids of their pairs."""
    weights, device = distiller.loss.weights, distiller.step.device
    # A schedule may begin without a term that reads them.
    distiller.loss.set_weights(CLIP_RD_WEIGHTS)
    found = []
    for batch, _ in islice(batches, _BATCHES):
        ids = {name: batch[name].to(device) for name in ("image_ids", "text_ids") if name in batch}
        found.append((embeddings_of(distiller, batch, chunk_size)[2:], ids))
    distiller.loss.set_weights(weights)
    return found


def open_teacher(settings: DistillationSettings) -> Teacher:
    """Loads the teachers, or opens the store, that the settings name; a store on the Hub is downloaded."""
    store = None if settings.teacher_store is None else _store_folder(settings.teacher_store)
    several = settings.teacher_entries()
    named: list[tuple[Any, str | None]] = [(one.teacher, one.revision) for one in several]
    if not named and (store is not None or settings.teacher is not None):
        named = [(settings.teacher if store is None else settings.teacher_name, settings.teacher_revision)]
    members: list[Any] = []
    for name, revision in named:
        if store is not None:
            members.append(_open_store(store, settings, name, revision))
        else:
            clip = load_clip(name, "teacher", revision)
            members.append(_LiveTeacher(clip, {"source": name, **clip.description(), "stored": False}))
    return Teacher(members, [one.scale for one in several])


def _store_folder(source: str) -> Path:
    where = f"teacher_store {source!r}"
    folder = local_path(source, where)
    if folder is None:
        from huggingface_hub import snapshot_download

        with download_errors(where):
            folder = Path(snapshot_download(source, repo_type="dataset"))
    if not (folder / STORE_FILE).is_file():
        raise FileNotFoundError(f"{where}: found no {STORE_FILE} there")
    return folder


def _open_store(
    folder: Path, settings: DistillationSettings, teacher: str | None, revision: str | None
) -> _StoredTeacher:
    where = f"teacher_store {settings.teacher_store!r}"
    store = TeacherStore(folder, teacher)
    made = store.teacher
    if revision not in (None, made["revision"], made["fingerprint"]):
        raise ValueError(
            f"{where}: made with revision {made['revision']!r} of the teacher, the run names {revision!r}"
        )
    tokenizer = within(folder / TOKENIZERS, store.name, where)
    processor = None
    if tokenizer.is_dir():
        from transformers import AutoTokenizer

        processor = PairProcessor(load_part(AutoTokenizer, str(tokenizer), f"{where}, tokenizer"), None)
    return _StoredTeacher(store, processor)


def tuned_scale(batches: Sequence[tuple[torch.Tensor, torch.Tensor, Mapping[str, torch.Tensor]]], own: float) -> float:
    """The scale at which a teacher's softmax over a batch tells best which text belongs to which image.

    The least mean of CLIP's contrastive loss over the batches, which is convex in the scale, by a golden-section
    search from 1 to the teacher's own: on pairs that it knows by heart, a sharper softmax would leave no relations to
    learn. Every process finds the same, since the loss is that of all pairs.

    Args:
        batches: the teacher's embeddings of this process's images and texts, (n, d) each, and `image_ids` and
            `text_ids` where duplicates share their targets.
        own: the teacher's CLIP scale, exponentiated.
    """
    dim, device = batches[0][0].shape[1], batches[0][0].device
    loss = CLIPRDLoss(dim, dim, {"task": 1.0}, precision="exact").to(device)

    @torch.no_grad()
    def mean(exponent: float) -> float:
        found = [loss(image, text, None, None, math.exp(exponent), None, **ids).loss for image, text, ids in batches]
        return torch.stack(found).double().mean().item()

    ratio, low, high = (math.sqrt(5) - 1) / 2, 0.0, math.log(max(own, 1.0))
    for _ in range(_STEPS):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if mean(left) <= mean(right):
            high = right
        else:
            low = left
    found = (low + high) / 2
    return own if mean(math.log(own)) <= mean(found) else math.exp(found)
