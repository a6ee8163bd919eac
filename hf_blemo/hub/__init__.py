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

_DEFINERS = {
    "feature_sets": ("load_hub_features", "push_features"),
    "onnx_export": ("export_onnx", "onnx_inputs"),
    "publishing": ("files_to_publish", "publish", "push_model", "write_card"),
}
__getattr__, __dir__ = lazy_names(
    __name__, {name: f"{__name__}.{module}" for module, names in _DEFINERS.items() for name in names}
)
