import json
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from direct_features import frame_features
from encoder_checks import WAYS, assert_same, encoded
from exact_clips import write_exact
from safetensors.torch import load_file, save_file
from tiny_encoders import frames

from hf_blemo.encoders.loading import load_encoder

IMAGE_MODELS = ("vit", "resnet", "dinov2", "vit_mae")


@pytest.mark.parametrize(("batch_size", "num_threads"), WAYS)
@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_rows_are_what_transformers_gives_for_each_frame(name, batch_size, num_threads, checkpoint, clips, direct):
    found = encoded([clip.path for clip in clips], checkpoint(name), batch_size, num_threads)
    for clip, (features, times) in zip(clips, found, strict=True):
        assert_same(features, direct(frame_features, checkpoint(name), clip.path, clip.frames))
        np.testing.assert_allclose(times, np.arange(len(clip.frames)) / 25, atol=1e-9)


@pytest.fixture
def without_pooler(checkpoint, tmp_path):
    """A ViT as classification leaves it: its checkpoint has no pooler."""
    folder = tmp_path / "without_pooler"
    shutil.copytree(checkpoint("vit"), folder)
    weights = load_file(folder / "model.safetensors")
    kept = {name: values for name, values in weights.items() if not name.startswith("pooler.")}
    assert len(kept) == len(weights) - 2
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def test_a_pooler_without_weights_gives_way_to_the_mean_of_the_hidden_states(without_pooler, clips):
    [(features, _)] = encoded([clips[0].path], without_pooler)
    assert_same(features, frame_features(without_pooler, clips[0].frames, False))
    [(again, _)] = encoded([clips[0].path], without_pooler)
    np.testing.assert_array_equal(features, again)


def test_frames_have_the_times_of_their_stamps_where_the_rate_varies(checkpoint, tmp_path):
    stamps = [0, 40, 70, 400, 430, 1200]
    path = write_exact(
        tmp_path / "varying.mkv", frames(6), None, times=stamps, time_base=Fraction(1, 1000), frame_rate=25
    )
    [(_, times)] = encoded([path], checkpoint("vit"))
    np.testing.assert_allclose(times, np.array(stamps) / 1000, atol=1e-9)


@pytest.mark.parametrize(
    ("rate", "kept"),
    [(25, range(17)), (12.5, range(0, 17, 2)), (5, range(0, 17, 5)), (10, (0, 3, 5, 8, 10, 13, 15)), (0.5, (0,))],
)
def test_frames_per_second_takes_the_first_frame_of_each_moment(rate, kept, checkpoint, clips):
    [(whole, _)] = encoded([clips[0].path], checkpoint("vit"))
    [(features, times)] = encoded([clips[0].path], checkpoint("vit"), extraction={"frames_per_second": rate})
    np.testing.assert_allclose(times, np.array(kept) / 25, atol=1e-9)
    np.testing.assert_allclose(features, whole[list(kept)], atol=1e-6)


def test_rounded_stamps_lose_no_frame_at_the_rate_of_the_clip(checkpoint, tmp_path):
    # Matroska counts milliseconds: the frames of 30 per second are at 0, 33, 67 ms ...
    path = write_exact(tmp_path / "thirty.mkv", frames(31), None, frame_rate=30)
    for rate, count in ((30, 31), (15, 16), (10, 11)):
        [(_, times)] = encoded([path], checkpoint("vit"), extraction={"frames_per_second": rate})
        assert len(times) == count


def test_pictures_of_different_sizes_are_refused(checkpoint, tmp_path):
    folder = tmp_path / "uncut"
    shutil.copytree(checkpoint("resnet"), folder)
    path = Path(folder) / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "do_center_crop": False}))
    with pytest.raises(ValueError, match="uncut: .* makes pictures of .* expected one size for all"):
        load_encoder(str(folder), device="cpu")
