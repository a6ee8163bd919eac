"""Features as plain transformers gives them, by nothing of this package but its model classes.

One frame, one segment or one waveform at a time goes through the processor and the model of a checkpoint.
"""

from pathlib import Path

import numpy as np
import torch
import transformers as hf


def image_parts(folder: Path):
    """Model and image processor; a masked autoencoder sees all of the picture."""
    config = hf.AutoConfig.from_pretrained(folder)
    if config.model_type == "vit_mae":
        config.mask_ratio = 0.0
    model = hf.AutoModel.from_pretrained(folder, config=config).eval()
    return model, hf.AutoImageProcessor.from_pretrained(folder, backend="pil")


def sound_parts(folder: Path):
    """Model and feature extractor."""
    return hf.AutoModel.from_pretrained(folder).eval(), hf.AutoFeatureExtractor.from_pretrained(folder)


def _hidden(output, layer):
    return output.last_hidden_state if layer is None else output.hidden_states[layer]


@torch.no_grad()
def frame_features(folder: Path, frames: np.ndarray, use_pooler: bool = True, layer: int | None = None) -> np.ndarray:
    """(T, D) of frames (T, H, W, 3), one after another."""
    model, processor = image_parts(folder)
    rows = []
    for frame in frames:
        inputs = processor(images=frame, return_tensors="pt")
        if layer is not None:
            hidden = _hidden(getattr(model, "vision_model", model)(**inputs, output_hidden_states=True), layer)
            row = hidden.mean(1) if hidden.dim() == 3 else hidden.mean((2, 3))
        elif hasattr(model, "get_image_features"):
            row = model.get_image_features(**inputs)
            row = row if isinstance(row, torch.Tensor) else row.pooler_output
        else:
            output = model(**inputs)
            pooled = output.get("pooler_output") if use_pooler else None
            row = output.last_hidden_state.mean(1) if pooled is None else pooled
        rows.append(row.flatten().numpy())
    return np.stack(rows)


@torch.no_grad()
def segment_features(folder: Path, frames: np.ndarray, length: int, layer: int | None = None) -> np.ndarray:
    """(segments, D) of frames (T, H, W, 3); the last segment is filled up with the last frame."""
    model, processor = image_parts(folder)
    rows = []
    for start in range(0, len(frames), length):
        segment = list(frames[start : start + length])
        segment += [segment[-1]] * (length - len(segment))
        output = model(**processor(segment, return_tensors="pt"), output_hidden_states=True)
        rows.append(_hidden(output, layer)[0].mean(0).numpy())
    return np.stack(rows)


@torch.no_grad()
def speech_features(folder: Path, samples: np.ndarray, layer: int | None = None) -> np.ndarray:
    """(steps, D) of a whole waveform."""
    model, processor = sound_parts(folder)
    inputs = processor(samples, sampling_rate=processor.sampling_rate, return_tensors="pt")
    output = model(inputs["input_values"], output_hidden_states=True)
    return _hidden(output, layer)[0].numpy()


@torch.no_grad()
def spectrogram_features(
    folder: Path, samples: np.ndarray, window: int, step: int | None = None, layer: int | None = None
) -> np.ndarray:
    """(rows, D) of a waveform in windows: with a step, a row for each begun one; without, a row for each window."""
    model, processor = sound_parts(folder)
    rows = []
    for start in range(0, len(samples), window):
        part = samples[start : start + window]
        inputs = processor(part, sampling_rate=processor.sampling_rate, return_tensors="pt")
        if step is not None:
            output = model.get_encoder()(inputs["input_features"], output_hidden_states=True)
            hidden = _hidden(output, layer)[0]
            rows.append(hidden[: -(-len(part) // step)].numpy())
        elif hasattr(model, "get_audio_features"):
            rows.append(model.get_audio_features(**inputs).pooler_output.numpy())
        else:
            hidden = _hidden(model(**inputs, output_hidden_states=True), layer)
            # w2v-BERT's windows may be filled up to an even length.
            kept = int(inputs["attention_mask"].sum()) if "attention_mask" in inputs else hidden.shape[1]
            rows.append(hidden[:, :kept].mean(1).numpy())
    return np.concatenate(rows)
