"""The terms of the loss of CLIP-RD and their weights; importing them is light."""

import math
from collections.abc import Mapping
from difflib import get_close_matches

TERMS = ("task", "fd", "icl", "hrd", "vrd", "vrd_image", "vrd_text", "xrd")
CLIP_RD_WEIGHTS = {**dict.fromkeys(TERMS, 1.0), "fd": 2000.0}


def check_weights(weights: Mapping[str, float]) -> dict[str, float]:
    """The weight of every term of `TERMS`, zero by default; refuses unknown terms and weights below 0 or not
    finite."""
    for name, weight in weights.items():
        if name not in TERMS:
            nearest = get_close_matches(str(name), TERMS, 1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
            raise ValueError(f"weights: unknown term {name!r}, expected some of {', '.join(TERMS)}{hint}")
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"weights: {name} must be a finite number of at least 0, found {weight}")
    return {name: float(weights.get(name, 0.0)) for name in TERMS}
