"""Results of clips as a table, a row per clip and per window of its timeline."""

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_blemo.blemore import EMOTIONS
from hf_blemo.files import whole_file

_NUMBERS = ("probabilities", "presence", "salience")


def write_clip_table(results: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """Writes results as CSV, whole or not at all.

    Columns: `clip`; `start` and `end` in seconds, empty in the row of a whole clip; `emotion_1`, `salience_1`,
    `emotion_2`, `salience_2` (per cent; the second pair is empty without a blend); `probabilities_EMOTION`,
    `presence_EMOTION` and `salience_EMOTION` from 0 to 1; `weight_ENCODER`; `selected` (encoders by rank, joined by
    `+`); `error`.

    Args:
        results: of [`predict_clips`] or [`predict_blends`].
        path: of the file to write.
    """
    encoders = list(dict.fromkeys(name for result in results for name in result.get("encoder_weights", {})))
    columns = ["clip", "start", "end", "emotion_1", "salience_1", "emotion_2", "salience_2"]
    columns += [f"{name}_{emotion}" for name in _NUMBERS for emotion in EMOTIONS]
    columns += [*(f"weight_{name}" for name in encoders), "selected", "error"]
    with whole_file(Path(path)) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for result in results:
            writer.writerow({"clip": result["clip"], "error": result.get("error", ""), **_cells(result)})
            for window in result.get("timeline", ()):
                span = {"start": f"{window['start']:.3f}", "end": f"{window['end']:.3f}"}
                writer.writerow({"clip": result["clip"], **span, **_cells(window)})


def _cells(result: Mapping[str, Any]) -> dict[str, Any]:
    if "blend" not in result:
        return {}
    cells: dict[str, Any] = {}
    for number, part in enumerate(result["blend"], start=1):
        cells |= {f"emotion_{number}": part["emotion"], f"salience_{number}": f"{part['salience']:g}"}
    for name in _NUMBERS:
        cells |= {f"{name}_{emotion}": f"{value:.6f}" for emotion, value in result[name].items()}
    cells |= {f"weight_{name}": f"{value:.6f}" for name, value in result["encoder_weights"].items()}
    return {**cells, "selected": "+".join(result["selected_encoders"])}
