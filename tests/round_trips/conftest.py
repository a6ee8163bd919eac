"""Tiny clips, their encoders and a fusion of them, which the tests here share."""

from tiny_extraction import clip_folder, entries, member, paths

__all__ = ["clip_folder", "paths", "entries", "member"]
