import numpy as np
import pytest
import torch
from direct_features import frame_features
from encoder_checks import WAYS, assert_same, encoded
from tiny_encoders import images

from hf_blemo.encoders.clip_encoder import ClipEncoder
from hf_blemo.encoders.encoder import EncoderSource
from hf_blemo.encoders.loading import load_encoder


@pytest.mark.parametrize(("batch_size", "num_threads"), WAYS)
@pytest.mark.parametrize("name", ["clip", "student", "siglip"])
def test_rows_are_the_embeddings_of_frames(name, batch_size, num_threads, checkpoint, clips, direct):
    found = encoded([clip.path for clip in clips], checkpoint(name), batch_size, num_threads)
    for clip, (features, times) in zip(clips, found, strict=True):
        assert_same(features, direct(frame_features, checkpoint(name), clip.path, clip.frames))
        np.testing.assert_allclose(times, np.arange(len(clip.frames)) / 25, atol=1e-9)


@pytest.mark.parametrize(("name", "size"), [("clip", 12), ("student", 12), ("siglip", 16)])
def test_only_the_side_of_images_is_kept(name, size, checkpoint):
    encoder = load_encoder(checkpoint(name), device="cpu")
    assert isinstance(encoder, ClipEncoder) and encoder.feature_size == size and encoder.modality == "video"
    assert not [key for key, _ in encoder.model.named_parameters() if key.startswith("text_")]


class PatchModel(torch.nn.Module):
    """Gives a row per patch, as models that describe pictures do."""

    device, dtype, config = torch.device("cpu"), torch.float32, None

    def get_image_features(self, pixel_values):
        return pixel_values.flatten(2)


def test_a_model_that_gives_no_single_row_per_frame_is_refused():
    with pytest.raises(ValueError, match=r"me/patches: gives features of shape \(2, 3, 1024\) for 2 frames"):
        ClipEncoder(PatchModel(), images(), EncoderSource("me/patches"))


def test_bfloat16_comes_close_to_float32(checkpoint, clips):
    [(features, _)] = encoded([clips[0].path], checkpoint("clip"))
    [(half, _)] = encoded([clips[0].path], checkpoint("clip"), dtype="bfloat16")
    assert 0 < np.abs(features - half).max() < 0.1 * np.abs(features).max()
    assert np.corrcoef(features.ravel(), half.ravel())[0, 1] > 0.999
