"""Training of the fusion: settings, cross-validation, ablations, results and plots."""

from typing import TYPE_CHECKING

from hf_blemo._registration import lazy_names

if TYPE_CHECKING:
    from hf_blemo.fusion_training.feature_store import fit_feature_statistics
    from hf_blemo.fusion_training.run import train_fusion
    from hf_blemo.fusion_training.settings import FusionSettings

__all__ = ["FusionSettings", "fit_feature_statistics", "train_fusion"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "FusionSettings": "hf_blemo.fusion_training.settings",
        "fit_feature_statistics": "hf_blemo.fusion_training.feature_store",
        "train_fusion": "hf_blemo.fusion_training.run",
    },
)
