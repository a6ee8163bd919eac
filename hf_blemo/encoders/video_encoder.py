"""Encoders that look at segments of frames: VideoMAE and any other video model of transformers."""

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from hf_blemo.encoders.encoder import EncoderSource, Piece
from hf_blemo.encoders.frame_encoder import FrameEncoder, FrameSession
from hf_blemo.encoders.frame_processing import FrameProcessor
from hf_blemo.errors import listed


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


# Processors of videos that treat every frame like VideoMAE's processor of images, and what they need to say of it.
_BY_FRAMES = ("VideoMAEVideoProcessor", "TimesformerVideoProcessor", "VJEPA2VideoProcessor")
_SIZES = ("size", "crop_size", "image_mean", "image_std")
_PIXEL_OPTIONS = (*_SIZES, "resample", "do_resize", "do_center_crop", "do_rescale", "rescale_factor", "do_normalize")


class FramesOfVideos:
    """Loads the processor of a newer video model as one of images: those of videos need torchvision."""

    @staticmethod
    def from_pretrained(model_id: str, **options: Any) -> Any:
        """Loads it.

        Args:
            model_id: a folder or Hub id with a `video_preprocessor_config.json`.
            options: of transformers.

        Returns:
            An image processor of transformers' PIL backend.

        Raises:
            ValueError: frames of this processor cannot be treated one by one, or it does not say how.
        """
        from transformers import VideoMAEImageProcessorPil

        name = "video_preprocessor_config.json"
        found, _ = VideoMAEImageProcessorPil.get_image_processor_dict(
            model_id, image_processor_filename=name, **options
        )
        kind = found.get("video_processor_type")
        if kind not in _BY_FRAMES:
            raise ValueError(f"{name}: found video_processor_type {kind!r}, expected {listed(_BY_FRAMES)}")
        for key in _SIZES:
            if not found.get(key):
                raise ValueError(f"{name}: found no {key}, expected {', '.join(_SIZES)}")
        return VideoMAEImageProcessorPil(**{key: found[key] for key in _PIXEL_OPTIONS if key in found})


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
        # V-JEPA 2 would go on to predict hidden states, which nobody reads.
        asks = "skip_predictor" in inspect.signature(self.model.forward).parameters
        self._given = {"skip_predictor": True} if asks else {}
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
        return self.rows_of(self.model, lambda hidden: hidden.mean(1), **inputs, **self._given)

    def examples(self) -> list[dict[str, torch.Tensor]]:
        """Two segments of noise."""
        return [{self.model.main_input_name: self.noise((self.length,))}]
