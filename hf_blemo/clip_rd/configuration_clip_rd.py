"""Configuration of CLIP-RD students: any vision tower and any text tower of transformers."""

import copy
import math
from difflib import get_close_matches
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

# Exact GELU, as in open_clip; transformers' own default is the quick GELU of OpenAI's checkpoints.
_SMALL_TEXT: dict[str, Any] = {"model_type": "clip_text_model", "hidden_size": 384, "intermediate_size": 1536}
_SMALL_TEXT |= {"num_hidden_layers": 12, "num_attention_heads": 6, "hidden_act": "gelu"}
_BASE_TEXT = {**_SMALL_TEXT, "hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8}
_LARGE_TEXT = {**_SMALL_TEXT, "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}


def _vit(hidden_size: int, num_hidden_layers: int, num_attention_heads: int, patch_size: int) -> dict[str, Any]:
    return {
        "model_type": "clip_vision_model",
        "hidden_size": hidden_size,
        "intermediate_size": 4 * hidden_size,
        "num_hidden_layers": num_hidden_layers,
        "num_attention_heads": num_attention_heads,
        "patch_size": patch_size,
        "image_size": 224,
        "hidden_act": "gelu",
    }


_SMALL = {"text_config": _SMALL_TEXT, "projection_dim": 512}
_EFFICIENTNET_B0: dict[str, Any] = {"model_type": "efficientnet", "image_size": 224, "width_coefficient": 1.0}
_EFFICIENTNET_B0 |= {"depth_coefficient": 1.0, "hidden_dim": 1280, "batch_norm_eps": 1e-5, "batch_norm_momentum": 0.1}
_EFFICIENTNET_B0 |= {"drop_connect_rate": 0.0}
_RESNET_18 = {"model_type": "resnet", "layer_type": "basic", "hidden_sizes": [64, 128, 256, 512], "depths": [2] * 4}

# No dropout and PyTorch's batch-norm settings where transformers' defaults differ from timm's, by which they trained.
PRESETS: dict[str, dict[str, Any]] = {
    "vit-t-16": {"vision_config": _vit(192, 12, 3, 16), **_SMALL},
    "vit-b-16": {"vision_config": _vit(768, 12, 12, 16), "text_config": _BASE_TEXT, "projection_dim": 512},
    "vit-l-14": {"vision_config": _vit(1024, 24, 16, 14), "text_config": _LARGE_TEXT, "projection_dim": 768},
    "mobilevit-s": {
        "vision_config": {"model_type": "mobilevit", "image_size": 224, "hidden_dropout_prob": 0.0},
        **_SMALL,
    },
    "swin-t": {"vision_config": {"model_type": "swin", "image_size": 224}, **_SMALL},
    "efficientnet-b0": {"vision_config": _EFFICIENTNET_B0, **_SMALL},
    "mobilenet-v3-s": {
        "vision_config": {"model_type": "timm_wrapper", "architecture": "mobilenetv3_small_100"},
        "vision_hidden_size": 1024,
        **_SMALL,
    },
    "resnet-18": {"vision_config": _RESNET_18, **_SMALL},
    "resnet-50": {"vision_config": {"model_type": "resnet"}, "text_config": _BASE_TEXT, "projection_dim": 1024},
}

# Where a vision config states the width of its pooled output, if not under `hidden_size`: a name and, of a list, last.
_VISION_WIDTHS = {
    "convnext": "hidden_sizes",
    "convnextv2": "hidden_sizes",
    "efficientnet": "hidden_dim",
    "mobilevit": "neck_hidden_sizes",
    "regnet": "hidden_sizes",
    "resnet": "hidden_sizes",
}


@strict
class CLIPRDConfig(PreTrainedConfig):
    """Settings of a [`CLIPRDModel`]: two towers, each any that transformers knows, and their projections.

    Args:
        vision_config: config of the vision tower, as an object or as a dict with its `model_type` (default
            `clip_vision_model`): `mobilevit`, `swin`, `efficientnet`, `resnet`, `vit`, `siglip_vision_model`, ...;
            `timm_wrapper` for a tower of the package timm. An object is copied.
        text_config: the same for the text tower (default `clip_text_model`); a tower with a pooled output: CLIP,
            BERT, RoBERTa, ...
        projection_dim: width of the embeddings.
        logit_scale_init_value: initial logarithm of the scale of the logits; 2.6592 = ln(1 / 0.07).
        initializer_factor: multiplies the projections' initial standard deviation, tower width ** -0.5. The towers
            start as their own configs say.
        vision_hidden_size: width of the vision tower's pooled output; needed only if its config does not state it.
        text_hidden_size: the same for the text tower.

    Raises:
        ValueError: a tower whose pooled width is unknown, a config of a whole image-text model given as a tower, a
            size that is not positive or a misspelt setting.

    Source: CLIP (arXiv 2103.00020); the defaults are those of transformers' CLIPConfig.
    """

    model_type = "clip_rd"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type="clip_vision_model"),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="clip_text_model"),
    }
    # B x B: those of several batches cannot be concatenated.
    keys_to_ignore_at_inference = ["logits_per_image", "logits_per_text"]

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    projection_dim: int = 512
    logit_scale_init_value: float | int = 2.6592
    initializer_factor: float | int = 1.0
    vision_hidden_size: int | None = None
    text_hidden_size: int | None = None

    def __post_init__(self, **kwargs):
        # Transformers keeps unknown keys, so a misspelt setting would be stored and ignored.
        for key in kwargs:
            nearest = get_close_matches(key, type(self).__annotations__, 1, 0.8)
            if nearest:
                raise ValueError(f"unknown setting {key!r}; did you mean {nearest[0]!r}?")
        if (number := kwargs.get("num_labels")) is not None and not (isinstance(number, int) and 0 <= number <= 1000):
            # Transformers makes a name for each, and a CLIP has none at all.
            raise ValueError(f"num_labels: found {number!r}, expected none or at most 1000")
        # Loading writes dtype and attention into the towers' configs: another model's must not change with them.
        self.vision_config = copy.deepcopy(self.vision_config)
        self.text_config = copy.deepcopy(self.text_config)
        super().__post_init__(**kwargs)
        # Here as well, for the validators' errors are not ValueErrors but wrap them.
        self.validate_sizes()
        self.validate_towers()

    def validate_sizes(self):
        """Checks that sizes are positive."""
        for name in ("projection_dim", "vision_hidden_size", "text_hidden_size"):
            size = getattr(self, name)
            if size is not None and size < 1:
                raise ValueError(f"{name} must be at least 1, found {size}")
        if not 0 <= self.initializer_factor < math.inf:
            raise ValueError(f"initializer_factor must not be negative or infinite, found {self.initializer_factor}")
        if not math.isfinite(self.logit_scale_init_value):
            raise ValueError(f"logit_scale_init_value must be finite, found {self.logit_scale_init_value}")

    def validate_towers(self):
        """Checks that each tower is one tower and that its pooled width is known."""
        for name in ("vision", "text"):
            tower = getattr(self, f"{name}_config")
            if {"vision_config", "text_config"} <= set(tower.sub_configs):
                raise ValueError(
                    f"{name}_config is of a whole image-text model, {tower.model_type!r}: give its {name}_config"
                )
            self._pooled_size(name)

    @property
    def vision_pooled_size(self) -> int:
        """Width of the vision tower's pooled output."""
        return self._pooled_size("vision")

    @property
    def text_pooled_size(self) -> int:
        """Width of the text tower's pooled output."""
        return self._pooled_size("text")

    def _pooled_size(self, name: str) -> int:
        stated = getattr(self, f"{name}_hidden_size")
        if stated is not None:
            return stated
        tower = getattr(self, f"{name}_config")
        attribute = _VISION_WIDTHS.get(tower.model_type, "hidden_size") if name == "vision" else "hidden_size"
        size = getattr(tower, attribute, None)
        if isinstance(size, list | tuple) and size:
            size = size[-1]
        if not isinstance(size, int) or size < 1:
            raise ValueError(
                f"the width of the pooled output of the {name} tower {tower.model_type!r} is not in its config: "
                f"set {name}_hidden_size"
            )
        return size

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> "CLIPRDConfig":
        """Config of a student published with CLIP-KD or CLIP-RD, or of a teacher.

        | name | parameters | of the vision tower and its projection | embedding |
        |---|---|---|---|
        | `vit-t-16` | 46,116,097 | 5,622,912 | 512 |
        | `vit-b-16` | 149,620,737 | 86,192,640 | 512 |
        | `vit-l-14` | 427,616,513 | 303,966,208 | 768 |
        | `mobilevit-s` | 45,758,497 | 5,265,312 | 512 |
        | `swin-t` | 68,405,755 | 27,912,570 | 512 |
        | `efficientnet-b0` | 45,156,093 | 4,662,908 | 512 |
        | `mobilenet-v3-s` (extra `timm`) | 42,535,329 | 2,042,144 | 512 |
        | `resnet-18` | 51,931,841 | 11,438,656 | 512 |
        | `resnet-50` | 89,295,425 | 25,605,184 | 1024 |

        Args:
            name: one of the names above.
            overrides: settings that differ from the preset's; a dict for `vision_config` or `text_config` changes
                the keys it names and keeps the others, unless it names another `model_type`.

        Returns:
            The config, of images of 224 pixels and texts of up to 77 tokens of CLIP's vocabulary of 49,408.

        Raises:
            ValueError: an unknown name.

        Source: the numbers of the model files published with CLIP-KD (github.com/winycg/CLIP-KD, in
        src/open_clip/model_configs) and, for `vit-b-16` and `vit-l-14`, of open_clip's ViT-B-16 and ViT-L-14, which
        its training scripts name. Certain: widths, depths, heads, projection and text tower of every student but
        ResNet-50. The towers of MobileViT-S, Swin-T, EfficientNet-B0 and ResNet-18 have as many parameters as timm's
        without a classifier; their layers are transformers', so timm's weights do not load. Not certain: the
        published ResNet-50 names open_clip's RN50, which pools by attention over a wider stem (its text tower and
        embedding are taken from there); this one is the plain ResNet-50 with mean pooling. The parameters of
        `mobilenet-v3-s` are computed from timm's published 2,542,856 with classifier.
        """
        if name not in PRESETS:
            nearest = get_close_matches(name, PRESETS, 1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
            raise ValueError(f"unknown preset {name!r}, expected one of {', '.join(PRESETS)}{hint}")
        settings = copy.deepcopy(PRESETS[name])
        for key, value in overrides.items():
            preset = settings.get(key)
            if isinstance(value, dict) and isinstance(preset, dict):
                same_type = value.get("model_type", preset["model_type"]) == preset["model_type"]
                value = {**preset, **value} if same_type else value
            settings[key] = value
        return cls(**settings)


CLIPRDConfig.register_for_auto_class()
