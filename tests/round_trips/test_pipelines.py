"""Pipelines of models on the Hub: with the package, and by the repository's own code without it."""

import json

import pytest
from tiny_models import save_tiny_model

UPLOAD = """
import json, sys
from huggingface_hub import HfApi
for name, folder in json.loads(sys.argv[1]).items():
    HfApi().create_repo(name)
    HfApi().upload_folder(repo_id=name, folder_path=folder)
print(json.dumps(True))
"""
PIPE = """
import json, sys
import numpy as np
from PIL import Image
from transformers import pipeline
options = json.loads(sys.argv[1])
generator = np.random.default_rng(0)
clips = [{"face": generator.normal(size=(3 + n, 6)), "voice": generator.normal(size=(2 + n, 4))} for n in range(3)]
del clips[1]["face"]
recognise = pipeline("blended-emotion-recognition", model="you/pipe-fusion", **options)
found = recognise(clips, batch_size=2)
recognise.model.save_pretrained("again")
recognise.processor.save_pretrained("again")
again = pipeline("blended-emotion-recognition", model="again", **options)(clips, batch_size=3)
image = Image.new("RGB", (20, 30), (200, 10, 30))
embed = pipeline("image-feature-extraction", model="you/pipe-student", **options)
classify = pipeline("zero-shot-image-classification", model="you/pipe-student", **options)
scores = classify(image, candidate_labels=["red", "blue"])
print(json.dumps({"found": found, "again": again, "embedding": embed(image), "scores": scores,
                  "module": type(recognise).__module__, "package": "hf_blemo" in sys.modules}))
"""


@pytest.fixture(scope="module")
def uploaded(hub, tmp_path_factory):
    from hub_programs import run_on_hub

    work = tmp_path_factory.mktemp("pipelines")
    save_tiny_model("rank_aware_fusion", work / "fusion")
    save_tiny_model("clip_rd", work / "student")
    folders = {"you/pipe-fusion": str(work / "fusion"), "you/pipe-student": str(work / "student")}
    run_on_hub(work, UPLOAD, json.dumps(folders))


def test_with_and_without_the_package_they_say_the_same(uploaded, on_hub):
    # transformers' pipelines are imported before the package and after it.
    first = on_hub("import transformers.pipelines, hf_blemo\n" + PIPE, "{}")
    trusting = json.dumps({"trust_remote_code": True})
    second = on_hub("import hf_blemo\n" + PIPE, trusting)
    third = on_hub(PIPE, trusting, installed=False)
    assert [one["package"] for one in (first, second, third)] == [True, True, False]
    assert first["module"] == second["module"] == "hf_blemo.prediction.clip_pipeline"
    assert third["module"].startswith("transformers_modules.")
    for key in ("found", "again", "embedding", "scores"):
        assert first[key] == second[key] == third[key], key
    assert first["again"] == first["found"] or [one["blend"] for one in first["again"]] == [
        one["blend"] for one in first["found"]
    ]
    assert len(first["embedding"][0]) == 12


def test_code_that_was_not_trusted_is_not_run(uploaded, on_hub):
    code = "from transformers import pipeline; pipeline('blended-emotion-recognition', model='you/pipe-fusion')"
    _, errors = on_hub(code, installed=False, fails=True)
    assert "trust_remote_code=True" in errors
