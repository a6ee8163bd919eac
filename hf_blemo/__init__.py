"""Rank-aware fusion for blended emotions or any other labels, its benchmark BlEmoRE, and small CLIPs by CLIP-RD.

Importing the package is light: the names below load on first use, and the model families are registered with
transformers' auto classes when those are imported, whether before or after this package.
"""

from typing import TYPE_CHECKING

from hf_blemo._registration import AutoClassRegistrar, __version__, lazy_names

if TYPE_CHECKING:
    from hf_blemo import blemore, feature_sets
    from hf_blemo.clip_rd.configuration_clip_rd import CLIPRDConfig
    from hf_blemo.clip_rd.distillation_clip_rd import CLIPRDDistiller, cached_backward
    from hf_blemo.clip_rd.losses_clip_rd import CLIPRDLoss
    from hf_blemo.clip_rd.modeling_clip_rd import CLIPRDModel
    from hf_blemo.prediction.clip_pipeline import BlendedEmotionRecognitionPipeline
    from hf_blemo.rank_aware_fusion.configuration_rank_aware_fusion import RankAwareFusionConfig
    from hf_blemo.rank_aware_fusion.modeling_rank_aware_fusion import RankAwareFusionModel
    from hf_blemo.rank_aware_fusion.processing_rank_aware_fusion import RankAwareFusionProcessor

__all__ = [
    "BlendedEmotionRecognitionPipeline",
    "CLIPRDConfig",
    "CLIPRDDistiller",
    "CLIPRDLoss",
    "CLIPRDModel",
    "RankAwareFusionConfig",
    "RankAwareFusionModel",
    "RankAwareFusionProcessor",
    "__version__",
    "blemore",
    "cached_backward",
    "feature_sets",
]

# Where each public class or function is defined.
_CLASSES = {
    "BlendedEmotionRecognitionPipeline": "hf_blemo.prediction.clip_pipeline",
    "CLIPRDConfig": "hf_blemo.clip_rd.configuration_clip_rd",
    "CLIPRDDistiller": "hf_blemo.clip_rd.distillation_clip_rd",
    "CLIPRDLoss": "hf_blemo.clip_rd.losses_clip_rd",
    "CLIPRDModel": "hf_blemo.clip_rd.modeling_clip_rd",
    "RankAwareFusionConfig": "hf_blemo.rank_aware_fusion.configuration_rank_aware_fusion",
    "RankAwareFusionModel": "hf_blemo.rank_aware_fusion.modeling_rank_aware_fusion",
    "RankAwareFusionProcessor": "hf_blemo.rank_aware_fusion.processing_rank_aware_fusion",
    "cached_backward": "hf_blemo.clip_rd.distillation_clip_rd",
}

# model_type -> auto class -> the family's class registered with it.
_FAMILIES = {
    "rank_aware_fusion": {
        "AutoConfig": "RankAwareFusionConfig",
        "AutoModel": "RankAwareFusionModel",
        "AutoProcessor": "RankAwareFusionProcessor",
    },
    "clip_rd": {
        "AutoConfig": "CLIPRDConfig",
        "AutoModel": "CLIPRDModel",
        "AutoModelForZeroShotImageClassification": "CLIPRDModel",
    },
}

# task -> the class of its pipeline.
_PIPELINES = {"blended-emotion-recognition": "BlendedEmotionRecognitionPipeline"}
# The pipeline for features only, which travels to the Hub with the models.
_PIPELINE_BASES = {"BlendedEmotionRecognitionPipeline": "hf_blemo.rank_aware_fusion.pipeline_rank_aware_fusion"}

_ROOMS = {"blemore": "hf_blemo.blemore", "feature_sets": "hf_blemo.feature_sets"}

__getattr__, __dir__ = lazy_names(__name__, {**_CLASSES, **_ROOMS})

AutoClassRegistrar(_FAMILIES, _CLASSES, pipelines=_PIPELINES, bases=_PIPELINE_BASES).install()
