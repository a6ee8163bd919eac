"""The timeline of a report: what the windows of a clip show, drawn and as a table."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from hf_blemo.prediction.clip_words import (
    EMOTION_NAMES,
    bar_parts,
    blend_words,
    colours_of,
    heading_of,
    is_blemore,
    is_soft,
    share,
)

_TICK_STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400)
_MINUTES_FROM = 120
_MAX_TICKS = 6
_MAX_LISTED_RUNS = 12


def timeline(
    windows: Sequence[Mapping[str, Any]], names: Sequence[str], duration: float | None, anchor: str
) -> dict[str, Any]:
    end = max(duration or 0.0, *(window["end"] for window in windows))
    cells = _cells(windows)
    # Distributions are never twice the same: their largest name makes the stretches.
    blends = [
        [{"emotion": window["top"], "salience": 100.0}] if is_soft(window["blend"], names) else window["blend"]
        for window in windows
    ]
    runs = _runs(blends, names, cells, end)
    return {
        "id": f"{anchor}-timeline",
        "description": "; ".join(f"{run['time']}: {run['words']}" for run in runs),
        "noun": heading_of(blends, names),
        "classes": "emotions" if is_blemore(names) else "classes",
        "areas": _areas(windows, names, cells, end),
        "ticks": [{"left": tick / end, "text": text} for tick, text in _ticks(end)],
        "runs": runs,
        "runs_listed": len(runs) <= _MAX_LISTED_RUNS,
        "windows": [
            {
                "time": _span(window["start"], window["end"], end),
                "words": blend_words(window["blend"], names),
                "probabilities": [share(window["probabilities"][name])["text"] for name in names],
                "encoder": _heaviest(window["encoder_weights"]),
            }
            for window in windows
        ],
    }


def _cells(windows: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """The seconds each window is drawn over: its own where windows follow each other, else those nearest to it."""
    middles = [(window["start"] + window["end"]) / 2 for window in windows]
    borders = [-math.inf, *((left + right) / 2 for left, right in zip(middles, middles[1:], strict=False)), math.inf]
    cells = []
    for index, window in enumerate(windows):
        left, right = borders[index], borders[index + 1]
        # Borders that lie in a gap, or between windows that only touch, are those of the windows themselves.
        if index and windows[index - 1]["end"] <= window["start"]:
            left = window["start"]
        if index + 1 < len(windows) and window["end"] <= windows[index + 1]["start"]:
            right = window["end"]
        cells.append((max(left, window["start"]), min(right, window["end"])))
    return cells


def _areas(
    windows: Sequence[Mapping[str, Any]], names: Sequence[str], cells: Sequence[tuple[float, float]], end: float
) -> list[dict[str, str]]:
    """One path for each name, stacked from the bottom, in a box of 1000 by 100."""
    areas = []
    tops = [100.0] * len(windows)
    totals = [sum(window["probabilities"].values()) or 1.0 for window in windows]
    for name, colour in colours_of(names).items():
        steps = []
        for index, (window, (left, right)) in enumerate(zip(windows, cells, strict=True)):
            share = window["probabilities"][name] / totals[index]
            bottom, tops[index] = tops[index], tops[index] - 100.0 * share
            if share > 0 and right > left:
                x, y, width, height = 1000 * left / end, tops[index], 1000 * (right - left) / end, bottom - tops[index]
                steps.append(f"M{x:.2f} {y:.2f}h{width:.2f}v{height:.2f}h{-width:.2f}z")
        shown = EMOTION_NAMES[name] if is_blemore(names) else name
        areas.append({"colour": colour, "name": shown, "path": "".join(steps) or "M0 0"})
    return areas


def _runs(
    blends: Sequence[list[dict[str, Any]]], names: Sequence[str], cells: Sequence[tuple[float, float]], end: float
) -> list[dict[str, Any]]:
    """Stretches of windows with one blend, which a gap ends too."""
    runs: list[dict[str, Any]] = []
    for blend, (left, right) in zip(blends, cells, strict=True):
        if runs and runs[-1]["blend"] == blend and math.isclose(runs[-1]["right"], left, abs_tol=1e-6):
            runs[-1]["right"] = right
        else:
            runs.append({"blend": blend, "start": left, "right": right})
    return [
        {
            "blend": bar_parts(run["blend"], names),
            "words": blend_words(run["blend"], names),
            "time": _span(run["start"], run["right"], end),
            "left": run["start"] / end,
            "width": (run["right"] - run["start"]) / end,
        }
        for run in runs
    ]


def _ticks(end: float) -> list[tuple[float, str]]:
    step = next((step for step in _TICK_STEPS if end / step <= _MAX_TICKS), _TICK_STEPS[-1])
    seconds = [index * step for index in range(int(end / step + 1e-9) + 1)]
    return [(second, _clock(second) if end >= _MINUTES_FROM else f"{second:g} s") for second in seconds]


def _span(start: float, end: float, total: float) -> str:
    if total >= _MINUTES_FROM:
        return f"{_clock(start)}–{_clock(end)}"
    return f"{start:.1f}–{end:.1f} s"


def length(seconds: float) -> str:
    return f"{_clock(seconds)} min" if seconds >= _MINUTES_FROM else f"{seconds:.1f} s"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


def _heaviest(weights: Mapping[str, float]) -> str:
    name = max(weights, key=lambda encoder: weights[encoder])
    return f"{name} ({share(weights[name])['text']})"
