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


def images(**options):
    return hf.CLIPImageProcessorPil(**PIXELS, **options)


def speech_extractor(layer_norm):
    return hf.Wav2Vec2FeatureExtractor(do_normalize=layer_norm, return_attention_mask=layer_norm)


def clip():
    towers = {
        "vision_config": {**HIDDEN, "image_size": SIZE, "patch_size": 8},
        "text_config": {**HIDDEN, "vocab_size": 40, "max_position_embeddings": 8},
    }
    return hf.CLIPModel(hf.CLIPConfig(**towers, projection_dim=12)), images()


def student():
    return make_student()[0], hf.CLIPImageProcessorPil(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, image_mean=[0.4] * 3
    )


def siglip():
    towers = {
        "vision_config": {**HIDDEN, "image_size": SIZE, "patch_size": 8},
        "text_config": {**HIDDEN, "vocab_size": 40, "max_position_embeddings": 8},
    }
    return hf.SiglipModel(hf.SiglipConfig(**towers)), hf.SiglipImageProcessorPil(size={"height": SIZE, "width": SIZE})


def vit():
    config = hf.ViTConfig(**HIDDEN, image_size=SIZE, patch_size=8)
    return hf.ViTModel(config), hf.ViTImageProcessorPil(size={"height": SIZE, "width": SIZE})


def resnet():
    config = hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    return hf.ResNetModel(config), images()


def dinov2():
    config = hf.Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=SIZE, patch_size=8)
    return hf.Dinov2Model(config), hf.BitImageProcessorPil(**PIXELS)


def vit_mae():
    """Hides most of a picture by chance, as it is set up."""
    config = hf.ViTMAEConfig(**HIDDEN, image_size=SIZE, patch_size=8)
    return hf.ViTMAEModel(config), hf.ViTImageProcessorPil(size={"height": SIZE, "width": SIZE})


def videomae():
    config = hf.VideoMAEConfig(**HIDDEN, image_size=SIZE, patch_size=16, num_frames=16, use_mean_pooling=False)
    return hf.VideoMAEModel(config), hf.VideoMAEImageProcessorPil(**PIXELS)


def timesformer():
    config = hf.TimesformerConfig(**HIDDEN, image_size=SIZE, patch_size=16, num_frames=4)
    return hf.TimesformerModel(config), hf.VideoMAEImageProcessorPil(**PIXELS)


def vivit():
    config = hf.VivitConfig(**HIDDEN, image_size=SIZE, num_frames=8, tubelet_size=[2, 16, 16])
    return hf.VivitModel(config), hf.VivitImageProcessor(size={"shortest_edge": SIZE}, crop_size=PIXELS["crop_size"])


def hubert():
    """As HuBERT large: layer norms, masks and normalised waveforms."""
    config = hf.HubertConfig(
        **HIDDEN, **CONVOLUTIONS, feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True
    )
    return hf.HubertModel(config), speech_extractor(True)


def hubert_base():
    """As HuBERT base: a group norm over time, and no masks."""
    return hf.HubertModel(hf.HubertConfig(**HIDDEN, **CONVOLUTIONS)), speech_extractor(False)


def wavlm():
    config = hf.WavLMConfig(
        **HIDDEN, **CONVOLUTIONS, feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True,
        num_buckets=32, max_bucket_distance=80,
    )  # fmt: skip
    return hf.WavLMModel(config), speech_extractor(True)


def wav2vec2():
    config = hf.Wav2Vec2Config(
        **HIDDEN, **CONVOLUTIONS, feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True
    )
    return hf.Wav2Vec2Model(config), speech_extractor(True)


def wav2vec2_conformer():
    """Its convolutions between the layers hear beyond a window's end."""
    config = hf.Wav2Vec2ConformerConfig(
        **HIDDEN, **CONVOLUTIONS, feat_extract_norm="layer", conv_depthwise_kernel_size=5
    )
    return hf.Wav2Vec2ConformerModel(config), speech_extractor(True)


def data2vec_audio():
    config = hf.Data2VecAudioConfig(
        **HIDDEN, conv_dim=[8] * 7, conv_pos_kernel_size=5, num_conv_pos_embedding_groups=2
    )
    return hf.Data2VecAudioModel(config), speech_extractor(True)


def whisper():
    config = hf.WhisperConfig(
        d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=16, decoder_ffn_dim=16, num_mel_bins=8, max_source_positions=100, vocab_size=50,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    return hf.WhisperModel(config), hf.WhisperFeatureExtractor(**MEL, chunk_length=2)


def ast():
    config = hf.ASTConfig(**HIDDEN, max_length=128, num_mel_bins=16)
    return hf.ASTModel(config), hf.ASTFeatureExtractor(max_length=128, num_mel_bins=16)


def clap():
    towers = {
        "audio_config": {
            "patch_embeds_hidden_size": 8, "hidden_size": 16, "depths": [1, 1], "num_attention_heads": [2, 2],
            "spec_size": 64, "num_mel_bins": 16, "window_size": 4, "patch_size": 4, "patch_stride": [4, 4],
            "num_classes": 4, "projection_dim": 12,
        },
        "text_config": {**HIDDEN, "vocab_size": 40, "max_position_embeddings": 8},
    }  # fmt: skip
    extractor = hf.ClapFeatureExtractor(feature_size=16, max_length_s=2, sampling_rate=48000, truncation="rand_trunc")
    return hf.ClapModel(hf.ClapConfig(**towers, projection_dim=12)), extractor


def wav2vec2_bert():
    config = hf.Wav2Vec2BertConfig(**HIDDEN, feature_projection_input_dim=32, conv_depthwise_kernel_size=5)
    return hf.Wav2Vec2BertModel(config), hf.SeamlessM4TFeatureExtractor(feature_size=16, num_mel_bins=16)


MODELS = {
    maker.__name__: maker
    for maker in (
        clip, student, siglip, vit, resnet, dinov2, vit_mae, videomae, timesformer, vivit, hubert, hubert_base, wavlm,
        wav2vec2, wav2vec2_conformer, data2vec_audio, whisper, ast, clap, wav2vec2_bert,
    )
}  # fmt: skip


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
