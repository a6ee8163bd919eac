"""The table of BlEmoRE's training clips."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_blemo import blemore
from hf_blemo.feature_sets.distribution import METADATA_COLUMNS


def write_metadata(folder: Path, clips: Mapping[str, Any], changes: Mapping[int, Any] | None = None) -> None:
    """Writes `train_metadata.csv` of some clips (name -> fold), with changes of cells by the numbers of their rows."""
    with (folder / "train_metadata.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, METADATA_COLUMNS, restval="")
        writer.writeheader()
        for place, (name, fold) in enumerate(clips.items()):
            label = blemore.parse_clip_name(name)
            row = {"filename": name, "video_id": label.actor, "mix": int(label.is_blend), "fold": fold}
            for number, (emotion, salience) in enumerate(zip(label.emotions, label.saliences, strict=True), start=1):
                row |= {f"emotion_{number}": emotion, f"emotion_{number}_salience": salience if label.is_blend else ""}
            writer.writerow(row | (changes or {}).get(place, {}))
