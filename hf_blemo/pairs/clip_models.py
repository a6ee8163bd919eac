"""CLIP-like models of transformers and of open_clip, with their processors."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import nn
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, CLIPImageProcessorPil

from hf_blemo.clip_rd.checked_weights_clip_rd import CheckedWeights, not_finite
from hf_blemo.clip_rd.distillation_clip_rd import features_of
from hf_blemo.errors import check_extra
from hf_blemo.loading import load_part
from hf_blemo.pairs.pair_processor import PairProcessor
from hf_blemo.pairs.settings import OPEN_CLIP
from hf_blemo.programs.fingerprints import weights_fingerprint

NEEDED = ("get_image_features", "get_text_features", "logit_scale")


class Clip(NamedTuple):
    """A CLIP-like model with its processor.

    Args:
        model: has `get_image_features`, `get_text_features` and `logit_scale`.
        processor: of pairs.
        dim: width of the embeddings.
    """

    model: Any
    processor: PairProcessor
    dim: int

    def description(self) -> dict[str, Any]:
        """Returns `fingerprint` (a hash of the weights), number of `parameters` and `logit_scale`, exponentiated."""
        return {
            "fingerprint": weights_fingerprint(self.model),
            "parameters": sum(values.numel() for values in self.model.parameters()),
            "logit_scale": self.model.logit_scale.detach().float().exp().item(),
        }


def load_clip(source: str, what: str = "model", revision: str | None = None) -> Clip:
    """Loads any CLIP-like model.

    Args:
        source: a folder or Hub id of transformers, or `open_clip:NAME` or `open_clip:NAME/PRETRAINED` with names of
            open_clip, for instance `open_clip:hf-hub:owner/name` or `open_clip:ViT-B-16/laion400m_e32`.
        what: name of the model in messages.
        revision: commit, branch or tag of a model on the Hub.

    Returns:
        Model in float32 and evaluation mode, processor and width.

    Raises:
        FileNotFoundError: the model, its tokenizer or its image processor cannot be found.
        MissingExtraError: the model is of open_clip, which is not installed.
        ValueError: the model is not a CLIP: it lacks a method or the scale, or has images and texts of unequal widths;
            or weights are missing or not finite.
    """
    if source.startswith(OPEN_CLIP):
        model, processor = _load_open_clip(source.removeprefix(OPEN_CLIP), what)
    else:
        model = load_model(source, f"{what} {source!r}", dtype="float32", revision=revision)
        for name in NEEDED:
            if not hasattr(model, name):
                raise ValueError(f"{what} {source!r}: {type(model).__name__} has no {name}; expected a CLIP")
        processor = load_processor(source, what, getattr(model.config, "text_config", None), revision)
    model = model.eval()
    # Those of this package's own family are loaded finite.
    broken = None if isinstance(model, CheckedWeights) else not_finite(model.state_dict())
    if broken is not None:
        raise ValueError(
            f"{what} {source!r}: the weights {broken} hold NaN or infinite values, expected finite numbers"
        )
    return Clip(model, processor, _width(model, processor, f"{what} {source!r}"))


def load_model(source: str, where: str, **options: Any) -> Any:
    """Loads a model of transformers with all its weights, but for poolers, which may be unused; transformers would
    draw random ones for those that are missing."""
    model, report = load_part(AutoModel, source, where, output_loading_info=True, **options)
    missing = [name for name in sorted(report["missing_keys"]) if "pooler." not in name]
    if missing:
        raise ValueError(f"{where}: the checkpoint lacks {len(missing)} weights, the first is {missing[0]}")
    return model


@torch.no_grad()
def _width(model: Any, processor: PairProcessor, described: str) -> int:
    """Measures the width of the embeddings, which configs state under many names."""
    height, width = processor.image_size
    texts = features_of(model.get_text_features(**processor.captions(["a"])))
    images = features_of(model.get_image_features(pixel_values=torch.zeros(1, 3, height, width)))
    if texts.shape[-1] != images.shape[-1]:
        raise ValueError(
            f"{described}: images are embedded in a width of {images.shape[-1]} and texts of {texts.shape[-1]}; "
            "expected projections to one width"
        )
    return texts.shape[-1]


def load_tokenizer(source: str, where: str, revision: str | None = None) -> Any:
    """Loads a tokenizer of transformers that knows words."""
    tokenizer = load_part(AutoTokenizer, source, where, revision=revision)
    # From a folder without a tokenizer's files, transformers makes one that knows only its special tokens.
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise FileNotFoundError(f"{where}: AutoTokenizer found nothing to load: a tokenizer without words")
    return tokenizer


def load_processor(source: str, what: str, text_config: Any, revision: str | None = None) -> PairProcessor:
    """Loads the tokenizer and the image processor of a model of transformers."""
    where = f"{what} {source!r}"
    tokenizer = load_tokenizer(source, where, revision)
    image_processor = load_part(AutoImageProcessor, source, where, backend="pil", revision=revision)
    return PairProcessor(tokenizer, image_processor, text_config)


def image_processor_of(size: Any, known: Mapping[str, Any] | None = None) -> CLIPImageProcessorPil:
    """CLIP's image processor for a size, (height, width) or one number for both.

    Args:
        size: in pixels; the shorter side is resized to it, and the middle kept.
        known: settings of open_clip or timm: `mean`, `std` and perhaps `interpolation`; CLIP's by default.
    """
    height, width = (size, size) if isinstance(size, int) else size
    options: dict[str, Any] = {}
    if known is not None:
        options = {f"image_{name}": list(known[name]) for name in ("mean", "std")}
        options["resample"] = Image.Resampling[known.get("interpolation", "bicubic").upper()]
    sides = {"height": height, "width": width}
    return CLIPImageProcessorPil(size={"shortest_edge": min(height, width)}, crop_size=sides, **options)


class _OpenCLIPModel(nn.Module):
    """A model of open_clip under the names of transformers' CLIPModel."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    @property
    def logit_scale(self) -> torch.Tensor:
        """The logarithm of the CLIP scale."""
        return self.model.logit_scale

    def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Embeddings (B, d) of images, not normalised."""
        # Models of transformers convert their inputs themselves.
        return self.model.encode_image(pixel_values.to(self.model.logit_scale.dtype))

    def get_text_features(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Embeddings (B, d) of texts padded to the full context, not normalised; the mask is not needed."""
        return self.model.encode_text(input_ids)


class _OpenCLIPTokenizer:
    """A tokenizer of open_clip under the names of transformers' tokenizers; it pads to the full context."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.model_max_length = tokenizer.context_length

    def __call__(self, captions: list[str], **options: Any) -> dict[str, torch.Tensor]:
        """`input_ids` (n, context length); options of transformers' tokenizers change nothing."""
        return {"input_ids": self.tokenizer(captions)}


def _load_open_clip(name: str, what: str) -> tuple[_OpenCLIPModel, PairProcessor]:
    check_extra("openclip", f"{what} {OPEN_CLIP}{name}")
    import open_clip

    architecture, pretrained = name, None
    if ":" not in name and "/" in name:
        architecture, pretrained = name.split("/", 1)
    try:
        model = open_clip.create_model(architecture, pretrained=pretrained, require_pretrained=True)
        tokenizer = open_clip.get_tokenizer(architecture)
    except (RuntimeError, ValueError, OSError) as error:
        raise FileNotFoundError(f"{what} {OPEN_CLIP}{name}: open_clip found nothing to load: {error}") from error
    settings = open_clip.get_model_preprocess_cfg(model)
    images = image_processor_of(settings["size"], settings)
    return _OpenCLIPModel(model), PairProcessor(_OpenCLIPTokenizer(tokenizer), images)
