"""Tiny fusions of labels other than BlEmoRE's, saved with their processors."""

from pathlib import Path
from typing import Any

from tiny_models import shaken_fusion

from hf_blemo import RankAwareFusionModel, RankAwareFusionProcessor

# Seven classes, shares of five things that are no emotions, and blends of two and of three.
LABELS: dict[str, dict[str, Any]] = {
    "seven": {"id2label": dict(enumerate(["neutral", "calm", "happy", "sad", "angry", "afraid", "surprised"]))},
    "soft": {"id2label": dict(enumerate(["cat", "dog", "a bird", "fish", "horse"])), "label_kind": "soft"},
    "three": {
        "id2label": dict(enumerate(["joy", "awe", "envy", "calm"])),
        "blend_percents": [[60, 40], [40, 60], [40, 30, 30]],
        "unblended": ["calm"],
    },
}


def make_labelled(name: str, seed: int = 0, **options: Any) -> tuple[RankAwareFusionModel, RankAwareFusionProcessor]:
    """A fusion of one of `LABELS` that predicts different labels of different clips."""
    return shaken_fusion(0.4, seed, **LABELS[name], **options)


def save_labelled(name: str, folder: Path, seed: int = 0, **options: Any) -> Path:
    """Saves a fusion of one of `LABELS`; returns the folder."""
    for part in make_labelled(name, seed, **options):
        part.save_pretrained(folder)
    return folder
