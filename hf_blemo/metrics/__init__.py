"""The metrics of BlEmoRE as modules of `evaluate`, by class or by path."""

from pathlib import Path

from .acc_presence import AccPresence
from .acc_salience import AccSalience
from .blemore_score import BlemoreScore
from .saliences import blends_to_saliences

_NAMES = ("acc_presence", "acc_salience", "blemore_score")

__all__ = ["AccPresence", "AccSalience", "BlemoreScore", "blends_to_saliences", "metric_path"]


def metric_path(name: str) -> str:
    """Path of a metric for `evaluate.load` and `evaluate.combine`; needs no network.

    Args:
        name: `acc_presence`, `acc_salience` or `blemore_score`.

    Returns:
        The path of its module.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in _NAMES:
        raise ValueError(f"unknown metric {name!r}, expected one of {', '.join(_NAMES)}")
    return str(Path(__file__).with_name(f"{name}.py"))
