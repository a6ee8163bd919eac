"""A clip goes in and a blend comes out, by a fusion and encoders that lie on the Hub at revisions of their own."""

import json

import pytest
from tiny_extraction import CLIPS, make_clips, make_fusion, save_encoders

from hf_blemo.prediction.clips import fusion_encoders, predict_clips

# Encoders first; their later versions are others, so that only a commit finds those that the fusion was made with.
PUBLISH = """
import json, logging, sys
from pathlib import Path
from huggingface_hub import HfApi
from tiny_extraction import make_fusion
from hf_blemo.hub import push_model
entries, local = json.loads(sys.argv[1]), json.loads(sys.argv[1])
api = HfApi()
for name, entry in entries.items():
    folder, repo_id = entry["model_id"], f"you/clips-{name}"
    api.create_repo(repo_id)
    api.upload_folder(repo_id=repo_id, folder_path=folder)
    entry |= {"model_id": repo_id, "revision": api.model_info(repo_id).sha}
    api.upload_file(path_or_fileobj=b"spoiled", path_in_repo="model.safetensors", repo_id=repo_id)
push_model(*make_fusion(entries), "you/clips-fusion", license="mit")
gone = {**entries, "hubert": {**entries["hubert"], "revision": 40 * "0"}}
push_model(*make_fusion(gone), "you/clips-gone", license="mit")
push_model(*make_fusion({**entries, "student": {"model_id": "you/clips-nothing"}}), "you/clips-lost", license="mit")
push_model(*make_fusion(local), "you/clips-local", license="mit")
print(json.dumps(entries))
"""
RECOGNISE = """
import json, sys
import hf_blemo
from transformers import pipeline
clip, bad = sys.argv[1:]
recognise = pipeline("blended-emotion-recognition", model="you/clips-fusion")
found = [recognise(clip), recognise([bad, clip])]
errors = []
for name in ("gone", "lost", "local"):
    try:
        pipeline("blended-emotion-recognition", model=f"you/clips-{name}")(clip)
    except (ValueError, FileNotFoundError) as error:
        errors.append(str(error))
print(json.dumps([found, errors, {n: e.source.options() for n, e in recognise.encoders.items()}]))
"""
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
def clips(tmp_path_factory):
    return make_clips(tmp_path_factory.mktemp("clips"), broken=False)


@pytest.fixture(scope="module")
def entries(tmp_path_factory):
    return save_encoders(tmp_path_factory.mktemp("encoders"))


@pytest.fixture(scope="module")
def published(hub, entries, tmp_path_factory):
    """Entries of the encoders on the Hub."""
    from hub_programs import run_on_hub

    return run_on_hub(tmp_path_factory.mktemp("work"), PUBLISH, json.dumps(entries))


def test_a_clip_goes_in_and_a_blend_comes_out(hub, on_hub, published, entries, clips, tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"none")
    path = clips / f"{CLIPS[1]}.mp4"
    [found, several], errors, encoders = on_hub(RECOGNISE, path, tmp_path / "bad.mp4")
    member = make_fusion(entries)
    [expected] = predict_clips([path], [member], fusion_encoders([member]))
    assert found["clip"] == CLIPS[1] and found["blend"] == expected["blend"]
    for name in ("probabilities", "presence", "salience", "encoder_weights"):
        assert found[name] == pytest.approx(expected[name], abs=1e-5), name
    assert several[1] == found and several[0]["clip"] == "bad" and "bad.mp4" in several[0]["error"]
    assert encoders == published
    # One line each, which names the encoder and where it was looked for.
    gone, lost, local = errors
    assert gone.startswith(f"encoder 'hubert': you/clips-hubert, revision {'0' * 40}: ") and "\n" not in gone
    assert lost.startswith("encoder 'student': you/clips-nothing: ") and "\n" not in lost
    assert local.startswith("encoder 'student': student: not a file, folder or Hub id")
    config = hub.files("you/clips-local")["config.json"].decode()
    assert str(clips.parent) not in config and json.loads(config)["encoders"]["student"]["model_id"] == "student"


def test_without_the_package_it_says_what_to_install(on_hub, published, clips):
    errors, blend = on_hub(WITHOUT, clips / f"{CLIPS[0]}.mp4", installed=False)
    assert blend and len(errors) == 2
    for error in errors:
        assert f"{CLIPS[0]}.mp4: a file, expected a folder of features" in error
        assert "pip install hf_blemo[media]" in error
