"""The models behind features: kept beside a data set, passed on to what is trained on it, and told in cards."""

import json
import logging
import re

import numpy as np
import pytest
from sample_metrics import FUSION
from tiny_extraction import fusion_entries, save_encoders, save_fusion

from hf_blemo.feature_sets.layout import Clip, dataset_features
from hf_blemo.feature_sets.writing import write_dataset
from hf_blemo.fusion_training.data import load_data, model_config
from hf_blemo.fusion_training.settings import FusionSettings
from hf_blemo.hub import publish, write_card
from hf_blemo.hub.card import render_card, without_local_paths
from hf_blemo.hub.encoder_models import encoder_rows, read_provenance

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LISTENER = {
    "feature_size": 4, "modality": "audio", "model_id": "you/listener", "revision": COMMIT, "extraction": {"layer": 3},
}  # fmt: skip
CONFIG = {
    "encoders": {
        "clip": {"model_id": "you/student", "revision": COMMIT, "extraction": {"frames_per_second": 5.0}},
        "folder": {"model_id": "/home/someone/students/small"},
        "given": {"feature_size": 3},
        "branch": {"model_id": "you/voice", "revision": "v1|x"},
        "prosody": {"model_id": "opensmile:eGeMAPSv02", "revision": "2.6.0"},
    },
    "encoder_order": ["given", "folder", "clip", "branch", "prosody"],
}


def test_rows_name_model_and_revision():
    folder, clip, branch, prosody = encoder_rows(CONFIG)
    assert folder["model"] == "`small`, a folder that is not published" and not folder["published"]
    assert folder["revision"] == folder["options"] == "–"
    assert clip["model"] == "[you/student](https://huggingface.co/you/student)" and clip["published"]
    assert clip["revision"] == "`0123456`" and clip["options"] == "frames_per_second 5.0"
    assert branch["revision"] == r"`v1\|x`"
    assert (
        prosody["published"] and prosody["revision"] == "`2.6.0`" and "licensed for research only" in prosody["model"]
    )
    assert encoder_rows({}) == [] == encoder_rows({"encoders": {"a": {"feature_size": 2}}})
    shown = without_local_paths(CONFIG)
    assert shown["encoders"] == CONFIG["encoders"] | {"folder": {"model_id": "small"}}


def test_a_folder_is_not_taken_for_a_repository(tmp_path, monkeypatch):
    def published(model_id):
        return encoder_rows({"encoders": {"a": {"model_id": model_id}}})[0]["published"]

    for model_id in ("/home/x", "./a", "~/a", "a", "a/b/c"):
        assert not published(model_id), model_id
    monkeypatch.chdir(tmp_path)
    assert published("out/student")
    (tmp_path / "out" / "student").mkdir(parents=True)
    assert not published("out/student")


def test_the_card_lists_the_encoders_and_how_clips_are_given():
    rows = encoder_rows(CONFIG)
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
    local = save_fusion(tmp_path / "fusion", entries)
    on_hub = save_fusion(tmp_path / "other", {name: {"model_id": f"you/{name}"} for name in entries})
    for folder in (local, on_hub):
        write_card(folder, {**FUSION, "encoders": fusion_entries(entries)})
        with caplog.at_level(logging.WARNING, logger="hf_blemo"):
            publish(folder)
    messages = [record.getMessage() for record in caplog.records]
    # Neither says a licence, which is another line.
    [message] = [message for message in messages if "license" not in message]
    assert "others cannot make its features from clips" in message and "\n" not in message
    assert f"student ({entries['student']['model_id']}), hubert (" in message
    assert "`student`, a folder that is not published" in (local / "README.md").read_text()
    assert "| student | [you/student](" in (on_hub / "README.md").read_text()


def test_a_data_set_may_say_where_its_features_come_from(tmp_path):
    table = tmp_path / "table.npz"
    table.write_bytes(b"")
    # Nothing of these is looked for on the Hub, which is out of reach.
    for source in (str(tmp_path), str(table), "synthetic", "gone", "./a/b", "/no/where", "owner/name"):
        assert read_provenance(source) == {}, source
    path = tmp_path / "encoders.json"
    path.write_text(json.dumps({"listener": LISTENER, "given": {"feature_size": 3, "note": "mine"}}))
    assert list(read_provenance(str(tmp_path)).items()) == [("listener", LISTENER), ("given", {"feature_size": 3})]
    for content, message in (
        ("{", "encoders.json: expected JSON"),
        ("[]", "encoders.json: expected a JSON object, found list"),
        ('{"a": 3}', "encoders.json: encoder 'a': expected an object, found int"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            read_provenance(str(tmp_path))


def test_a_model_learns_where_its_features_come_from(tmp_path, caplog):
    types = {"listener": (4, "float32"), "given": (3, "float32")}
    rows = {name: np.ones((2, width), np.float32) for name, (width, _) in types.items()}
    made = tmp_path / "made"
    write_dataset(made, dataset_features(types), 3, lambda row: Clip(f"c{row}", rows, np.full(6, -100.0), -1), {})

    def options_of(entries, **settings):
        (made / "encoders.json").write_text(json.dumps(entries))
        settings = FusionSettings(data=str(made), **settings)
        return model_config(load_data(settings.data, {}), settings).encoders

    assert "model_id" not in options_of({})["listener"] and options_of({})["listener"]["modality"] == "video"
    options = options_of({"listener": LISTENER, "given": {"feature_size": 3}}, pooling="attention")
    assert options["listener"] == {**LISTENER, "pooling": "attention", "transform": "none"}
    assert options["given"]["modality"] == "video" and "model_id" not in options["given"]
    # What the settings say of an encoder wins.
    own = {"listener": {"modality": "video", "revision": "v2"}}
    changed = options_of({"listener": LISTENER}, encoder_options=own)["listener"]
    assert (changed["modality"], changed["revision"], changed["model_id"]) == ("video", "v2", "you/listener")

    # What is said of features of another width is not believed.
    with caplog.at_level(logging.WARNING):
        options = options_of({"listener": {**LISTENER, "feature_size": 28}, "other": {"model_id": "you/other"}})
    assert "encoders.json says that encoder 'listener' is 28 wide, the data that it is 4" in caplog.text
    assert options["listener"]["feature_size"] == 4 and "model_id" not in options["listener"]
    assert list(options) == ["listener", "given"]

    (made / "encoders.json").write_text(json.dumps({"listener": {"modality": 3}}))
    settings = FusionSettings(data=str(made))
    with pytest.raises(ValueError, match="listener.*expected a word as modality, found 3"):
        model_config(load_data(settings.data, {}), settings)
