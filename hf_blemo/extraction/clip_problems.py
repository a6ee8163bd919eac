"""Whether the features of a clip can be used."""

import numpy as np

from hf_blemo.extraction.extraction import ClipFeatures


def problem_of(clip: ClipFeatures) -> str | None:
    """Why the features of a clip are of no use, in a line that names it; None where they are.

    Args:
        clip: as of [`encode_clips`].
    """
    if clip.error is not None:
        line = " ".join(str(clip.error).split()) or type(clip.error).__name__
        return line if clip.name in line else f"{clip.name}: {line}"
    for name, values in clip.features.items():
        if not np.isfinite(values).all():
            return f"{clip.name}: encoder {name!r} gave NaN or infinity, expected finite features; try dtype float32"
    return None
