"""Networks as encoders of clips, one file per kind."""

from typing import TYPE_CHECKING

from hf_blemo._registration import lazy_names

if TYPE_CHECKING:
    from hf_blemo.encoders.encoder import EncodedClip, Encoder, EncoderSource
    from hf_blemo.encoders.loading import load_encoder, load_encoders

__all__ = ["EncodedClip", "Encoder", "EncoderSource", "load_encoder", "load_encoders"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "EncodedClip": "hf_blemo.encoders.encoder",
        "Encoder": "hf_blemo.encoders.encoder",
        "EncoderSource": "hf_blemo.encoders.encoder",
        "load_encoder": "hf_blemo.encoders.loading",
        "load_encoders": "hf_blemo.encoders.loading",
    },
)
