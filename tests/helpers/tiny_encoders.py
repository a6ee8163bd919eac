"""Tiny, randomly initialised checkpoints of the real architectures, saved as the Hub has them."""

from pathlib import Path

import numpy as np
import torch
import transformers as hf
from tiny_models import make_student

SIZE = 32
HIDDEN = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
CONVOLUTIONS = {"conv_dim": [8] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}
MEL = {"sampling_rate": 16000, "feature_size": 8}
PIXELS = {"size": {"shortest_edge": SIZE}, "crop_size": {"height": SIZE, "width": SIZE}}


SQUARE = {"size": {"height": SIZE, "width": SIZE}}
PATCHES = {"image_size": SIZE, "patch_size": 8}
TEXT = {**HIDDEN, "vocab_size": 40, "max_position_embeddings": 8}
# As the large models of speech: layer norms, masks and normalised waveforms.
LARGE = {**HIDDEN, **CONVOLUTIONS, "feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
WHISPER = {
    "d_model": 16, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "num_mel_bins": 8,
    "max_source_positions": 100, "vocab_size": 50, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "decoder_start_token_id": 1,
}  # fmt: skip
CLAP = {
    "patch_embeds_hidden_size": 8, "hidden_size": 16, "depths": [1, 1], "num_attention_heads": [2, 2],
    "spec_size": 64, "num_mel_bins": 16, "window_size": 4, "patch_size": 4, "patch_stride": [4, 4],
    "num_classes": 4, "projection_dim": 12,
}  # fmt: skip


def images(**options):
    return hf.CLIPImageProcessorPil(**PIXELS, **options)


def _student():
    size = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    return make_student()[0], hf.CLIPImageProcessorPil(**size, image_mean=[0.4] * 3)


def speech_extractor(layer_norm):
    return hf.Wav2Vec2FeatureExtractor(do_normalize=layer_norm, return_attention_mask=layer_norm)


# Name -> model and processor.
MODELS = {
    "clip": lambda: (
        hf.CLIPModel(hf.CLIPConfig(vision_config={**HIDDEN, **PATCHES}, text_config=TEXT, projection_dim=12)),
        images(),
    ),
    "student": _student,
    "siglip": lambda: (
        hf.SiglipModel(hf.SiglipConfig(vision_config={**HIDDEN, **PATCHES}, text_config=TEXT)),
        hf.SiglipImageProcessorPil(**SQUARE),
    ),
    "vit": lambda: (hf.ViTModel(hf.ViTConfig(**HIDDEN, **PATCHES)), hf.ViTImageProcessorPil(**SQUARE)),
    "resnet": lambda: (hf.ResNetModel(hf.ResNetConfig(**RESNET)), images()),
    "dinov2": lambda: (
        hf.Dinov2Model(hf.Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, **PATCHES)),
        hf.BitImageProcessorPil(**PIXELS),
    ),
    # Hides most of a picture by chance, as it is set up.
    "vit_mae": lambda: (hf.ViTMAEModel(hf.ViTMAEConfig(**HIDDEN, **PATCHES)), hf.ViTImageProcessorPil(**SQUARE)),
    "videomae": lambda: (
        hf.VideoMAEModel(
            hf.VideoMAEConfig(**HIDDEN, image_size=SIZE, patch_size=16, num_frames=16, use_mean_pooling=False)
        ),
        hf.VideoMAEImageProcessorPil(**PIXELS),
    ),
    "timesformer": lambda: (
        hf.TimesformerModel(hf.TimesformerConfig(**HIDDEN, image_size=SIZE, patch_size=16, num_frames=4)),
        hf.VideoMAEImageProcessorPil(**PIXELS),
    ),
    "vivit": lambda: (
        hf.VivitModel(hf.VivitConfig(**HIDDEN, image_size=SIZE, num_frames=8, tubelet_size=[2, 16, 16])),
        hf.VivitImageProcessor(**PIXELS),
    ),
    "hubert": lambda: (hf.HubertModel(hf.HubertConfig(**LARGE)), speech_extractor(True)),
    # A group norm over time, and no masks.
    "hubert_base": lambda: (hf.HubertModel(hf.HubertConfig(**HIDDEN, **CONVOLUTIONS)), speech_extractor(False)),
    "wavlm": lambda: (
        hf.WavLMModel(hf.WavLMConfig(**LARGE, num_buckets=32, max_bucket_distance=80)),
        speech_extractor(True),
    ),
    "wav2vec2": lambda: (hf.Wav2Vec2Model(hf.Wav2Vec2Config(**LARGE)), speech_extractor(True)),
    # Its convolutions between the layers hear beyond a window's end.
    "wav2vec2_conformer": lambda: (
        hf.Wav2Vec2ConformerModel(
            hf.Wav2Vec2ConformerConfig(
                **HIDDEN, **CONVOLUTIONS, feat_extract_norm="layer", conv_depthwise_kernel_size=5
            )
        ),
        speech_extractor(True),
    ),
    "data2vec_audio": lambda: (
        hf.Data2VecAudioModel(
            hf.Data2VecAudioConfig(**HIDDEN, conv_dim=[8] * 7, conv_pos_kernel_size=5, num_conv_pos_embedding_groups=2)
        ),
        speech_extractor(True),
    ),
    "whisper": lambda: (
        hf.WhisperModel(hf.WhisperConfig(**WHISPER)),
        hf.WhisperFeatureExtractor(**MEL, chunk_length=2),
    ),
    "ast": lambda: (
        hf.ASTModel(hf.ASTConfig(**HIDDEN, max_length=128, num_mel_bins=16)),
        hf.ASTFeatureExtractor(max_length=128, num_mel_bins=16),
    ),
    "clap": lambda: (
        hf.ClapModel(hf.ClapConfig(audio_config=CLAP, text_config=TEXT, projection_dim=12)),
        hf.ClapFeatureExtractor(feature_size=16, max_length_s=2, sampling_rate=48000, truncation="rand_trunc"),
    ),
    "wav2vec2_bert": lambda: (
        hf.Wav2Vec2BertModel(
            hf.Wav2Vec2BertConfig(**HIDDEN, feature_projection_input_dim=32, conv_depthwise_kernel_size=5)
        ),
        hf.SeamlessM4TFeatureExtractor(feature_size=16, num_mel_bins=16),
    ),
}


def save_encoder(name: str, folder: Path) -> Path:
    """Saves a tiny checkpoint with its processor."""
    torch.manual_seed(0)
    model, processor = MODELS[name]()
    # A model as it is started gives nearly the same features for everything, but for ResNet.
    if name != "resnet":
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(2)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def frames(count, height=48, width=70, seed=0):
    """Frames (T, H, W, 3) uint8 that differ."""
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def sound(seconds, rate=16000, seed=0):
    """(n,) float32 of tones and noise."""
    generator = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    tone = np.sin(2 * np.pi * (200 + 100 * np.sin(2 * time)) * time)
    return (0.3 * tone + 0.05 * generator.standard_normal(len(time))).astype(np.float32)
