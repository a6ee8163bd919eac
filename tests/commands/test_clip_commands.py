"""`hf-blemo predict` and `hf-blemo features` on raw clips: what they print, write, refuse and keep."""

import csv
import json
import zipfile

import datasets
import numpy as np
import pytest
from clip_files import write_clip
from command_line import refused, run
from tiny_extraction import BROKEN, CLIPS, make_clips, save_encoders, save_fusion

from hf_blemo import blemore
from hf_blemo.prediction import demo_page
from hf_blemo.prediction.clips import Windows, fusion_encoders, predict_clips


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared")
    make_clips(folder / "clips")
    (folder / "broken").mkdir()
    (folder / "broken" / "noise.mp4").write_bytes(b"no clip at all")
    entries = save_encoders(folder / "encoders")
    for seed, name in ((0, "fusion"), (1, "other")):
        save_fusion(folder / name, entries, seed)
    return folder


@pytest.fixture(scope="module")
def member(shared):
    from hf_blemo.prediction.fusion import load_fusion

    return load_fusion(shared / "fusion")


def paths(shared):
    return [shared / "clips" / f"{name}.mp4" for name in CLIPS]


def test_clips_are_predicted_and_a_bad_one_is_a_line_of_its_own(capsys, shared, member, tmp_path):
    outputs = {suffix: tmp_path / f"results.{suffix}" for suffix in ("json", "csv", "html")}
    bad = shared / "broken" / "noise.mp4"
    code, out, err = run(
        capsys, "predict", bad, *paths(shared), "--model", shared / "fusion", "--output", *outputs.values()
    )
    assert code == 0
    [error] = [line for line in err.splitlines() if "noise" in line]
    assert error.startswith(f"{bad}: no media that can be read")
    expected = list(predict_clips(paths(shared), [member], fusion_encoders([member])))
    lines = out.splitlines()
    assert [line.split(":")[0] for line in lines[:-1]] == list(CLIPS)
    assert lines[-1].startswith(f"{len(CLIPS)} clips, decoding ")
    found = json.loads(outputs["json"].read_text())
    assert found["clips"][0] == {"clip": "noise", "error": error}
    for result, right in zip(found["clips"][1:], expected, strict=True):
        assert result["blend"] == right["blend"]
        assert result["probabilities"] == pytest.approx(right["probabilities"], abs=1e-5)
        assert result["encoder_weights"] == pytest.approx(right["encoder_weights"], abs=1e-5)
    assert found["predictions"] == {result["clip"]: result["blend"] for result in expected}
    with outputs["csv"].open() as file:
        rows = list(csv.DictReader(file))
    assert [row["clip"] for row in rows] == ["noise", *CLIPS]
    assert rows[0]["error"] == error and rows[0]["emotion_1"] == "" and rows[1]["error"] == ""
    for row, right in zip(rows[1:], expected, strict=True):
        assert row["emotion_1"] == right["blend"][0]["emotion"]
        assert float(row["salience_1"]) == right["blend"][0]["salience"]
        assert float(row["presence_hap"]) == pytest.approx(right["presence"]["hap"], abs=1e-5)
        assert row["selected"].split("+") == right["selected_encoders"]
    report = outputs["html"].read_text()
    assert all(name in report for name in ("noise", *CLIPS)) and report.count("data:image/jpeg") == 8 * len(CLIPS)


def test_only_if_no_clip_can_be_read_the_command_fails_and_writes_nothing(capsys, shared, tmp_path):
    bad = shared / "broken" / "noise.mp4"
    code, out, err = run(capsys, "predict", bad, "--model", shared / "fusion", "--output", tmp_path / "results.json")
    assert code == 2 and out == "" and not list(tmp_path.iterdir())
    assert err.splitlines()[-1].startswith(f"hf-blemo predict: error: could not read the clip: {bad}: no media")


def test_a_timeline_of_the_windows_asked_for(capsys, shared, member, tmp_path):
    clip, output = paths(shared)[0], tmp_path / "timeline.csv"
    options = ("--window", "0.5", "--hop", "0.25", "--output", output, tmp_path / "timeline.json")
    assert run(capsys, "predict", clip, "--model", shared / "fusion", *options)[0] == 0
    [expected] = predict_clips([clip], [member], fusion_encoders([member]), Windows(0.5, 0.25, longer_than=0.0))
    with output.open() as file:
        rows = list(csv.DictReader(file))[1:]
    assert len(rows) == len(expected["timeline"]) >= 3
    for row, window in zip(rows, expected["timeline"], strict=True):
        assert (float(row["start"]), float(row["end"])) == pytest.approx((window["start"], window["end"]), abs=1e-3)
        assert row["emotion_1"] == window["blend"][0]["emotion"]
    [found] = json.loads((tmp_path / "timeline.json").read_text())["clips"]
    assert [window["start"] for window in found["timeline"]] == pytest.approx(
        [window["start"] for window in expected["timeline"]], abs=1e-6
    )


def test_without_outputs_a_line_per_clip_is_printed_and_nothing_written(capsys, shared, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(capsys, "predict", shared / "clips", "--model", shared / "fusion", shared / "other")
    assert code == 0 and not list(tmp_path.iterdir())
    assert sorted(line.split(":")[0] for line in out.splitlines()) == sorted(CLIPS)
    assert all(" % " in line or ":" in line for line in out.splitlines())


def test_all_test_clips_make_a_submission(capsys, shared, tmp_path):
    # Of features, which is the same from here on: 594 clips would have to be decoded.
    features = tmp_path / "features" / "student"
    features.mkdir(parents=True)
    names = [f"test_{number:04d}" for number in range(1, 595)]
    for name in names:
        np.save(features / f"{name}.npy", np.ones((1, 12), np.float32))
    output, clip = tmp_path / "submission.zip", tmp_path / "test_0001.mp4"
    options = ("--model", shared / "fusion", "--output", output)
    assert run(capsys, "predict", "--features", features.parent, *options)[0] == 0
    assert blemore.check_submission(output) == []
    with zipfile.ZipFile(output) as file:
        [inner] = file.namelist()
        assert set(json.loads(file.read(inner))["predictions"]) == {f"{name}.mov" for name in names}
    write_clip(clip, audio=None)
    output.unlink()
    code, _, err = run(capsys, "predict", clip, *options)
    assert code == 2 and "clip 'test_0002': is missing" in err and not output.exists()


def test_predict_refuses_what_does_not_go_together(capsys, shared, tmp_path):
    clip, model = paths(shared)[0], ("--model", shared / "fusion")
    assert "found neither; clips come before --model" in refused(capsys, "predict", *model)
    assert "found both" in refused(capsys, "predict", clip, *model, "--features", tmp_path)
    assert "--window is for clips" in refused(capsys, "predict", *model, "--features", tmp_path, "--window", "2")
    assert "--batch-size is for --features" in refused(capsys, "predict", clip, *model, "--batch-size", "2")
    assert "--hop needs --window" in refused(capsys, "predict", clip, *model, "--hop", "2")
    assert "window must be" in refused(capsys, "predict", clip, *model, "--window", "-1")
    assert "found two clips named" in refused(capsys, "predict", clip, clip, *model)


def test_features_become_a_data_set_and_imported_ones_join(capsys, shared, tmp_path):
    imported = tmp_path / "HiCMAE"
    imported.mkdir()
    for name in CLIPS:
        np.save(imported / f"{name}.npy", np.full((2, 5), 0.5, np.float32))
    output = tmp_path / "features"
    encoders = [f"{name}={shared / 'encoders' / name}" for name in ("student", "hubert")]
    code, out, err = run(
        capsys, "features", shared / "clips", "--output", output, "--encoder", *encoders, "--imported",
        f"HiCMAE={imported}",
    )  # fmt: skip
    assert code == 0 and out.endswith(f": {output}\n") and "HiCMAE 5" in out
    assert "4 clips, 1 failed" in out and BROKEN in err
    data = datasets.load_from_disk(str(output))
    assert sorted(data["clip"]) == sorted(CLIPS)
    assert blemore.encoder_widths(data) == {"student": 12, "hubert": 16, "HiCMAE": 5}
    again = refused(capsys, "features", shared / "clips", "--output", output, "--encoder", *encoders)
    assert "already exists" in again


def test_features_of_a_models_own_encoders(capsys, shared, tmp_path):
    output = tmp_path / "features"
    model = ("--model", shared / "fusion")
    assert run(capsys, "features", paths(shared)[0], "--output", output, *model)[0] == 0
    assert set(blemore.encoder_widths(datasets.load_from_disk(str(output)))) == {"student", "hubert"}


def test_pictures_are_looked_at_as_often_as_asked_for(capsys, shared, tmp_path):
    encoders = [f"{name}={shared / 'encoders' / name}" for name in ("student", "hubert")]
    rates = {}
    for rate in ("5", "2"):
        output = tmp_path / rate
        options = ("--encoder", *encoders, "--frames-per-second", rate, "--image-backend", "torchvision")
        assert run(capsys, "features", paths(shared)[0], "--output", output, *options)[0] == 0
        [features] = blemore.read_features(datasets.load_from_disk(str(output)))
        rates[rate] = {name: len(values) for name, values in features.items()}
        written = json.loads((output / "encoders.json").read_text())
        assert written["student"]["extraction"] == {"frames_per_second": float(rate), "image_backend": "torchvision"}
        assert "extraction" not in written["hubert"]
    assert rates["5"]["student"] > 2 * rates["2"]["student"] and rates["5"]["hubert"] == rates["2"]["hubert"]
    alone = ("features", paths(shared)[0], "--output", tmp_path / "out", "--encoder", encoders[1])
    assert "none of which knows it" in refused(capsys, *alone, "--frames-per-second", "5")


def test_features_refuses_what_it_cannot_use(capsys, shared, tmp_path):
    features = ("features", shared / "clips", "--output", tmp_path / "out")
    assert "expected NAME=MODEL" in refused(capsys, *features, "--encoder", "student")
    assert "found 'a' twice" in refused(capsys, *features, "--encoder", "a=x/y", "a=x/z")
    assert "--public needs --push-to-hub" in refused(capsys, *features, "--encoder", "a=x/y", "--public")
    assert "not a file, folder or Hub id" in refused(capsys, *features, "--encoder", f"a={tmp_path / 'gone'}")
    good = f"student={shared / 'encoders' / 'student'}"
    code, _, err = run(
        capsys, "features", shared / "broken", "--output", tmp_path / "out", "--encoder", good
    )  # fmt: skip
    assert code == 2 and "could not encode the clip: " in err.splitlines()[-1]


def test_demo_serves_a_page_that_recognises_clips(capsys, shared, member, tmp_path, monkeypatch):
    made, served = [], []
    monkeypatch.setattr(demo_page, "make_demo", lambda *arguments: made.append(arguments) or "page")
    monkeypatch.setattr(demo_page, "launch_demo", lambda *arguments: served.append(arguments))
    clip, demo = paths(shared)[0], ("demo", "--model", shared / "fusion")
    assert run(capsys, *demo, "--port", "7001", "--example", clip)[0] == 0
    [(recognise, model, examples)] = made
    assert (model, examples) == (str(shared / "fusion"), [str(clip)])
    assert served == [("page", "127.0.0.1", 7001, False)]
    [expected] = predict_clips([clip], [member], fusion_encoders([member]))
    found = recognise(str(clip))
    assert len(found.pop("thumbnails")) == 8 and found == expected
    assert "no such file, expected a clip" in refused(capsys, *demo, "--example", tmp_path / "gone.mp4")
    assert "gone: not a file, folder or Hub id" in refused(capsys, "demo", "--model", tmp_path / "gone")
