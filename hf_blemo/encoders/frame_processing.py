"""Frames as a vision model's image processor makes them: resized while decoding goes on, normalised in batches."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from hf_blemo.encoders.torch_resizing import with_backend

# Options of `extraction` of encoders that look at frames.
VISUAL_DEFAULTS = {"frames_per_second": None, "image_backend": "pil"}

_TRIAL_SIZES = ((30, 41), (53, 36))
_TOLERANCE = 1e-5
# Containers round times to their tick, often a millisecond: a frame may lie a hair before the moment it stands for.
_TICK = 0.0005 + 1e-9


class FrameProcessor:
    """Splits an image processor's work in two: pixels of the model's size in uint8, and their scale.

    The first half is the slow one and runs where clips are decoded; the second is done for a batch at once, on the
    device. Where a processor cannot be split so, or the halves do not add up to it, it is used as a whole.

    Args:
        image_processor: of transformers' PIL backend.
        where: what to name in an error.
        backend: what resizes, `pil` or `torchvision`; see [`with_backend`].

    Raises:
        ValueError: the processor makes something else of a frame than a picture of one size, or the backend is unknown
            or resizes otherwise.

    Source: this project's choice.
    """

    def __init__(self, image_processor: Any, where: str, backend: str = "pil"):
        self.image_processor = with_backend(image_processor, backend, where)
        self.where = where
        self.scale: tuple[torch.Tensor, torch.Tensor] | None = self._split_scale()

    def pixels(self, frame: np.ndarray) -> np.ndarray:
        """The first half, or all of it.

        Args:
            frame: (H, W, 3) uint8.

        Returns:
            (3, h, w), uint8 where the work is split, else float32.
        """
        if self.scale is None:
            return self._processed(frame)
        return self._processed(frame, do_rescale=False, do_normalize=False).astype(np.uint8)

    def normalized(self, pixels: Sequence[np.ndarray], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        """The second half.

        Args:
            pixels: (..., 3, h, w) of any number of frames or stacks of frames, as `pixels` gave them.
            device: of the model.
            dtype: of the model.

        Returns:
            (B, ..., 3, h, w).
        """
        values = torch.from_numpy(np.stack(pixels)).to(device)
        if self.scale is not None:
            factor, offset = (part.to(device) for part in self.scale)
            values = values.float() * factor + offset
        return values.to(dtype)

    def _processed(self, frame: np.ndarray, **options: Any) -> np.ndarray:
        found = self.image_processor(images=[frame], return_tensors="np", input_data_format="channels_last", **options)
        values = np.asarray(found["pixel_values"])
        if values.ndim < 3 or values.shape[-3] != 3 or values.size != np.prod(values.shape[-3:]):
            raise ValueError(
                f"{self.where}: {type(self.image_processor).__name__} makes {values.shape} of a frame, expected "
                "(3, height, width)"
            )
        return values.reshape(values.shape[-3:])

    def _split_scale(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Factor and offset (3, 1, 1) that turn the first half into the whole, where there are such."""
        processor = self.image_processor
        factor = getattr(processor, "rescale_factor", 1.0) if getattr(processor, "do_rescale", False) else 1.0
        mean, std = np.zeros(3), np.ones(3)
        if getattr(processor, "do_normalize", False):
            mean = np.broadcast_to(np.asarray(processor.image_mean, np.float64), 3)
            std = np.broadcast_to(np.asarray(processor.image_std, np.float64), 3)
        self.scale = (
            torch.from_numpy(factor / std).float().view(3, 1, 1),
            torch.from_numpy(-mean / std).float().view(3, 1, 1),
        )
        generator = np.random.default_rng(0)
        frames = [generator.integers(0, 256, (*size, 3), dtype=np.uint8) for size in _TRIAL_SIZES]
        wholes = [self._processed(frame) for frame in frames]
        sizes = sorted({whole.shape[1:] for whole in wholes})
        if len(sizes) > 1:
            raise ValueError(
                f"{self.where}: {type(processor).__name__} makes pictures of {sizes[0]} and of {sizes[1]} pixels, "
                "expected one size for all"
            )
        for frame, whole in zip(frames, wholes, strict=True):
            try:
                raw = self._processed(frame, do_rescale=False, do_normalize=False)
            except (TypeError, ValueError):
                # ViViT's will not leave out one without the other.
                return None
            if raw.shape != whole.shape or (raw != raw.astype(np.uint8)).any():
                return None
            halves = self.normalized([self.pixels(frame)], torch.device("cpu"), torch.float32)[0].numpy()
            if np.abs(halves - whole).max() > _TOLERANCE * max(1.0, float(np.abs(whole).max())):
                return None
        return self.scale


class FrameSampler:
    """Which frames of a clip are looked at.

    Args:
        frames_per_second: for each k the first frame at or after k / `frames_per_second` seconds; None for all.
    """

    def __init__(self, frames_per_second: float | None):
        self.frames_per_second = frames_per_second
        self._next = 0

    def takes(self, time: float) -> bool:
        """Whether the frame at a time is one of them; times ascend."""
        if self.frames_per_second is None:
            return True
        position = (time + _TICK) * self.frames_per_second
        if position < self._next:
            return False
        self._next = int(position) + 1
        return True


def check_frames_per_second(value: Any, where: str) -> float | None:
    """A sampling rate as a number.

    Args:
        value: found in settings.
        where: what to name in an error.

    Raises:
        ValueError: it is neither None nor a positive number.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{where}: frames_per_second must be a positive number or null, found {value!r}")
    return float(value)
