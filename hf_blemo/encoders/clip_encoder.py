"""Encoders that look at single frames through a CLIP: CLIP itself, its relatives, and the students of CLIP-RD."""

from typing import Any

import torch
from torch import nn

from hf_blemo.encoders.encoder import EncoderSource, drop_text_side
from hf_blemo.encoders.image_encoder import ImageEncoder


class ClipEncoder(ImageEncoder):
    """One row per frame: its embedding in the space that images and texts share, not normalised.

    Only the image side is kept in memory.

    Args:
        model, processor, source, batch_size: as of [`ImageEncoder`].

    Source: the CLIP features of the BlEmoRE baselines, one embedding per frame.
    """

    def __init__(self, model: nn.Module, processor: Any, source: EncoderSource, batch_size: int | None = None):
        drop_text_side(model)
        super().__init__(model, processor, source, batch_size)

    def embed(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, projection_dim) of frames (B, 3, H, W)."""
        output = self.model.get_image_features(pixel_values=pixel_values)
        # transformers' own models return the tower's whole output, with the embeddings as the pooled one.
        return output if isinstance(output, torch.Tensor) else output.pooler_output
