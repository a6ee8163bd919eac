"""The student of a distillation: a new one for a tokenizer and an image size, or one from a checkpoint."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import torch
from transformers import AutoTokenizer, CLIPModel

from hf_blemo import built_in
from hf_blemo.clip_rd.configuration_clip_rd import CLIPRDConfig
from hf_blemo.clip_rd.modeling_clip_rd import CLIPRDModel
from hf_blemo.clip_rd_training.inheritance import inherit
from hf_blemo.clip_rd_training.reading import BrokenPairError, PairReader, ReadPair
from hf_blemo.clip_rd_training.settings import CUSTOM, INHERIT, SIDES, STUDENTS, DistillationSettings
from hf_blemo.clip_rd_training.teachers import Teacher
from hf_blemo.clip_rd_training.towers import Tower, check_tokens, fill_towers, freeze_towers, open_towers, pooled_width
from hf_blemo.errors import check_known, one_line
from hf_blemo.loading import load_part, local_path
from hf_blemo.pairs.clip_models import image_processor_of, load_clip, load_model, load_processor
from hf_blemo.pairs.pair_processor import PairProcessor
from hf_blemo.pairs.pair_sources import PairStream, PairTable

# Pairs over which activations tell what to inherit, all and at once.
_PAIRS, _AT_ONCE = 256, 32


class Student(NamedTuple):
    """A student, its tokenizer and image processor, and what it inherited from its teacher, as [`inherit`] says."""

    model: CLIPRDModel
    processor: PairProcessor
    inherited: dict[str, Any] | None = None


def make_student(
    settings: DistillationSettings, teacher: Teacher | None = None, sources: Sequence[PairTable | PairStream] = ()
) -> Student:
    """Makes the student and its processor, and freezes what the settings freeze.

    A student from a checkpoint keeps its tokenizer and image processor.

    Args:
        settings: of the run.
        teacher: shares its tokenizer with a new student, unless the settings name another, and its towers where they
            ask for them.
        sources: pairs to train on, whose first tell what to inherit.
    """
    teacher = teacher or Teacher()
    if settings.student in STUDENTS:
        towers = open_towers(settings, teacher)
        made = Student(*_new_student(settings, towers, teacher))
    else:
        towers = {}
        for side in settings.towers():
            raise ValueError(f"{side}_weights: the student {settings.student!r} has its own {side} tower")
        made = _inherited(settings, teacher, sources) if settings.student == INHERIT else _checkpoint(settings)
    freeze_towers(made.model, towers, settings)
    return made


def _inherited(settings: DistillationSettings, teacher: Teacher, sources: Sequence[PairTable | PairStream]) -> Student:
    """A student cut out of the teacher, with its tokenizer and image processor."""
    model, processor = teacher.model, teacher.processor
    if model is None and settings.teacher is not None:
        # Of a store there are only embeddings.
        model, processor, _ = load_clip(settings.teacher, "teacher", settings.teacher_revision)
    if model is None or processor is None:
        raise ValueError(f"student {INHERIT!r}: expected a teacher to inherit from, found none; pass --teacher")
    if settings.image_size not in (None, *processor.image_size):
        raise ValueError(f"image_size {settings.image_size}: the teacher to inherit from takes {processor.image_size}")
    batches = None
    if settings.inherit_by == "activation":
        batches = _first_batches(sources, PairReader([processor], {}))
    student, inherited = inherit(model, settings.student_config, batches)
    return Student(
        student, PairProcessor(processor.tokenizer, processor.image_processor, student.config.text_config), inherited
    )


def _first_batches(sources: Sequence[PairTable | PairStream], reader: PairReader) -> Iterator[dict[str, torch.Tensor]]:
    """The first pairs that can be read, as a teacher takes them."""
    found: list[ReadPair] = []
    for index, source in enumerate(sources):
        for row, pair in enumerate(source.first(_PAIRS // len(sources))):
            with suppress(BrokenPairError):
                found.append(reader.read({"key": (0, row), "visit": 0, **pair}, index))
    for start in range(0, len(found), _AT_ONCE):
        read = found[start : start + _AT_ONCE]
        captions = reader.processors[0].captions([pair.caption for pair in read])
        yield {"pixel_values": reader.stacked(read, 0), **captions}


def _checkpoint(settings: DistillationSettings) -> Student:
    """A student that goes on from its own weights."""
    where = f"student {settings.student!r}"
    local_path(settings.student, where, names=STUDENTS)
    if settings.student_config:
        raise ValueError(f"student_config: {settings.student!r} is a checkpoint with its own config")
    student = load_model(settings.student, where)
    if isinstance(student, CLIPModel):
        student = CLIPRDModel.from_clip(student)
    if not isinstance(student, CLIPRDModel):
        raise ValueError(
            f"student {settings.student!r}: expected a CLIPModel or CLIPRDModel, with projections of known width, "
            f"found {type(student).__name__}"
        )
    processor = load_processor(settings.student, "student", student.text_model.config)
    if settings.tokenizer is not None:
        tokenizer = load_part(AutoTokenizer, settings.tokenizer, f"tokenizer {settings.tokenizer!r}")
        processor = PairProcessor(tokenizer, processor.image_processor, student.text_model.config)
    size = getattr(student.config.vision_config, "image_size", settings.image_size)
    if settings.image_size not in (None, size):
        raise ValueError(f"image_size {settings.image_size}: the student {settings.student!r} takes {size}")
    _check_tokens(student, processor, settings)
    return Student(student, processor)


def _check_tokens(student: CLIPRDModel, processor: PairProcessor, settings: DistillationSettings) -> None:
    known, needed = student.text_model.config.vocab_size, len(processor.tokenizer)
    if needed > known:
        raise ValueError(f"student {settings.student!r}: knows {known} tokens, too few for a tokenizer of {needed}")


def _tokenizer(settings: DistillationSettings, towers: Mapping[str, Tower], teacher: Teacher) -> Any:
    if settings.tokenizer is not None:
        return load_part(AutoTokenizer, settings.tokenizer, f"tokenizer {settings.tokenizer!r}")
    if "text" in towers:
        return towers["text"].part
    # The student's folder needs a tokenizer of transformers, which open_clip's is not.
    if teacher.processor is not None and hasattr(teacher.processor.tokenizer, "save_pretrained"):
        return teacher.processor.tokenizer
    sources = {source.data for source in settings.pair_sources()}
    if len(sources) == 1 and sources <= set(built_in.PAIRS):
        return built_in.load_tokenizer(*sources)
    raise ValueError("set `tokenizer`: the teacher has no transformers tokenizer to share")


def _new_student(
    settings: DistillationSettings, towers: Mapping[str, Tower], teacher: Teacher
) -> tuple[CLIPRDModel, PairProcessor]:
    """A student for a tokenizer and an image size, with random weights but for the towers given."""
    tokenizer = _tokenizer(settings, towers, teacher)
    given = dict(settings.student_config)
    check_known("student_config", given, CLIPRDConfig.__annotations__)
    asked = {side: dict(given.get(f"{side}_config") or {}) for side in SIDES}
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if getattr(tokenizer, name) is not None:
            asked["text"].setdefault(name, getattr(tokenizer, name))
    asked["text"].setdefault("vocab_size", len(tokenizer))
    if settings.image_size is not None:
        asked["vision"]["image_size"] = settings.image_size
    given |= {f"{side}_config": entries for side, entries in asked.items()}
    for side, tower in towers.items():
        if settings.student_config.get(f"{side}_config"):
            raise ValueError(f"student_config.{side}_config: {side}_weights brings the config of its tower")
        # The preset's, if its tower's config did not state it.
        given |= {f"{side}_config": tower.model.config, f"{side}_hidden_size": pooled_width(tower)}
    widths = {len(tower.projection) for tower in towers.values() if tower.projection is not None}
    if len(widths) == 1:
        given.setdefault("projection_dim", *widths)
    make = CLIPRDConfig if settings.student == CUSTOM else partial(CLIPRDConfig.from_preset, settings.student)
    config = make(**given)
    made: dict[str, Any] = {side: getattr(config, f"{side}_config") for side in SIDES}
    for side in SIDES:
        if side not in towers:
            fresh = type(made[side])()
            unknown = [key for key in asked[side] if not hasattr(fresh, key)]
            check_known(f"student_config.{side}_config", unknown, fresh.to_dict())
    size = getattr(made["vision"], "image_size", None) or settings.image_size or 224
    images = towers["vision"].part if "vision" in towers else image_processor_of(size)
    if settings.image_size not in (None, size):
        raise ValueError(f"image_size {settings.image_size}: the tower {settings.vision_weights!r} takes {size}")
    student, processor = CLIPRDModel(config), PairProcessor(tokenizer, images, made["text"])
    if towers:
        fill_towers(student, towers, settings)
        _check_tokens(student, processor, settings)
        _check_embeds(student, processor, settings)
    if "text" in towers:
        check_tokens(towers["text"], processor, settings)
    return student, processor


@torch.no_grad()
def _check_embeds(student: CLIPRDModel, processor: PairProcessor, settings: DistillationSettings) -> None:
    """Embeds a picture and a word, so that towers without a pooled output, or that do not take what their processor
    makes, are refused before the run."""
    student.eval()
    try:
        student.get_text_features(**processor.captions(["a"]))
        student.get_image_features(torch.zeros(1, 3, *processor.image_size))
    except (RuntimeError, IndexError) as error:
        raise ValueError(f"{settings.towers()}: the towers do not take their inputs: {one_line(error)}") from error
    student.train()
