"""Fine-tuning of a part of a model: LoRA with lists of target modules for both families, and linear probing."""

import re
from typing import Any

from peft import LoraConfig
from transformers import PreTrainedModel

# Full names of modules as regular expressions. The fusion's projections, gate, fusion layer and heads are small and
# linear; its bare parameters (query, embeddings, rank scales) are vectors, which have no rank to lower.
_FUSION_TARGETS = (
    r"projections\.\d+\.linear",
    r"poolings\.\d+\.attention_hidden",
    r"gate\.(key|context)",
    r"fusion\.linear",
    r"heads\.(presence|salience|interaction)",
)
_SELF_ATTENTION = r"encoder\.layers\.\d+\.self_attn\.([qkv]_proj|out_proj)"
_ATTENTION = r"(.+\.)?layers\.\d+\.(.+\.)?attention\.[qkvo]_proj"
_BERT = r"encoder\.layer\.\d+\.attention\.self\.(query|key|value)"
# Attention layers of transformers, full convolutions of convolutional towers; depthwise ones have no rank to lower.
_VISION_TARGETS = {
    "clip_vision_model": _SELF_ATTENTION,
    "siglip_vision_model": _SELF_ATTENTION,
    "vit": _ATTENTION,
    "deit": _ATTENTION,
    "swin": _ATTENTION,
    "dinov2": r"encoder\.layer\.\d+\.attention\.[qkvo]_proj",
    "resnet": r"encoder\.stages\..+\.convolution",
    "convnext": r"encoder\.stages\..+\.pwconv\d",
    "convnextv2": r"encoder\.stages\..+\.pwconv\d",
    "efficientnet": r"encoder\.blocks\..+\.(expand_conv|project_conv)",
    "mobilevit": r".+\.attention\.attention\.(query|key|value)|.+\.(expand_1x1|reduce_1x1|conv_1x1)\.convolution",
}
_TEXT_TARGETS = {
    "clip_text_model": _SELF_ATTENTION,
    "bert": _BERT,
    "roberta": _BERT,
}


def lora_config(model: PreTrainedModel, r: int = 8, **overrides: Any) -> LoraConfig:
    """Make the LoRA config of a model of this package for `peft.get_peft_model`.

    No `task_type` is set: PEFT's task classes expect the inputs of language models.

    Args:
        model: a [`RankAwareFusionModel`] or a [`CLIPRDModel`].
        r: rank.
        overrides: other arguments of LoraConfig; `target_modules` replaces this package's list. `lora_alpha` is 2 r
            by default.

    Returns:
        The config.

    Raises:
        ValueError: the model is of another family, or this package has no list for a tower.

    Source: LoRA, arXiv 2106.09685, except the lists of modules.
    """
    targets = overrides.pop("target_modules", None)
    return LoraConfig(
        r=r,
        target_modules=_targets(model) if targets is None else targets,
        **{"lora_alpha": 2 * r, **overrides},
    )


def _targets(model: PreTrainedModel) -> str:
    """The modules that LoRA changes, as one regular expression over their full names."""
    model_type = model.config.model_type
    if model_type == "rank_aware_fusion":
        parts = [*_FUSION_TARGETS]
    elif model_type == "clip_rd":
        config: Any = model.config
        parts = ["visual_projection", "text_projection"]
        for name, tower, known in (
            ("vision", config.vision_config.model_type, _VISION_TARGETS),
            ("text", config.text_config.model_type, _TEXT_TARGETS),
        ):
            if tower not in known:
                raise ValueError(
                    f"no list of LoRA targets for the {name} tower {tower!r}, known are {', '.join(known)}; pass "
                    "target_modules"
                )
            parts.append(rf"{name}_model\.({known[tower]})")
    else:
        raise ValueError(
            f"expected a model of type rank_aware_fusion or clip_rd, found {model_type!r}; pass target_modules"
        )
    targets = "|".join(f"({part})" for part in parts)
    if model_type == "clip_rd":
        # If transformers renames layers, raise instead of leaving a tower without an adapter.
        names = [name for name, _ in model.named_modules()]
        for part in parts:
            if not any(re.fullmatch(part, name) for name in names):
                raise ValueError(f"no module of this model is called {part!r}; pass target_modules")
    return targets


def linear_probe(model: PreTrainedModel) -> PreTrainedModel:
    """Freeze all but the last linear layers of a model.

    A student trains its two projections and logit scale, a fusion its heads. Frozen parts stay in evaluation mode when
    Trainer calls `model.train()`: dropout stays off, and the batch statistics of a frozen tower do not change.

    Args:
        model: a [`RankAwareFusionModel`] or a [`CLIPRDModel`], changed in place.

    Returns:
        The model.

    Raises:
        ValueError: the model is of another family.
    """
    probed = {"rank_aware_fusion": ("heads.",), "clip_rd": ("visual_projection.", "text_projection.", "logit_scale")}
    if model.config.model_type not in probed:
        raise ValueError(f"expected a model of type {' or '.join(probed)}, found {model.config.model_type!r}")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(probed[model.config.model_type]))
    return model.train(model.training)
