"""Clips that decode to exactly what they were made of."""

import numpy as np
from clip_files import write_clip
from tiny_encoders import sound

FRAME_RATE = 25


def exact_sound(seconds, rate=16000, seed=0):
    """Samples that 16 bits hold exactly."""
    return (np.round(sound(seconds, rate, seed) * 32768) / 32768).astype(np.float32)


def write_exact(path, pictures, samples, rate=16000, **options):
    """Writes a clip that decodes to exactly what it was made of."""
    video, audio = ("ffv1" if len(pictures) else None), (None if samples is None else "pcm_s16le")
    options = {"frame_rate": FRAME_RATE, **options}
    given = np.zeros((1, 0), np.float32) if samples is None else samples[None]
    return str(write_clip(path, video, audio, list(pictures), sound=given, audio_rate=rate, **options))
