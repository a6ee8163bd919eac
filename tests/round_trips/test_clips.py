"""A pipeline recognises clips with a fusion from the Hub and its encoders, each at its own revision."""

import json
from pathlib import Path

import pytest
from fresh_processes import run_code
from tiny_extraction import CLIPS, make_fusion
from transformers import pipeline

from hf_blemo.hub import push_model
from hf_blemo.prediction.clips import fusion_encoders, predict_clips

WITHOUT = """
import json, sys
from transformers import pipeline
recognise = pipeline("blended-emotion-recognition", model="you/clips-fusion", trust_remote_code=True)
errors = []
for clip in (sys.argv[1], [sys.argv[1]]):
    try:
        recognise(clip)
    except ValueError as error:
        errors.append(str(error))
print(json.dumps([errors, recognise({"student": [[0.5] * 12]})["blend"]]))
"""


@pytest.fixture(scope="module")
def published(hub, entries):
    """Entries of the encoders on the Hub, whose latest revisions are spoiled, and a fusion of them."""
    found = {}
    for name, entry in entries.items():
        repository = hub.put(f"you/clips-{name}", Path(entry["model_id"]))
        found[name] = {**entry, "model_id": repository.name, "revision": repository.branches["main"].oid}
        repository.edit("model.safetensors", b"spoiled")
    push_model(*make_fusion(found), "you/clips-fusion", license="mit")
    return found


def test_a_clip_is_recognised_by_encoders_at_their_revisions(published, member, paths, tmp_path):
    bad, path = tmp_path / "bad.mp4", paths[1]
    bad.write_bytes(b"none")
    recognise = pipeline("blended-emotion-recognition", model="you/clips-fusion")
    found = recognise(str(path))
    [expected] = predict_clips([path], [member], fusion_encoders([member]))
    assert found["clip"] == CLIPS[1] and found["blend"] == expected["blend"]
    for name in ("probabilities", "presence", "salience", "encoder_weights"):
        assert found[name] == pytest.approx(expected[name], abs=1e-5), name
    broken, again = recognise([str(bad), str(path)])
    assert again == found and broken["clip"] == "bad" and "bad.mp4" in broken["error"]
    assert {name: encoder.source.options() for name, encoder in recognise.encoders.items()} == published


def test_an_encoder_that_cannot_be_loaded_is_named_with_its_source(hub, published, entries, paths):
    changes = {
        "gone": {"hubert": {**published["hubert"], "revision": 40 * "0"}},
        "lost": {"student": {"model_id": "you/clips-nothing"}},
        "local": entries,
    }
    messages = {}
    for name, change in changes.items():
        push_model(*make_fusion({**published, **change}), f"you/clips-{name}", license="mit")
        with pytest.raises((ValueError, FileNotFoundError)) as error:
            pipeline("blended-emotion-recognition", model=f"you/clips-{name}")(str(paths[1]))
        messages[name] = str(error.value)
        assert "\n" not in messages[name]
    assert messages["gone"].startswith(f"encoder 'hubert': you/clips-hubert, revision {'0' * 40}: ")
    assert messages["lost"].startswith("encoder 'student': you/clips-nothing: ")
    assert messages["local"].startswith("encoder 'student': student: not a file, folder or Hub id")
    config = hub.files("you/clips-local")["config.json"].decode()
    assert entries["student"]["model_id"] not in config
    assert json.loads(config)["encoders"]["student"]["model_id"] == "student"


def test_without_the_package_the_error_says_what_to_install(published, paths, tmp_path):
    errors, blend = run_code(tmp_path, WITHOUT, paths[0], installed=False)
    assert blend and len(errors) == 2
    for error in errors:
        assert f"{CLIPS[0]}.mp4: a file, expected a folder of features" in error
        assert "hf_blemo and av (PyAV) are installed" in error
