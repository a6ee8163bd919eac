"""Image-text pairs: sources, images, processors, stored teacher embeddings and CLIP-like models."""

from typing import TYPE_CHECKING

from hf_blemo._registration import lazy_names

if TYPE_CHECKING:
    from hf_blemo.pairs.clip_models import load_clip
    from hf_blemo.pairs.pair_processor import PairProcessor

__all__ = ["PairProcessor", "load_clip"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {"PairProcessor": "hf_blemo.pairs.pair_processor", "load_clip": "hf_blemo.pairs.clip_models"},
)
