"""Speed of reading random crops of JPEGs, from bytes to normalised pixels, on one thread.

The baseline decodes the whole picture with Pillow, crops it, resizes it with the bicubic filter and normalises it in
the same way. Both sides get the same crops. Repetitions are interleaved, and medians reported.
"""

import io
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from measuring import interleaved, make_parser
from PIL import Image

from hf_blemo.pairs.images import Augmentation, Crop, normalized, open_image, read_crop

MEAN, STD = (0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758)


def make_photograph(generator: np.random.Generator, size: tuple[int, int]) -> bytes:
    """A JPEG of quality 90 with smooth noise of nine scales; finer scales are weaker, and channels mostly agree."""
    pixels = np.full((size[1], size[0], 3), 127.0)
    for octave in range(1, 10):
        wide = 2**octave + 1
        noise = generator.normal(0, 1, (max(2, wide * size[1] // size[0]), wide, 3))
        noise = 0.7 * noise.mean(-1, keepdims=True) + 0.5 * noise
        for channel in range(3):
            layer = Image.fromarray(noise[..., channel].astype(np.float32))
            pixels[..., channel] += 130 / 1.4**octave * np.asarray(layer.resize(size, Image.Resampling.BICUBIC))
    file = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def read_in_full(data: bytes, crop: Crop, size: int) -> np.ndarray:
    """The baseline."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    image = image.crop((crop.left, crop.top, crop.left + crop.width, crop.top + crop.height))
    return np.array(image.resize((size, size), Image.Resampling.BICUBIC))


def read_reduced(data: bytes, crop: Crop, size: int) -> np.ndarray:
    return read_crop(open_image(data), crop, size)


def bench_images(num_images: int, size: tuple[int, int], crop_size: int, rounds: int) -> None:
    generator = np.random.default_rng(0)
    photographs = [make_photograph(generator, size) for _ in range(num_images)]
    crops = [Augmentation().crop_of(size, generator) for _ in photographs]

    def read(side: Callable[[bytes, Crop, int], np.ndarray]) -> list[np.ndarray]:
        found = [side(data, crop, crop_size) for data, crop in zip(photographs, crops, strict=True)]
        normalized(found, MEAN, STD)
        return found

    times, found = interleaved({side: partial(read, side) for side in (read_reduced, read_in_full)}, rounds)
    ours, baseline = (num_images / seconds for seconds in times.values())
    pixels = [np.stack(rounds[-1]).astype(np.float64) for rounds in found.values()]
    print(
        f"{size[0]} x {size[1]} JPEGs of {sum(map(len, photographs)) / num_images / 1024:.0f} KiB to {crop_size} x "
        f"{crop_size}, one thread: {ours:.0f} images/s, full decode {baseline:.0f} images/s, "
        f"ratio {ours / baseline:.2f}; mean difference {np.abs(pixels[0] - pixels[1]).mean():.2f} of 255 levels",
        flush=True,
    )


if __name__ == "__main__":
    options = make_parser(
        __doc__,
        images=(32, "pictures per round"),
        width=(1024, "picture width in pixels"),
        height=(768, "picture height in pixels"),
        size=(224, "crop size in pixels"),
        rounds=(9, "repetitions of each side"),
    ).parse_args()
    torch.set_num_threads(1)
    bench_images(options.images, (options.width, options.height), options.size, options.rounds)
