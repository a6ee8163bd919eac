"""Encoders that look at single frames: any image model of transformers."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from hf_blemo.encoders.encoder import Encoder, EncoderSource, Piece, Session
from hf_blemo.encoders.frame_processing import VISUAL_DEFAULTS, FrameProcessor, FrameSampler, check_frames_per_second


class FrameSession(Session):
    """One piece per frame.

    Args:
        frames: the encoder's processor.
        sampler: of this clip.
    """

    def __init__(self, frames: FrameProcessor, sampler: FrameSampler):
        self.frames, self.sampler = frames, sampler

    def push(self, item: Any) -> Iterator[Piece]:
        """A frame."""
        if self.sampler.takes(item.time):
            yield Piece(self.frames.pixels(item.image), np.array([item.time]))


class ImageEncoder(Encoder):
    """One row per frame, as an image model sees it: its pooled output, else the mean of its last hidden states.

    Args:
        model, processor, source, batch_size: as of [`Encoder`]; the processor is one of images.
        has_pooler: whether the pooled output comes from weights of the checkpoint.

    Raises:
        ValueError: the processor makes something else than pictures of one size, the model something else than a row
            of each, or an option has another value.

    Source: this project's choice.
    """

    modality = "video"
    part_size = 8
    extraction_defaults = VISUAL_DEFAULTS

    def __init__(
        self,
        model: nn.Module,
        processor: Any,
        source: EncoderSource,
        batch_size: int | None = None,
        has_pooler: bool = True,
    ):
        super().__init__(model, processor, source, batch_size)
        backend = source.extraction.get("image_backend", "pil")
        self.frames = FrameProcessor(processor, source.model_id, backend)
        self.has_pooler = has_pooler
        rate = source.extraction.get("frames_per_second")
        self.frames_per_second = check_frames_per_second(rate, source.model_id)
        if getattr(self.model.config, "mask_ratio", None):
            # Masked autoencoders hide a random part of a picture from themselves; for features they see all of it.
            self.model.config.mask_ratio = 0.0
        blank = Piece(self.frames.pixels(np.zeros((64, 64, 3), np.uint8)), np.zeros(1))
        found = self.forward([blank, blank])
        if found[0].ndim != 2 or len(found) != 2:
            shape = (len(found), *found[0].shape[1:])
            raise ValueError(f"{source.model_id}: gives features of shape {shape} for 2 frames, expected one row each")
        self.feature_size = found[0].shape[-1]

    def session(self) -> FrameSession:
        """Begins a clip."""
        return FrameSession(self.frames, FrameSampler(self.frames_per_second))

    @torch.inference_mode()
    def forward(self, pieces: Sequence[Piece]) -> list[np.ndarray]:
        """(1, D) of each frame."""
        pixels = self.frames.normalized([piece.values for piece in pieces], self.device, self.model.dtype)
        return list(self.embed(pixels).float().cpu().numpy()[:, None])

    def embed(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, D) of frames (B, 3, H, W)."""
        output = self.model(pixel_values=pixel_values)
        pooled = getattr(output, "pooler_output", None) if self.has_pooler else None
        if pooled is not None:
            return pooled.flatten(1)
        hidden = output.last_hidden_state
        # (B, tokens, D) of transformers, (B, D, h, w) of convolutional networks.
        return hidden.mean(1) if hidden.dim() == 3 else hidden.flatten(2).mean(-1)
