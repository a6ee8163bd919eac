"""Encoders that look at segments of frames: VideoMAE and any other video model of transformers."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from hf_blemo.encoders.encoder import Encoder, EncoderSource, Piece, Session
from hf_blemo.encoders.frame_processing import VISUAL_DEFAULTS, FrameProcessor, FrameSampler, check_frames_per_second

# What configs call the length of a segment.
LENGTHS = ("num_frames", "frames_per_clip")


class SegmentSession(Session):
    """Segments that follow each other without overlap; the last one is filled up with its last frame.

    Args:
        frames: the encoder's processor.
        sampler: of this clip.
        length: frames of a segment.
    """

    def __init__(self, frames: FrameProcessor, sampler: FrameSampler, length: int):
        self.frames, self.sampler, self.length = frames, sampler, length
        self._pixels: list[np.ndarray] = []
        self._start = 0.0

    def push(self, item: Any) -> Iterator[Piece]:
        """A frame."""
        if not self.sampler.takes(item.time):
            return
        if not self._pixels:
            self._start = item.time
        self._pixels.append(self.frames.pixels(item.image))
        if len(self._pixels) == self.length:
            yield self._segment()

    def finish(self) -> Iterator[Piece]:
        """The last segment."""
        if self._pixels:
            self._pixels += [self._pixels[-1]] * (self.length - len(self._pixels))
            yield self._segment()

    def _segment(self) -> Piece:
        values, self._pixels = np.stack(self._pixels), []
        return Piece(values, np.array([self._start]))


class VideoEncoder(Encoder):
    """One row per segment of as many frames as the model takes (16 of VideoMAE): the mean of its last hidden states.

    Args:
        model, processor, source, batch_size: as of [`Encoder`]; the processor is one of images.

    Raises:
        ValueError: the processor makes something else than pictures of one size, or an option has another value.

    Source: the VideoMAE features of the BlEmoRE baselines, one vector per 16 frames.
    """

    modality = "video"
    default_batch_size = 4
    part_size = 1
    extraction_defaults = VISUAL_DEFAULTS

    def __init__(self, model: nn.Module, processor: Any, source: EncoderSource, batch_size: int | None = None):
        super().__init__(model, processor, source, batch_size)
        backend = source.extraction.get("image_backend", "pil")
        self.frames = FrameProcessor(processor, source.model_id, backend)
        rate = source.extraction.get("frames_per_second")
        self.frames_per_second = check_frames_per_second(rate, source.model_id)
        self.length = segment_length(self.model.config)
        self.feature_size = int(self.model.config.hidden_size)

    def session(self) -> SegmentSession:
        """Begins a clip."""
        return SegmentSession(self.frames, FrameSampler(self.frames_per_second), self.length)

    @torch.inference_mode()
    def forward(self, pieces: Sequence[Piece]) -> list[np.ndarray]:
        """(1, D) of each segment."""
        pixels = self.frames.normalized([piece.values for piece in pieces], self.device, self.model.dtype)
        output = self.model(**{self.model.main_input_name: pixels})
        return list(output.last_hidden_state.mean(1, keepdim=True).float().cpu().numpy())


def segment_length(config: Any) -> int:
    """Frames of a segment that a video model takes; 0 for a model that takes none.

    Args:
        config: of the model.
    """
    return next((int(getattr(config, name)) for name in LENGTHS if getattr(config, name, None)), 0)
