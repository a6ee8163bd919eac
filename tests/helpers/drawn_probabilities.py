"""Rows of probabilities that hold many ties, with each other or with the official thresholds."""

import numpy as np

from hf_blemo.blemore import THRESHOLD_GRID

KINDS = ["softmax", "twentieths", "thresholds", "neutral", "sparse", "halves", "below"]


def softmax(values: np.ndarray) -> np.ndarray:
    exponentials = np.exp(values - values.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def draw(kind: str, shape: tuple[int, int], dtype: type = np.float64) -> np.ndarray:
    """Rows that need not sum to 1; only those of `softmax` hold no ties."""
    generator, width = np.random.default_rng(0), shape[1]
    grid = THRESHOLD_GRID
    values = {
        "softmax": lambda: softmax(2 * generator.standard_normal(shape)),
        "twentieths": lambda: generator.integers(0, 20, shape) / 20,
        "thresholds": lambda: generator.choice([0.0, *grid, *np.diff(grid), *(grid[3:] - grid[:-3])], shape),
        "neutral": lambda: softmax(generator.integers(0, 3, shape) + 2.0 * (np.arange(width) == 5)),
        "sparse": lambda: generator.integers(0, 2, shape) * generator.integers(0, 3, shape) / 10,
        "halves": lambda: generator.integers(1, 4, shape) * 0.5,
        # All below the lowest threshold, rows of zeros among them.
        "below": lambda: generator.integers(0, 4, shape) / 100,
    }[kind]()
    return values.astype(dtype)
