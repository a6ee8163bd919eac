"""Whole extractions: the data set, what is kept of a run that ended early, several processes, and the Hub."""

import json

import datasets
import numpy as np
import pytest
from fresh_processes import run_python
from huggingface_hub import HfApi
from tiny_extraction import BROKEN, CLIPS, assert_same_features, features_by_clip, make_clips, save_fusion

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
extraction_run._write_clip = lambda work, clip: report["encoded"].append(clip.name) or write_clip(work, clip)
reports = []
for number, run in enumerate(runs, start=1):
    # Only the last run ends the group of the processes.
    Accelerator.end_training = end_training if number == len(runs) else lambda accelerator: None
    report = {"encoded": [], "lines": []}
    reports.append(report)
    try:
        settings = ExtractionSettings(**run)
        report["result"] = extraction_run.extract_features(settings, report["lines"].append, progress=False)
    except (ValueError, FileExistsError) as error:
        report["error"] = str(error)
(log / f"{os.environ['RANK']}.json").write_text(json.dumps(reports))
"""


@pytest.fixture(autouse=True)
def start_fresh(fresh_accelerate_state) -> None:
    """Every test here starts without state of Accelerate."""


@pytest.fixture(scope="module")
def clips(clip_folder):
    return clip_folder


@pytest.fixture(scope="module")
def expected(entries, clips):
    """What the encoders give of the clips, without a run."""
    found = encode_clips([clips / f"{name}.mp4" for name in CLIPS], load_encoders(entries))
    return {clip.name: clip.features for clip in found}


def settings_of(entries, clips, output, **changes):
    return ExtractionSettings(
        **{"data": str(clips), "output_dir": str(output), "encoders": entries, "num_threads": 1, **changes}
    )


def extract(settings, lines=None):
    return extract_features(settings, report_line=(lines if lines is not None else []).append, progress=False)


def made(output):
    return datasets.Dataset.load_from_disk(str(output))


def test_the_data_set_holds_what_the_encoders_give(entries, clips, expected, tmp_path):
    lines = []
    result = extract(settings_of(entries, clips, tmp_path / "made"), lines)
    data = made(tmp_path / "made")
    assert data.column_names == ["clip", "features", "labels", "fold"]
    assert_same_features(features_by_clip(data), expected)
    assert set(expected[CLIPS[2]]) == {"student"} and len(expected[CLIPS[0]]["student"]) == 5
    np.testing.assert_allclose(data["labels"][:], [blemore.soft_label(name) for name in CLIPS], atol=1e-6)
    assert set(data["fold"]) == {-1} and blemore.encoder_widths(data) == {"student": 12, "hubert": 16}
    # The clip that is none is told about once and left out.
    assert len(lines) == 1 and BROKEN in lines[0]
    assert result["clips"] == 4 and result["failed"] == {BROKEN: lines[0]}
    assert result["encoders"] == {"student": 12, "hubert": 16} and 4 < result["media_seconds"] < 8
    report = json.loads((tmp_path / "made" / "extraction.json").read_text())
    assert report == {"clips": 4, "failed": {BROKEN: lines[0]}, "notes": {}}
    assert json.loads((tmp_path / "made" / "encoders.json").read_text()) == {
        "student": {"feature_size": 12, "modality": "video", **entries["student"]},
        "hubert": {"feature_size": 16, "modality": "audio", **entries["hubert"]},
    }
    # Nothing else is left.
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_features_of_other_programs_are_merged_by_clip(entries, clips, tmp_path):
    generator = np.random.default_rng(0)
    arrays = {name: generator.standard_normal((3, 7)).astype(np.float32) for name in (*CLIPS, BROKEN)}
    for folder in ("HiCMAE", "ImageBind", "OpenFace"):
        (tmp_path / folder).mkdir()
    for name, values in arrays.items():
        np.save(tmp_path / "HiCMAE" / f"{name}.npy", values)
        np.save(tmp_path / "ImageBind" / f"{name}.npy", values[:, None, :5].astype(np.float16))
    columns = "emotion_index,gaze_yaw,gaze_pitch,action_units"
    rows = "3,0.5,-0.5,[1 2 3 4 5 6 7 8]\n"
    (tmp_path / "OpenFace" / f"{CLIPS[1]}.csv").write_text(f"{columns}\n{rows}{rows}")
    imported = {name: str(tmp_path / name) for name in ("HiCMAE", "ImageBind", "OpenFace")}
    settings = settings_of({"student": entries["student"]}, clips, tmp_path / "made", imported=imported)
    result = extract(settings)
    assert result["encoders"] == {"student": 12, "HiCMAE": 7, "ImageBind": 5, "OpenFace": 11}
    found = features_by_clip(made(tmp_path / "made"))
    # A clip that cannot be read is left out, whatever else there is of it.
    assert list(found) == list(CLIPS)
    for name in CLIPS:
        np.testing.assert_allclose(found[name]["HiCMAE"], arrays[name], rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(found[name]["ImageBind"], arrays[name][:, :5], rtol=1e-3, atol=1e-3)
    assert [name for name in CLIPS if "OpenFace" in found[name]] == [CLIPS[1]]
    assert found[CLIPS[1]]["OpenFace"].shape == (2, 11)
    assert json.loads((tmp_path / "made" / "encoders.json").read_text())["HiCMAE"] == {"feature_size": 7}


def test_imported_features_that_belong_to_no_clip_are_refused(entries, clips, tmp_path):
    (tmp_path / "HiCMAE").mkdir()
    settings = settings_of(entries, clips, tmp_path / "made", imported={"HiCMAE": str(tmp_path / "HiCMAE")})
    with pytest.raises(FileNotFoundError, match="imported.HiCMAE: found no .npy or .csv in"):
        extract(settings)
    np.save(tmp_path / "HiCMAE" / "other.npy", np.ones((2, 3)))
    with pytest.raises(ValueError, match=f"found other.npy and 0 more in .*, none named after .* as '{CLIPS[0]}"):
        extract(settings)
    settings.imported = {"HiCMAE": str(tmp_path / "gone")}
    with pytest.raises(FileNotFoundError, match="imported.HiCMAE: no folder"):
        extract(settings)
    assert not (tmp_path / "made").exists()


def test_a_fusion_names_the_encoders(entries, clips, expected, tmp_path):
    save_fusion(tmp_path / "fusion", entries)
    extract(settings_of({}, clips, tmp_path / "made", model=str(tmp_path / "fusion")))
    assert_same_features(features_by_clip(made(tmp_path / "made")), expected)
    with pytest.raises(ValueError, match="found model_type 'clip_rd', expected 'rank_aware_fusion'"):
        extract(settings_of({}, clips, tmp_path / "no", model=entries["student"]["model_id"]))
    unknown = {"student": entries["student"], "hubert": {}}
    save_fusion(tmp_path / "unknown", unknown)
    settings = settings_of({}, clips, tmp_path / "other", model=str(tmp_path / "unknown"))
    with pytest.raises(ValueError, match="does not say where encoder 'hubert' comes from; .* --imported.hubert DIR"):
        extract(settings)
    # With that, its own features are made and those are taken.
    (tmp_path / "hubert").mkdir()
    np.save(tmp_path / "hubert" / f"{CLIPS[0]}.npy", np.ones((2, 16), np.float32))
    settings.imported = {"hubert": str(tmp_path / "hubert")}
    assert extract(settings)["encoders"] == {"student": 12, "hubert": 16}


def test_folds_and_labels_come_from_the_metadata(entries, clips, tmp_path):
    paths = make_synthetic_clips(tmp_path / "drawn", num_clips=6, num_actors=5, seconds=(1.0, 1.0), size=32)
    settings = settings_of({"student": entries["student"]}, tmp_path / "drawn", tmp_path / "made")
    extract(settings)
    data = made(tmp_path / "made")
    assert data["clip"][:] == [path.stem for path in paths] and set(data["fold"]) == set(range(5))
    np.testing.assert_allclose(data["labels"][:], [blemore.soft_label(path.stem) for path in paths], atol=1e-6)
    # The built-in clips are drawn, and drawn again where a run goes on.
    options = {"num_clips": 6, "num_actors": 5, "seconds": [1.0, 1.0], "size": 32}
    built_in = settings_of({"student": entries["student"]}, "synthetic", tmp_path / "again", synthetic=options)
    (tmp_path / "again").mkdir()
    with pytest.raises(FileExistsError, match="again: already exists"):
        extract(built_in)
    (tmp_path / "again").rmdir()
    make_synthetic_clips(tmp_path / "again.drawn", num_clips=2)
    extract(built_in)
    again = made(tmp_path / "again")
    assert_same_features(features_by_clip(again), features_by_clip(data), 0)
    built_in.overwrite, built_in.synthetic = True, {"num_clip": 6}
    with pytest.raises(ValueError, match="synthetic: unknown setting 'num_clip'; the nearest known one is 'num_c"):
        extract(built_in)


def test_without_a_single_good_clip_nothing_is_made(entries, tmp_path):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.mp4").write_bytes(b"broken")
    (tmp_path / "clips" / "b.mp4").write_bytes(b"")
    settings = settings_of(entries, tmp_path / "clips", tmp_path / "made")
    lines = []
    with pytest.raises(ValueError, match="could not encode any of 2 clips; the first error: .*a.mp4"):
        extract(settings, lines)
    assert len(lines) == 2 and not (tmp_path / "made").exists()
    # What there was before is as it was.
    make_clips(tmp_path / "good", broken=False)
    extract(settings_of(entries, tmp_path / "good", tmp_path / "made", overwrite=True))
    with pytest.raises(ValueError, match="could not encode any of 2 clips"):
        extract(settings_of(entries, tmp_path / "clips", tmp_path / "made", overwrite=True))
    assert len(made(tmp_path / "made")) == 4


def test_features_that_are_no_numbers_fail_their_clip_alone(entries, clips, tmp_path, monkeypatch):
    def spoiled(found, encoders, num_threads):
        for clip in encode_clips(found, encoders, num_threads):
            if clip.name == CLIPS[1]:
                clip.features["student"][0, 0] = np.nan
            yield clip

    monkeypatch.setattr(extraction_run, "encode_clips", spoiled)
    result = extract(settings_of(entries, clips, tmp_path / "made"))
    assert result["clips"] == 3
    assert result["failed"][CLIPS[1]].startswith(f"{CLIPS[1]}: encoder 'student' gave NaN or infinity")


def test_an_interrupted_run_resumes(entries, clips, expected, tmp_path, monkeypatch):
    settings, work = settings_of(entries, clips, tmp_path / "made"), tmp_path / "made.clips"
    write_json = extraction_run.write_json

    def interrupted(contents):
        # The third clip has its features, but not yet the record that says so.
        if len(list((work / "records").glob("*"))) == 2:
            raise KeyboardInterrupt
        write_json(contents)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(extraction_run, "write_json", interrupted)
        extract(settings)
    assert not (tmp_path / "made").exists()
    records = {path.stem: path.stat().st_mtime_ns for path in (work / "records").glob("*.json")}
    assert sorted(records) == sorted(CLIPS[:2]) and len(list(work.rglob("*.npy"))) == 5

    other = settings_of({"student": {**entries["student"], "extraction": {}}}, clips, tmp_path / "made")
    with pytest.raises(ValueError, match="an unfinished extraction with encoders .*, this run has .*; finish it with"):
        extract(other)
    with pytest.raises(ValueError, match="an unfinished extraction with dtype 'float32', this run has 'bfloat16'"):
        extract(settings_of(entries, clips, tmp_path / "made", dtype="bfloat16"))

    seen = {}
    original = extraction_run._assemble

    def watched(*arguments):
        seen.update({path.stem: path.stat().st_mtime_ns for path in (work / "records").glob("*.json")})
        return original(*arguments)

    monkeypatch.setattr(extraction_run, "_assemble", watched)
    # Another dtype of what is stored needs no new features.
    result = extract(settings_of(entries, clips, tmp_path / "made", feature_dtype="float32"))
    assert {name: seen[name] for name in records} == records and sorted(seen) == sorted(CLIPS)
    assert result["clips"] == 4 and result["media_seconds"] < 3.2
    assert_same_features(features_by_clip(made(tmp_path / "made")), expected, 1e-5)
    assert not work.exists()


def test_what_is_there_is_replaced_only_when_asked(entries, clips, tmp_path):
    small = {"student": entries["student"]}
    extract(settings_of(small, clips, tmp_path / "made"))
    before = {path: path.read_bytes() for path in (tmp_path / "made").iterdir()}
    with pytest.raises(FileExistsError, match="made: already exists"):
        extract(settings_of(entries, clips, tmp_path / "made"))
    assert {path: path.read_bytes() for path in (tmp_path / "made").iterdir()} == before
    assert extract(settings_of(entries, clips, tmp_path / "made", overwrite=True))["encoders"]["hubert"] == 16
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    (tmp_path / "mine").mkdir()
    with pytest.raises(FileExistsError, match="mine: exists and is not a data set"):
        extract(settings_of(small, clips, tmp_path / "mine", overwrite=True))
    (tmp_path / "new.clips").mkdir()
    with pytest.raises(FileExistsError, match="new.clips: exists and is not an unfinished extraction"):
        extract(settings_of(small, clips, tmp_path / "new"))


def test_two_processes_make_what_one_makes_and_none_waits_for_ever(entries, clips, expected, tmp_path):
    all_clips = settings_of(entries, clips, tmp_path / "made")
    one_clip = settings_of({"student": entries["student"]}, clips / f"{CLIPS[0]}.mp4", tmp_path / "one")
    # The last is refused by the first process alone, as the output is there.
    (tmp_path / "program.py").write_text(PROGRAM)
    runs = json.dumps([vars(settings) for settings in (all_clips, one_clip, one_clip)])
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
    assert "one: already exists" in first[2]["error"]
    assert (
        second[2]["error"].startswith("ended, as another process failed: ") and "already exists" in second[2]["error"]
    )


def test_a_fusion_learns_from_the_hub_where_its_features_come_from(hub, entries, clips, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    api, paths = HfApi(), sorted(clips.glob("*.mp4"))
    for name, entry in entries.items():
        api.create_repo(f"you/tiny-{name}")
        api.upload_folder(repo_id=f"you/tiny-{name}", folder_path=entry["model_id"])
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
    with pytest.raises(FileNotFoundError, match="^you/nothing: no such folder, and "):
        find_clips("you/nothing")

    pushed = {"encoders": encoders, "output_dir": "made", "push_to_hub": "you/clip-features"}
    extract(ExtractionSettings(data="you/films", split="test", **pushed))
    extract(ExtractionSettings(data=str(clips), overwrite=True, **pushed))
    commits = {name: api.model_info(f"you/tiny-{name}").sha for name in encoders}
    files = hub.files("you/clip-features", kind="dataset")
    assert hub.repository("you/clip-features", "dataset").private and "extraction.json" not in files
    assert sorted(path for path in files if path.endswith(".parquet")) == [
        "data/test-00000-of-00001.parquet", "data/train-00000-of-00001.parquet",
    ]  # fmt: skip
    assert json.loads(files["encoders.json"])["hubert"] == {
        "feature_size": 16, "modality": "audio", "model_id": "you/tiny-hubert", "revision": commits["hubert"],
    }  # fmt: skip
    card = files["README.md"].decode()
    assert "4 clips in the split" in card
    link = "[you/tiny-student](https://huggingface.co/you/tiny-student)"
    assert f"| `student` | 12 | {link} | `{commits['student'][:7]}` | frames_per_second 5.0 |" in card

    options = {"seeds": [0], "num_epochs": 1, "protocol": "none", "model": {"hidden_size": 8}}
    train_fusion(FusionSettings(data="you/clip-features", output_dir="run", **options))
    for name, entry in RankAwareFusionConfig.from_pretrained("run").encoders.items():
        assert (entry["model_id"], entry["revision"]) == (f"you/tiny-{name}", commits[name])
        assert entry["modality"] == {"student": "video", "hubert": "audio"}[name]
        assert entry.get("extraction", {}) == ({"frames_per_second": 5.0} if name == "student" else {})
