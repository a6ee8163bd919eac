"""Encoders load from the Hub in fresh processes, and remember the commit that they were."""

import json
import shutil

import pytest
import torch
from fresh_processes import run_code
from safetensors.torch import load_file

CODE = """
import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

class OwnConfig(PreTrainedConfig):
    model_type = "own_of_you"

class OwnModel(PreTrainedModel):
    config_class = OwnConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)

    def __init__(self, config):
        super().__init__(config)
        self.layer = nn.Linear(3, 5)
        self.post_init()

    def forward(self, pixel_values):
        return BaseModelOutput(last_hidden_state=self.layer(pixel_values.flatten(2).transpose(1, 2)))
"""

PROGRAM = """
import json, sys
from pathlib import Path
import torch
from huggingface_hub import HfApi
from safetensors.torch import save_file
from transformers import CLIPImageProcessorPil, safetensors_conversion
from hf_blemo.encoders import loading

api = HfApi()

def upload(name, folder):
    api.create_repo(name, exist_ok=True)
    return api.upload_folder(repo_id=name, folder_path=folder).oid

def loaded(name, **options):
    try:
        encoder = loading.load_encoder(name, device="cpu", **options)
    except (ValueError, FileNotFoundError) as error:
        return [type(error).__name__, str(error)]
    total = sum(float(values.detach().double().sum()) for values in encoder.model.parameters())
    return [type(encoder).__name__, encoder.source.options(), encoder.feature_size, total]

given = json.loads(sys.argv[1])
commits = {name: upload(name, folder) for name, folder in given["folders"].items()}
answers = {
    "branch": loaded("you/vit", revision="main", extraction={"frames_per_second": 2}),
    "default": loaded("you/vit"),
    "commit": loaded("you/hubert", revision=commits["you/hubert"]),
    "no branch": loaded("you/vit", revision="gone"),
    "no commit": loaded("you/vit", revision="0" * 40),
    "no repository": loaded("you/nowhere"),
    "no weights": loaded("you/no-weights"),
    "pickled": loaded("you/pickled"),
    "pickled at a commit": loaded("you/pickled", revision=commits["you/pickled"]),
}

# The Hub's program that converts pickles is played by a pull request, as it would open one.
weights = f"{given['folders']['you/vit']}/model.safetensors"
request = api.upload_file(
    path_or_fileobj=weights, path_in_repo="model.safetensors", repo_id="you/pickled", create_pr=True
)
commits["converted"] = request.oid
safetensors_conversion.get_conversion_pr_reference = lambda *_, **__: "refs/pr/1"
answers["converted"] = loaded("you/pickled")
answers["converted at its commit"] = loaded("you/pickled", revision=request.oid)

# Another commit comes between the reading of the config and that of the weights.
commits["you/moving"] = upload("you/moving", given["folders"]["you/vit"])
load = loading.load_part

def and_then_move(auto_class, *arguments, **options):
    found = load(auto_class, *arguments, **options)
    if auto_class.__name__ == "AutoConfig":
        upload("you/moving", given["folders"]["you/hubert"])
    return found

loading.load_part = and_then_move
answers["moving"] = loaded("you/moving")
loading.load_part = load
assert api.model_info("you/moving").sha != commits["you/moving"]

folder = Path("own")
folder.mkdir()
(folder / "own.py").write_text(given["code"])
size = {"height": 4, "width": 4}
CLIPImageProcessorPil(size={"shortest_edge": 4}, crop_size=size).save_pretrained(folder)
own = {"layer.weight": torch.ones(5, 3), "layer.bias": torch.zeros(5)}
save_file(own, folder / "model.safetensors", metadata={"format": "pt"})
for name, place in (("you/own", ""), ("you/other", "you/own--")):
    entries = {"AutoConfig": f"{place}own.OwnConfig", "AutoModel": f"{place}own.OwnModel"}
    (folder / "config.json").write_text(json.dumps({"model_type": "own_of_you", "auto_map": entries}))
    commits[name] = upload(name, folder)
answers |= {
    "own code": loaded("you/own", trust_remote_code=True, revision=commits["you/own"]),
    "own code, forbidden": loaded("you/own", revision=commits["you/own"]),
    "own code, no commit": loaded("you/own", trust_remote_code=True, revision="0" * 40),
    "code of others": loaded("you/other", trust_remote_code=True, revision=commits["you/other"]),
}
print(json.dumps([commits, answers]))
"""


@pytest.fixture(scope="module")
def found(hub, checkpoint, tmp_path_factory):
    """Commits by their repositories, and what came of each loading."""
    work = tmp_path_factory.mktemp("hub_encoders")
    no_weights, pickled = work / "no_weights", work / "pickled"
    for folder in (no_weights, pickled):
        shutil.copytree(checkpoint("vit"), folder)
        (folder / "model.safetensors").unlink()
    torch.save(load_file(f"{checkpoint('vit')}/model.safetensors"), pickled / "pytorch_model.bin")
    folders = {
        "you/vit": checkpoint("vit"),
        "you/hubert": checkpoint("hubert"),
        "you/no-weights": str(no_weights),
        "you/pickled": str(pickled),
    }
    return run_code(work, PROGRAM, json.dumps({"folders": folders, "code": CODE}))


def total_of(folder):
    return sum(float(values.double().sum()) for values in load_file(f"{folder}/model.safetensors").values())


def test_the_commit_is_remembered(found, checkpoint):
    commits, answers = found
    vit, total = {"model_id": "you/vit", "revision": commits["you/vit"]}, pytest.approx(total_of(checkpoint("vit")))
    assert answers["default"] == ["ImageEncoder", vit, 16, total]
    assert answers["branch"] == ["ImageEncoder", {**vit, "extraction": {"frames_per_second": 2}}, 16, total]
    hubert = {"model_id": "you/hubert", "revision": commits["you/hubert"]}
    assert answers["commit"][:3] == ["SpeechEncoder", hubert, 16]


def test_all_parts_are_of_one_commit(found, checkpoint):
    commits, answers = found
    source = {"model_id": "you/moving", "revision": commits["you/moving"]}
    assert answers["moving"] == ["ImageEncoder", source, 16, pytest.approx(total_of(checkpoint("vit")))]


def test_what_is_not_there_is_said_in_a_line(found):
    commits, answers = found
    for case, start in {
        "no branch": "you/vit, revision gone: AutoConfig found nothing to load: ",
        "no commit": f"you/vit, revision {'0' * 40}: AutoConfig found nothing to load: ",
        "no repository": "you/nowhere: AutoConfig found nothing to load: ",
        "no weights": "you/no-weights: AutoModel found nothing to load: ",
        "pickled": "you/pickled: AutoModel found nothing to load: ",
        "pickled at a commit": f"you/pickled, revision {commits['you/pickled']}: AutoModel found nothing to load: ",
    }.items():
        kind, text = answers[case]
        assert kind == "FileNotFoundError" and text.startswith(start) and "\n" not in text


def test_weights_that_the_hub_has_converted_are_found(found, checkpoint):
    commits, answers = found
    source = {"model_id": "you/pickled", "revision": commits["converted"]}
    expected = ["ImageEncoder", source, 16, pytest.approx(total_of(checkpoint("vit")))]
    assert answers["converted"] == answers["converted at its commit"] == expected


def test_code_of_a_repository_runs_where_it_is_allowed_and_pinned(found):
    commits, answers = found
    source = {"model_id": "you/own", "revision": commits["you/own"]}
    assert answers["own code"] == ["ImageEncoder", source, 5, 15.0]
    kind, text = answers["own code, forbidden"]
    assert kind == "FileNotFoundError" and "trust_remote_code" in text and "\n" not in text
    kind, text = answers["own code, no commit"]
    assert kind == "FileNotFoundError" and text.startswith(f"you/own, revision {'0' * 40}: ") and "\n" not in text
    kind, text = answers["code of others"]
    assert kind == "ValueError" and "\n" not in text
    assert "config.json refers to the code you/own--own.OwnConfig of another repository" in text
