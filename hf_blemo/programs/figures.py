"""Shared by all plots: heat maps, and PNG files that depend only on the data."""

from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

DPI = 150


def heat_map(
    axes: Axes, values: np.ndarray, colours: str, norm: Normalize, origin: Literal["upper", "lower"] = "upper"
) -> AxesImage:
    axes.set_facecolor("#e6e6e6")  # colour of NaN cells, which imshow leaves transparent
    image = axes.imshow(values, cmap=colours, norm=norm, aspect="auto", interpolation="nearest", origin=origin)
    axes.tick_params(length=0)
    return image


def save(figure: Figure, path: str | Path) -> Path:
    """Write the figure as PNG, without the version stamp that would make equal pictures differ in bytes."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", metadata={"Software": None})
    return path
