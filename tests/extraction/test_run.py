"""Whole extractions: the data set, what is kept of a run that ended early, several processes, and the Hub."""

import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
from fresh_processes import run_python
from tiny_extraction import BROKEN, CLIPS, assert_same_features, features_by_clip, fusion_entries, save_fusion

from hf_blemo import RankAwareFusionConfig, blemore
from hf_blemo.built_in import make_synthetic_clips
from hf_blemo.encoders.loading import load_encoders
from hf_blemo.extraction import run as extraction_run
from hf_blemo.extraction.clip_sources import find_clips
from hf_blemo.extraction.extraction import encode_clips
from hf_blemo.extraction.run import extract_features
from hf_blemo.extraction.settings import ExtractionSettings
from hf_blemo.fusion_training.run import train_fusion
from hf_blemo.fusion_training.settings import FusionSettings

# Makes several runs' features as one of several processes, and notes who encoded what.
PROGRAM = """
import json, os, sys
from pathlib import Path
from accelerate import Accelerator
from hf_blemo.extraction import run as extraction_run
from hf_blemo.extraction.settings import ExtractionSettings

runs, log = json.loads(sys.argv[1]), Path(sys.argv[2])
write_clip, end_training = extraction_run._write_clip, Accelerator.end_training
extraction_run._write_clip = lambda work, clip, *more: (
    report["encoded"].append(clip.name) or write_clip(work, clip, *more)
)
reports = []
for number, run in enumerate(runs, start=1):
    # Only the last run ends the group of the processes.
    Accelerator.end_training = end_training if number == len(runs) else lambda accelerator: None
    report = {"encoded": [], "lines": []}
    reports.append(report)
    settings = ExtractionSettings(**run)
    report["result"] = extraction_run.extract_features(settings, report["lines"].append, progress=False)
(log / f"{os.environ['RANK']}.json").write_text(json.dumps(reports))
"""


pytestmark = pytest.mark.usefixtures("fresh_accelerate_state")


@pytest.fixture(scope="module")
def expected(entries, clip_folder):
    """What the encoders give of the clips, without a run."""
    found = encode_clips([clip_folder / f"{name}.mp4" for name in CLIPS], load_encoders(entries))
    return {clip.name: clip.features for clip in found}


@pytest.fixture
def settings_of(entries, clip_folder, tmp_path):
    """Settings of all clips and encoders, with some changes, and an output of that name."""
    defaults = {"data": str(clip_folder), "encoders": entries, "num_threads": 1}
    return lambda output="made", **changes: ExtractionSettings(
        **{**defaults, "output_dir": str(tmp_path / output), **changes}
    )


@pytest.fixture
def small(entries):
    return {"student": entries["student"]}


def extract(settings, lines=None):
    return extract_features(settings, report_line=(lines if lines is not None else []).append, progress=False)


def made(output):
    return datasets.Dataset.load_from_disk(str(output))


def test_the_data_set_holds_what_the_encoders_give(entries, settings_of, expected, tmp_path):
    lines = []
    result = extract(settings_of(), lines)
    data = made(tmp_path / "made")
    assert data.column_names == ["clip", "features", "labels", "fold"]
    assert_same_features(features_by_clip(data), expected)
    assert set(expected[CLIPS[2]]) == {"student"} and len(expected[CLIPS[0]]["student"]) == 5
    np.testing.assert_allclose(data["labels"][:], [blemore.soft_label(name) for name in CLIPS], atol=1e-6)
    assert set(data["fold"]) == {-1}
    # The clip that is none is told about once and left out.
    assert len(lines) == 1 and BROKEN in lines[0]
    assert 4 < result["media_seconds"] < 8 and result["encoders"] == {"student": 12, "hubert": 16}
    report = {"clips": 4, "failed": {BROKEN: lines[0]}}
    assert result.items() >= report.items() and result["without"] == {"hubert": 1}
    assert json.loads((tmp_path / "made" / "extraction.json").read_text()) == {**report, "notes": {}}
    assert json.loads((tmp_path / "made" / "encoders.json").read_text()) == fusion_entries(entries)
    # Nothing else is left.
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_features_of_other_programs_are_merged_by_clip(small, settings_of, tmp_path):
    generator = np.random.default_rng(0)
    arrays = {name: generator.standard_normal((3, 7)).astype(np.float32) for name in (CLIPS[1], CLIPS[3], BROKEN)}
    (tmp_path / "HiCMAE").mkdir()
    for name, values in arrays.items():
        np.save(tmp_path / "HiCMAE" / f"{name}.npy", values)
    result = extract(settings_of(encoders=small, imported={"HiCMAE": str(tmp_path / "HiCMAE")}))
    assert result["encoders"] == {"student": 12, "HiCMAE": 7}
    found = features_by_clip(made(tmp_path / "made"))
    # A clip that cannot be read is left out, whatever else there is of it.
    assert {name: set(features) for name, features in found.items()} == {
        name: {"student", "HiCMAE"} if name in arrays else {"student"} for name in CLIPS
    }
    for name in (CLIPS[1], CLIPS[3]):
        np.testing.assert_allclose(found[name]["HiCMAE"], arrays[name], rtol=1e-3, atol=1e-3)
    assert json.loads((tmp_path / "made" / "encoders.json").read_text())["HiCMAE"] == {"feature_size": 7}


def test_imported_features_that_belong_to_no_clip_are_refused(settings_of, tmp_path):
    for folder in ("empty", "others"):
        (tmp_path / folder).mkdir()
    np.save(tmp_path / "others" / "other.npy", np.ones((2, 3)))
    for folder, message in (
        ("gone", "no folder"),
        ("empty", "found no .npy or .csv in"),
        ("others", f"found other.npy and 0 more in .*, none named after .* as '{CLIPS[0]}"),
    ):
        with pytest.raises((FileNotFoundError, ValueError), match=f"^imported.HiCMAE: {message}"):
            extract(settings_of(imported={"HiCMAE": str(tmp_path / folder)}))
    assert not (tmp_path / "made").exists()


def test_a_fusion_names_the_encoders(entries, small, settings_of, expected, tmp_path):
    save_fusion(tmp_path / "fusion", entries)
    extract(settings_of(encoders={}, model=str(tmp_path / "fusion")))
    assert_same_features(features_by_clip(made(tmp_path / "made")), expected)
    save_fusion(tmp_path / "unknown", {**small, "hubert": {}})
    settings = settings_of("other", encoders={}, model=str(tmp_path / "unknown"))
    for model, message in (
        (entries["student"]["model_id"], "found model_type 'clip_rd' in config.json, expected 'rank_aware_fusion'"),
        (settings.model, "does not say where encoder 'hubert' comes from; .* --imported.hubert DIR"),
    ):
        with pytest.raises(ValueError, match=message):
            extract(settings_of("other", encoders={}, model=model))
    # With that, its own features are made and those are taken.
    (tmp_path / "hubert").mkdir()
    np.save(tmp_path / "hubert" / f"{CLIPS[0]}.npy", np.ones((2, 16), np.float32))
    settings.imported = {"hubert": str(tmp_path / "hubert")}
    assert extract(settings)["encoders"] == {"student": 12, "hubert": 16}


def test_folds_and_labels_come_from_the_metadata(small, settings_of, tmp_path):
    paths = make_synthetic_clips(tmp_path / "drawn", num_clips=6, num_actors=5, seconds=(1.0, 1.0), size=32)
    extract(settings_of(data=str(tmp_path / "drawn"), encoders=small))
    data = made(tmp_path / "made")
    assert data["clip"][:] == [path.stem for path in paths] and set(data["fold"]) == set(range(5))
    np.testing.assert_allclose(data["labels"][:], [blemore.soft_label(path.stem) for path in paths], atol=1e-6)
    # The built-in clips are drawn, and drawn again where a run goes on.
    options = {"num_clips": 6, "num_actors": 5, "seconds": [1.0, 1.0], "size": 32}
    built_in = settings_of("again", data="synthetic", encoders=small, synthetic=options)
    make_synthetic_clips(tmp_path / "again.drawn", num_clips=2)
    extract(built_in)
    assert_same_features(features_by_clip(made(tmp_path / "again")), features_by_clip(data), 0)
    with pytest.raises(FileExistsError, match="again: already exists"):
        extract(built_in)
    built_in.overwrite, built_in.synthetic = True, {"num_clip": 6}
    with pytest.raises(ValueError, match="synthetic: unknown setting 'num_clip'; the nearest known one is 'num_c"):
        extract(built_in)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "encoder .student.: .* found nothing to load"),
        ({"synthetic": {"num_clips": 0}, "encoders": None}, "num_clips: found 0, expected at least 1"),
        ({"synthetic": {"num_clip": 1}}, "unknown setting 'num_clip'"),
    ],
)
def test_nothing_is_drawn_before_all_else_is_known_to_work(change, message, small, settings_of, tmp_path):
    damaged = tmp_path / "student"
    shutil.copytree(small["student"]["model_id"], damaged)
    (damaged / "model.safetensors").write_bytes(b"no weights")
    encoders = small if "encoders" in change else {"student": {"model_id": str(damaged)}}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        extract(settings_of(**{"data": "synthetic", **change, "encoders": encoders}))
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


def test_what_is_there_is_replaced_only_when_asked_and_by_some_clip(small, settings_of, tmp_path):
    extract(settings_of(encoders=small))
    before = {path: path.read_bytes() for path in (tmp_path / "made").iterdir()}
    bad, lines = tmp_path / "bad", []
    # Before anything is encoded, or the broken clip would be reported.
    with pytest.raises(FileExistsError, match="made: already exists"):
        extract(settings_of(), lines)
    bad.mkdir()
    (bad / "a.mp4").write_bytes(b"broken")
    (bad / "b.mp4").write_bytes(b"")
    with pytest.raises(ValueError, match="could not encode any of 2 clips; the first error: .*a.mp4"):
        extract(settings_of(data=str(bad), overwrite=True), lines)
    assert len(lines) == 2 and {path: path.read_bytes() for path in (tmp_path / "made").iterdir()} == before
    assert extract(settings_of(overwrite=True))["encoders"]["hubert"] == 16
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad", "made"]
    for folder, output, message in (
        ("mine", "mine", "mine: exists and is not a data set"),
        ("new.clips", "new", "new.clips: exists and is not an unfinished extraction"),
    ):
        (tmp_path / folder).mkdir()
        with pytest.raises(FileExistsError, match=message):
            extract(settings_of(output, encoders=small, overwrite=True))


def test_an_interrupted_run_resumes(entries, settings_of, expected, tmp_path, monkeypatch):
    work, write_json, assemble = tmp_path / "made.clips", extraction_run.write_json, extraction_run._assemble

    def recorded():
        return {path.stem: path.stat().st_mtime_ns for path in (work / "records").glob("*.json")}

    def interrupted(contents):
        # The third clip has its features, but not yet the record that says so.
        if len(recorded()) == 2:
            raise KeyboardInterrupt
        write_json(contents)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(extraction_run, "write_json", interrupted)
        extract(settings_of())
    assert not (tmp_path / "made").exists()
    records = recorded()
    assert sorted(records) == sorted(CLIPS[:2]) and len(list(work.rglob("*.npy"))) == 5
    for changes, message in (
        ({"encoders": {"student": {**entries["student"], "extraction": {}}}}, "encoders .*, this run has .*; finish"),
        ({"dtype": "bfloat16"}, "dtype 'float32', this run has 'bfloat16'"),
    ):
        with pytest.raises(ValueError, match=f"an unfinished extraction with {message}"):
            extract(settings_of(**changes))
    seen = {}
    monkeypatch.setattr(extraction_run, "_assemble", lambda *given: seen.update(recorded()) or assemble(*given))
    # Another dtype of what is stored needs no new features.
    result = extract(settings_of(feature_dtype="float32"))
    assert {name: seen[name] for name in records} == records and sorted(seen) == sorted(CLIPS)
    assert result["clips"] == 4 and result["media_seconds"] < 3.2
    assert_same_features(features_by_clip(made(tmp_path / "made")), expected, 1e-5)
    assert not work.exists()


def test_two_processes_make_what_one_makes(settings_of, small, clip_folder, expected, tmp_path):
    one_clip = settings_of("one", data=str(clip_folder / f"{CLIPS[0]}.mp4"), encoders=small)
    (tmp_path / "program.py").write_text(PROGRAM)
    runs = json.dumps([vars(settings) for settings in (settings_of(), one_clip)])
    process = run_python([tmp_path / "program.py", runs, tmp_path], cwd=tmp_path, env={}, processes=2)
    assert process.returncode == 0, process.stderr
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    # Shares are uneven: three clips, of which one is broken, and two; then one clip and none.
    assert sorted(first[0]["encoded"] + second[0]["encoded"]) == sorted(CLIPS)
    assert len(first[0]["encoded"]) == len(second[0]["encoded"]) == 2
    assert [len(report["lines"]) for report in (first[0], second[0])] == [1, 0]
    assert first[0]["result"]["clips"] == 4 and list(first[0]["result"]["failed"]) == [BROKEN]
    assert second[0]["result"] == {} and 4 < first[0]["result"]["media_seconds"] < 8
    assert_same_features(features_by_clip(made(tmp_path / "made")), expected)
    assert [report[1]["encoded"] for report in (first, second)] == [[CLIPS[0]], []]
    assert len(made(tmp_path / "one")) == 1


def test_a_fusion_learns_from_the_hub_where_its_features_come_from(hub, entries, clip_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths, commits = sorted(clip_folder.glob("*.mp4")), {}
    for name, entry in entries.items():
        commits[name] = hub.put(f"you/tiny-{name}", Path(entry["model_id"])).branches["main"].oid
    encoders = {name: {**entry, "model_id": f"you/tiny-{name}"} for name, entry in entries.items()}
    # A branch is remembered as the commit it was.
    encoders["hubert"]["revision"] = "main"

    films = [{"path": str(path), "bytes": None} for path in paths]
    voices = [None, {"path": None, "bytes": paths[0].read_bytes()}, *[None] * (len(paths) - 2)]
    data = datasets.Dataset.from_dict({"film": films, "voice": voices})
    data = data.cast_column("film", datasets.Video()).cast_column("voice", datasets.Audio())
    data.push_to_hub("you/films", split="test")
    found = find_clips("you/films", split="test")
    contents = [path.read_bytes() for path in paths]
    assert [clip.name for clip in found] == [path.stem for path in paths]
    assert [[source for source, _ in clip.files()] for clip in found] == [
        [contents[0]], [contents[1], contents[0]], *([content] for content in contents[2:])
    ]  # fmt: skip
    with pytest.raises(ValueError, match="^you/films: .*train"):
        find_clips("you/films")

    pushed = {"encoders": encoders, "output_dir": "made", "push_to_hub": "you/clip-features"}
    extract(ExtractionSettings(data="you/films", split="test", **pushed))
    extract(ExtractionSettings(data=str(clip_folder), overwrite=True, **pushed))
    files = hub.files("you/clip-features", kind="dataset")
    assert hub.repository("you/clip-features", "dataset").private and "extraction.json" not in files
    assert sorted(path for path in files if path.endswith(".parquet")) == [
        "data/test-00000-of-00001.parquet", "data/train-00000-of-00001.parquet",
    ]  # fmt: skip
    assert json.loads(files["encoders.json"])["hubert"] == {
        "feature_size": 16, "modality": "audio", "model_id": "you/tiny-hubert", "revision": commits["hubert"],
    }  # fmt: skip
    source = "[you/tiny-student](https://huggingface.co/you/tiny-student)"
    source += f" | `{commits['student'][:7]}` | frames_per_second 5.0 |"
    assert f"| `student` | 12 | {source}" in files["README.md"].decode()

    options = {"seeds": [0], "num_epochs": 1, "protocol": "none", "model": {"hidden_size": 8}}
    train_fusion(FusionSettings(data="you/clip-features", output_dir="run", **options))
    for name, entry in RankAwareFusionConfig.from_pretrained("run").encoders.items():
        assert (entry["model_id"], entry["revision"]) == (f"you/tiny-{name}", commits[name])
        assert entry["modality"] == {"student": "video", "hubert": "audio"}[name]
        assert entry.get("extraction", {}) == ({"frames_per_second": 5.0} if name == "student" else {})
