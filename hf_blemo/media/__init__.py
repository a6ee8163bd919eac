"""Clips as frames and sound."""

from hf_blemo.media.audio import Audio
from hf_blemo.media.decoding import Frame
from hf_blemo.media.media import MEDIA_SUFFIXES, MediaFile, Thumbnails, is_media
from hf_blemo.media.sources import MediaError, is_address

__all__ = [
    "MEDIA_SUFFIXES",
    "Audio",
    "Frame",
    "MediaError",
    "MediaFile",
    "Thumbnails",
    "is_address",
    "is_media",
]
