"""Networks as encoders of clips, one file per kind."""

from typing import TYPE_CHECKING

from hf_blemo._registration import lazy_names

if TYPE_CHECKING:
    from hf_blemo.encoders.encoder import EncodedClip, Encoder, EncoderSource
    from hf_blemo.encoders.loading import load_encoder, load_encoders

__all__ = ["EncodedClip", "Encoder", "EncoderSource", "load_encoder", "load_encoders"]

_DEFINERS = {"encoder": ("EncodedClip", "Encoder", "EncoderSource"), "loading": ("load_encoder", "load_encoders")}
__getattr__, __dir__ = lazy_names(
    __name__, {name: f"{__name__}.{module}" for module, names in _DEFINERS.items() for name in names}
)
