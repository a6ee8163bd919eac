from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import transformers as hf
from known_clips import encoded
from PIL.Image import Resampling
from tiny_encoders import MODELS, PIXELS, frames, images

from hf_blemo.encoders import load_encoder
from hf_blemo.encoders.encoder_options import IMAGE_BACKENDS
from hf_blemo.encoders.frame_processing import FrameProcessor

VISUAL = ("clip", "student", "siglip", "vit", "resnet", "dinov2", "videomae", "timesformer", "vivit")
SIZES = [(720, 1280), (97, 33), (32, 32), (5, 400), (31, 33)]


def processor_of(name):
    processor = MODELS[name]()[1]
    return getattr(processor, "image_processor", processor)


def both(processor, frame):
    """A frame by the two halves, and by the processor itself."""
    split = FrameProcessor(processor, "me/model")
    found = split.normalized([split.pixels(frame)], torch.device("cpu"), torch.float32)[0]
    whole = np.asarray(processor([frame], return_tensors="np")["pixel_values"])
    return split, found, whole.reshape(whole.shape[-3:])


def pixels(processor, backend, frame):
    return FrameProcessor(processor, "me/model", backend).pixels(frame)


@pytest.mark.parametrize("name", VISUAL)
def test_the_halves_are_the_whole(name):
    for size in SIZES:
        split, found, whole = both(processor_of(name), frames(1, *size)[0])
        np.testing.assert_allclose(found.numpy(), whole, atol=2e-6)
    # ViViT's refuses to do half of its work; what waits for a model is small elsewhere.
    assert (split.scale is None) == (name == "vivit")
    assert split.pixels(frames(1)[0]).dtype == (np.float32 if name == "vivit" else np.uint8)


def test_processors_that_leave_something_out_are_split_too():
    for options in (
        {"do_normalize": False},
        {"do_rescale": False},
        {"do_rescale": False, "do_normalize": False},
        {"rescale_factor": 1 / 127.5, "image_mean": 0.5, "image_std": [0.2, 0.3, 0.4]},
    ):
        split, found, whole = both(images(**options), frames(1)[0])
        assert split.scale is not None
        np.testing.assert_allclose(found.numpy(), whole, rtol=1e-6, atol=1e-5)


class ChangedProcessor(hf.CLIPImageProcessorPil):
    """Does something of its own in the end."""

    def preprocess(self, *args, **options):
        found = super().preprocess(*args, **options)
        found["pixel_values"] = self.change(np.asarray(found["pixel_values"]), options)
        return found


def test_a_processor_that_does_more_is_used_as_a_whole_if_it_makes_pictures():
    processor = ChangedProcessor(**PIXELS)
    processor.change = lambda pixels, options: np.tanh(pixels) if options.get("do_normalize", True) else pixels
    split, found, whole = both(processor, frames(1)[0])
    assert split.scale is None and np.abs(whole).max() <= 1
    np.testing.assert_array_equal(found.numpy(), whole)
    with pytest.raises(ValueError, match="me/model: .* makes pictures of .* expected one size for all"):
        FrameProcessor(images(do_center_crop=False), "me/model")
    processor.change = lambda pixels, options: pixels.reshape(1, 16, -1)
    with pytest.raises(ValueError, match=r"me/model: ChangedProcessor makes \(1, 16, 192\) of a frame, expected \(3,"):
        FrameProcessor(processor, "me/model")


def test_stacks_of_frames_are_normalised_as_single_ones():
    split = FrameProcessor(processor_of("videomae"), "me/model")
    stack = np.stack([split.pixels(frame) for frame in frames(3)])
    found = split.normalized([stack, stack[::-1]], torch.device("cpu"), torch.bfloat16)
    assert found.shape == (2, 3, 3, 32, 32) and found.dtype == torch.bfloat16
    single = split.normalized([stack[2]], torch.device("cpu"), torch.bfloat16)[0]
    assert torch.equal(found[0, 2], single) and torch.equal(found[1, 0], single)


def test_several_threads_share_a_processor():
    split = FrameProcessor(processor_of("clip"), "me/model")
    pictures = [frames(1, 40 + 3 * number, 90 - 5 * number, seed=number)[0] for number in range(8)]
    expected = [split.pixels(picture) for picture in pictures]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(split.pixels, 20 * pictures))
    assert all(np.array_equal(one, other) for one, other in zip(found, 20 * expected, strict=True))


@pytest.mark.parametrize("name", VISUAL[:-1])
def test_torch_changes_few_pixels_and_by_one_level(name):
    processor = processor_of(name)
    differing = []
    for number, size in enumerate(SIZES):
        frame = frames(1, *size, seed=number)[0]
        exact, fast = (pixels(processor, backend, frame).astype(np.float64) for backend in IMAGE_BACKENDS)
        assert exact.shape == fast.shape and np.abs(exact - fast).max() <= 1
        differing.append((exact != fast).mean())
    # The larger pictures tell more: all others together have few pixels.
    assert 0 < max(differing) < 0.1 and differing[0] < 0.02
    assert "resize" not in vars(processor)


@pytest.mark.parametrize("resample", [Resampling.BILINEAR, Resampling.BICUBIC])
def test_torchvision_gives_the_same(resample):
    pytest.importorskip("torchvision", reason="torchvision is not in this environment")
    for size in SIZES:
        frame = frames(1, *size)[0]
        theirs = hf.CLIPImageProcessor(**PIXELS, resample=resample)
        theirs = theirs(frame, return_tensors="np", do_rescale=False, do_normalize=False)["pixel_values"][0]
        difference = np.abs(theirs.astype(np.int16) - pixels(images(resample=resample), "torchvision", frame))
        # torchvision resizes bilinearly in float where the CPU has AVX-512.
        assert difference.max() <= (resample == Resampling.BILINEAR) and (difference > 0).mean() < 0.02


MIRRORING = images()
MIRRORING.resize = lambda *args, **options: images().resize(*args, **options)[..., ::-1]


@pytest.mark.parametrize(
    ("processor", "backend", "message"),
    [
        (images(), "torch", "must be one of pil, torchvision, found 'torch'"),
        (images(), None, "must be one of pil, torchvision, found None"),
        (images(resample=Resampling.LANCZOS), "torchvision", r"by resample 2 \(bilinear\), 3 \(bicubic\), found 1"),
        (MIRRORING, "torchvision", "torchvision cannot resize as CLIPImageProcessorPil does"),
        (processor_of("vivit"), "torchvision", "torchvision cannot resize as VivitImageProcessor"),
    ],
)
def test_backends_that_cannot_be_used_are_refused(processor, backend, message):
    for kept, other in ((images(do_resize=False), "torchvision"), (images(), "pil")):
        assert FrameProcessor(kept, "me/model", other).image_processor is kept
    with pytest.raises(ValueError, match=f"me/model: image_backend .*{message}"):
        FrameProcessor(processor, "me/model", backend)


def test_frames_that_torch_resizes_otherwise_are_left_to_the_processor():
    """Very narrow ones differ by twenty levels in torch 2.13; one such clip must not end a run."""
    processor = hf.SiglipImageProcessorPil(resample=Resampling.BICUBIC)
    narrow = 255 * np.random.default_rng(1).integers(0, 2, (3000, 17, 3), dtype=np.uint8)
    exact, fast = (pixels(processor, backend, narrow) for backend in IMAGE_BACKENDS)
    assert np.abs(exact.astype(np.int16) - fast).max() <= 2


def test_features_are_nearly_the_same_and_say_how_they_were_made(checkpoint, clips):
    options = {"extraction": {"image_backend": "torchvision"}}
    [(features, times)] = encoded([clips[0].path], checkpoint("student"))
    [(others, other_times)] = encoded([clips[0].path], checkpoint("student"), **options)
    np.testing.assert_array_equal(times, other_times)
    np.testing.assert_allclose(features, others, atol=0.05)
    assert (features != others).any()
    assert load_encoder(checkpoint("student"), device="cpu", **options).source.options()["extraction"] == {
        "image_backend": "torchvision"
    }
