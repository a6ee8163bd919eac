"""Runs a vision model's image processor in two steps: resizes while decoding, normalises in batches."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL.Image import Resampling

from hf_blemo.encoders.encoder_options import IMAGE_BACKENDS

_TRIAL_SIZES = ((30, 41), (53, 36))
_TOLERANCE = 1e-5
_TORCH_MODES = {Resampling.BILINEAR: "bilinear", Resampling.BICUBIC: "bicubic"}
# Levels of 255 by which torch and Pillow may differ: each rounds to whole levels after each of its two directions.
_TORCH_TOLERANCE = 2


class FrameProcessor:
    """Splits the work of an image processor in two: uint8 pixels of the model's size, and their scale.

    The first half is the slow one and runs while clips are decoded; the second runs once per batch, on the device. A
    processor that cannot be split exactly is used as a whole.

    Args:
        image_processor: an image processor of transformers' PIL backend; not changed.
        where: name of the model in errors.
        backend: resize like this backend of transformers, `pil` or `torchvision`. torchvision itself is not needed:
            torch gives its numbers, several times as fast as Pillow.

    Raises:
        ValueError: the processor's pictures differ in size, the backend is unknown, or torch cannot resize as the
            processor does.
    """

    def __init__(self, image_processor: Any, where: str, backend: str = "pil"):
        self.image_processor = _with_backend(image_processor, backend, where)
        self.where = where
        self.scale: tuple[torch.Tensor, torch.Tensor] | None = self._split_scale()

    def pixels(self, frame: np.ndarray) -> np.ndarray:
        """Runs the first half on a frame (H, W, 3) uint8, or all of a processor that is not split: (3, h, w), uint8
        or float32."""
        if self.scale is None:
            return self._processed(frame)
        return self._processed(frame, do_rescale=False, do_normalize=False).astype(np.uint8)

    def normalized(self, pixels: Sequence[np.ndarray], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        """Runs the second half: (..., 3, h, w) of B frames or stacks of frames, from `pixels` -> (B, ..., 3, h, w)."""
        values = torch.from_numpy(np.stack(pixels))
        if device.type == "cuda":
            # From pinned memory, the copy runs beside the network.
            values = values.pin_memory()
        values = values.to(device, non_blocking=True)
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
        """Factor and offset (3, 1, 1) that complete the first half; None if the processor cannot be split."""
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
                # ViViT's processor refuses to skip only one of the two.
                return None
            if raw.shape != whole.shape or (raw != raw.astype(np.uint8)).any():
                return None
            halves = self.normalized([self.pixels(frame)], torch.device("cpu"), torch.float32)[0].numpy()
            if np.abs(halves - whole).max() > _TOLERANCE * max(1.0, float(np.abs(whole).max())):
                return None
        return self.scale


def _with_backend(image_processor: Any, backend: Any, where: str) -> Any:
    """The image processor, or a copy that resizes with torch."""
    if backend not in IMAGE_BACKENDS:
        raise ValueError(f"{where}: image_backend must be one of {', '.join(IMAGE_BACKENDS)}, found {backend!r}")
    if backend == "pil" or not getattr(image_processor, "do_resize", False):
        return image_processor
    resample = getattr(image_processor, "resample", None)
    if resample is not None and resample not in _TORCH_MODES:
        known = ", ".join(f"{filter.value} ({filter.name.lower()})" for filter in _TORCH_MODES)
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
    """Replaces the method `resize` of an image processor.

    For each new frame size, noise is resized by both: the processor's own method gives the size to resize to. Where
    torch gives other pixels, as for some very narrow frames, that method resizes all frames of that size.
    """

    def __init__(self, image_processor: Any):
        self._image_processor = image_processor
        # Shape of frames -> height and width to resize to, None where they are left to the processor.
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
        # Some processors, such as ViViT's, turn the axes.
        if exact.shape[0] != shape[0]:
            return None
        found = _resized(noise, exact.shape[1:], options["resample"])
        return exact.shape[1:] if np.abs(found.astype(np.int16) - exact).max() <= _TORCH_TOLERANCE else None


def _resized(image: np.ndarray, size: tuple[int, ...], resample: Any) -> np.ndarray:
    mode = _TORCH_MODES[Resampling.BILINEAR if resample is None else resample]
    frame = torch.from_numpy(image)[None]
    return torch.nn.functional.interpolate(frame, size=size, mode=mode, antialias=True)[0].numpy()
