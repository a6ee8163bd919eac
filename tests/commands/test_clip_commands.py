"""`hf-blemo predict`, `features` and `demo` on raw clips: what they print, write, refuse and keep."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from clip_files import write_clip
from command_line import refused, run
from tiny_extraction import BROKEN, CLIPS, save_fusion

from hf_blemo import feature_sets
from hf_blemo.blemore import submission
from hf_blemo.prediction import clips as clip_prediction
from hf_blemo.prediction import demo_page
from hf_blemo.prediction.clips import fusion_encoders, predict_clips


@pytest.fixture(scope="module")
def fusion(tmp_path_factory, entries):
    return save_fusion(tmp_path_factory.mktemp("shared") / "fusion", entries)


@pytest.fixture
def bad(clip_folder):
    return clip_folder / f"{BROKEN}.mp4"


@pytest.fixture
def predict(capsys, fusion):
    """Runs `hf-blemo predict CLIPS --model FUSION OPTIONS`."""
    return lambda clips, *options: run(capsys, "predict", *clips, "--model", fusion, *options)


def test_names_of_clips_are_harmless_wherever_they_are_written(predict, paths, tmp_path):
    names = ["=HYPERLINK(1)", "a\x1b[2J\nb\u202e", "@c"]
    clips = [shutil.copy(paths[0], tmp_path / f"{name}.mp4") for name in names[:2]] + [tmp_path / f"{names[2]}.mp4"]
    clips[2].write_bytes(b"no clip")
    code, out, err = predict(clips, "--output", tmp_path / "a.csv", tmp_path / "a.json", tmp_path / "a.html")
    assert code == 0 and out.count("\n") == 3 and "\x1b" not in out + err and r"a\x1b[2J\nb\u202e: " in out
    with (tmp_path / "a.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["clip"] for row in rows] == ["'=HYPERLINK(1)", r"a\x1b[2J\nb\u202e", "'@c"]
    assert [clip["clip"] for clip in json.loads((tmp_path / "a.json").read_text())["clips"]] == names
    assert not set("\x1b\u202e") & set((tmp_path / "a.html").read_text())


def test_clips_are_predicted_and_a_bad_one_is_a_line_of_its_own(predict, bad, paths, member, tmp_path):
    outputs = {suffix: tmp_path / f"results.{suffix}" for suffix in ("json", "csv", "html")}
    code, out, err = predict([bad, *paths], "--output", *outputs.values())
    assert code == 0
    [error] = [line for line in err.splitlines() if BROKEN in line]
    assert error.startswith(f"{bad}: no media that can be read")
    expected = list(predict_clips(paths, [member], fusion_encoders([member])))
    lines = out.splitlines()
    assert [line.split(":")[0] for line in lines[:-1]] == list(CLIPS)
    assert lines[-1].startswith(f"{len(CLIPS)} clips, decoding ")
    found = json.loads(outputs["json"].read_text())
    assert found["clips"][0] == {"clip": BROKEN, "error": error}
    assert found["predictions"] == {result["clip"]: result["blend"] for result in expected}
    with outputs["csv"].open() as file:
        rows = list(csv.DictReader(file))
    assert [row["clip"] for row in rows] == [BROKEN, *CLIPS]
    assert rows[0]["error"] == error and rows[0]["emotion_1"] == "" and rows[1]["error"] == ""
    for result, row, right in zip(found["clips"][1:], rows[1:], expected, strict=True):
        assert "thumbnails" not in result
        assert result["probabilities"] == pytest.approx(right["probabilities"], abs=1e-5)
        assert row["emotion_1"] == right["blend"][0]["emotion"]
        assert float(row["salience_1"]) == right["blend"][0]["salience"]
        assert float(row["presence_hap"]) == pytest.approx(right["presence"]["hap"], abs=1e-5)
        assert row["selected"].split("+") == right["selected_encoders"]
    report = outputs["html"].read_text()
    assert all(name in report for name in (BROKEN, *CLIPS)) and report.count("data:image/jpeg") == 8 * len(CLIPS)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_what_is_done_is_printed_and_kept_when_a_run_ends(predict, capsys, paths, tmp_path, monkeypatch, error):
    output, partial, seen = tmp_path / "results.json", tmp_path / "results.json.partial", []

    def ending(*given, **options):
        found = predict_clips(*given, **options)
        yield next(found)
        seen.append(partial.read_text())
        yield next(found)
        seen.append(capsys.readouterr().out)
        raise error

    monkeypatch.setattr(clip_prediction, "predict_clips", ending)
    if error is KeyboardInterrupt:
        monkeypatch.setattr(submission, "clip_problems", lambda names: [])
        code, out, err = predict(paths, "--output", output, tmp_path / "made.zip")
        assert code == 130 and not out
        assert err.splitlines()[-1] == f"hf-blemo predict: interrupted: 2 of 4 clips are predicted, kept in {output}"
    else:
        with pytest.raises(error):
            predict(paths, "--output", output)
    assert [json.loads(seen[0])["clip"], [line.split(":")[0] for line in seen[1].splitlines()]] == [
        CLIPS[0],
        [*CLIPS[:2]],
    ]
    assert list(json.loads(output.read_text())["predictions"]) == list(CLIPS[:2])
    assert [path.name for path in tmp_path.iterdir()] == [output.name]


def test_a_run_without_outputs_may_be_interrupted_before_its_first_clip(predict, paths, monkeypatch):
    def ending(*given, **options):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(clip_prediction, "predict_clips", ending)
    code, _, err = predict(paths)
    assert code == 130
    assert err.splitlines()[-1] == "hf-blemo predict: interrupted: 0 of 4 clips are predicted"


def odd_clips(folder, path):
    """Copies of a clip under names that are hard to write, and what is no clip."""
    folder.mkdir()
    names = [b"\xff\xfe.mp4", b"a\nb.mp4", b"x" * 250 + b".mp4"]
    for name in names:
        shutil.copy(path, os.fsencode(folder) + b"/" + name)
    os.mkfifo(folder / "pipe.mp4")
    (folder / "endless.mp4").symlink_to("/dev/zero")
    (folder / "nowhere.mp4").symlink_to("nowhere")
    pictures = [np.zeros((2, 16384, 3), np.uint8)]
    write_clip(folder / "narrow.mkv", "ffv1", None, pictures)
    write_clip(folder / "wide.mkv", "ffv1", None, [np.zeros((2, 160, 3), np.uint8)] * 3)
    return folder


def test_odd_names_and_files_end_no_run(predict, capsys, paths, encoders, tmp_path):
    folder = odd_clips(tmp_path / "clips", paths[0])
    outputs = [tmp_path / f"results.{suffix}" for suffix in ("json", "csv", "html")]
    code, _, err = predict([folder], "--output", *outputs)
    assert code == 0, err
    found = json.loads(outputs[0].read_text())
    good = {"%FF%FE", "a\nb", "x" * 250, "wide"}
    assert set(found["predictions"]) == good and len({str(blend) for blend in found["predictions"].values()}) <= 2
    errors = {clip["clip"]: clip["error"] for clip in found["clips"] if "error" in clip}
    for name, line in (
        ("pipe", "found a named pipe"), ("endless", "found a device"), ("nowhere", "no such file"),
        ("narrow", "found a picture of 16,384 x 2 pixels, expected at most 100 "),
    ):  # fmt: skip
        assert line in errors.pop(name) and f"{folder / name}." in err
    assert not errors and "%FF%FE" in outputs[1].read_text() and "%FF%FE" in outputs[2].read_text()
    made = tmp_path / "made"
    code, out, _ = run(capsys, "features", folder, "--output", made, "--encoder", *encoders)
    assert code == 0 and out.startswith("4 clips, 4 failed")
    assert set(datasets.load_from_disk(str(made))["clip"][:]) == good


def test_without_outputs_lines_are_printed_and_only_if_no_clip_can_be_read_the_command_fails(
    predict, clip_folder, bad, fusion, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    # All that follows --model is a model.
    code, out, _ = predict([clip_folder], fusion)
    assert code == 0 and sorted(line.split(":")[0] for line in out.splitlines()) == sorted(CLIPS)
    code, out, err = predict([bad], "--output", "results.json")
    assert (code, out) == (2, "") and not list(tmp_path.iterdir())
    assert err.splitlines()[-1].startswith(f"hf-blemo predict: error: could not read the clip: {bad}: no media")


def test_predict_refuses_what_does_not_go_together(capsys, paths, fusion, tmp_path):
    for clips, options, message in (
        ([], [], "found neither; clips come before --model"),
        (paths[:1], ["--features", tmp_path], "found both"),
        ([], ["--features", tmp_path, "--window", "2"], "--window is for clips"),
        (paths[:1], ["--batch-size", "2"], "--batch-size is for --features"),
        (paths[:1], ["--hop", "2"], "--hop needs --window"),
        (paths[:1], ["--window", "-1"], "window must be"),
        (paths[:1] * 2, [], "comes more than once"),
    ):
        assert message in refused(capsys, "predict", *clips, "--model", fusion, *options)


@pytest.fixture
def encoders(entries):
    return [f"{name}={entry['model_id']}" for name, entry in entries.items()]


def test_features_become_a_data_set_and_imported_ones_join(capsys, clip_folder, paths, fusion, encoders, tmp_path):
    imported, output = tmp_path / "HiCMAE", tmp_path / "features"
    imported.mkdir()
    np.save(imported / f"{CLIPS[0]}.npy", np.full((2, 5), 0.5, np.float32))
    features = ["features", clip_folder, "--output", output, "--encoder", *encoders]
    code, out, err = run(capsys, *features, "--imported", f"HiCMAE={imported}", "--feature-dtype", "float32")
    assert code == 0 and out.endswith(f"HiCMAE 3. Written to {output}\n") and "HiCMAE 5" in out
    assert "4 clips, 1 failed" in out and BROKEN in err
    data = datasets.load_from_disk(str(output))
    assert sorted(data["clip"]) == sorted(CLIPS)
    assert feature_sets.encoder_widths(data) == {"student": 12, "hubert": 16, "HiCMAE": 5}
    assert "float32" in run(capsys, "dataset", "info", output)[1]
    assert "already exists" in refused(capsys, *features)
    # The encoders of a model.
    code, out, _ = run(capsys, "features", paths[0], "--output", tmp_path / "own", "--model", fusion)
    assert code == 0 and out.startswith("1 clip, 0 failed; width of features: student 12, hubert 16. Written to ")


def test_features_take_labels_of_any_space_from_a_list(capsys, paths, encoders, tmp_path):
    moods = ["up", "calm", "up", "calm"]
    rows = [f"{Path(path).resolve()},{moods[number]},{number}" for number, path in enumerate(paths)]
    (tmp_path / "clips.csv").write_text("\n".join(["video,mood,actor", *rows]))
    output = tmp_path / "features"
    options = ("--label-column", "mood", "--folds", "2", "--group", "actor", "--output", output)
    assert run(capsys, "features", tmp_path / "clips.csv", *options, "--encoder", encoders[0])[0] == 0
    data = datasets.load_from_disk(str(output))
    space, kind = feature_sets.label_space(data)
    assert (space.names, kind) == (("calm", "up"), "valid") and sorted(data["group"]) == ["0", "1", "2", "3"]
    assert [space.names[row.index(1)] for row in data["labels"]] == moods and sorted(data["fold"]) == [0, 0, 1, 1]
    unnamed = ("features", tmp_path / "clips.csv", "--output", tmp_path / "no", "--encoder", encoders[0])
    assert "group needs label_column or label_prefix" in refused(capsys, *unnamed, "--group", "actor")


def test_folds_of_a_folder_of_clips_are_dealt_by_their_names(capsys, paths, encoders, tmp_path):
    for path in paths:
        (tmp_path / "clips" / path.name).parent.mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / "clips")
    output = tmp_path / "features"
    features = ("features", tmp_path / "clips", "--output", output, "--encoder", encoders[0], "--folds", "2")
    assert run(capsys, *features)[0] == 0
    data = datasets.load_from_disk(str(output))
    assert data["group"][:] == ["A1", "A2", "A3", "A4"] and sorted(data["fold"]) == [0, 0, 1, 1]


def test_pictures_are_looked_at_as_often_as_asked_for(capsys, paths, encoders, tmp_path):
    rows = []
    for options in ((), ("--frames-per-second", "2", "--image-backend", "torchvision")):
        output = tmp_path / str(len(options))
        assert run(capsys, "features", paths[0], "--output", output, "--encoder", *encoders, *options)[0] == 0
        [features] = feature_sets.read_features(datasets.load_from_disk(str(output)))
        rows.append([len(features[name]) for name in ("student", "hubert")])
    assert rows[0][0] > 4 * rows[1][0] and rows[0][1] == rows[1][1]
    written = json.loads((output / "encoders.json").read_text())
    assert written["student"]["extraction"] == {"frames_per_second": 2.0, "image_backend": "torchvision"}
    assert "extraction" not in written["hubert"]
    alone = ("features", paths[0], "--output", tmp_path / "out", "--encoder", encoders[1])
    assert "none of which knows it" in refused(capsys, *alone, "--frames-per-second", "5")


def test_features_refuses_what_it_cannot_use(capsys, bad, encoders, tmp_path):
    features = ("features", bad, "--output", tmp_path / "out", "--encoder")
    for options, message in (
        (["student"], "expected NAME=MODEL"),
        (["a=x/y", "a=x/z"], "--encoder: 'a' comes more than once"),
        (["a=x/y", "--public"], "--public needs --push-to-hub"),
        (
            ["a=x/y", "--dtype", "int8"],
            "dtype 'int8' is not one of float32, bfloat16, float16, those of backend eager",
        ),
        (["a=x/y", "--overwrite", "other"], "found 'other' beside"),
        (["a=x/y", "--folds", "0"], "folds: found 0, expected at least 1"),
    ):
        assert message in refused(capsys, *features, *options)
    code, _, err = run(capsys, *features, encoders[0])
    assert code == 2 and "could not encode the clip: " in err.splitlines()[-1]


def test_demo_serves_a_page_that_recognises_clips(capsys, paths, fusion, member, tmp_path, monkeypatch):
    made, served = [], []
    monkeypatch.setattr(demo_page, "make_demo", lambda *arguments: made.append(arguments) or "page")
    monkeypatch.setattr(demo_page, "launch_demo", lambda *arguments: served.append(arguments))
    demo = ("demo", "--model", fusion)
    assert run(capsys, *demo, "--port", "7001", "--example", paths[0])[0] == 0
    [(recognise, model, examples, names)] = made
    assert (model, examples, names) == (str(fusion), [str(paths[0])], member[0].config.label_space.names)
    assert served == [("page", "127.0.0.1", 7001, False)]
    [expected] = predict_clips(paths[:1], [member], fusion_encoders([member]))
    [found] = recognise(str(paths[0]))
    assert len(found.pop("thumbnails")) == 8 and set(found) == set(expected)
    assert found["blend"] == expected["blend"] and found["duration"] == expected["duration"]


@pytest.mark.parametrize("sink", ["/dev/full", "a pipe without a reader"])
def test_a_print_that_fails_loses_nothing(paths, fusion, tmp_path, sink):
    output, command = tmp_path / "results.json", [sys.executable, "-m", "hf_blemo.cli", "predict"]
    if sink == "/dev/full":
        stdout = os.open(sink, os.O_WRONLY)
    else:
        reader, stdout = os.pipe()
        os.close(reader)
    found = subprocess.run(
        [*command, *paths, "--model", fusion, "--output", output], stdout=stdout, stderr=subprocess.PIPE, text=True
    )
    os.close(stdout)
    assert found.returncode == 2
    reason = "No space left on device" if sink == "/dev/full" else "Broken pipe"
    assert found.stderr.splitlines()[-1] == f"hf-blemo predict: error: stdout: cannot be written: {reason}"
    assert list(json.loads(output.read_text())["predictions"]) == list(CLIPS)
