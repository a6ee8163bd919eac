import json
import shutil
from fractions import Fraction

import numpy as np
import pytest
import torch
from direct_features import frame_features
from encoder_checks import assert_same, encoded
from exact_clips import write_exact
from safetensors.torch import load_file, save_file
from tiny_encoders import frames, images

from hf_blemo.encoders import EncoderSource, load_encoder
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


def test_frames_have_the_times_of_their_stamps_where_the_rate_varies(checkpoint, tmp_path):
    stamps = [0, 40, 70, 400, 430, 1200]
    path = write_exact(
        tmp_path / "varying.mkv", frames(6), None, times=stamps, time_base=Fraction(1, 1000), frame_rate=25
    )
    [(_, times)] = encoded([path], checkpoint("vit"))
    np.testing.assert_allclose(times, np.array(stamps) / 1000, atol=1e-9)


def test_frames_per_second_takes_the_first_frame_of_each_moment(checkpoint, clips):
    [(whole, _)] = encoded([clips[0].path], checkpoint("vit"))
    for rate, kept in ((25, range(17)), (5, range(0, 17, 5)), (10, (0, 3, 5, 8, 10, 13, 15)), (0.5, (0,))):
        [(features, times)] = encoded([clips[0].path], checkpoint("vit"), extraction={"frames_per_second": rate})
        np.testing.assert_allclose(times, np.array(kept) / 25, atol=1e-9)
        np.testing.assert_allclose(features, whole[list(kept)], atol=1e-6)


def test_pictures_of_different_sizes_are_refused(checkpoint, tmp_path):
    folder = tmp_path / "uncut"
    shutil.copytree(checkpoint("resnet"), folder)
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "do_center_crop": False}))
    with pytest.raises(ValueError, match="uncut: .* makes pictures of .* expected one size for all"):
        load_encoder(str(folder), device="cpu")
