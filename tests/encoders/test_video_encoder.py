"""Video models whose processor is one of videos, which transformers gives only with torchvision."""

import json
import shutil

import numpy as np
import pytest
import torch
import transformers as hf
from known_clips import assert_same, encoded

from hf_blemo.encoders import load_encoder

CONFIG = {
    "patch_size": 8, "crop_size": 32, "frames_per_clip": 4, "tubelet_size": 2, "hidden_size": 24, "mlp_ratio": 2.0,
    "num_attention_heads": 2, "num_hidden_layers": 3, "pred_hidden_size": 12, "pred_num_attention_heads": 2,
    "pred_num_hidden_layers": 2, "pred_num_mask_tokens": 2,
}  # fmt: skip
# As V-JEPA 2's processor saves itself.
PIXELS = {
    "size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}, "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225], "resample": 2, "do_resize": True, "do_center_crop": True, "do_rescale": True,
    "rescale_factor": 1 / 255, "do_normalize": True,
}  # fmt: skip
FILE = "video_preprocessor_config.json"


@pytest.fixture(scope="module")
def vjepa2(tmp_path_factory):
    """The folder of a tiny V-JEPA 2."""
    folder = tmp_path_factory.mktemp("video") / "vjepa2"
    torch.manual_seed(0)
    model = hf.VJEPA2Model(hf.VJEPA2Config(**CONFIG))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
    model.save_pretrained(folder)
    others = {
        "video_processor_type": "VJEPA2VideoProcessor",
        "do_sample_frames": False,
        "data_format": "channels_first",
    }
    (folder / FILE).write_text(json.dumps({**PIXELS, **others}))
    return folder


def plain(folder, frames, layer=None):
    """(segments, D) by transformers, a segment after the other."""
    model, processor = hf.VJEPA2Model.from_pretrained(folder).eval(), hf.VideoMAEImageProcessorPil(**PIXELS)
    rows = []
    for start in range(0, len(frames), 4):
        segment = list(frames[start : start + 4])
        segment += [segment[-1]] * (4 - len(segment))
        values = processor([segment], return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            output = model(pixel_values_videos=values, output_hidden_states=True)
        rows.append((output.last_hidden_state if layer is None else output.hidden_states[layer])[0].mean(0).numpy())
    return np.stack(rows)


@pytest.mark.parametrize("extraction", [{}, {"layer": 2}])
def test_rows_are_what_plain_transformers_gives_of_its_frames(extraction, vjepa2, clips):
    [(features, times)] = encoded([clips[0].path], str(vjepa2), extraction=extraction)
    assert_same(features, plain(vjepa2, clips[0].frames, extraction.get("layer")))
    np.testing.assert_allclose(times, 0.16 * np.arange(len(features)), atol=1e-9)


def test_the_predictor_does_not_run(vjepa2, clips):
    encoder = load_encoder(str(vjepa2), device="cpu")
    encoder.model.predictor.forward = None
    assert encoder.encode(clips[1].path).features.shape == (2, 24)


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        (
            {"video_processor_type": "PeVideoVideoProcessor"},
            ValueError,
            "found video_processor_type 'PeVideoVideoProc",
        ),
        ({"size": None}, ValueError, "found no size, expected size, crop_size, image_mean, image_std"),
        (None, FileNotFoundError, "AutoImageProcessor found nothing to load: "),
    ],
)
def test_other_processors_of_videos_are_refused_in_one_line(content, kind, message, vjepa2, tmp_path):
    folder = shutil.copytree(vjepa2, tmp_path / "vjepa2")
    saved = json.loads((folder / FILE).read_text())
    (folder / FILE).unlink() if content is None else (folder / FILE).write_text(json.dumps({**saved, **content}))
    with pytest.raises(kind) as caught:
        load_encoder(str(folder), device="cpu")
    where = f"{folder}: " if content is None else f"{folder}: {FILE}: "
    assert type(caught.value) is kind and str(caught.value).startswith(where + message)
    assert "\n" not in str(caught.value)
