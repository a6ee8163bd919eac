"""Publishing over HTTP: one commit, people's words kept, nothing half-published, and a retry that succeeds."""

import copy
import json

import pytest
import yaml
from hub_repositories import Blob, make_commit
from sample_metrics import FUSION
from tiny_models import save_tiny_model

FAMILIES = ("rank_aware_fusion", "clip_rd")
CARD = """---
license: mit
library_name: transformers
pipeline_tag: other
tags: [mine]
---
Written by hand.
"""
PUBLISH = """
import json, sys
from huggingface_hub.utils import _http
from hf_blemo.hub import publish
from hf_blemo.hub.uploads import hub_errors

# The client waits between its attempts; here there is nothing to wait for.
_http.time.sleep = lambda seconds: None
folder, repo_id, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
try:
    with hub_errors("not published"):
        publish(folder, repo_id, **options)
    print(json.dumps("published"))
except ValueError as error:
    print(json.dumps(str(error)))
"""


@pytest.fixture(params=FAMILIES)
def folder(request, tmp_path):
    """A model with its inputs and a card."""
    folder = tmp_path / "model"
    # Weights of its own: what the Hub has already is not uploaded again.
    save_tiny_model(request.param, folder, seed=7)
    (folder / "README.md").write_text(CARD)
    return folder


def commits(hub, name):
    return [commit.title for commit in hub.repository(name).branches["main"].history()]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_in_memory_is_pushed_in_one_commit_and_keeps_the_card_of_the_hub(hub, on_hub, family):
    """Push, edit the card on the Hub, push other weights: one commit each, and the words stay."""
    code = """
import json, sys
from huggingface_hub import HfApi
from tiny_models import MAKERS, fingerprints
from hf_blemo.hub import push_model

family, name = sys.argv[1:]
model, processor = MAKERS[family](0)
push_model(model, processor, name, license="mit", tag="v1", base_model="you/base")
api = HfApi()
card = api.hf_hub_download(name, "README.md")
text = open(card).read().replace("is not written yet", "is written here") + "Mine.\\n"
api.upload_file(path_or_fileobj=text.encode(), path_in_repo="README.md", repo_id=name)
other, processor = MAKERS[family](1)
push_model(other, processor, name, license="apache-2.0")
print(json.dumps([fingerprints(model), fingerprints(other), text]))
"""
    name = f"you/push-{family.replace('_', '-')}"
    first, second, text = on_hub(code, family, name)
    assert len(commits(hub, name)) == 4 and hub.repository(name).private
    assert hub.files(name)["README.md"].decode() == text and "license: mit" in text and "base_model: you/base" in text
    load = """
import json, sys
import hf_blemo
from transformers import AutoModel
from tiny_models import fingerprints
print(json.dumps([fingerprints(AutoModel.from_pretrained(sys.argv[1], revision=r)) for r in ("v1", "main")]))
"""
    assert on_hub(load, name) == [first, second] and first != second


def test_upstreams_push_to_hub_keeps_the_card_and_carries_the_code(hub, on_hub):
    code = """
import json, sys
from huggingface_hub import HfApi
from tiny_models import MAKERS
api = HfApi()
for family in ("rank_aware_fusion", "clip_rd"):
    name = f"you/upstream-{family}"
    api.create_repo(name)
    api.upload_file(path_or_fileobj=b"---\\nlicense: mit\\n---\\nBy hand.\\n", path_in_repo="README.md", repo_id=name)
    model, processor = MAKERS[family](0)
    model.push_to_hub(name)
    processor.push_to_hub(name)
print(json.dumps(True))
"""
    on_hub(code)
    for family in FAMILIES:
        files = hub.files(f"you/upstream-{family}")
        assert "By hand." in files["README.md"].decode() and "license: mit" in files["README.md"].decode()
        assert {f"modeling_{family}.py", f"configuration_{family}.py", "processor_config.json"} <= set(files)
        assert "model.safetensors" in files
    # Without the package, from nothing but what was pushed.
    load = """
import json
from transformers import AutoModel, AutoProcessor
for family in ("rank_aware_fusion", "clip_rd"):
    name = f"you/upstream-{family}"
    AutoModel.from_pretrained(name, trust_remote_code=True)
    AutoProcessor.from_pretrained(name, trust_remote_code=True)
print(json.dumps(True))
"""
    assert on_hub(load, installed=False)


def test_nothing_is_half_published_and_a_retry_succeeds(hub, on_hub, folder, tmp_path):
    """Dropped uploads, refused commits and a full disk leave the latest revision as it was."""
    name = f"you/faults-{json.loads((folder / 'config.json').read_text())['model_type']}"
    hub.repositories.create("model", name, True, "you")
    before = hub.repository(name).branches["main"]
    arguments = (PUBLISH, folder, name, json.dumps({}))
    hub.faults.dropped_uploads = 100
    assert on_hub(*arguments).startswith("not published: ")
    assert hub.repository(name).branches["main"] is before
    # A connection that breaks once is taken up again by the client; then the disk is full.
    hub.faults.dropped_uploads, hub.faults.statuses = 1, [507]
    assert "No space left on device" in on_hub(*arguments)
    assert hub.faults.dropped_uploads == 0 and hub.repository(name).branches["main"] is before
    assert on_hub(*arguments) == "published"
    assert len(commits(hub, name)) == 2
    assert {"config.json", "model.safetensors", "README.md"} < set(hub.files(name))


def test_who_may_not_write_is_told(hub, on_hub, tmp_path):
    save_tiny_model("rank_aware_fusion", tmp_path / "model")
    (tmp_path / "model" / "README.md").write_text(CARD)
    hub.repositories.create("model", "others/theirs", False, "others")
    before = hub.repository("others/theirs").branches["main"]
    messages = {
        "nobody": on_hub(PUBLISH, tmp_path / "model", "you/mine", "{}", token=None),
        "unknown": on_hub(PUBLISH, tmp_path / "model", "you/mine", "{}", token="hf_wrong"),
        "others": on_hub(PUBLISH, tmp_path / "model", "others/theirs", "{}"),
    }
    for name in ("nobody", "unknown"):
        assert "the Hub rejected the token; log in with `hf auth login` or set HF_TOKEN" in messages[name], name
    assert "not published: the token may not write there" in messages["others"]
    assert hub.repository("others/theirs").branches["main"] is before
    assert ("model", "you/mine") not in hub.repositories.all


def test_a_card_with_broken_metadata_is_refused_before_anything_is_sent(hub, on_hub, tmp_path):
    save_tiny_model("rank_aware_fusion", tmp_path / "model")
    (tmp_path / "model" / "README.md").write_text("---\nlicense: [mit\n---\ntext")
    hub.repositories.create("model", "you/broken-card", True, "you")
    message = on_hub(PUBLISH, tmp_path / "model", "you/broken-card", "{}")
    assert "README.md" in message and "YAML" in message
    # The other way round: the folder's card is fine, the one on the Hub is not.
    (tmp_path / "model" / "README.md").write_text(CARD)
    repository = hub.repository("you/broken-card")
    broken = {"README.md": Blob(b"---\nlicense: [mit\n---\nBy hand.", False)}
    repository.branches["main"] = make_commit(broken, "edit", "you", repository.branches["main"])
    message = on_hub(PUBLISH, tmp_path / "model", "you/broken-card", "{}")
    assert "README.md" in message and "YAML" in message
    assert hub.files("you/broken-card")["README.md"].endswith(b"By hand.")


def test_a_pull_request_and_a_tag(hub, on_hub, folder):
    name = f"you/release-{json.loads((folder / 'config.json').read_text())['model_type']}"
    assert on_hub(PUBLISH, folder, name, json.dumps({"tag": "v1.0"})) == "published"
    repository = hub.repository(name)
    assert repository.tags["v1.0"] is repository.branches["main"] and repository.private
    assert "tag 'v1.0': it exists in" in on_hub(PUBLISH, folder, name, json.dumps({"tag": "v1.0"}))
    (folder / "README.md").write_text(CARD + "More.\n")
    assert on_hub(PUBLISH, folder, name, json.dumps({"create_pr": True})) == "published"
    assert repository.tags["v1.0"] is repository.branches["main"]
    assert b"More." in hub.files(name, "refs/pr/1")["README.md"]


def test_results_go_to_files_of_their_own(hub, on_hub, tmp_path):
    """A run on a data set of the Hub leaves `.eval_results` beside the card's model index."""
    save_tiny_model("rank_aware_fusion", tmp_path / "model")
    metrics = copy.deepcopy(FUSION)
    metrics["data"]["hub_id"] = "you/blemore"
    (tmp_path / "model" / "metrics.json").write_text(json.dumps(metrics))
    assert on_hub(PUBLISH, tmp_path / "model", "you/measured", "{}") == "published"
    files = hub.files("you/measured")
    entries = {
        entry["dataset"]["task_id"]: entry for entry in yaml.safe_load(files[".eval_results/you--blemore.yaml"])
    }
    score = metrics["summary"]["score"]
    assert set(entries) == {"acc_presence", "acc_salience", "score"}
    assert entries["score"]["value"] == score["mean"] and entries["score"]["dataset"]["id"] == "you/blemore"
    assert f"standard deviation {score['std']:.4f}" in entries["score"]["notes"]
    index = yaml.safe_load(files["README.md"].decode().split("---")[1])["model-index"]
    values = {metric["type"]: metric["value"] for result in index[0]["results"] for metric in result["metrics"]}
    assert values["score"] == score["mean"]
