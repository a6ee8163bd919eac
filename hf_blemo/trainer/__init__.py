"""Parts for training with transformers' Trainer: collators, metrics, callbacks, adapters and publishing."""

from .adapters import linear_probe, lora_config
from .added_encoder import add_encoder
from .callbacks import DistillationCallback
from .collators import BlendCollator, PairCollator, pair_columns
from .metrics import blemore_metrics, fusion_metrics
from .publishing_trainer import ModelCodeCallback, PublishingTrainer

__all__ = [
    "BlendCollator",
    "DistillationCallback",
    "ModelCodeCallback",
    "PairCollator",
    "PublishingTrainer",
    "add_encoder",
    "blemore_metrics",
    "fusion_metrics",
    "linear_probe",
    "lora_config",
    "pair_columns",
]
