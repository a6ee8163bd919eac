"""What cards and publications say of the models behind a fusion's features."""

import json
import logging
import re

import pytest
from sample_metrics import FUSION
from tiny_extraction import fusion_entries, save_encoders, save_fusion

from hf_blemo.hub import publish, write_card
from hf_blemo.hub.card import render_card, without_local_paths
from hf_blemo.hub.encoder_models import encoder_rows

COMMIT = "0123456789abcdef0123456789abcdef01234567"
HUB = {"model_id": "you/student", "revision": COMMIT, "extraction": {"frames_per_second": 5.0}}


@pytest.fixture
def config():
    return {
        "encoders": {
            "clip": HUB, "folder": {"model_id": "/home/someone/students/small"}, "given": {"feature_size": 3},
            "branch": {"model_id": "you/voice", "revision": "v1|x"},
        },
        "encoder_order": ["given", "folder", "clip", "branch"],
    }  # fmt: skip


def test_a_folder_is_told_from_a_repository(tmp_path, monkeypatch):
    def is_published(model_id):
        [row] = encoder_rows({"encoders": {"a": {"model_id": model_id}}})
        return row["published"]

    for model_id in ("/home/x", "./a", "~/a", "a", "a/b/c"):
        assert not is_published(model_id), model_id
    monkeypatch.chdir(tmp_path)
    assert is_published("out/student")
    (tmp_path / "out" / "student").mkdir(parents=True)
    assert not is_published("out/student")


def test_rows_name_model_and_revision(config):
    folder, clip, branch = encoder_rows(config)
    assert folder["model"] == "`small`, a folder that is not published" and not folder["published"]
    assert folder["revision"] == folder["options"] == "–"
    assert clip["model"] == "[you/student](https://huggingface.co/you/student)" and clip["published"]
    assert clip["revision"] == "`0123456`" and clip["options"] == "frames_per_second 5.0"
    assert branch["revision"] == "`v1|x`"
    assert encoder_rows({}) == [] == encoder_rows({"encoders": {"a": {"feature_size": 2}}})


def test_paths_of_this_machine_are_not_told(config):
    shown = without_local_paths(config)
    assert shown["encoders"]["folder"] == {"model_id": "small"} and shown["encoders"]["clip"] == HUB
    assert "someone" in json.dumps(config) and "someone" not in json.dumps(shown)


def test_the_card_lists_the_encoders_and_how_clips_are_given(config):
    rows = encoder_rows(config)
    published = [row for row in rows if row["published"]]
    card = render_card(FUSION, repo_id="owner/fusion", encoder_models=published)
    assert "| clip | [you/student](https://huggingface.co/you/student) | `0123456` | frames_per_second 5.0 |" in card
    assert "| branch | [you/voice](https://huggingface.co/you/voice) | `v1\\|x` | – |" in card
    assert "The model takes features, not video" not in card
    code = re.findall(r"```python\n(.*?)```", card, re.DOTALL)[0]
    compile(code, "card", "exec")
    assert 'pipeline("blended-emotion-recognition", model="owner/fusion")' in code
    # Who cannot load an encoder is not told to give clips.
    card = render_card(FUSION, repo_id="owner/fusion", encoder_models=rows)
    assert "Not all of these encoders are published" in card and 'pipeline("blended' not in card
    assert "someone" not in card
    card = render_card(FUSION, repo_id="owner/fusion")
    assert "The model takes features, not video: run the encoders listed below first." in card


def test_publishing_warns_of_folders_in_one_line(tmp_path, caplog):
    entries = save_encoders(tmp_path / "encoders")
    folder = save_fusion(tmp_path / "fusion", entries)
    write_card(folder, {**FUSION, "encoders": fusion_entries(entries)})
    with caplog.at_level(logging.WARNING, logger="hf_blemo"):
        publish(folder)
    [message] = [record.getMessage() for record in caplog.records]
    assert "others cannot make its features from clips" in message and "\n" not in message
    assert f"student ({entries['student']['model_id']}), hubert (" in message
    assert "`student`, a folder that is not published" in (folder / "README.md").read_text()
    caplog.clear()
    other = save_fusion(tmp_path / "other", {name: {"model_id": f"you/{name}"} for name in entries})
    write_card(other, {**FUSION, "encoders": fusion_entries(entries)})
    with caplog.at_level(logging.WARNING, logger="hf_blemo"):
        publish(other)
    assert not caplog.records and "| student | [you/student](" in (other / "README.md").read_text()
