"""Cards, publishing and export: from a finished run to a model on the Hub that others can judge and load."""

from typing import TYPE_CHECKING

from hf_blemo._registration import lazy_names

if TYPE_CHECKING:
    from .feature_sets import load_hub_features, push_features
    from .onnx_export import export_onnx, onnx_inputs
    from .publishing import files_to_publish, publish, push_model, write_card

__all__ = [
    "export_onnx",
    "files_to_publish",
    "load_hub_features",
    "onnx_inputs",
    "publish",
    "push_features",
    "push_model",
    "write_card",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "export_onnx": "hf_blemo.hub.onnx_export",
        "files_to_publish": "hf_blemo.hub.publishing",
        "load_hub_features": "hf_blemo.hub.feature_sets",
        "onnx_inputs": "hf_blemo.hub.onnx_export",
        "publish": "hf_blemo.hub.publishing",
        "push_features": "hf_blemo.hub.feature_sets",
        "push_model": "hf_blemo.hub.publishing",
        "write_card": "hf_blemo.hub.publishing",
    },
)
