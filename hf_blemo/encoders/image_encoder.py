"""Encoders that look at single frames: CLIP, its relatives and students, and any other image model of transformers."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from hf_blemo.encoders.encoder import EncoderSource, Piece
from hf_blemo.encoders.frame_encoder import FrameEncoder, FrameSession


class _ImageSession(FrameSession):
    """One piece per frame."""

    def add(self, time: float, pixels: np.ndarray) -> Iterator[Piece]:
        yield Piece(pixels, np.array([time]))


class ImageEncoder(FrameEncoder):
    """One row per frame: the pooled output of an image model, else the mean of its last hidden states.

    Args:
        model, processor, source, batch_size: see [`FrameEncoder`].
        has_pooler: whether the checkpoint has weights for the pooled output.

    Raises:
        ValueError: see [`FrameEncoder`]; or the model does not give one row per frame.
    """

    part_size = 8

    def __init__(
        self,
        model: nn.Module,
        processor: Any,
        source: EncoderSource,
        batch_size: int | None = None,
        has_pooler: bool = True,
    ):
        super().__init__(model, processor, source, batch_size)
        self.has_pooler = has_pooler
        if getattr(self.model.config, "mask_ratio", None):
            # Masked autoencoders mask a random part of a picture; features need all of it.
            self.model.config.mask_ratio = 0.0
        blank = Piece(self.frames.pixels(np.zeros((64, 64, 3), np.uint8)), np.zeros(1))
        found = self.forward([blank, blank])
        if found[0].ndim != 2 or len(found) != 2:
            shape = (len(found), *found[0].shape[1:])
            raise ValueError(f"{source.model_id}: gives features of shape {shape} for 2 frames, expected one row each")
        self.feature_size = found[0].shape[-1]

    def session(self) -> FrameSession:
        """Begins a clip."""
        return _ImageSession(self.frames, self.frames_per_second)

    @torch.inference_mode()
    def forward(self, pieces: Sequence[Piece]) -> list[np.ndarray]:
        """(1, D) of each frame."""
        rows = self.execute(pixel_values=self.pixels_of(pieces))
        return list(rows.float().cpu().numpy()[:, None])

    def network(self, **inputs: torch.Tensor) -> torch.Tensor:
        """(B, D) of `pixel_values` (B, 3, h, w)."""
        return self.rows_of(self._tower, _mean, **inputs) if self.rows_of else self._rows(**inputs)

    def examples(self) -> list[dict[str, torch.Tensor]]:
        """Two frames of noise."""
        return [{"pixel_values": self.noise(())}]

    @property
    def _tower(self) -> Any:
        """The network that has layers."""
        return self.model

    def _rows(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, D) of the network's output."""
        output = self.model(pixel_values=pixel_values)
        pooled = getattr(output, "pooler_output", None) if self.has_pooler else None
        return _mean(output.last_hidden_state) if pooled is None else pooled.flatten(1)


def _mean(hidden: torch.Tensor) -> torch.Tensor:
    """(B, D) of (B, tokens, D) of transformers or (B, D, h, w) of convolutional networks."""
    return hidden.mean(1) if hidden.dim() == 3 else hidden.flatten(2).mean(-1)


class ClipEncoder(ImageEncoder):
    """One row per frame: its embedding in the space that images and texts share, not normalised.

    Source: the CLIP features of the BlEmoRE baselines, one embedding per frame.
    """

    @property
    def _tower(self) -> Any:
        return self.model.vision_model

    def _rows(self, pixel_values: torch.Tensor) -> torch.Tensor:
        output = self.model.get_image_features(pixel_values=pixel_values)
        # transformers' own models return the tower's whole output, with the embeddings as the pooled one.
        return output if isinstance(output, torch.Tensor) else output.pooler_output
