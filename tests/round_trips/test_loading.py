"""Models of both families load from the Hub in fresh processes, with the package and by their own code."""

import json

import pytest
from hub_programs import run_on_hub
from tiny_models import fingerprints, save_tiny_model

FAMILIES = ("rank_aware_fusion", "clip_rd")
AUTO_CLASSES = {
    "rank_aware_fusion": ("AutoModel",),
    "clip_rd": ("AutoModel", "AutoModelForZeroShotImageClassification"),
}

UPLOAD = """
import json, sys
from huggingface_hub import HfApi
api = HfApi()
folders = json.loads(sys.argv[1])
for name, folder in folders.items():
    api.create_repo(name, private=True, exist_ok=True)
    api.upload_folder(repo_id=name, folder_path=folder)
print(json.dumps(True))
"""

# Loads a repository in every way, and reports the class and the digest of every tensor.
LOAD = """
import hashlib, json, sys
import torch
import transformers
from transformers import AutoConfig, AutoModel, AutoProcessor

name, auto_classes, options = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])

def digests(model):
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {key: hashlib.sha256(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
            .hexdigest() for key, value in tensors.items()}

reports = {}
config = AutoConfig.from_pretrained(name, **options)
processor = AutoProcessor.from_pretrained(name, **options)
for auto_class in auto_classes:
    reports[auto_class] = digests(getattr(transformers, auto_class).from_pretrained(name, **options))
model = AutoModel.from_pretrained(name, config=config, **options)
reports["config"] = digests(model)
reports["device_map"] = digests(AutoModel.from_pretrained(name, device_map="auto", **options))
reports["sharded"] = digests(AutoModel.from_pretrained(f"{name}-sharded", **options))
half = AutoModel.from_pretrained(name, dtype=torch.bfloat16, **options)
exact = {key: value.to(torch.bfloat16) if value.is_floating_point() else value
         for key, value in {**dict(model.named_parameters()), **dict(model.named_buffers())}.items()}
found = {**dict(half.named_parameters()), **dict(half.named_buffers())}
bad = [key for key in exact if not torch.equal(exact[key], found[key])]
print(json.dumps({"tensors": reports, "half": bad, "processor": type(processor).__name__,
                  "module": type(model).__module__, "training": model.training, "package": "hf_blemo" in sys.modules}))
"""


@pytest.fixture(scope="module")
def repositories(hub, tmp_path_factory):
    """Name and digests of a tiny model of each family, which is on the Hub whole and in shards."""
    work = tmp_path_factory.mktemp("repositories")
    folders, expected = {}, {}
    for family in FAMILIES:
        name = f"you/load-{family}"
        model = save_tiny_model(family, work / family)
        save_tiny_model(family, work / f"{family}-sharded", max_shard_size="3KB")
        assert len(list((work / f"{family}-sharded").glob("model-*.safetensors"))) > 2
        folders |= {name: str(work / family), f"{name}-sharded": str(work / f"{family}-sharded")}
        expected[family] = fingerprints(model)
    run_on_hub(work, UPLOAD, json.dumps(folders))
    return expected


@pytest.mark.parametrize("installed", [True, False], ids=["package", "own-code"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_way_of_loading_gives_every_tensor(family, installed, repositories, on_hub):
    options = {} if installed else {"trust_remote_code": True}
    program = ("import hf_blemo\n" if installed else "") + LOAD
    arguments = (f"you/load-{family}", json.dumps(AUTO_CLASSES[family]), json.dumps(options))
    report = on_hub(program, *arguments, installed=installed)
    expected = repositories[family]
    for way, found in report["tensors"].items():
        assert found == expected, way
    assert report["half"] == [] and report["training"] is False and report["package"] is installed
    assert report["module"].startswith("hf_blemo." if installed else "transformers_modules.")
    assert report["processor"] == {"rank_aware_fusion": "RankAwareFusionProcessor", "clip_rd": "CLIPProcessor"}[family]


def test_code_is_pinned_by_its_revision(hub, repositories, on_hub):
    """The weights of main with the code of a commit; main's own code is another by then."""
    code = """
import json
from huggingface_hub import HfApi
from transformers import AutoModel
api, name = HfApi(), "you/load-rank_aware_fusion"
first = api.model_info(name).sha
api.upload_file(path_or_fileobj=b"raise RuntimeError('new code')", repo_id=name,
                path_in_repo="modeling_rank_aware_fusion.py", revision="main")
pinned = AutoModel.from_pretrained(name, trust_remote_code=True, code_revision=first)
old = AutoModel.from_pretrained(name, trust_remote_code=True, revision=first)
message = ""
try:
    AutoModel.from_pretrained(name, trust_remote_code=True)
except RuntimeError as error:
    message = str(error)
print(json.dumps([type(pinned).__name__, type(old).__name__, message]))
"""
    branch = hub.repository("you/load-rank_aware_fusion").branches
    before = branch["main"]
    try:
        report = on_hub(code, installed=False)
    finally:
        # The repository is shared with other tests.
        branch["main"] = before
    assert report == ["RankAwareFusionModel", "RankAwareFusionModel", "new code"]


def test_what_cannot_be_loaded_is_said_in_one_line(hub, repositories, on_hub):
    """Through the package's own door; each message says what was found."""
    code = """
import json, shutil
from huggingface_hub import HfApi
from hf_blemo.prediction.fusion import load_fusion
api, name = HfApi(), "you/load-rank_aware_fusion"
api.create_repo("you/broken-shards")
from pathlib import Path
from huggingface_hub import snapshot_download
whole = Path(snapshot_download(f"{name}-sharded"))
shard = sorted(path.name for path in whole.glob("model-*.safetensors"))[1]
api.upload_folder(repo_id="you/broken-shards", folder_path=whole, ignore_patterns=[shard])
api.create_repo("you/other-encoder")
other = Path("other")
shutil.copytree(snapshot_download(name), other)
config = json.loads((other / "config.json").read_text())
config["encoders"]["thermal"] = {"feature_size": 3}
config["encoder_order"].append("thermal")
(other / "config.json").write_text(json.dumps(config))
api.upload_folder(repo_id="you/other-encoder", folder_path=other)
calls = {
    "encoder": lambda: load_fusion("you/other-encoder"),
    "revision": lambda: load_fusion(name, revision="v9"),
    "repository": lambda: load_fusion("you/nothing-here"),
    "shard": lambda: load_fusion("you/broken-shards"),
    "family": lambda: load_fusion("you/load-clip_rd"),
}
report = {}
for key, call in calls.items():
    try:
        call()
    except (ValueError, FileNotFoundError) as error:
        report[key] = str(error)
report["absent"] = shard
print(json.dumps(report))
"""
    report = on_hub(code)
    assert report["revision"] == "you/load-rank_aware_fusion, revision v9: the repository has no such revision"
    assert "no Hub repository that can be read" in report["repository"]
    assert report["encoder"].startswith("you/other-encoder: the weights do not fit config.json: ")
    assert report["absent"] in report["shard"] and report["shard"].startswith("you/broken-shards: ")
    assert "found model_type 'clip_rd' in config.json, expected 'rank_aware_fusion'" in report["family"]
    # Neither a token that the Hub does not know nor nobody's is told more than that.
    for token in (None, "hf_wrong"):
        code = "from hf_blemo.prediction.fusion import load_fusion; load_fusion('you/load-rank_aware_fusion')"
        status, errors = on_hub(code, fails=True, token=token)
        assert "FileNotFoundError: you/load-rank_aware_fusion: " in errors
