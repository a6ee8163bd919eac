"""The model that the package brings along: right on its clips and on others like them, wherever its folder lies."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from clip_files import tone, write_clip
from command_line import refused, run
from transformers import AutoModel, AutoProcessor, pipeline

from hf_blemo import blemore, built_in
from hf_blemo.prediction import demo_page

TASK = "blended-emotion-recognition"
LABELS = {Path(path).stem: blemore.parse_clip_name(Path(path).stem) for path in built_in.CLIPS}
BLENDS = {
    clip: [{"emotion": e, "salience": float(s)} for e, s in zip(label.emotions, label.saliences, strict=True)]
    for clip, label in LABELS.items()
}


@pytest.fixture(scope="module")
def recognise():
    return pipeline(TASK, model=built_in.MODEL, device="cpu")


def test_predict_needs_nothing_but_the_option(capsys, tmp_path):
    outputs = [tmp_path / "results.json", tmp_path / "report.html"]
    code, out, err = run(capsys, "predict", "--built-in", "--output", *outputs)
    assert code == 0 and "knows drawn clips only" in err
    words = {"A211_mix_hap_sad_30_70_ver1": "30 % happiness, 70 % sadness", "A207_fea_int1_ver1": "fear"}
    assert [line.partition(" (")[0] for line in out.splitlines()[:2]] == [f"{c}: {w}" for c, w in words.items()]
    found = json.loads(outputs[0].read_text())
    assert (found["model"], found["predictions"]) == ([built_in.MODEL_NAME], BLENDS)
    assert built_in.MODEL_NAME in outputs[1].read_text() and built_in.MODEL not in outputs[1].read_text()


def test_own_clips_are_predicted_by_it_and_its_clips_by_other_means(capsys, recognise, tmp_path):
    mine = shutil.copy(built_in.CLIPS[1], tmp_path / "mine.mp4")
    code, out, _ = run(capsys, "predict", mine, "--built-in")
    assert code == 0 and out.startswith("mine: fear (") and out.count("\n") == 1
    # Features by its encoders first, and the prediction from them.
    assert run(capsys, "features", mine, "--output", tmp_path / "features", "--model", built_in.MODEL)[0] == 0
    assert run(capsys, "predict", "--built-in", "--features", tmp_path / "features")[1].startswith("mine: fear (")
    # The model and its encoders as one folder, loaded by the auto classes.
    copy = shutil.copytree(built_in.MODEL, tmp_path / "copy")
    moved = pipeline(TASK, model=str(copy), device="cpu")
    assert moved.encoders["voice"].source.model_id == str(copy / "voice")
    found = [moved(path) for path in built_in.CLIPS]
    assert {result["clip"]: result["blend"] for result in found} == BLENDS
    assert found[0] == recognise(built_in.CLIPS[0])
    # Without the folders of its encoders, both doors say where they were looked for.
    shutil.rmtree(copy / "voice")
    assert f"{copy / 'voice'}: not a file, folder or Hub id" in refused(capsys, "predict", mine, "--model", copy)
    with pytest.raises(FileNotFoundError, match=re.escape(str(copy / "voice"))):
        pipeline(TASK, model=str(copy), device="cpu")(str(mine))
    assert type(AutoModel.from_pretrained(built_in.MODEL)) is type(recognise.model)
    assert AutoProcessor.from_pretrained(built_in.MODEL).encoders == recognise.model.config.encoders


def test_it_is_right_on_clips_of_drawn_actors_that_it_has_not_met(recognise, tmp_path):
    built_in.make_synthetic_clips(tmp_path / "clips", num_clips=36, seed=5)
    blends = {result["clip"]: result["blend"] for result in recognise(str(tmp_path / "clips"))}
    assert blemore.acc_presence(list(blends.values()), list(blends)) > 0.9
    assert blemore.acc_salience(list(blends.values()), list(blends)) > 0.75


def test_it_says_of_colour_bars_that_it_knows_nothing_like_them(recognise, tmp_path):
    colours = np.array([[255] * 3, [255, 255, 0], [0, 255, 255], [255, 0, 255]], np.uint8)
    bars = colours[None].repeat(64, 0).repeat(16, 1)
    write_clip(tmp_path / "bars.mp4", pictures=[bars] * 20, sound=tone(2.0, 16000, 1000.0))
    assert recognise(str(tmp_path / "bars.mp4"))["unlike_training"]
    assert not any(recognise(path)["unlike_training"] for path in built_in.CLIPS)


def test_its_card_says_what_it_is_and_is_not():
    text = (Path(built_in.MODEL) / "README.md").read_text(encoding="utf-8")
    metadata = yaml.safe_load(text.split("---\n")[1])
    assert metadata["license"] == "apache-2.0"
    for words in ("It has never seen a person", "means nothing", "predict --built-in", "training/make_built_in.py"):
        assert words in text
    rows = re.findall(r"^\| (all|shown in \w+) \| (\d+) \| (\d\.\d+) \| (\d\.\d+) \|$", text, re.MULTILINE)
    assert [row[0] for row in rows] == ["all", "shown in picture", "shown in sound", "shown in both"]
    assert int(rows[0][1]) == sum(int(row[1]) for row in rows[1:]) >= 60
    assert max(map(len, text.splitlines())) <= 120


def test_its_folder_is_small_and_holds_no_code_and_no_place_of_a_machine():
    files = [path for path in Path(built_in.MODEL).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 1_500_000
    assert {path.suffix for path in files} == {".json", ".md", ".mp4", ".safetensors"}
    texts = [path.read_text(encoding="utf-8") for path in files if path.suffix in (".json", ".md")]
    assert not [text for text in texts if "auto_map" in text or re.search(r"/(home|work|tmp|root)/|\bout/", text)]


def test_the_page_offers_its_clips(capsys, monkeypatch, tmp_path):
    shown = {}

    def make_demo(recognise, model, examples, names):
        shown.update(
            model=model,
            examples=list(examples),
            blends=[found["blend"] for found in recognise(examples[-1])],
            names=names,
        )

    monkeypatch.setattr(demo_page, "make_demo", make_demo)
    monkeypatch.setattr(demo_page, "launch_demo", lambda *options: None)
    mine = shutil.copy(built_in.CLIPS[0], tmp_path / "mine.mp4")
    assert run(capsys, "demo", "--built-in", "--example", mine)[0] == 0
    assert shown["examples"] == [str(mine), *built_in.CLIPS] and shown["model"] == built_in.MODEL_NAME
    assert shown["blends"] == [BLENDS["A207_fea_int1_ver1"]] and tuple(shown["names"]) == blemore.EMOTIONS


@pytest.mark.parametrize("command", ["predict", "demo"])
def test_options_that_contradict_it_are_refused_in_a_line(command, capsys):
    for options, message in (
        (["--model", "other"], "argument --model: not allowed with argument --built-in"),
        (["--revision", "v1"], "--revision is for models on the Hub, found --built-in"),
    ):
        assert message in refused(capsys, command, "--built-in", *options)
    clips = ["clip.mp4"] if command == "predict" else []
    assert "one of the arguments --model --built-in is required" in refused(capsys, command, *clips)
