"""Models of seven classes, of shares and of blends of three: published, and loaded where the package is missing."""

import json
import re
from pathlib import Path

import pytest
import yaml
from fresh_processes import run_code
from labelled_models import LABELS, make_labelled, save_labelled
from model_reports import clips
from sample_metrics import FUSION
from transformers import AutoConfig, AutoModel, AutoProcessor, pipeline

from hf_blemo.hub import publish, push_model
from hf_blemo.metrics.measures import LOWER_IS_BETTER

MEASURED = {
    "seven": ("accuracy", "uar", "macro_f1", "acc_presence", "nll", "kl"),
    "soft": ("accuracy", "uar", "macro_f1", "acc_presence", "kl", "js_distance", "mae"),
    "three": ("accuracy", "uar", "macro_f1", "acc_presence", "acc_salience", "nll", "kl"),
}
WITHOUT_PACKAGE = """
import json, sys
import numpy as np
from transformers import AutoConfig, AutoModel, AutoProcessor, pipeline
rows = [{name: np.array(values) for name, values in clip.items()} for clip in json.loads(sys.argv[2])]
found = []
for name in json.loads(sys.argv[1]):
    trusting = {"trust_remote_code": True}
    config, processor = (kind.from_pretrained(name, **trusting) for kind in (AutoConfig, AutoProcessor))
    model = AutoModel.from_pretrained(name, **trusting).eval()
    again = f"again_{len(found)}"
    # Each alone: the code of the one must not need that of the other.
    config.save_pretrained(f"{again}_config"); processor.save_pretrained(f"{again}_processor")
    model.save_pretrained(again); processor.save_pretrained(again)
    spaces = [
        config.label_space, processor.label_space,
        AutoConfig.from_pretrained(f"{again}_config", **trusting).label_space,
        AutoProcessor.from_pretrained(f"{again}_processor", **trusting).label_space,
        AutoModel.from_pretrained(again, **trusting).config.label_space,
    ]
    blends = [pipeline("blended-emotion-recognition", model=one, **trusting)(rows) for one in (name, again)]
    found.append([[repr(space) for space in spaces], *blends])
print(json.dumps(found))
"""


def metrics_of(name):
    """What a training leaves of a model of `LABELS`."""
    model, _ = make_labelled(name)
    values = {key: {"mean": 0.5, "std": 0.1} for key in MEASURED[name]}
    decoding = "soft" if name == "soft" else "expected_score"
    row = dict.fromkeys(MEASURED[name], 0.5)
    return {
        **FUSION, "measures": list(MEASURED[name]), "summary": values, "ensemble": values, "decoding": decoding,
        "alternatives": {decoding: values}, "folds": [{"seed": 0, "fold": fold, "epoch": 1, **row} for fold in (0, 1)],
        "data": {"source": "you/mine", "hub_id": "you/mine", "clips": 100, "folds": [0, 1], "blend_share": 0.0},
        "encoders": model.config.encoders, "config": {"learning_rate": 0.001}, "command": "python train_fusion.py",
    }  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of each model as a training leaves it."""
    root = tmp_path_factory.mktemp("models")
    for name in LABELS:
        save_labelled(name, root / name)
        (root / name / "metrics.json").write_text(json.dumps(metrics_of(name)))
    return root


def rounded(results):
    return json.loads(json.dumps(results), parse_float=lambda text: round(float(text), 4))


def test_without_the_package_they_say_the_same(folders, tmp_path):
    names = [str(folders / name) for name in LABELS]
    rows = [{name: values.tolist() for name, values in clip.items()} for clip in clips()]
    found = run_code(tmp_path, WITHOUT_PACKAGE, json.dumps(names), json.dumps(rows), installed=False)
    for path, (spaces, blends, again) in zip(names, found, strict=True):
        space = make_labelled(Path(path).name)[0].config.label_space
        assert spaces == [repr(space)] * 5
        expected = pipeline("blended-emotion-recognition", model=path)(clips())
        assert rounded(blends) == rounded(again) == rounded(expected)
        assert all(
            result["top"] in space.names and list(result["probabilities"]) == list(space.names) for result in blends
        )


@pytest.mark.parametrize("name", LABELS)
def test_they_are_published_with_their_code_and_a_card_that_knows_them(hub, folders, name):
    repository = f"you/labels-{name}"
    publish(folders / name, repository)
    assert "label_space_rank_aware_fusion.py" in hub.files(repository)
    space = make_labelled(name)[0].config.label_space
    for kind in (AutoConfig, AutoProcessor):
        assert kind.from_pretrained(repository).label_space == space
    assert AutoModel.from_pretrained(repository).config.label_space == space
    card = (folders / name / "README.md").read_text()
    metadata = yaml.safe_load(card.split("---\n")[1])
    assert metadata["tags"][:2] == ["hf_blemo", "rank-aware-fusion"] and "blemore" not in metadata["tags"]
    assert metadata["datasets"] == ["you/mine"] and metadata["metrics"] == list(MEASURED[name])
    [result] = metadata["model-index"][0]["results"]
    assert [metric["type"] for metric in result["metrics"]] == list(MEASURED[name])
    results = yaml.safe_load((folders / name / ".eval_results" / "you--mine.yaml").read_text())
    assert [entry["value"] for entry in results] == [0.5] * len(MEASURED[name])
    assert all("standard deviation 0.1000" in entry["notes"] for entry in results)
    text = card.split("---\n", 2)[2].replace("hf_blemo", "").replace("hf-blemo", "")
    assert not re.search("blemo|six emotions|36 labels|vocalis|actors|anger", text, re.IGNORECASE)
    assert all(f"`{label}`" in text for label in space.names)
    assert text.count("lower is better") == len(LOWER_IS_BETTER & set(MEASURED[name]))
    # A card that nobody edited gives way to a new one.
    publish(folders / name, repository)


def test_a_pushed_model_has_the_tags_of_its_labels(hub):
    push_model(*make_labelled("soft", seed=3), "you/pushed-soft", license="mit")
    tags = yaml.safe_load(hub.files("you/pushed-soft")["README.md"].decode().split("---\n")[1])["tags"]
    assert tags == ["hf_blemo", "rank-aware-fusion", "label-distribution"]
