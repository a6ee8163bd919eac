"""Results of clips as one HTML file that loads nothing else, and as a fragment for another page."""

import base64
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from hf_blemo.errors import printable
from hf_blemo.files import write_text
from hf_blemo.rank_aware_fusion.label_space_rank_aware_fusion import EMOTIONS

_EMOTION_NAMES = {
    "ang": "anger",
    "disg": "disgust",
    "fea": "fear",
    "hap": "happiness",
    "sad": "sadness",
    "neu": "neutral",
}
LIMITS = (
    "A prediction says what a clip resembles among acted recordings, not what somebody feels. It knows six emotions "
    "and blends of two of them; do not use it to judge people."
)
NUM_THUMBNAILS = 8

# Fills of names other than BlEmoRE's, on light and on dark paper. The first eight stay apart for every kind of sight,
# as a test measures; the names themselves always stand beside them.
_COLOURS = (
    *(("#3b62a3", "#7c96d7"), ("#fea314", "#feb014"), ("#f11455", "#e41455"), ("#2ecabd", "#14f1ca")),
    *(("#3b4814", "#7c3bca"), ("#a36ffe", "#d7e489"), ("#7c2155", "#a34889"), ("#cabd62", "#bd5514")),
    *(("#bd5514", "#148962"), ("#bdb0fe", "#febdfe"), ("#3b96b0", "#3bb0bd"), ("#482e96", "#a389fe")),
    *(("#89ca89", "#fe8996"), ("#d72e7c", "#b09648"), ("#147c3b", "#b014a3"), ("#ca3bca", "#a3f155")),
    *(("#d76f7c", "#f15596"), ("#623b7c", "#62622e"), ("#ca962e", "#3b6ffe"), ("#fe6fd7", "#f1bd96")),
    *(("#1462f1", "#96a314"), ("#a31421", "#1462a3"), ("#7c2ebd", "#7cbd6f"), ("#897ce4", "#62d762")),
)
_MAX_WORDS = 4
_LEAST_WORD = 5.0
_TEMPLATES = Path(__file__).parent / "templates"
_COLUMNS = {"presence": "Presence", "salience": "Salience", "probabilities": "Combined"}
_COLUMN_HINTS = {
    "presence": "Presence: how probable it is that the clip shows the {noun} at all, each on its own.",
    "salience": "Salience: its share of the whole, all {count} together 100\u00a0%.",
    "probabilities": "Combined: both heads as one distribution.",
}
_TICK_STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400)
_MINUTES_FROM = 120
_MAX_TICKS = 6
_MAX_LISTED_RUNS = 12


def title(names: Sequence[str] = EMOTIONS) -> str:
    """What a report is headed by.

    Args:
        names: what the model predicts, in order.
    """
    return "Blended emotions" if _is_blemore(names) else "Predictions"


def limits(names: Sequence[str] = EMOTIONS) -> str:
    """Says what predictions are not good for.

    Args:
        names: what the model predicts, in order.
    """
    if _is_blemore(names):
        return LIMITS
    return (
        "A prediction says what a clip resembles among the data that the model was trained on. It knows "
        f"{len(names)} classes ({', '.join(names)}) and nothing else; do not use it to judge people."
    )


def blend_words(blend: Sequence[Mapping[str, Any]], names: Sequence[str] = EMOTIONS) -> str:
    """Says a blend in words: "70 % happiness, 30 % sadness", or the name alone.

    Args:
        blend: parts with "emotion", one of the names, and "salience" in per cent. Of a whole distribution the largest
            parts are said.
        names: what the model predicts, in order; BlEmoRE's are written out, others are said as they are.

    Returns:
        The words; "no emotion" for an empty blend.
    """
    spelled = _EMOTION_NAMES if _is_blemore(names) else {}
    if len(blend) < 2:
        return spelled.get(blend[0]["emotion"], blend[0]["emotion"]) if blend else "no emotion"
    parts, others = list(blend), 0.0
    if _is_soft(blend, names):
        parts = sorted(blend, key=lambda part: -part["salience"])
        parts = [part for part in parts[:_MAX_WORDS] if part["salience"] >= _LEAST_WORD] or parts[:1]
        others = 100 - sum(part["salience"] for part in parts)
    words = [f"{part['salience']:.0f} % {spelled.get(part['emotion'], part['emotion'])}" for part in parts]
    return ", ".join([*words, f"{others:.0f} % others"] if others >= 0.5 else words)


def _is_blemore(names: Sequence[str]) -> bool:
    return tuple(names) == EMOTIONS


def _is_soft(blend: Sequence[Mapping[str, Any]], names: Sequence[str]) -> bool:
    """Whether a blend is a whole distribution: those of valid labels have whole per cents above 0."""
    shares = [part["salience"] for part in blend]
    return len(shares) == len(names) and any(share == 0 or share != round(share) for share in shares)


def _names(results: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """What the model of some results predicts; without probabilities, BlEmoRE's names where no other is found."""
    for result in results:
        if result.get("probabilities"):
            return tuple(result["probabilities"])
    found = [part["emotion"] for result in results for part in result.get("blend", ())]
    found += [name for result in results for key in _COLUMNS for name in result.get(key) or ()]
    return EMOTIONS if set(found) <= set(EMOTIONS) else tuple(dict.fromkeys(found))


def _heading(blends: Sequence[Sequence[Mapping[str, Any]]], names: Sequence[str]) -> str:
    """What a column of predictions is headed by."""
    if any(_is_soft(blend, names) for blend in blends):
        return "Shares"
    return "Blend" if _is_blemore(names) or any(len(blend) > 1 for blend in blends) else "Class"


def _colours(names: Sequence[str]) -> dict[str, str]:
    """Name -> the end of its variable in the styles."""
    if _is_blemore(names):
        return {name: name for name in names}
    return {name: f"c{place % len(_COLOURS)}" for place, name in enumerate(names)}


def _parts(blend: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """The parts of a bar."""
    colours = _colours(names)
    return [
        {"salience": round(part["salience"], 3), "colour": colours[part["emotion"]]}
        for part in blend
        if part["salience"] >= 0.5
    ]


def result_html(result: Mapping[str, Any]) -> str:
    """Shows one clip's result as a fragment of HTML with its own styles, light and dark.

    Args:
        result: "clip" and either "error" or "blend", with what else is known: "top" (a name),
            "probabilities", "presence" and "salience" (name -> 0..1, in the model's order), "encoder_weights" (encoder
            -> 0..1), "selected_encoders" (names by rank), "labels" (each "blend" and "probability"), "duration"
            (seconds), "notes" (texts), "thumbnails" (JPEG files) and "timeline" (windows with "start" and "end" in
            seconds, "blend", "probabilities" and, for distributions, "top").

    Returns:
        The fragment. It loads no other file and has no script.
    """
    names = _names([result])
    page = _environment().get_template("clip_fragment.html.jinja")
    return page.render(clip=_clip(result, names), colours=_fills(names)).strip() + "\n"


def write_report(results: Sequence[Mapping[str, Any]], path: str | Path, model: str) -> None:
    """Writes the results of clips as one page of HTML, with an overview where there are several.

    The page loads no other file and has no script; equal results give an equal page.

    Args:
        results: at least one, each as `result_html` takes it.
        path: of the file to write, whole or not at all; its folder is created if missing.
        model: name of the model.

    Raises:
        ValueError: there is no result; nothing is written then.
    """
    if not results:
        raise ValueError("results: expected at least one clip, found none")
    names = _names(results)
    clips = [_clip(result, names, f"clip-{number}") for number, result in enumerate(results, start=1)]
    num_failed = sum(bool(clip["error"]) for clip in clips)
    page = _environment().get_template("clip_report.html.jinja")
    content = page.render(
        title=title(names),
        heading=_heading([result["blend"] for result in results if "blend" in result], names),
        model=model,
        count=f"{len(clips)}, {num_failed} of them failed" if num_failed else str(len(clips)),
        limits=limits(names),
        clips=clips,
        colours=_fills(names),
        has_duration=any(clip.get("duration") for clip in clips),
        has_encoders=any(clip.get("encoders") for clip in clips),
    )
    write_text(Path(path), content.strip() + "\n")


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["css"] = lambda share: f"{100 * share:.3f}".rstrip("0").rstrip(".") + "%"
    return environment


def _fills(names: Sequence[str]) -> Sequence[tuple[str, str]]:
    """The fills that the styles define beside those of BlEmoRE."""
    return () if _is_blemore(names) else _COLOURS[: len(names)]


def _clip(result: Mapping[str, Any], names: Sequence[str], anchor: str = "clip") -> dict[str, Any]:
    """Converts a result for the templates: texts, and numbers from 0 to 1 for the lengths of bars."""
    if result.get("error"):
        return {"name": result["clip"], "error": " ".join(str(result["error"]).split()), "duration": None}
    blend, duration = result["blend"], result.get("duration")
    images = [base64.b64encode(image).decode("ascii") for image in result.get("thumbnails", ())]
    return {
        "name": result["clip"],
        "error": None,
        "duration": None if duration is None else _length(duration),
        "blend": _parts(blend, names),
        "words": blend_words(blend, names),
        "frames": [f"data:image/jpeg;base64,{image}" for image in images],
        "notes": result.get("notes", ()),
        **_emotions(result, blend, names),
        "encoders": _encoders(result),
        "labels": [
            {"words": blend_words(label["blend"], names), **_share(label["probability"])}
            for label in result.get("labels", ())
        ],
        "timeline": _timeline(result["timeline"], names, duration, anchor) if result.get("timeline") else None,
    }


def _emotions(result: Mapping[str, Any], blend: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """One row for each name, with a column for each kind of probability in the result."""
    columns = {key: result[key] for key in _COLUMNS if result.get(key)}
    chosen = {result.get("top")} if _is_soft(blend, names) else {part["emotion"] for part in blend}
    blemore, colours = _is_blemore(names), _colours(names)
    hints = {"noun": "emotion" if blemore else "class", "count": "six" if blemore else len(names)}
    return {
        "noun": hints["noun"],
        "heading": "Emotions" if blemore else "Classes",
        "emotion_columns": [_COLUMNS[key] for key in columns],
        "emotion_hint": " ".join(_COLUMN_HINTS[key] for key in columns).format(**hints),
        "emotions": [
            {
                "colour": colours[name],
                "name": _EMOTION_NAMES[name] if blemore else name,
                "chosen": name in chosen,
                "cells": [_share(shares.get(name, 0.0)) for shares in columns.values()],
            }
            for name in names
            if any(name in shares for shares in columns.values())
        ],
    }


def _encoders(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The selected encoders by rank, then the others by weight."""
    weights = result.get("encoder_weights", {})
    selected = list(result.get("selected_encoders", ()))
    others = sorted((name for name in weights if name not in selected), key=lambda name: -weights[name])
    return [
        {
            "name": name,
            "rank": selected.index(name) + 1 if name in selected else None,
            **_share(weights[name]),
        }
        for name in [*selected, *others]
    ]


def _timeline(
    windows: Sequence[Mapping[str, Any]], names: Sequence[str], duration: float | None, anchor: str
) -> dict[str, Any]:
    end = max(duration or 0.0, *(window["end"] for window in windows))
    cells = _cells(windows)
    # Distributions are never twice the same: their largest name makes the stretches.
    blends = [
        [{"emotion": window["top"], "salience": 100.0}] if _is_soft(window["blend"], names) else window["blend"]
        for window in windows
    ]
    runs = _runs(blends, names, cells, end)
    return {
        "id": f"{anchor}-timeline",
        "description": "; ".join(f"{run['time']}: {run['words']}" for run in runs),
        "noun": _heading(blends, names),
        "classes": "emotions" if _is_blemore(names) else "classes",
        "areas": _areas(windows, names, cells, end),
        "ticks": [{"left": tick / end, "text": text} for tick, text in _ticks(end)],
        "runs": runs,
        "runs_listed": len(runs) <= _MAX_LISTED_RUNS,
        "has_encoders": any(window.get("encoder_weights") for window in windows),
        "windows": [
            {
                "time": _span(window["start"], window["end"], end),
                "words": blend_words(window["blend"], names),
                "probabilities": [_share(window["probabilities"].get(name, 0.0))["text"] for name in names],
                "encoder": _heaviest(window.get("encoder_weights", {})),
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
    for name, colour in _colours(names).items():
        steps = []
        for index, (window, (left, right)) in enumerate(zip(windows, cells, strict=True)):
            share = window["probabilities"].get(name, 0.0) / totals[index]
            bottom, tops[index] = tops[index], tops[index] - 100.0 * share
            if share > 0 and right > left:
                x, y, width, height = 1000 * left / end, tops[index], 1000 * (right - left) / end, bottom - tops[index]
                steps.append(f"M{x:.2f} {y:.2f}h{width:.2f}v{height:.2f}h{-width:.2f}z")
        shown = _EMOTION_NAMES[name] if _is_blemore(names) else name
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
            "blend": _parts(run["blend"], names),
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


def _length(seconds: float) -> str:
    return f"{_clock(seconds)} min" if seconds >= _MINUTES_FROM else f"{seconds:.1f} s"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


def _heaviest(weights: Mapping[str, float]) -> str:
    if not weights:
        return "–"
    name = max(weights, key=lambda encoder: weights[encoder])
    return f"{name} ({_share(weights[name])['text']})"


def _share(value: float) -> dict[str, Any]:
    # Sums of rounded numbers can be a little above 1.
    return {"share": min(value, 1.0), "text": f"{100 * min(value, 1.0):.1f} %"}
