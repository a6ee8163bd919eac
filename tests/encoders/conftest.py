"""The tiny checkpoints and clips without loss that the tests here share."""

from known_clips import checkpoint, clips, clips_48k, direct

__all__ = ["checkpoint", "clips", "clips_48k", "direct"]
