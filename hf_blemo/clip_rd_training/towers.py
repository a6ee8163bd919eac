"""Towers of a student that do not start from random weights: from a folder, from the Hub or from the teacher."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, AutoImageProcessor
from transformers.utils import logging

from hf_blemo.clip_rd_training.inheritance import PROJECTIONS
from hf_blemo.clip_rd_training.settings import SIDES, TEACHER, DistillationSettings
from hf_blemo.clip_rd_training.teachers import Teacher
from hf_blemo.loading import load_part
from hf_blemo.pairs.clip_models import image_processor_of, load_model, load_tokenizer
from hf_blemo.pairs.pair_processor import PairProcessor

logger = logging.get_logger(__name__)


class Tower(NamedTuple):
    """A trained tower and what belongs to it.

    Args:
        model: of transformers.
        projection: (d, width), to the embeddings of the image-text model that it comes from; None for a single tower.
        part: the tokenizer of a text tower, the image processor of a vision tower.
    """

    model: Any
    projection: torch.Tensor | None
    part: Any


def open_towers(settings: DistillationSettings, teacher: Teacher) -> dict[str, Tower]:
    """Loads the towers that the settings name: side -> tower."""
    return {side: _open_tower(side, source, teacher) for side, source in settings.towers().items()}


def _open_tower(side: str, source: str, teacher: Teacher) -> Tower:
    where = f"{side}_weights {source!r}"
    if source == TEACHER:
        model, processor = teacher.model, teacher.processor
        if not hasattr(model, f"{side}_model") or processor is None:
            found = "no teacher that runs" if model is None else type(model).__name__
            raise ValueError(f"{where}: expected a teacher of transformers with a {side}_model, found {found}")
        part = processor.tokenizer if side == "text" else processor.image_processor
        return Tower(getattr(model, f"{side}_model"), _projection(side, model), part)
    config = load_part(AutoConfig, source, where)
    if config.model_type == "timm_wrapper" and config.model_args:
        # Where timm writes the number of classes into its arguments, the wrapper, which takes none, states it twice.
        config.model_args = {name: value for name, value in config.model_args.items() if name != "num_classes"}
    model = load_model(source, where, config=config)
    tower = getattr(model, f"{side}_model", model)
    inputs = "input_ids" if side == "text" else "pixel_values"
    if tower.main_input_name != inputs:
        raise ValueError(f"{where}: expected a {side} tower, found {type(model).__name__}")
    part = load_tokenizer(source, where) if side == "text" else _image_processor(source, tower, where)
    return Tower(tower, _projection(side, model), part)


def _projection(side: str, model: Any) -> torch.Tensor | None:
    layer = getattr(model, PROJECTIONS[side], None)
    if not isinstance(layer, torch.nn.Linear) or layer.bias is not None:
        return None
    return layer.weight.detach()


def _image_processor(source: str, tower: Any, where: str) -> Any:
    config = tower.config
    if config.model_type == "timm_wrapper":
        # Its own image processor needs torchvision. Only a config that timm wrote says what the model knows.
        known = {**tower.timm_model.pretrained_cfg, **(getattr(config, "pretrained_cfg", None) or {})}
        return image_processor_of((config.model_args or {}).get("img_size", known["input_size"][1:]), known)
    try:
        return load_part(AutoImageProcessor, source, where, backend="pil")
    except FileNotFoundError:
        size = getattr(config, "image_size", None)
        if not isinstance(size, int):
            raise
        logger.warning(f"{where}: no image processor beside the weights; images are normalised as CLIP's")
        return image_processor_of(size)


@torch.no_grad()
def pooled_width(tower: Tower) -> int | None:
    """The width of what a tower of timm pools, which its config does not say; None for other towers."""
    if tower.model.config.model_type != "timm_wrapper":
        return None
    size = tower.part.crop_size
    return tower.model(torch.zeros(1, 3, size["height"], size["width"])).pooler_output.shape[-1]


def fill_towers(student: Any, towers: Mapping[str, Tower], settings: DistillationSettings) -> None:
    """Copies trained towers, which must have the shape that their config builds, and projections that fit, into a
    student."""
    for side, tower in towers.items():
        try:
            getattr(student, f"{side}_model").load_state_dict(tower.model.state_dict())
        except RuntimeError as error:
            source = settings.towers()[side]
            raise ValueError(f"{side}_weights {source!r}: the weights do not fit their config: {error}") from error
        own = getattr(student, PROJECTIONS[side]).weight
        if tower.projection is not None and tower.projection.shape == own.shape:
            with torch.no_grad():
                own.copy_(tower.projection)


def freeze_towers(student: Any, towers: Mapping[str, Tower], settings: DistillationSettings) -> None:
    """Freezes what the settings freeze for the whole run: towers, with projections that came with their weights."""
    for side in settings.freeze:
        if side in settings.release:
            continue
        getattr(student, f"{side}_model").requires_grad_(False)
        projection = getattr(student, PROJECTIONS[side])
        theirs = projection.weight if side not in towers else towers[side].projection
        if theirs is not None and theirs.shape == projection.weight.shape:
            projection.requires_grad_(False)


def check_tokens(tower: Tower, processor: PairProcessor, settings: DistillationSettings) -> None:
    """Refuses a frozen text tower that would read the tokens of another tokenizer."""
    own = PairProcessor(tower.part, None, tower.model.config)
    if "text" in settings.freeze and not own.same_tokens(processor):
        raise ValueError(
            f"tokenizer {settings.tokenizer!r}: the frozen text tower {settings.text_weights!r} knows the tokens of "
            "its own tokenizer alone; leave `tokenizer` out"
        )


def part_of(name: str) -> str | None:
    """The side of the tower that a distiller's parameter belongs to; None for projections, scales and maps."""
    return next((side for side in SIDES if f"student.{side}_model." in f"{name}."), None)
