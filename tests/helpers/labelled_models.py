"""Tiny fusions of labels other than BlEmoRE's, saved with their processors."""

from pathlib import Path
from typing import Any

import torch
from tiny_models import ENCODERS

from hf_blemo import RankAwareFusionConfig, RankAwareFusionModel, RankAwareFusionProcessor

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
    torch.manual_seed(seed)
    config = RankAwareFusionConfig(encoders=ENCODERS, top_n=2, hidden_size=8, **LABELS[name], **options)
    model = RankAwareFusionModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
    return model.eval(), RankAwareFusionProcessor.from_config(config)


def save_labelled(name: str, folder: Path, seed: int = 0, **options: Any) -> Path:
    """Saves a fusion of one of `LABELS`; returns the folder."""
    for part in make_labelled(name, seed, **options):
        part.save_pretrained(folder)
    return folder
