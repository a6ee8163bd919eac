import shutil

import pytest
import torch
from direct_features import frame_features
from known_clips import assert_same, encoded
from safetensors.torch import load_file, save_file
from tiny_encoders import images

from hf_blemo.encoders import EncoderSource
from hf_blemo.encoders.image_encoder import ClipEncoder


class PatchModel(torch.nn.Module):
    """Gives a row per patch, as models that describe pictures do."""

    device, dtype, config = torch.device("cpu"), torch.float32, None

    def get_image_features(self, pixel_values):
        return pixel_values.flatten(2)


def test_a_model_without_one_row_per_frame_is_refused():
    with pytest.raises(ValueError, match=r"me/patches: gives features of shape \(2, 3, 1024\) for 2 frames"):
        ClipEncoder(PatchModel(), images(), EncoderSource("me/patches"))


def test_without_weights_of_the_pooler_rows_are_the_mean_of_the_hidden_states(checkpoint, clips, tmp_path):
    """A ViT has no pooler after training as a classifier."""
    folder = tmp_path / "without_pooler"
    shutil.copytree(checkpoint("vit"), folder)
    weights = load_file(folder / "model.safetensors")
    kept = {name: values for name, values in weights.items() if not name.startswith("pooler.")}
    assert len(kept) == len(weights) - 2
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    [(features, _)] = encoded([clips[0].path], str(folder))
    assert_same(features, frame_features(folder, clips[0].frames, False))
