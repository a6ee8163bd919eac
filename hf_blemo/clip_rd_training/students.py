"""The student of a distillation: a new one for a tokenizer and an image size, or one from a checkpoint."""

from functools import partial
from typing import Any

from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

from hf_blemo import built_in
from hf_blemo.clip_rd.configuration_clip_rd import PRESETS, CLIPRDConfig
from hf_blemo.clip_rd.modeling_clip_rd import CLIPRDModel
from hf_blemo.clip_rd_training.settings import DistillationSettings
from hf_blemo.errors import check_known
from hf_blemo.loading import load_part, local_path
from hf_blemo.pairs.clip_models import load_model, load_processor
from hf_blemo.pairs.pair_processor import PairProcessor

CUSTOM = "custom"


def make_student(
    settings: DistillationSettings, teacher_processor: PairProcessor | None = None
) -> tuple[CLIPRDModel, PairProcessor]:
    """Makes the student and its processor.

    A student from a checkpoint keeps its tokenizer and image processor.

    Args:
        settings: of the run.
        teacher_processor: shares its tokenizer with a new student, unless the settings name another.

    Returns:
        The student, its tokenizer and image processor.

    Raises:
        ValueError: an unknown setting of the student, no tokenizer, a tokenizer with more tokens than the student, or
            an image size other than the checkpoint's.
        FileNotFoundError: `student` is neither a preset nor a model.
    """
    if settings.student == CUSTOM or settings.student in PRESETS:
        return _new_student(settings, _tokenizer(settings, teacher_processor))
    where = f"student {settings.student!r}"
    local_path(settings.student, where)
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
    known, needed = student.text_model.config.vocab_size, len(processor.tokenizer)
    if needed > known:
        raise ValueError(f"student {settings.student!r}: knows {known} tokens, too few for a tokenizer of {needed}")
    return student, processor


def _tokenizer(settings: DistillationSettings, teacher_processor: PairProcessor | None) -> Any:
    if settings.tokenizer is not None:
        return load_part(AutoTokenizer, settings.tokenizer, f"tokenizer {settings.tokenizer!r}")
    # The student's folder needs a tokenizer of transformers, which open_clip's is not.
    if teacher_processor is not None and hasattr(teacher_processor.tokenizer, "save_pretrained"):
        return teacher_processor.tokenizer
    sources = {source.data for source in settings.pair_sources()}
    if len(sources) == 1 and sources <= set(built_in.PAIRS):
        return built_in.load_tokenizer(*sources)
    raise ValueError("set `tokenizer`: the teacher has no transformers tokenizer to share")


def _new_student(settings: DistillationSettings, tokenizer: Any) -> tuple[CLIPRDModel, PairProcessor]:
    """A student with random weights for a tokenizer and an image size."""
    given = dict(settings.student_config)
    check_known("student_config", given, CLIPRDConfig.__annotations__)
    text, vision = dict(given.get("text_config") or {}), dict(given.get("vision_config") or {})
    text.setdefault("vocab_size", len(tokenizer))
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if getattr(tokenizer, name) is not None:
            text.setdefault(name, getattr(tokenizer, name))
    if settings.image_size is not None:
        vision["image_size"] = settings.image_size
    given |= {"text_config": text, "vision_config": vision}
    make = CLIPRDConfig if settings.student == CUSTOM else partial(CLIPRDConfig.from_preset, settings.student)
    config = make(**given)
    towers: Any = (("text", text, config.text_config), ("vision", vision, config.vision_config))
    for name, asked, made in towers:
        fresh = type(made)()
        unknown = [key for key in asked if not hasattr(fresh, key)]
        check_known(f"student_config.{name}_config", unknown, fresh.to_dict())
    size = getattr(config.vision_config, "image_size", None) or settings.image_size or 224
    image_processor = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    return CLIPRDModel(config), PairProcessor(tokenizer, image_processor, config.text_config)
