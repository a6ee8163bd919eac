"""Measures of predictions over any label space, and as modules of `evaluate`, by class or by path."""

from pathlib import Path
from typing import TYPE_CHECKING

from hf_blemo._registration import lazy_names

if TYPE_CHECKING:
    from .acc_presence import AccPresence
    from .acc_salience import AccSalience
    from .blemore_score import BlemoreScore
    from .blend_measures import BlendMeasures
    from .measures import LOWER_IS_BETTER, blends_to_saliences, measure

_NAMES = ("acc_presence", "acc_salience", "blemore_score", "blend_measures")

__all__ = [
    "LOWER_IS_BETTER", "AccPresence", "AccSalience", "BlemoreScore", "BlendMeasures", "blends_to_saliences", "measure",
    "metric_path",
]  # fmt: skip

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "AccPresence": f"{__name__}.acc_presence",
        "AccSalience": f"{__name__}.acc_salience",
        "BlemoreScore": f"{__name__}.blemore_score",
        "BlendMeasures": f"{__name__}.blend_measures",
        "LOWER_IS_BETTER": f"{__name__}.measures",
        "blends_to_saliences": f"{__name__}.measures",
        "measure": f"{__name__}.measures",
    },
)


def metric_path(name: str) -> str:
    """Path of a metric for `evaluate.load` and `evaluate.combine`; needs no network.

    Args:
        name: `acc_presence`, `acc_salience`, `blemore_score`, or `blend_measures` for any names.

    Returns:
        The path of its module.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in _NAMES:
        raise ValueError(f"unknown metric {name!r}, expected one of {', '.join(_NAMES)}")
    return str(Path(__file__).with_name(f"{name}.py"))
