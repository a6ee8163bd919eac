"""Resizing of frames by torch in the place of Pillow, several times as fast."""

import copy
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
        ValueError: there is no such backend, or the processor resizes by a filter that torch does not have.

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
    changed.resize = _TorchResize(image_processor, where)
    return changed


class _TorchResize:
    """The method `resize` of an image processor.

    The processor itself says once for each size of frames what size they become, as its own method resizes one.
    """

    def __init__(self, image_processor: Any, where: str):
        self._image_processor, self._where = image_processor, where
        self._sizes: dict[tuple[int, ...], tuple[int, ...]] = {}

    def __call__(self, image: np.ndarray, size: Any, resample: Any = None, **options: Any) -> np.ndarray:
        """Resizes a frame (3, H, W) uint8 to (3, h, w)."""
        known = self._sizes.get(image.shape)
        if known is None:
            expected = self._image_processor.resize(image=image, size=size, resample=resample, **options)
            # ViViT's, for one, turns the axes.
            is_alike = expected.shape[0] == len(image)
            if is_alike:
                found = self._resized(image, expected.shape[1:], resample)
                is_alike = np.abs(found.astype(np.int16) - expected).max() <= _TOLERANCE
            if not is_alike:
                name = type(self._image_processor).__name__
                raise ValueError(f"{self._where}: image_backend torchvision cannot resize as {name} does")
            self._sizes[image.shape] = known = expected.shape[1:]
        return self._resized(image, known, resample)

    @staticmethod
    def _resized(image: np.ndarray, size: tuple[int, ...], resample: Any) -> np.ndarray:
        mode = _MODES[Resampling.BILINEAR if resample is None else resample]
        frame = torch.from_numpy(image)[None]
        return torch.nn.functional.interpolate(frame, size=size, mode=mode, antialias=True)[0].numpy()
