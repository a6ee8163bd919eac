"""Encoders on an accelerator: the features of the CPU, and half the batch where memory is short."""

import numpy as np
import pytest
import torch
import transformers
from tiny_encoders import frames, sound

from hf_blemo.encoders import EncoderSource, load_encoder
from hf_blemo.encoders.image_encoder import ClipEncoder
from hf_blemo.media.audio import Audio
from hf_blemo.media.decoding import Frame

pytestmark = pytest.mark.gpu


def pieces_of(encoder, num_frames=32):
    """Pieces of a clip of pictures or 1.3 seconds of sound."""
    items = [Frame(place / 25, image) for place, image in enumerate(frames(num_frames))]
    if encoder.modality == "audio":
        items = [Audio(0.0, encoder.audio_rate, sound(1.3, encoder.audio_rate))]
    session = encoder.session()
    return [piece for item in items for piece in session.push(item)] + list(session.finish())


@pytest.mark.parametrize(("dtype", "allowed"), [("float32", 1e-4), ("bfloat16", 0.05)])
@pytest.mark.parametrize("name", ["clip", "vit", "hubert", "wavlm", "videomae"])
def test_features_are_those_of_the_cpu(checkpoint, name, dtype, allowed):
    found = {}
    for device, kind in (("cpu", "float32"), ("cuda", dtype)):
        encoder = load_encoder(str(checkpoint(name)), device=device, dtype=kind)
        found[device] = np.concatenate(encoder.run(pieces_of(encoder)))
    difference = np.linalg.norm(found["cuda"] - found["cpu"], axis=1) / np.linalg.norm(found["cpu"], axis=1)
    assert np.median(difference) < allowed


def test_too_large_a_batch_is_halved_until_it_fits(caplog):
    model = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(patch_size=8)).cuda().eval()
    processor = transformers.CLIPImageProcessorPil()
    encoder = ClipEncoder(model, processor, EncoderSource("me/large"), batch_size=1024)
    pieces = pieces_of(encoder, 1024)
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(min(1.0, (torch.cuda.memory_allocated() + 2 * 2**30) / total))
    try:
        rows = encoder.run(pieces)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert len(rows) == len(pieces) and encoder.batch_size < 1024
    assert "out of memory" in caplog.text
