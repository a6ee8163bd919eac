"""Tiny clips and their encoders, which the tests here share."""

from tiny_extraction import clip_folder, entries

__all__ = ["clip_folder", "entries"]
