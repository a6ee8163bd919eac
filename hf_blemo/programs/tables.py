"""Tables for the terminal and for Markdown files."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hf_blemo.programs.markdown import text


def table(header: Sequence[str], rows: Sequence[Sequence[str]], padded: bool = True) -> str:
    """A Markdown table of cells that are taken as text: the first column left-aligned, the others right-aligned
    and, for a terminal, padded."""
    header, rows = list(map(text, header)), [list(map(text, row)) for row in rows]
    widths = [max(map(len, column)) if padded else 1 for column in zip(header, *rows, strict=True)]

    def line(row: Sequence[str]) -> str:
        first, *others = zip(row, widths, strict=True)
        return "| " + " | ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]) + " |"

    rule = "|" + "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]) + "|"
    return "\n".join([line(header), rule, *map(line, rows)])


def mean_and_std(values: Sequence[float]) -> dict[str, Any]:
    """Mean and sample standard deviation, which divides by N - 1; None for that of a single value."""
    return {"mean": float(np.mean(values)), "std": float(np.std(values, ddof=1)) if len(values) > 1 else None}


def plus_minus(entry: Mapping[str, Any], decimals: int = 4) -> str:
    """`mean ± std` of what [`mean_and_std`] returns, with a dash for the deviation of a single value."""
    std = "–" if entry["std"] is None else f"{entry['std']:.{decimals}f}"
    return f"{entry['mean']:.{decimals}f} ± {std}"


def mean_and_interval(values: Sequence[float]) -> str:
    """`mean (low to high)` of differences with their signs: the 95 % interval of Student's t, a dash for one value."""
    freedom, middle = len(values) - 1, float(np.mean(values))
    if not freedom:
        return f"{middle:+.4f} (–)"
    # With x = sqrt(freedom) tan(angle), the density of t is that of cos(angle) ** (freedom - 1) over the angles.
    angles, step = np.linspace(0, np.pi / 2, 100_001, retstep=True)
    below = np.cumsum(np.cos(angles[1:] - step / 2) ** (freedom - 1))
    quantile = np.sqrt(freedom) * np.tan(np.interp(0.95 * below[-1], below, angles[1:]))
    half = quantile * np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{middle:+.4f} ({middle - half:+.4f} to {middle + half:+.4f})"


def interval(entry: Mapping[str, Any]) -> str:
    """A `difference` with its interval from `low` to `high`."""
    return f"{entry['difference']:+.4f} [{entry['low']:+.4f}, {entry['high']:+.4f}]"
