"""Reads pairs as pixels and a caption, reproducibly on any process and at any time."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from hf_blemo.pairs.images import Augmentation, BrokenImageError, Crop, content_id, open_image, oriented_size, to_rgb
from hf_blemo.pairs.pair_processor import PairProcessor


class BrokenPairError(ValueError):
    """A pair that cannot be read; the message says why and where it is."""


class ReadPair(NamedTuple):
    """Pixels, caption and crop of a pair.

    Args:
        pixels: (H, W, 3) uint8 of the crop, one per processor; without augmentation only the RGB image.
        caption: one of the pair's; empty where the source is of pictures alone.
        crop: of the image; None without augmentation.
        image_id: number that equal pictures share.
    """

    pixels: list[Any]
    caption: str
    crop: Crop | None
    image_id: int


class PairReader:
    """Reads pairs for one or more models, which all see the same crop of the same picture.

    Crop and caption depend only on the augmentation's seed, the pair and the number of its visit, so that students
    can read again the pixels and captions that a teacher embedded.

    Args:
        processors: of the models.
        augmentation: settings of the crop; empty for the image processors' own rule.
        decode_size: least side at which the crop of a JPEG is decoded; the largest model's by default.
        variants: different visits of a pair, 0 for any number; those of the augmentation by default.
    """

    def __init__(
        self,
        processors: Sequence[PairProcessor],
        augmentation: Mapping[str, Any],
        decode_size: int | None = None,
        variants: int | None = None,
    ):
        self.processors = list(processors)
        given = dict(augmentation)
        own, self.seed = given.pop("variants", 0), given.pop("seed", 0)
        self.variants = own if variants is None else variants
        self.augmentation: Augmentation | None = None
        self.decode_size = decode_size
        if augmentation:
            self.augmentation = Augmentation(**given)
            self.decode_size = decode_size or max(max(processor.image_size) for processor in self.processors)

    def read(self, pair: Mapping[str, Any], source: int) -> ReadPair:
        """Reads a pair of the source of a number, or raises [`BrokenPairError`].

        A pair has `image`, `caption` (but of pictures alone), `key` (numbers that identify it within its source),
        `visit` (how often it was read before) and `where` (for messages).
        """
        variant = pair["visit"] % self.variants if self.variants else pair["visit"]
        generator = np.random.default_rng([self.seed, source, *pair["key"], variant])
        # A picture alone has none.
        caption = pair.get("caption", "")
        if isinstance(caption, list | tuple) and caption:
            caption = caption[generator.integers(len(caption))]
        if "caption" in pair and (not isinstance(caption, str) or not caption.strip()):
            raise BrokenPairError(f"{pair['where']}: found the caption {caption!r}, expected text")
        try:
            image = open_image(pair["image"])
            image_id = content_id(image)
            if self.augmentation is None:
                return ReadPair([to_rgb(image)], caption, None, image_id)
            crop = self.augmentation.crop_of(oriented_size(image), generator)
            pixels = [processor.cropped(image, crop, self.decode_size) for processor in self.processors]
        except BrokenImageError as error:
            raise BrokenPairError(f"{pair['where']}: {error}") from None
        return ReadPair(pixels, caption, crop, image_id)

    def stacked(self, pairs: Sequence[ReadPair], number: int) -> torch.Tensor:
        """Returns the images of pairs as one of the models takes them, (n, 3, H, W) float32."""
        processor = self.processors[number]
        if self.augmentation is None:
            return processor.images([pair.pixels[0] for pair in pairs])
        return processor.normalized([pair.pixels[number] for pair in pairs])
