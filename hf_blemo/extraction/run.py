"""A whole extraction: clips in, a data set of features out, clip by clip, resumable, on any number of processes."""

import hashlib
import re
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import gather_object

from hf_blemo import built_in
from hf_blemo.encoders.encoder import Encoder
from hf_blemo.encoders.loading import load_encoders
from hf_blemo.extraction.clip_sources import MediaClip
from hf_blemo.extraction.decoding import ClipFeatures
from hf_blemo.extraction.extraction import encode_clips
from hf_blemo.extraction.settings import ExtractionSettings, imported_files
from hf_blemo.feature_sets.feature_files import ClipSource, FeatureFileReader
from hf_blemo.feature_sets.writing import refuse_existing, write_dataset
from hf_blemo.files import held, limited, read_json, replace_folder, within, write_json
from hf_blemo.hub.encoder_models import PROVENANCE_FILE
from hf_blemo.programs.fingerprints import weights_fingerprint
from hf_blemo.programs.processes import check_same, check_shared, together
from hf_blemo.programs.progress import Progress
from hf_blemo.rank_aware_fusion.label_space_rank_aware_fusion import LabelSpace

PLAN_FILE = "plan.json"
REPORT_FILE = "extraction.json"
# These settings do not change the encoders' features, so a run may resume with others.
_FREE = {"limits", "output_dir", "imported", "feature_dtype", "overwrite", "num_threads", "trust_remote_code"}
_FREE |= {"push_to_hub", "hub_private", "label_column", "label_prefix", "label_kind", "names", "blend_percents"}
_FREE |= {"unblended", "folds", "group", "seed"}
# One process may have the long clips: the others wait for it.
PATIENCE = InitProcessGroupKwargs(timeout=timedelta(days=7))
# Names of clips that files have too.
_PLAIN = re.compile(r"(?!\.)[^/\\\x00-\x1f\x7f]+")
_LONGEST_STEM = 200


def extract_features(
    settings: ExtractionSettings, report_line: Callable[[str], Any] = print, progress: bool = True
) -> dict[str, Any]:
    """Makes the features of all clips, and puts them in place as a data set when they are whole.

    `<output_dir>.clips` collects one file per clip and encoder; a run that is started again keeps them, and tries
    clips that failed again. The data set has `encoders.json`, which says where its features come from, and
    `extraction.json`, which lists failed and odd clips.

    Args:
        settings: of the run.
        report_line: called by every process with a line for each of its failed or odd clips.
        progress: whether to show progress.

    Returns:
        `clips` in the data set, `failed` (clip -> why), `encoders` (name -> width), `without` (name -> number of clips
        that lack its features, if any does), `seconds` of extraction and `media_seconds` of all clips that this run
        decoded; nothing on other processes than the first.

    Raises:
        ValueError: settings or data are not usable, every clip failed, or the folder holds a run with other settings;
            nothing that was written is lost.
        FileNotFoundError, FileExistsError: clips, encoders or imported features are missing; the output exists.
        MissingExtraError: PyAV is not installed.
    """
    accelerator = Accelerator(kwargs_handlers=[PATIENCE])
    with together(accelerator, settings) as stack, limited(settings.limits):
        return _run(settings, accelerator, report_line, progress, stack)


def _run(
    settings: ExtractionSettings,
    accelerator: Accelerator,
    report_line: Callable[[str], Any],
    progress: bool,
    stack: ExitStack,
) -> dict[str, Any]:
    output = Path(settings.output_dir)
    work = output.with_name(f"{output.name}.clips")
    drawn = output.with_name(f"{output.name}.drawn")
    is_main = accelerator.is_main_process
    if is_main:
        settings.check_places()
    accelerator.wait_for_everyone()
    is_drawn = settings.data == built_in.SYNTHETIC
    found = None if is_drawn else _listed(settings, settings.data, accelerator)
    defaults = {"frames_per_second": settings.frames_per_second, "image_backend": settings.image_backend}
    encoders = load_encoders(
        settings.encoder_entries(),
        dtype=settings.dtype,
        backend=settings.backend,
        device=accelerator.device,
        trust_remote_code=settings.trust_remote_code,
        defaults={name: value for name, value in defaults.items() if value is not None},
    )
    if is_main:
        stack.enter_context(held(work, beside=True))
    plan = _plan(work, settings, encoders) if is_main else {}
    if is_main and is_drawn:
        # The same settings give the same clips; those of an earlier run with others are replaced.
        built_in.load("clips", settings.synthetic, folder=drawn, overwrite=True)
    accelerator.wait_for_everyone()
    clips, space, imported = found or _listed(settings, drawn, accelerator)
    if is_main:
        _begin(work, plan)
    check_shared(accelerator, work)
    missing = [clip for clip in clips if not _is_done(work, clip)]
    # No process adds records before all have seen which exist.
    accelerator.wait_for_everyone()

    start = time.perf_counter()
    own = missing[accelerator.process_index :: accelerator.num_processes]
    done = _extract(own, encoders, work, settings.num_threads or None, progress and is_main, report_line)
    parts = gather_object([done])
    seconds = time.perf_counter() - start
    failed = {name: line for part in parts for name, line in part["failed"].items()}
    if not is_main:
        return {}
    result = _assemble(settings, output, work, clips, space, encoders, imported, failed)
    if settings.push_to_hub is not None:
        _push(settings, output)
    return result | {"seconds": seconds, "media_seconds": sum(part["media_seconds"] for part in parts)}


def _listed(
    settings: ExtractionSettings, source: str | Path, accelerator: Accelerator
) -> tuple[list[MediaClip], LabelSpace, dict[str, dict[str, Path]]]:
    """The clips, the space of their labels, and imported features of some of them."""
    clips, space = settings.clips(source)
    check_same(accelerator, {"data": [clip.name for clip in clips]})
    return clips, space, _imported_files(settings.imported, clips)


def _imported_files(folders: Mapping[str, str], clips: list[MediaClip]) -> dict[str, dict[str, Path]]:
    files = imported_files(folders)
    for name, found in files.items():
        if not any(clip.name in found for clip in clips):
            raise ValueError(
                f"imported.{name}: found {next(iter(found.values())).name} and {len(found) - 1} more in "
                f"{folders[name]}, none named after a clip such as {clips[0].name!r}"
            )
    return files


def _plan(work: Path, settings: ExtractionSettings, encoders: Mapping[str, Encoder]) -> dict[str, Any]:
    """What makes the features what they are, after making sure that the folder may hold this run."""
    plan = {key: value for key, value in asdict(settings).items() if key not in _FREE}
    plan["encoders"] = {name: encoder.source.options() for name, encoder in encoders.items()}
    plan["weights"] = {name: weights_fingerprint(encoder.model) for name, encoder in encoders.items()}
    plan_file = work / PLAN_FILE
    if work.exists() and not plan_file.is_file():
        raise FileExistsError(f"{work}: exists and is not an unfinished extraction, so nothing is written there")
    for key, found in _changes(plan_file, plan):
        if not settings.overwrite:
            raise ValueError(
                f"{work}: an unfinished extraction with {key} {found!r}, this run has {plan[key]!r}; finish it with "
                "the same settings, delete it, or set overwrite"
            )
    return plan


def _changes(plan_file: Path, plan: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """What differs in the plan of an unfinished run, and how it is there; nothing without one."""
    found = read_json(plan_file) if plan_file.is_file() else plan
    return [(key, found.get(key)) for key in plan if found.get(key) != plan[key]]


def _begin(work: Path, plan: Mapping[str, Any]) -> None:
    """Starts the folder of the run, or goes on in it if it is this run's."""
    plan_file = work / PLAN_FILE
    if _changes(plan_file, plan):
        shutil.rmtree(work)
    for name in plan["encoders"]:
        _feature_path(work, name, "").parent.mkdir(parents=True, exist_ok=True)
    write_json({plan_file: plan})


def _is_done(work: Path, clip: MediaClip) -> bool:
    """Whether a clip has its features; they are those of its files as they are now, unless these are gone."""
    path = _record_path(work, clip.name)
    if not path.is_file():
        return False
    known, found = read_json(path).get("source"), clip.identity()
    return None in found or known == found


def _record_path(work: Path, clip: str) -> Path:
    return within(work / "records", f"{_file_stem(clip)}.json")


def _feature_path(work: Path, encoder: str, clip: str) -> Path:
    return within(within(work / "features", encoder), f"{_file_stem(clip)}.npy")


def _file_stem(clip: str) -> str:
    """The name of a clip, or what stands for it where no file can be named so."""
    if not clip or (_PLAIN.fullmatch(clip) and len(clip.encode()) <= _LONGEST_STEM):
        return clip
    return f"clip-{hashlib.sha256(clip.encode(errors='surrogatepass')).hexdigest()[:32]}"


def _extract(
    clips: list[MediaClip],
    encoders: Mapping[str, Encoder],
    work: Path,
    num_threads: int | None,
    progress: bool,
    report_line: Callable[[str], Any],
) -> dict[str, Any]:
    """Writes the features of some clips; returns which failed and how long the others are."""
    failed: dict[str, str] = {}
    sources = {clip.name: clip for clip in clips}
    media_seconds = 0.0
    start = time.perf_counter()
    found = encode_clips(clips, encoders, num_threads)
    with Progress("encoding", "clip", len(clips), shown=progress) as bar, closing(found):
        try:
            for clip in found:
                if (problem := clip.problem) is None:
                    _write_clip(work, clip, sources[clip.name].identity())
                    media_seconds += clip.duration or 0.0
                else:
                    failed[clip.name] = problem
                for line in [problem] if problem else [f"{clip.name}: {note}" for note in clip.notes]:
                    bar.clear()
                    report_line(line)
                bar.update(speed=f"{media_seconds / max(time.perf_counter() - start, 1e-9):.1f} x real time")
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"what is done is kept in {work}, for the same command to go on") from None
    return {"failed": failed, "media_seconds": media_seconds}


def _write_clip(work: Path, clip: ClipFeatures, source: list[Any]) -> None:
    for name, values in clip.features.items():
        # The record below marks the clip as done: a file that a kill cut short is written again.
        np.save(_feature_path(work, name, clip.name), values, allow_pickle=False)
    record = {"encoders": sorted(clip.features), "duration": clip.duration, "notes": clip.notes}
    record["source"] = source
    write_json({_record_path(work, clip.name): record})


def _assemble(
    settings: ExtractionSettings,
    output: Path,
    work: Path,
    clips: list[MediaClip],
    space: LabelSpace,
    encoders: Mapping[str, Encoder],
    imported: Mapping[str, Mapping[str, Path]],
    failed: dict[str, str],
) -> dict[str, Any]:
    sources, records = [], {}
    for clip in clips:
        files = {name: paths[clip.name] for name, paths in imported.items() if clip.name in paths}
        record_path = _record_path(work, clip.name)
        if record_path.is_file():
            records[clip.name] = read_json(record_path)
            files |= {name: _feature_path(work, name, clip.name) for name in records[clip.name]["encoders"]}
            sources.append(ClipSource(clip.name, clip.labels, clip.fold, files, clip.group))
    if not sources:
        first = next(iter(failed.values()))
        which = "the clip" if len(clips) == 1 else f"any of {len(clips)} clips; the first error"
        raise ValueError(f"could not encode {which}: {first}")
    names = [name for name in (*encoders, *imported) if any(name in source.files for source in sources)]
    reader = FeatureFileReader(sources, names, settings.feature_dtype, aggregate=None)
    plan = {
        "encoders": {name: list(reader.types[name]) for name in names},
        "clips": [source.name for source in sources],
        "features_of": settings.data,
    }
    # Made apart, so that it appears whole and with its provenance.
    made = work / "dataset"
    for leftover in (made, made.with_name(f"{made.name}.partial")):
        shutil.rmtree(leftover, ignore_errors=True)
    write_dataset(made, reader.features, len(sources), reader, plan, space=(space, settings.label_kind))
    provenance = {}
    for name in names:
        known: dict[str, Any] = {"feature_size": reader.types[name][0]}
        if name in encoders:
            known |= {"modality": encoders[name].modality, **encoders[name].source.options()}
        provenance[name] = known
    write_json({made / PROVENANCE_FILE: provenance})
    notes = {name: record["notes"] for name, record in records.items() if record["notes"]}
    write_json({made / REPORT_FILE: {"clips": len(sources), "failed": failed, "notes": notes}})
    # Something may have taken the name during the run.
    refuse_existing(output, settings.overwrite)
    replace_folder(made, output)
    shutil.rmtree(work)
    without = {name: sum(name not in source.files for source in sources) for name in names}
    return {
        **{"clips": len(sources), "failed": failed},
        **{"encoders": {name: reader.types[name][0] for name in names}},
        **{"without": {name: count for name, count in without.items() if count}},
    }


def _push(settings: ExtractionSettings, output: Path) -> None:
    import datasets

    from hf_blemo.hub import push_features
    from hf_blemo.hub.uploads import hub_errors

    assert settings.push_to_hub is not None
    with hub_errors(f"{output} was made, but not uploaded to {settings.push_to_hub}"):
        push_features(
            datasets.Dataset.load_from_disk(str(output)),
            settings.push_to_hub,
            settings.split,
            private=settings.hub_private,
            encoders=read_json(output / PROVENANCE_FILE),
        )
