"""A speech encoder with random weights, for demonstrations and tests without pre-trained ones."""

from pathlib import Path
from typing import Any


def save_random_speech_encoder(folder: str | Path) -> Path:
    """Saves a small HuBERT with its initial weights, and its feature extractor.

    It mixes sound at random, yet steps that sound alike are encoded alike; nothing in it was learnt.

    Args:
        folder: made if missing.

    Returns:
        The folder, which [`load_encoder`] loads.
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
        torch.manual_seed(0)
        model = HubertModel(HubertConfig(**small))
    model.save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True).save_pretrained(folder)
    return Path(folder)
