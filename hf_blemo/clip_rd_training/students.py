"""The student of a distillation: a new one for a tokenizer and an image size, or one from a checkpoint."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

from hf_blemo import built_in
from hf_blemo.clip_rd.configuration_clip_rd import PRESETS, CLIPRDConfig
from hf_blemo.clip_rd.modeling_clip_rd import CLIPRDModel
from hf_blemo.clip_rd_training.settings import SIDES, DistillationSettings
from hf_blemo.clip_rd_training.teachers import Teacher
from hf_blemo.clip_rd_training.towers import Tower, check_tokens, fill_towers, freeze_towers, open_towers
from hf_blemo.errors import check_known, one_line
from hf_blemo.loading import load_part, local_path
from hf_blemo.pairs.clip_models import load_model, load_processor
from hf_blemo.pairs.pair_processor import PairProcessor

CUSTOM = "custom"


def make_student(settings: DistillationSettings, teacher: Teacher | None = None) -> tuple[CLIPRDModel, PairProcessor]:
    """Makes the student and its processor, and freezes what the settings freeze.

    A student from a checkpoint keeps its tokenizer and image processor.

    Args:
        settings: of the run.
        teacher: shares its tokenizer with a new student, unless the settings name another, and its towers where they
            ask for them.

    Returns:
        The student, its tokenizer and image processor.

    Raises:
        ValueError: an unknown setting of the student, no tokenizer, a tokenizer with more tokens than the student,
            an image size other than the checkpoint's, or a tower that does not fit.
        FileNotFoundError: `student` or a tower is not to be found.
    """
    teacher = teacher or Teacher()
    if settings.student == CUSTOM or settings.student in PRESETS:
        towers = open_towers(settings, teacher)
        student, processor = _new_student(settings, towers, teacher)
    else:
        towers = {}
        student, processor = _checkpoint(settings)
    freeze_towers(student, towers, settings)
    return student, processor


def _checkpoint(settings: DistillationSettings) -> tuple[CLIPRDModel, PairProcessor]:
    """A student that goes on from its own weights."""
    where = f"student {settings.student!r}"
    local_path(settings.student, where)
    if settings.student_config:
        raise ValueError(f"student_config: {settings.student!r} is a checkpoint with its own config")
    for side in settings.towers():
        raise ValueError(f"{side}_weights: {settings.student!r} is a checkpoint with its own {side} tower")
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
    return student, processor


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
        given |= {f"{side}_config": tower.model.config, f"{side}_hidden_size": None}
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
    if "vision" in towers:
        image_processor = towers["vision"].part
        if settings.image_size not in (None, size):
            raise ValueError(f"image_size {settings.image_size}: the tower {settings.vision_weights!r} takes {size}")
    else:
        image_processor = CLIPImageProcessorPil(
            size={"shortest_edge": size}, crop_size={"height": size, "width": size}
        )
    student, processor = CLIPRDModel(config), PairProcessor(tokenizer, image_processor, made["text"])
    if towers:
        fill_towers(student, towers, settings)
        _check_tokens(student, processor, settings)
        _check_embeds(student, processor, settings)
    if "text" in towers:
        check_tokens(towers["text"], processor, settings)
    return student, processor


@torch.no_grad()
def _check_embeds(student: CLIPRDModel, processor: PairProcessor, settings: DistillationSettings) -> None:
    """Embeds a picture and a word, so that towers that cannot are refused before the run.

    Raises:
        ValueError: a tower has no pooled output, or does not take what its processor makes.
    """
    student.eval()
    try:
        student.get_text_features(**processor.captions(["a"]))
        student.get_image_features(torch.zeros(1, 3, *processor.image_size))
    except (RuntimeError, IndexError) as error:
        raise ValueError(f"{settings.towers()}: the towers do not take their inputs: {one_line(error)}") from error
    student.train()
