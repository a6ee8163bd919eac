"""Results of clips as a table, a row per clip and per window of its timeline."""

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_blemo.errors import csv_cell
from hf_blemo.files import whole_file
from hf_blemo.rank_aware_fusion.label_space_rank_aware_fusion import BLEMORE_SPACE, LabelSpace

_NUMBERS = ("probabilities", "presence", "salience")


def write_clip_table(
    results: Sequence[Mapping[str, Any]],
    path: str | os.PathLike[str],
    space: LabelSpace = BLEMORE_SPACE,
    soft: bool = False,
) -> None:
    """Writes results as CSV, whole or not at all.

    Columns: `clip`; `start` and `end` in seconds, empty in the row of a whole clip; `name_1`, `salience_1`, `name_2`,
    ... up to the largest set of the space (per cent; those after the last name stay empty), for BlEmoRE `emotion_1`,
    ..., and for distributions `top` instead; `probabilities_NAME`, `presence_NAME` and `salience_NAME` from 0 to 1, of
    which the first are the shares; `weight_ENCODER`; `selected` (encoders by rank, joined by `+`); of models that
    know it `novelty_ENCODER`, in the row of a whole clip, which is unlike the training clips above 1; `error`.

    Args:
        results: of [`predict_clips`] or [`predict_blends`].
        path: of the file to write.
        space: of the model.
        soft: whether the blends are whole distributions.
    """
    encoders = list(dict.fromkeys(name for result in results for name in result.get("encoder_weights", {})))
    part = "emotion" if space == BLEMORE_SPACE else "name"
    numbers = range(1, space.largest_set + 1)
    blends = ["top"] if soft else [f"{column}_{number}" for number in numbers for column in (part, "salience")]
    columns = ["clip", "start", "end", *blends]
    columns += [f"{kind}_{name}" for kind in _NUMBERS for name in space.names]
    columns += [*(f"weight_{name}" for name in encoders), "selected"]
    columns += [f"novelty_{name}" for name in encoders if any("novelty" in result for result in results)] + ["error"]
    with whole_file(Path(path)) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)

        def write(cells: Mapping[str, Any]) -> None:
            writer.writerow([csv_cell(cells.get(column, "")) for column in columns])

        write({column: column for column in columns})
        for result in results:
            write({"clip": result["clip"], "error": result.get("error", ""), **_cells(result, part, soft)})
            for window in result.get("timeline", ()):
                span = {"start": f"{window['start']:.3f}", "end": f"{window['end']:.3f}"}
                write({"clip": result["clip"], **span, **_cells(window, part, soft)})


def _cells(result: Mapping[str, Any], part: str, soft: bool) -> dict[str, Any]:
    if "blend" not in result:
        return {}
    cells: dict[str, Any] = {"top": result["top"]} if soft else {}
    for number, found in enumerate(() if soft else result["blend"], start=1):
        cells |= {f"{part}_{number}": found["emotion"], f"salience_{number}": f"{found['salience']:g}"}
    for kind in _NUMBERS:
        cells |= {f"{kind}_{name}": f"{value:.6f}" for name, value in result[kind].items()}
    cells |= {f"weight_{name}": f"{value:.6f}" for name, value in result["encoder_weights"].items()}
    cells |= {f"novelty_{name}": f"{value:.6f}" for name, value in result.get("novelty", {}).items()}
    return {**cells, "selected": "+".join(result["selected_encoders"])}
