"""Measures what replacing an encoder costs in accuracy and saves in time, starting from raw clips."""

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from hf_blemo.built_in import SYNTHETIC
from hf_blemo.encoders.encoder import Encoder
from hf_blemo.encoders.loading import load_encoders
from hf_blemo.errors import say
from hf_blemo.extraction.clip_sources import find_clips
from hf_blemo.extraction.extraction import encode_clips
from hf_blemo.extraction.run import PATIENCE, extract_features
from hf_blemo.files import held, write_json, write_text
from hf_blemo.fusion_training.ablation import OFFICIAL, measure_variant
from hf_blemo.fusion_training.data import load_data
from hf_blemo.fusion_training.settings import AblationSettings, EncoderAblationSettings
from hf_blemo.programs.fingerprints import fingerprint, weights_fingerprint
from hf_blemo.programs.processes import check_same, together
from hf_blemo.programs.run_folder import earlier_result
from hf_blemo.programs.tables import plus_minus, table


def ablate_encoders(settings: EncoderAblationSettings) -> dict[str, Any]:
    """Extracts the features of all encoders once, and cross-validates the fusion of every set of them.

    Features gather in `features` under `settings.output_dir`; `encoders.json` and `encoders.md` grow row by row.

    Returns:
        The content of `encoders.json`: `settings`, `clips`, and `rows`, one per set: `encoders`, the entries of
        [`measure_variant`], `parameters` of all encoders, and `milliseconds` per clip and `real_time` (seconds of clip
        per second) of their extraction, decoding included.

    Raises:
        ValueError, FileNotFoundError: settings, clips or encoders are not usable, or an earlier run had others.
        FileExistsError: the folder holds features of an unknown run, or another run writes there.
    """
    # One process may have the long clips.
    accelerator = Accelerator(kwargs_handlers=[PATIENCE])
    with together(accelerator, settings) as stack:
        return _ablate_encoders(accelerator, settings, stack)


def _ablate_encoders(accelerator: Accelerator, settings: EncoderAblationSettings, stack: ExitStack) -> dict[str, Any]:
    output = Path(settings.output_dir)
    features, record = output / "features", output / "encoders.json"
    # Settings that do not fit are refused before anything is written.
    fusion = AblationSettings(
        **{**settings.fusion, "data": str(features), "seeds": settings.seeds, "output_dir": str(output)}
    )
    encoders = load_encoders(settings.encoders, dtype=settings.dtype)
    result: dict[str, Any] = {"settings": asdict(settings), "inputs": _inputs(settings, encoders), "rows": []}
    earlier: dict[str, Any] = {"rows": []}
    if record.is_file() and not settings.overwrite:
        earlier = earlier_result(record, asdict(settings), {"output_dir", "overwrite"}, result["inputs"])
    elif features.exists() and not settings.overwrite:
        raise FileExistsError(
            f"{features}: found features, but no {record.name} beside them that says whose they are; name another "
            "output_dir, or replace them: --overwrite true"
        )
    check_same(accelerator, result["inputs"])
    if accelerator.is_main_process:
        stack.enter_context(held(output))
        if not record.is_file() or settings.overwrite:
            for name in ("features", "features.clips", "rows"):
                shutil.rmtree(output / name, ignore_errors=True)
        # Says whose features these are, before there are any.
        write_json({record: {**result, "rows": earlier["rows"]}})
    accelerator.wait_for_everyone()
    if not features.exists():
        extract_features(settings.extraction())
    data = load_data(str(features), {})
    measured = {row["name"]: row for row in earlier["rows"]}
    missing = [name for name in settings.sets if name not in measured]
    times = {} if not missing else _times(settings, features, encoders)
    result["clips"] = len(data)
    for name, chosen in settings.sets.items():
        row = measured.get(name)
        if row is None:
            top_n = min(fusion.model.get("top_n", 3), len(chosen))
            row = measure_variant(accelerator, data, fusion, name, {"top_n": top_n}, chosen)
            row |= {"encoders": chosen, **times[name]}
        result["rows"].append(row)
        if accelerator.is_main_process:
            say(_markdown(result).splitlines()[-1])
            later = [row for row in earlier["rows"] if row["name"] not in {row["name"] for row in result["rows"]}]
            write_json({record: {**result, "rows": result["rows"] + later}})
            write_text(output / "encoders.md", _markdown(result))
    if accelerator.is_main_process:
        say("", *_markdown(result).split("\n"), f"Written to {output / 'encoders.md'} and {output / 'encoders.json'}")
    return result


def _inputs(settings: EncoderAblationSettings, encoders: Mapping[str, Encoder]) -> dict[str, Any]:
    """What clips and encoders are -> fingerprint of their content; built-in clips are known by their settings."""
    inputs = {f"the weights of encoder {name!r}": weights_fingerprint(one.model) for name, one in encoders.items()}
    if settings.data != SYNTHETIC:
        clips = find_clips(settings.data)
        content = [[clip.name, clip.labels.tolist(), clip.fold, clip.identity()] for clip in clips]
        inputs["the clips"] = fingerprint(content)
    return inputs


def _times(
    settings: EncoderAblationSettings, features: Path, encoders: Mapping[str, Encoder]
) -> dict[str, dict[str, Any]]:
    """Cost of the extraction of every set: median over interleaved rounds on the same clips, models loaded."""
    source = features.with_name(f"{features.name}.drawn") if settings.data == SYNTHETIC else settings.data
    clips = list(islice(find_clips(source), settings.timed_clips))
    rounds: dict[str, list[float]] = {name: [] for name in settings.sets}
    seconds = 0.0
    for _ in range(settings.timing_rounds):
        for name, chosen in settings.sets.items():
            start = time.perf_counter()
            seconds = _encode({key: encoders[key] for key in chosen}, clips)
            rounds[name].append(time.perf_counter() - start)
    medians = {name: float(np.median(values)) for name, values in rounds.items()}
    return {
        name: {
            "parameters": sum(encoders[key].model.num_parameters() for key in chosen),
            "milliseconds": 1000 * medians[name] / len(clips),
            "real_time": seconds / medians[name],
            "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        }
        for name, chosen in settings.sets.items()
    }


def _encode(encoders: Mapping[str, Encoder], clips: Sequence[Any]) -> float:
    """Seconds of clip that were encoded."""
    seconds = 0.0
    for clip in encode_clips(clips, encoders, num_threads=1):
        if clip.error is not None:
            raise clip.error
        seconds += clip.duration or 0.0
    return seconds


def _encoder_row(row: Mapping[str, Any]) -> list[str]:
    """Cells of a row; mean ± std over seeds of the mean over folds."""
    measures = _measures(row)
    cells = [row["name"], *(plus_minus(measures[name]) for name in _titles(row))]
    cells += [plus_minus(row["loss"]), f"{row['parameters']:,}"]
    return [*cells, f"{row['milliseconds']:.0f}", f"{row['real_time']:.1f}"]


def _markdown(result: Mapping[str, Any]) -> str:
    header = ("encoders", *_titles(result["rows"][0]).values(), "NLL", "parameters", "ms per clip", "x real time")
    return table(header, [*map(_encoder_row, result["rows"])], padded=False) + "\n"


def _measures(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Those by the default decoding of the labels."""
    return row["soft" if "soft" in row else "expected_score"]


def _titles(row: Mapping[str, Any]) -> dict[str, str]:
    """Measure -> title of its column: the official three for BlEmoRE."""
    measures = _measures(row)
    return OFFICIAL if "score" in measures else {name: name for name in measures if name not in ("nll", "kl")}
