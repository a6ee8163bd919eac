"""Results of clips as one HTML file that loads nothing else, and as a fragment for another page."""

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from hf_blemo import blemore
from hf_blemo._registration import __version__
from hf_blemo.errors import printable
from hf_blemo.files import write_text
from hf_blemo.prediction.clip_timeline import length, timeline
from hf_blemo.prediction.clip_words import (
    EMOTION_NAMES,
    bar_parts,
    blend_words,
    colours_of,
    fills,
    heading_of,
    is_blemore,
    is_soft,
    limits,
    names_of,
    share,
    title,
    verdict,
)

NUM_THUMBNAILS = 8

_TEMPLATES = Path(__file__).parent / "templates"
_COLUMNS = {"presence": "Presence", "salience": "Salience", "probabilities": "Combined"}
_COLUMN_HINTS = {
    "presence": "Presence: how probable it is that the clip shows the {noun} at all, each on its own.",
    "salience": "Salience: its share of the whole, all {count} together 100\u00a0%.",
    "probabilities": "Combined: both heads as one distribution.",
}
# Of a whole report: many clips have fewer pictures each, so that its file stays small.
_MAX_THUMBNAILS = 600
_ROWS_OF_PAGE = 50


def result_html(result: Mapping[str, Any]) -> str:
    """Shows one clip's result as a fragment of HTML with its own styles, light and dark.

    Args:
        result: of [`predict_clips`] or [`predict_blends`].

    Returns:
        The fragment. It loads no other file and has no script.
    """
    names = names_of([result])
    page = _environment().get_template("clip_fragment.html.jinja")
    return page.render(clip=_clip(result, names), colours=fills(names)).strip() + "\n"


def write_report(
    results: Sequence[Mapping[str, Any]],
    path: str | Path,
    model: str,
    truths: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    details: Mapping[str, str] | None = None,
) -> None:
    """Writes the results of clips as one page of HTML, with an overview where there are several.

    The overview is sorted by its headers and shows fifty clips at a time, by a script in the page; without scripts
    and in print all are shown. The page loads no other file; equal results give an equal page on one day.

    Args:
        results: at least one, each as `result_html` takes it.
        path: of the file to write, whole or not at all; its folder is created if missing.
        truths: clip -> true label, a blend; clips that are not among them have the label of their name, if it follows
            the grammar of BlEmoRE and the model predicts its emotions.
        details: further lines for the head of the page, heading -> text.

    Raises:
        ValueError: there is no result; nothing is written then.
    """
    if not results:
        raise ValueError("results: expected at least one clip, found none")
    names = names_of(results)
    most = max(1, _MAX_THUMBNAILS // len(results))
    clips = [
        _clip(result, names, f"clip-{number}", (truths or {}).get(result["clip"]), most)
        for number, result in enumerate(results, start=1)
    ]
    verdicts = Counter(clip["verdict"] for clip in clips if clip.get("verdict"))
    num_failed = sum(bool(clip["error"]) for clip in clips)
    head = {"Model": model, **(details or {})}
    head["Clips"] = f"{len(clips)}, {num_failed} of them failed" if num_failed else str(len(clips))
    if verdicts:
        other = verdicts["shares differ"]
        head["Right"] = f"{verdicts['right']} of {verdicts.total()}" + (f", {other} in other shares" if other else "")
    head["Made"] = f"{date.today()}, hf_blemo {__version__}"
    page = _environment().get_template("clip_report.html.jinja")
    content = page.render(
        title=title(names),
        heading=heading_of([result["blend"] for result in results if "blend" in result], names),
        head=head,
        limits=limits(names),
        clips=clips,
        colours=fills(names),
        rows_of_page=_ROWS_OF_PAGE,
        has={key: any(clip.get(key) for clip in clips) for key in ("truth", "duration")},
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


def _clip(
    result: Mapping[str, Any],
    names: Sequence[str],
    anchor: str = "clip",
    truth: Sequence[Mapping[str, Any]] | None = None,
    most_thumbnails: int = NUM_THUMBNAILS,
) -> dict[str, Any]:
    """Converts a result for the templates: texts, and numbers from 0 to 1 for the lengths of bars."""
    truth = _named_label(result["clip"], names) if truth is None else truth
    clip = {"name": result["clip"], "error": None, "duration": None, "verdict": None, "unlike": False}
    clip["truth"] = truth and blend_words(truth, names)
    if result.get("error"):
        return {**clip, "error": " ".join(str(result["error"]).split())}
    blend, duration = result["blend"], result.get("duration")
    images = result.get("thumbnails", ())
    count = min(len(images), most_thumbnails)
    images = [images[(2 * number + 1) * len(images) // (2 * count)] for number in range(count)]
    said = [result["top"]] if is_soft(blend, names) else [part["emotion"] for part in blend]
    return {
        **clip,
        "duration": None if duration is None else length(duration),
        "seconds": duration,
        "blend": bar_parts(blend, names),
        "words": blend_words(blend, names),
        "verdict": verdict(blend, truth, names) if truth else None,
        "confidence": share(sum(result["probabilities"][name] for name in said)),
        "unlike": bool(result.get("unlike_training")),
        "frames": [f"data:image/jpeg;base64,{base64.b64encode(image).decode('ascii')}" for image in images],
        "notes": result.get("notes", ()),
        **_emotions(result, blend, names),
        "encoders": _encoders(result),
        "labels": [
            {"words": blend_words(label["blend"], names), **share(label["probability"])}
            for label in result.get("labels", ())
        ],
        "timeline": timeline(result["timeline"], names, duration, anchor) if result.get("timeline") else None,
    }


def _named_label(clip: str, names: Sequence[str]) -> list[dict[str, Any]] | None:
    """The label that the name of a clip says; None where it does not."""
    if not is_blemore(names):
        return None
    try:
        return blemore.LABELS[blemore.parse_clip_name(clip).label_index]
    except ValueError:
        return None


def _emotions(result: Mapping[str, Any], blend: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """One row for each name, with a column for each kind of probability in the result."""
    chosen = {result["top"]} if is_soft(blend, names) else {part["emotion"] for part in blend}
    official, colours = is_blemore(names), colours_of(names)
    hints = {"noun": "emotion" if official else "class", "count": "six" if official else len(names)}
    return {
        "noun": hints["noun"],
        "heading": "Emotions" if official else "Classes",
        "emotion_columns": list(_COLUMNS.values()),
        "emotion_hint": " ".join(_COLUMN_HINTS.values()).format(**hints),
        "emotions": [
            {
                "colour": colours[name],
                "name": EMOTION_NAMES[name] if official else name,
                "chosen": name in chosen,
                "cells": [share(result[key][name]) for key in _COLUMNS],
            }
            for name in names
        ],
    }


def _encoders(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The selected encoders by rank, then the others by weight."""
    weights, selected = result["encoder_weights"], result["selected_encoders"]
    others = sorted((name for name in weights if name not in selected), key=lambda name: -weights[name])
    return [
        {
            "name": name,
            "rank": selected.index(name) + 1 if name in selected else None,
            **share(weights[name]),
        }
        for name in [*selected, *others]
    ]
