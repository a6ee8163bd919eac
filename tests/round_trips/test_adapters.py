"""Adapters are pushed, loaded onto the base from the Hub, and merged, with the package and without."""

import json
from functools import partial

import pytest
from hub_programs import run_on_hub

PUSH = """
import json, sys
import torch
from peft import get_peft_model
from tiny_models import MAKERS
from hf_blemo.trainer import lora_config
from hf_blemo.hub import push_model
from transformers import AutoModel

for family in ("rank_aware_fusion", "clip_rd"):
    name = f"you/base-{family.replace('_', '-')}"
    model, processor = MAKERS[family](0)
    push_model(model, processor, name, license="mit")
    base = AutoModel.from_pretrained(name)
    adapted = get_peft_model(base, lora_config(base, r=2))
    torch.manual_seed(3)
    for key, value in adapted.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(value, std=0.2)
    adapted.push_to_hub(name.replace("base", "adapter"), private=True)
    merged = adapted.merge_and_unload()
    push_model(merged, processor, name.replace("base", "merged"), license="mit")
print(json.dumps(True))
"""
LOAD = """
import json, sys
import numpy as np
import torch
from peft import PeftModel
from transformers import AutoModel, AutoProcessor

options = json.loads(sys.argv[1])


def load(name):
    return AutoModel.from_pretrained(f"you/{name}", **options).eval()


def outputs(family):
    processor = AutoProcessor.from_pretrained(f"you/merged-{family}", **options)
    generator = np.random.default_rng(0)
    if family == "clip-rd":
        from PIL import Image
        image = Image.fromarray(generator.integers(0, 255, (20, 20, 3), dtype=np.uint8))
        batch = processor(text=["a b"], images=[image], return_tensors="pt")
        key = "logits_per_image"
    else:
        batch = processor([{"face": generator.normal(size=(3, 6)), "voice": generator.normal(size=(4, 4))}])
        key = "joint_probabilities"
    models = {"base": load(f"base-{family}"), "merged": load(f"merged-{family}"), "auto": load(f"adapter-{family}")}
    models["adapter"] = PeftModel.from_pretrained(load(f"base-{family}"), f"you/adapter-{family}").eval()
    with torch.no_grad():
        return {name: model(**batch)[key].flatten().tolist() for name, model in models.items()}


print(json.dumps({family: outputs(family) for family in ("rank-aware-fusion", "clip-rd")}))
"""
FAMILIES = ("rank-aware-fusion", "clip-rd")


@pytest.fixture(scope="module")
def found(hub, tmp_path_factory):
    """What every kind of model says, loaded with the package and without."""
    run = partial(run_on_hub, tmp_path_factory.mktemp("adapters"))
    run(PUSH)
    trusting = json.dumps({"trust_remote_code": True})
    return run("import hf_blemo\n" + LOAD, "{}"), run(LOAD, trusting, installed=False)


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_travel(family, hub, found):
    files = hub.files(f"you/adapter-{family}")
    assert "adapter_model.safetensors" in files and "model.safetensors" not in files
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == f"you/base-{family}"
    first, second = (outputs[family] for outputs in found)
    assert first == second
    for way in ("auto", "merged"):
        assert first[way] == pytest.approx(first["adapter"], abs=1e-5), way
    assert first["adapter"] != pytest.approx(first["base"], abs=1e-3)
