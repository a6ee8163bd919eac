"""Encoders that look at segments of frames: VideoMAE and any other video model of transformers."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from hf_blemo.encoders.encoder import EncoderSource, Piece
from hf_blemo.encoders.frame_encoder import FrameEncoder, FrameSession
from hf_blemo.encoders.frame_processing import FrameProcessor


class _SegmentSession(FrameSession):
    """Segments that follow each other without overlap; copies of the last frame fill up the last one."""

    def __init__(self, frames: FrameProcessor, frames_per_second: float | None, length: int):
        super().__init__(frames, frames_per_second)
        self._length = length
        self._pixels: list[np.ndarray] = []
        self._start = 0.0

    def add(self, time: float, pixels: np.ndarray) -> Iterator[Piece]:
        if not self._pixels:
            self._start = time
        self._pixels.append(pixels)
        if len(self._pixels) == self._length:
            yield self._segment()

    def finish(self) -> Iterator[Piece]:
        if self._pixels:
            self._pixels += [self._pixels[-1]] * (self._length - len(self._pixels))
            yield self._segment()

    def _segment(self) -> Piece:
        values, self._pixels = np.stack(self._pixels), []
        return Piece(values, np.array([self._start]))


class VideoEncoder(FrameEncoder):
    """One row per segment of as many frames as the model takes (VideoMAE: 16): the mean of its last hidden states.

    Args:
        model, processor, source, batch_size: see [`FrameEncoder`].

    Source: the VideoMAE features of the BlEmoRE baselines, one vector per 16 frames.
    """

    default_batch_size = 4
    part_size = 1

    def __init__(self, model: nn.Module, processor: Any, source: EncoderSource, batch_size: int | None = None):
        super().__init__(model, processor, source, batch_size)
        self.length = self.segment_length(self.model.config)
        self.feature_size = int(self.model.config.hidden_size)
        if self.rows_of:
            blank = self.frames.pixels(np.zeros((64, 64, 3), np.uint8))
            self.feature_size = self.forward([Piece(np.stack([blank] * self.length), np.zeros(1))])[0].shape[-1]

    @staticmethod
    def segment_length(config: Any) -> int:
        """Frames per segment that the model of a config takes; 0 for one that takes single images."""
        names = ("num_frames", "frames_per_clip")
        return next((int(found) for name in names if (found := getattr(config, name, None))), 0)

    def session(self) -> FrameSession:
        """Begins a clip."""
        return _SegmentSession(self.frames, self.frames_per_second, self.length)

    @torch.inference_mode()
    def forward(self, pieces: Sequence[Piece]) -> list[np.ndarray]:
        """(1, D) of each segment."""
        rows = self.execute(**{self.model.main_input_name: self.pixels_of(pieces)})
        return list(rows.float().cpu().numpy()[:, None])

    def network(self, **inputs: torch.Tensor) -> torch.Tensor:
        """(B, D) of segments (B, T, 3, h, w)."""
        return self.rows_of(self.model, lambda hidden: hidden.mean(1), **inputs)

    def examples(self) -> list[dict[str, torch.Tensor]]:
        """Two segments of noise."""
        return [{self.model.main_input_name: self.noise((self.length,))}]
