"""Adapters are pushed, loaded onto the base from the Hub, and merged, with the package and without."""

import json

import pytest
from hub_programs import PACKAGE_FOLDER

HELPERS = f"{PACKAGE_FOLDER}:{PACKAGE_FOLDER / 'tests' / 'helpers'}"
PUSH = """
import json, sys
import torch
from peft import get_peft_model
from tiny_models import MAKERS
from hf_blemo.adapters import lora_config
from hf_blemo.hub import push_model
from transformers import AutoModel

family = sys.argv[1]
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
print(json.dumps(sorted(merged.state_dict())))
"""
LOAD = """
import json, sys
import numpy as np
import torch
from peft import PeftModel
from transformers import AutoModel, AutoProcessor

family, options = sys.argv[1].replace("_", "-"), json.loads(sys.argv[2])
processor = AutoProcessor.from_pretrained(f"you/merged-{family}", **options)
if family == "clip-rd":
    from PIL import Image
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 20, 3), dtype=np.uint8))
    batch = processor(text=["a b"], images=[image], return_tensors="pt")
    key = "logits_per_image"
else:
    generator = np.random.default_rng(0)
    batch = processor([{"face": generator.normal(size=(3, 6)), "voice": generator.normal(size=(4, 4))}])
    key = "joint_probabilities"
def load(name):
    return AutoModel.from_pretrained(f"you/{name}-{family}", **options).eval()


models = {"base": load("base"), "merged": load("merged"), "auto": load("adapter")}
models["adapter"] = PeftModel.from_pretrained(load("base"), f"you/adapter-{family}").eval()
with torch.no_grad():
    found = {name: model(**batch)[key].flatten().tolist() for name, model in models.items()}
print(json.dumps(found))
"""


@pytest.mark.parametrize("family", ["rank_aware_fusion", "clip_rd"])
def test_adapters_travel(family, hub, on_hub):
    on_hub(PUSH, family, PYTHONPATH=HELPERS)
    files = hub.files(f"you/adapter-{family.replace('_', '-')}")
    assert "adapter_model.safetensors" in files and "model.safetensors" not in files
    assert (
        json.loads(files["adapter_config.json"])["base_model_name_or_path"] == f"you/base-{family.replace('_', '-')}"
    )
    first = on_hub("import hf_blemo\n" + LOAD, family, "{}")
    second = on_hub(LOAD, family, json.dumps({"trust_remote_code": True}), installed=False)
    assert first == second
    for way in ("auto", "merged"):
        assert first[way] == pytest.approx(first["adapter"], abs=1e-5), way
    assert first["adapter"] != pytest.approx(first["base"], abs=1e-3)
