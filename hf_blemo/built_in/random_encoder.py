"""Encoders with random weights, where no pre-trained ones can be had: for demonstrations and the built-in data."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def save_random_speech_encoder(folder: str | Path, seed: int = 0, config: Mapping[str, Any] | None = None) -> Path:
    """Saves a small HuBERT as it is started, with its feature extractor.

    What it hears is mixed at random, yet steps that sound alike are encoded alike; nothing in it was learnt.

    Args:
        folder: made where it is missing.
        seed: of the weights.
        config: settings of `HubertConfig` in place of the small ones.

    Returns:
        The folder, which [`load_encoder`] loads.

    Source: this project's choice.
    """
    import torch
    from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

    small: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "conv_dim": [32] * 7,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4,
        "feat_extract_norm": "layer",
        "do_stable_layer_norm": True,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = HubertModel(HubertConfig(**{**small, **(config or {})}))
    model.save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True).save_pretrained(folder)
    return Path(folder)
