"""Shared by all encoders of frames: the choice of frames, and their pixels."""

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from hf_blemo.encoders.encoder import Encoder, EncoderSource, Piece, Session
from hf_blemo.encoders.face_cropping import CROP_DEFAULTS, face_crop
from hf_blemo.encoders.frame_processing import FrameProcessor

# Containers round times to their tick, often a millisecond, so a frame may be marked slightly too early.
_TICK = 0.0005 + 1e-9


class FrameSession(Session):
    """Resizes the frames of one clip that the encoder looks at, while the clip is decoded.

    Args:
        frames: processor of the encoder.
        frames_per_second: for each k, take the first frame at or after k / `frames_per_second` seconds; None takes
            all.
    """

    def __init__(self, frames: FrameProcessor, frames_per_second: float | None):
        self.frames, self.frames_per_second = frames, frames_per_second
        self._next = 0

    def push(self, item: Any) -> Iterator[Piece]:
        """Takes a frame; times ascend."""
        if self.frames_per_second is not None:
            position = (item.time + _TICK) * self.frames_per_second
            if position < self._next:
                return
            self._next = int(position) + 1
        yield from self.add(item.time, self.frames.pixels(item.image))

    @abstractmethod
    def add(self, time: float, pixels: np.ndarray) -> Iterator[Piece]:
        """Takes the pixels (3, h, w) of a frame and returns the pieces that are complete now."""


class FrameEncoder(Encoder):
    """An encoder that looks at frames or at the faces in them, one by one or in segments.

    Args:
        model, processor, source, batch_size: see [`Encoder`]; the processor is an image processor.

    Raises:
        ValueError: the processor does not make pictures of one size, or an option has an invalid value.
        FileNotFoundError, MissingExtraError: the detector of faces, or OpenCV, is missing.
    """

    modality = "video"
    extraction_defaults = {
        "frames_per_second": None,
        "image_backend": "pil",
        **Encoder.extraction_defaults,
        **CROP_DEFAULTS,
    }

    def __init__(self, model: nn.Module, processor: Any, source: EncoderSource, batch_size: int | None = None):
        source = replace(source, extraction=dict(source.extraction))
        super().__init__(model, processor, source, batch_size)
        self.face_crop = face_crop(source.extraction, source.model_id)
        options = self.extraction_defaults | source.extraction
        self.frames = FrameProcessor(processor, source.model_id, options["image_backend"])
        self.frames_per_second = rate = options["frames_per_second"]
        is_number = isinstance(rate, int | float) and not isinstance(rate, bool)
        if rate is not None and not (is_number and 0 < rate < math.inf):
            raise ValueError(f"{source.model_id}: frames_per_second must be a positive number or null, found {rate!r}")

    def pixels_of(self, pieces: Sequence[Piece]) -> torch.Tensor:
        """(B, ..., 3, h, w) of some pieces, normalised, on the model's device."""
        return self.frames.normalized([piece.values for piece in pieces], self.device, self.model.dtype)

    def noise(self, stack: tuple[int, ...]) -> torch.Tensor:
        """(2, *stack, 3, h, w) of two pieces of noise, as `pixels_of` gives them."""
        frame = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        pixels = [self.frames.pixels(side) for side in (frame, frame[::-1].copy())]
        pieces = [Piece(np.broadcast_to(side, (*stack, *side.shape)), np.zeros(1)) for side in pixels]
        return self.pixels_of(pieces)
