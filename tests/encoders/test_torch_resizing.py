import numpy as np
import pytest
import transformers as hf
from encoder_checks import encoded
from PIL.Image import Resampling
from tiny_encoders import MODELS, frames

from hf_blemo.encoders.encoder_options import IMAGE_BACKENDS
from hf_blemo.encoders.frame_processing import FrameProcessor
from hf_blemo.encoders.loading import load_encoder
from hf_blemo.encoders.torch_resizing import with_backend

VISUAL = ("clip", "student", "siglip", "vit", "resnet", "dinov2", "videomae", "timesformer")
CROP = {"height": 32, "width": 32}
SIZES = [(720, 1280), (97, 33), (32, 32), (5, 400), (31, 33)]


def pixels(processor, backend, frame):
    return FrameProcessor(processor, "me/model", backend).pixels(frame)


def processor_of(name):
    processor = MODELS[name]()[1]
    return getattr(processor, "image_processor", processor)


@pytest.mark.parametrize("name", VISUAL)
def test_few_pixels_differ_and_by_one_level(name):
    processor = processor_of(name)
    differing = []
    for number, size in enumerate(SIZES):
        frame = frames(1, *size, seed=number)[0]
        exact, fast = (pixels(processor, backend, frame).astype(np.float64) for backend in IMAGE_BACKENDS)
        assert exact.shape == fast.shape
        assert np.abs(exact - fast).max() <= 1
        differing.append((exact != fast).mean())
    # Of the larger pictures, as all others together have few pixels.
    assert differing[0] < 0.02 and max(differing) < 0.1


@pytest.mark.parametrize("resample", [Resampling.BILINEAR, Resampling.BICUBIC])
@pytest.mark.parametrize("size", SIZES)
def test_torchvision_gives_the_same(resample, size):
    pytest.importorskip("torchvision", reason="torchvision is not in this environment")
    options = {"size": {"shortest_edge": 32}, "crop_size": CROP, "resample": resample}
    frame = frames(1, *size)[0]
    theirs = hf.CLIPImageProcessor(**options)(frame, return_tensors="np", do_rescale=False, do_normalize=False)
    ours = pixels(hf.CLIPImageProcessorPil(**options), "torchvision", frame)
    difference = np.abs(theirs["pixel_values"][0].astype(np.int16) - ours)
    # torchvision resizes bilinearly in float where the processor has AVX-512.
    assert difference.max() <= (resample == Resampling.BILINEAR)
    assert (difference > 0).mean() < 0.02


def test_the_processor_is_left_as_it_is():
    processor = processor_of("clip")
    frame = frames(1, 97, 33)[0]
    before = pixels(processor, "pil", frame)
    changed = with_backend(processor, "torchvision", "me/model")
    assert changed is not processor and "resize" not in vars(processor)
    np.testing.assert_array_equal(pixels(processor, "pil", frame), before)
    assert with_backend(processor, "pil", "me/model") is processor


def test_a_processor_that_does_not_resize_stays():
    processor = hf.CLIPImageProcessorPil(do_resize=False, crop_size=CROP)
    assert with_backend(processor, "torchvision", "me/model") is processor


@pytest.mark.parametrize("backend", ["torch", None, 3, "PIL"])
def test_an_unknown_backend_is_refused(backend):
    with pytest.raises(ValueError, match="me/model: image_backend must be one of pil, torchvision, found"):
        with_backend(processor_of("clip"), backend, "me/model")


def test_a_filter_that_torch_lacks_is_refused():
    processor = hf.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=CROP, resample=Resampling.LANCZOS)
    message = r"me/model: image_backend torchvision resizes by resample 2 \(bilinear\), 3 \(bicubic\), found 1"
    with pytest.raises(ValueError, match=message):
        FrameProcessor(processor, "me/model", "torchvision")


class MirroringProcessor(hf.CLIPImageProcessorPil):
    """Resizes in a way of its own."""

    def resize(self, *args, **options):
        return super().resize(*args, **options)[..., ::-1]


@pytest.mark.parametrize(
    "processor", [MirroringProcessor(size={"shortest_edge": 32}, crop_size=CROP), processor_of("vivit")]
)
def test_a_processor_that_resizes_otherwise_is_refused(processor):
    message = f"me/model: image_backend torchvision cannot resize as {type(processor).__name__} does"
    with pytest.raises(ValueError, match=message):
        FrameProcessor(processor, "me/model", "torchvision")


def test_frames_that_torch_resizes_otherwise_are_left_to_the_processor():
    """Very narrow ones, by twenty levels in torch 2.13; one such clip is no reason to end a run."""
    processor = hf.SiglipImageProcessorPil(resample=Resampling.BICUBIC)
    narrow = 255 * np.random.default_rng(1).integers(0, 2, (3000, 17, 3), dtype=np.uint8)
    exact, fast = (pixels(processor, backend, narrow) for backend in IMAGE_BACKENDS)
    assert np.abs(exact.astype(np.int16) - fast).max() <= 2


@pytest.mark.parametrize("name", ["student", "videomae"])
def test_features_are_nearly_the_same_and_tell_how_they_were_made(name, checkpoint, clips):
    paths = [clip.path for clip in clips]
    exact = encoded(paths, checkpoint(name))
    fast = encoded(paths, checkpoint(name), extraction={"image_backend": "torchvision"})
    for (features, times), (others, other_times) in zip(exact, fast, strict=True):
        np.testing.assert_array_equal(times, other_times)
        np.testing.assert_allclose(features, others, atol=0.05)
    assert any((features != others).any() for (features, _), (others, _) in zip(exact, fast, strict=True))
    encoder = load_encoder(checkpoint(name), extraction={"image_backend": "torchvision"}, device="cpu")
    assert encoder.source.options()["extraction"] == {"image_backend": "torchvision"}
    with pytest.raises(ValueError, match="image_backend must be one of pil, torchvision, found 'fast'"):
        load_encoder(checkpoint(name), extraction={"image_backend": "fast"}, device="cpu")
