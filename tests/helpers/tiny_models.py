"""A tiny model of each family, with its processor."""

from pathlib import Path
from typing import Any

import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPProcessor, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from hf_blemo import CLIPRDConfig, CLIPRDModel, RankAwareFusionConfig, RankAwareFusionModel, RankAwareFusionProcessor

ENCODERS = {
    "face": {"feature_size": 6, "modality": "video", "pooling": "attention"},
    "voice": {"feature_size": 4, "modality": "audio", "pooling": "statistics"},
}
# A fusion with all that its plain form leaves out.
EXTENDED: dict[str, Any] = {
    "experts": True, "squash": "asinh", "feature_weighting": "relevance", "fusion_maps": "encoder",
    "gate_reads": "both", "gate_prior": "relevance", "gate_prior_weight": 0.5, "latent_activation": "none",
}  # fmt: skip
IMAGE_SIZE = 16
CONTEXT = 40


def clip_tokenizer() -> CLIPTokenizer:
    """A tokenizer of CLIP's kind that knows single bytes."""
    symbols = sorted(ByteLevel.alphabet())
    tokens = [*symbols, *(f"{symbol}</w>" for symbol in symbols), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=CONTEXT)


def shaken_fusion(
    noise: float, seed: int = 0, encoders: dict[str, Any] = ENCODERS, **settings: Any
) -> tuple[RankAwareFusionModel, RankAwareFusionProcessor]:
    """A fusion moved away from its start, at which it says nearly the same of every clip, with its processor."""
    torch.manual_seed(seed)
    config = RankAwareFusionConfig(**{"encoders": encoders, "top_n": 2, "hidden_size": 8, **settings})
    model = RankAwareFusionModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(noise * torch.randn_like(parameter))
    return model.eval(), RankAwareFusionProcessor.from_config(config)


def make_fusion(seed: int = 0, **settings: Any) -> tuple[RankAwareFusionModel, RankAwareFusionProcessor]:
    """A fusion of two encoders whose every parameter and buffer is unlike its start."""
    torch.manual_seed(seed)
    config = RankAwareFusionConfig(
        encoders=ENCODERS, top_n=1, hidden_size=8, domain_adaptation="adversarial", dropout=0.0, **settings
    )
    model = RankAwareFusionModel(config)
    model.set_feature_statistics("face", torch.randn(6), torch.rand(6) + 0.5, torch.linspace(0, 1, 6))
    model.set_feature_statistics("voice", torch.randn(28), torch.rand(28) + 0.5, torch.linspace(0, 1, 28))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval(), RankAwareFusionProcessor(config.encoders, decoding="thresholds", alpha=0.12, beta=0.2)


def make_student(seed: int = 0, vision: dict[str, Any] | None = None) -> tuple[CLIPRDModel, CLIPProcessor]:
    """A student with two CLIP towers, or with another vision tower."""
    torch.manual_seed(seed)
    tokenizer = clip_tokenizer()
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPRDConfig(
        vision_config=vision
        or {"model_type": "clip_vision_model", **tower, "image_size": IMAGE_SIZE, "patch_size": 8},
        text_config={
            "model_type": "clip_text_model",
            **tower,
            "vocab_size": len(tokenizer),
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "max_position_embeddings": CONTEXT,
        },
        projection_dim=12,
    )
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    image_processor = CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size=size)
    return CLIPRDModel(config).eval(), CLIPProcessor(image_processor, tokenizer)


MAKERS = {"rank_aware_fusion": make_fusion, "clip_rd": make_student}


def save_tiny_model(family: str, folder: Path, seed: int = 0, **options: object) -> torch.nn.Module:
    """Saves a family's tiny model and what prepares its inputs into one folder; returns the model."""
    model, processor = MAKERS[family](seed)
    model.save_pretrained(folder, **options)
    processor.save_pretrained(folder)
    return model
