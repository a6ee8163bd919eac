import threading

import numpy as np
import pytest
import torch
import transformers as hf
from tiny_encoders import MODELS, frames

from hf_blemo.encoders.frame_processing import FrameProcessor, FrameSampler, check_frames_per_second

VISUAL = ("clip", "student", "siglip", "vit", "resnet", "dinov2", "videomae", "timesformer", "vivit")
CROP = {"height": 32, "width": 32}


def processor_of(name):
    processor = MODELS[name]()[1]
    return getattr(processor, "image_processor", processor)


def both(processor, frame, dtype=torch.float32):
    """A frame by the two halves, and by the processor itself."""
    split = FrameProcessor(processor, "me/model")
    found = split.normalized([split.pixels(frame)], torch.device("cpu"), dtype)[0]
    whole = np.asarray(processor([frame], return_tensors="np")["pixel_values"])
    return split, found, whole.reshape(whole.shape[-3:])


@pytest.mark.parametrize("size", [(720, 1280), (97, 33), (32, 32), (5, 400)])
@pytest.mark.parametrize("name", VISUAL)
def test_the_halves_are_the_whole(name, size):
    split, found, whole = both(processor_of(name), frames(1, *size)[0])
    np.testing.assert_allclose(found.numpy(), whole, atol=2e-6)
    # ViViT's refuses to do half of its work.
    assert (split.scale is None) == (name == "vivit")


@pytest.mark.parametrize("name", VISUAL)
def test_what_waits_for_the_model_is_small_where_it_can_be(name):
    split = FrameProcessor(processor_of(name), "me/model")
    pixels = split.pixels(frames(1)[0])
    assert pixels.dtype == (np.float32 if name == "vivit" else np.uint8) and pixels.shape[0] == 3


@pytest.mark.parametrize(
    "options",
    [
        {"do_normalize": False},
        {"do_rescale": False},
        {"do_rescale": False, "do_normalize": False},
        {"rescale_factor": 1 / 127.5, "image_mean": 0.5, "image_std": [0.2, 0.3, 0.4]},
    ],
)
def test_processors_that_leave_something_out_are_split_too(options):
    processor = hf.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=CROP, **options)
    split, found, whole = both(processor, frames(1)[0])
    assert split.scale is not None
    np.testing.assert_allclose(found.numpy(), whole, rtol=1e-6, atol=1e-5)


class ContrastProcessor(hf.CLIPImageProcessorPil):
    """Does something of its own after it has normalised."""

    def preprocess(self, *args, **options):
        found = super().preprocess(*args, **options)
        if options.get("do_normalize", True):
            found["pixel_values"] = np.tanh(found["pixel_values"])
        return found


def test_a_processor_that_does_more_is_used_as_a_whole():
    processor = ContrastProcessor(size={"shortest_edge": 32}, crop_size=CROP)
    split, found, whole = both(processor, frames(1)[0])
    assert split.scale is None and np.abs(whole).max() <= 1
    np.testing.assert_array_equal(found.numpy(), whole)


class SequenceProcessor(hf.CLIPImageProcessorPil):
    """Gives rows of patches, as those of models of any size of picture do."""

    def preprocess(self, *args, **options):
        found = super().preprocess(*args, **options)
        found["pixel_values"] = np.reshape(found["pixel_values"], (1, 16, -1))
        return found


def test_a_processor_that_makes_no_pictures_is_refused():
    processor = SequenceProcessor(size={"shortest_edge": 32}, crop_size=CROP)
    with pytest.raises(
        ValueError, match=r"me/model: SequenceProcessor makes \(1, 16, 192\) of a frame, expected \(3,"
    ):
        FrameProcessor(processor, "me/model")


def test_stacks_of_frames_are_normalised_as_single_ones():
    split = FrameProcessor(processor_of("videomae"), "me/model")
    pixels = np.stack([split.pixels(frame) for frame in frames(3)])
    found = split.normalized([pixels, pixels[::-1]], torch.device("cpu"), torch.bfloat16)
    assert found.shape == (2, 3, 3, 32, 32) and found.dtype == torch.bfloat16
    single = split.normalized([pixels[2]], torch.device("cpu"), torch.bfloat16)[0]
    assert torch.equal(found[0, 2], single) and torch.equal(found[1, 0], single)


def test_several_threads_share_a_processor():
    split = FrameProcessor(processor_of("clip"), "me/model")
    pictures = [frames(1, 40 + 3 * number, 90 - 5 * number, seed=number)[0] for number in range(8)]
    expected = [split.pixels(picture) for picture in pictures]
    wrong = []

    def work():
        for _ in range(20):
            for picture, pixels in zip(pictures, expected, strict=True):
                if not np.array_equal(split.pixels(picture), pixels):
                    wrong.append(picture.shape)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def taken(rate, times):
    sampler = FrameSampler(rate)
    return [number for number, time in enumerate(times) if sampler.takes(time)]


def test_sampling():
    assert taken(None, [0.0, 0.1, 0.1]) == [0, 1, 2]
    assert taken(10, np.arange(25) / 25) == [0, 3, 5, 8, 10, 13, 15, 18, 20, 23]
    # A pause is not made up for.
    assert taken(10, [0.0, 0.05, 3.02, 3.05, 3.1, 3.15, 3.2]) == [0, 2, 4, 6]
    # The clip's first frame is not always at 0.
    assert taken(1, [0.9, 0.95, 1.0, 1.5, 2.0]) == [0, 2, 4]


@pytest.mark.parametrize("places", [3, 4, 6, 9])
@pytest.mark.parametrize("rate", [24, 25, 29.97, 30, 50, 60])
def test_rounded_times_lose_no_frame(rate, places):
    times = [round(number / rate, places) for number in range(2000)]
    assert taken(rate, times) == list(range(2000))
    assert taken(rate / 2, times) == list(range(0, 2000, 2))


@pytest.mark.parametrize("value", [0, -1, "5", True, float("nan"), float("inf"), [5]])
def test_a_rate_that_is_none_is_refused(value):
    with pytest.raises(ValueError, match="me/model: frames_per_second must be a positive number or null, found"):
        check_frames_per_second(value, "me/model")


def test_a_rate_is_a_number():
    assert check_frames_per_second(None, "me/model") is None
    assert isinstance(check_frames_per_second(5, "me/model"), float)
