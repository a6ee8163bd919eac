"""Clips with several persons: a result and a timeline for each, and features of one."""

import json
from pathlib import Path

import numpy as np
import pytest
from clip_files import tone, write_clip
from command_line import refused, run
from face_scenes import BrightFaces, patches
from tiny_extraction import make_fusion

from hf_blemo.extraction.run import extract_features
from hf_blemo.extraction.settings import ExtractionSettings
from hf_blemo.files import read_json
from hf_blemo.hub.encoder_models import PROVENANCE_FILE

pytest.importorskip("cv2", reason="opencv-python-headless is not installed")


@pytest.fixture
def work(tmp_path, monkeypatch, entries):
    """A folder with a fusion whose student looks at faces, and a clip of two persons; all files are detectors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hf_blemo.encoders.face_cropping.read_detector", lambda path, name=None: BrightFaces())
    options = {"crop": "face", "detector": "./own.onnx"}
    student = {**entries["student"], "extraction": options}
    model, processor = make_fusion({**entries, "student": student})
    model.save_pretrained("fusion")
    processor.save_pretrained("fusion")
    (tmp_path / "fusion" / "own.onnx").touch()
    pictures = [patches((30 + 2 * n, 60, 50, 50), (200, 100, 80, 80)) for n in range(30)]
    noise = np.random.default_rng(0).integers(0, 60, (240, 320, 3), dtype=np.uint8)
    write_clip(
        "pair.mp4", pictures=[picture - noise // 2 for picture in pictures], frame_rate=25, sound=tone(1.2, 16000)
    )
    return student


def test_each_person_has_a_result_and_a_timeline(work, capsys):
    code, printed, _ = run(
        capsys, "predict", "pair.mp4", "--model", "fusion", "--person", "all", "--window", 1, "--output", "out.json",
        "out.csv", "out.html",
    )  # fmt: skip
    found = json.loads(Path("out.json").read_text())["clips"]
    assert code == 0 and [(one["clip"], one["person"]) for one in found] == [
        ("pair person 1", 1), ("pair person 2", 2)
    ]  # fmt: skip
    assert all(one["timeline"] and one["notes"] == ["2 persons seen"] for one in found)
    first, second = (one["probabilities"] for one in found)
    assert first != second
    lines = Path("out.csv").read_text().splitlines()
    assert sum(line.startswith("pair person 1,") for line in lines) == len(found[0]["timeline"]) + 1
    assert Path("out.html").read_text().count("data:image/jpeg") >= 2 * 8
    _, printed, told = run(capsys, "predict", "pair.mp4", "--model", "fusion", "--person", "2")
    assert printed.startswith("pair: ") and told == ""


def test_persons_for_whom_nothing_looks(work, capsys):
    line = refused(capsys, "predict", "pair.mp4", "--model", "fusion", "--person", "all", "--output", "x.zip")
    assert "a submission needs one result for each clip, which person all does not give" in line
    assert "person must be largest, central, all or a number from 1, found 'me'" in refused(
        capsys, "predict", "pair.mp4", "--model", "fusion", "--person", "me"
    )
    assert "detector gone/x/y.onnx: not a file" in refused(
        capsys, "predict", "pair.mp4", "--model", "fusion", "--detector", "gone/x/y.onnx"
    )


def test_features_know_their_detector_and_are_of_one_person(work):
    encoders = {"student": {**work, "extraction": {**work["extraction"], "detector": "fusion/own.onnx"}}}
    extract_features(ExtractionSettings("pair.mp4", "out", encoders), print, progress=False)
    known = read_json(Path("out", PROVENANCE_FILE))["student"]["extraction"]
    assert known == {"crop": "face", "detector": "fusion/own.onnx", "detector_sha256": "0" * 64}
    encoders["student"]["extraction"]["person"] = "all"
    with pytest.raises(ValueError, match="encoder 'student': found person all, expected largest, central or a number"):
        ExtractionSettings("pair.mp4", "out2", encoders).check_inputs()
