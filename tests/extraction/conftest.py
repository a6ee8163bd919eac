"""The tiny checkpoints and clips without loss that the tests here share."""

from known_clips import checkpoint, clips
from tiny_extraction import clip_folder, entries

__all__ = ["checkpoint", "clip_folder", "clips", "entries"]
