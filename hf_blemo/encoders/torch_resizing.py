"""Resizing of frames by torch in the place of Pillow, several times as fast."""

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL.Image import Resampling

from hf_blemo.encoders.encoder_options import IMAGE_BACKENDS

_MODES = {Resampling.BILINEAR: "bilinear", Resampling.BICUBIC: "bicubic"}
# Levels of 255 by which the two may differ: each rounds to whole levels after each of its two directions.
_TOLERANCE = 2


def with_backend(image_processor: Any, backend: Any, where: str) -> Any:
    """An image processor that resizes as one of transformers' backends does.

    `torchvision` stands for the numbers of that backend; the package itself is not needed, as the resizing is torch's.

    Args:
        image_processor: of transformers' PIL backend; left as it is.
        backend: `pil` or `torchvision`.
        where: what to name in an error.

    Returns:
        The processor, or a copy.

    Raises:
        ValueError: there is no such backend, or the processor resizes by a filter that torch does not have, or in a
            way of its own.

    Source: this project's choice.
    """
    if backend not in IMAGE_BACKENDS:
        raise ValueError(f"{where}: image_backend must be one of {', '.join(IMAGE_BACKENDS)}, found {backend!r}")
    if backend == "pil" or not getattr(image_processor, "do_resize", False):
        return image_processor
    resample = getattr(image_processor, "resample", None)
    if resample is not None and resample not in _MODES:
        known = ", ".join(f"{filter.value} ({filter.name.lower()})" for filter in _MODES)
        raise ValueError(f"{where}: image_backend torchvision resizes by resample {known}, found {int(resample)}")
    changed = copy.copy(image_processor)
    changed.resize = resize = _TorchResize(image_processor)
    trial = np.random.default_rng(0).integers(0, 256, (30, 41, 3), dtype=np.uint8)
    changed(images=[trial], input_data_format="channels_last")
    if None in resize.sizes.values():
        name = type(image_processor).__name__
        raise ValueError(f"{where}: image_backend torchvision cannot resize as {name} does")
    return changed


class _TorchResize:
    """The method `resize` of an image processor.

    What frames of a size become is tried once, on noise: the processor's own method says to which size they go, and
    where torch makes something else of them, as of some very narrow ones, all of that size are left to that method.

    Args:
        image_processor: whose method it stands for.

    Attributes:
        sizes: shape of frames -> height and width that they become, None where they are left to the processor.
    """

    def __init__(self, image_processor: Any):
        self._image_processor = image_processor
        self.sizes: dict[tuple[int, ...], tuple[int, ...] | None] = {}

    def __call__(self, image: np.ndarray, size: Any, resample: Any = None, **options: Any) -> np.ndarray:
        """Resizes a frame (3, H, W) uint8 to (3, h, w)."""
        options |= {"size": size, "resample": resample}
        if image.shape not in self.sizes:
            self.sizes[image.shape] = self._tried(image.shape, options)
        found = self.sizes[image.shape]
        return self._image_processor.resize(image, **options) if found is None else _resized(image, found, resample)

    def _tried(self, shape: tuple[int, ...], options: Mapping[str, Any]) -> tuple[int, ...] | None:
        noise = 255 * np.random.default_rng(0).integers(0, 2, shape, dtype=np.uint8)
        exact = self._image_processor.resize(noise, **options)
        # ViViT's, for one, turns the axes.
        if exact.shape[0] != shape[0]:
            return None
        found = _resized(noise, exact.shape[1:], options["resample"])
        return exact.shape[1:] if np.abs(found.astype(np.int16) - exact).max() <= _TOLERANCE else None


def _resized(image: np.ndarray, size: tuple[int, ...], resample: Any) -> np.ndarray:
    mode = _MODES[Resampling.BILINEAR if resample is None else resample]
    frame = torch.from_numpy(image)[None]
    return torch.nn.functional.interpolate(frame, size=size, mode=mode, antialias=True)[0].numpy()
