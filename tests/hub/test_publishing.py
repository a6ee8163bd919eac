"""Publishing: incomplete folders are refused by name, one commit holds what belongs on the Hub and nothing else."""

import copy
import json
import re

import huggingface_hub
import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors.numpy import save_file
from sample_metrics import FAMILIES, set_first_number
from tiny_models import MAKERS, save_tiny_model

from hf_blemo.hub import files_to_publish, publish, publishing, push_model, write_card
from hf_blemo.hub.card import merge_card
from hf_blemo.hub.uploads import upload

NAME = "you/model"
# What a model needs to read its inputs, by family.
INPUT_FILES = {
    "rank_aware_fusion": ["processor_config.json"],
    "clip_rd": ["preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"],
}
CODE = {
    "configuration_x.py": "class XConfig: pass\n",
    "modeling_x.py": "from .configuration_x import XConfig\nfrom .pooling_x import pool\n",
    "pooling_x.py": "import torch\n",
    "processing_x.py": "class XProcessor: pass\n",
}
# Lies beside a model and is never published.
OTHER_FILES = ("training_args.bin", "notes.py", "history.jsonl", "clips.parquet", "checkpoint-10/optimizer.bin")


@pytest.fixture(params=["rank_aware_fusion"])
def metrics(request):
    """Of one family where a test does not ask for both."""
    return copy.deepcopy(FAMILIES[request.param])


@pytest.fixture
def folder(tmp_path, metrics):
    """What a training run leaves: the model, and beside it things that must not be published."""
    folder = tmp_path / "model"
    auto_map = {"AutoConfig": "configuration_x.XConfig", "AutoModel": "modeling_x.XModel"}
    config = {"model_type": metrics["model_type"], "auto_map": auto_map}
    processor = json.dumps({"auto_map": {"AutoProcessor": "processing_x.XProcessor"}})
    contents = CODE | dict.fromkeys(INPUT_FILES[metrics["model_type"]], processor) | dict.fromkeys(OTHER_FILES, "")
    contents |= {"config.json": json.dumps(config), "metrics.json": json.dumps(metrics), "plots/confusion.png": ""}
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    save_file({"weight": np.zeros((2, 2), dtype=np.float32)}, folder / "model.safetensors")
    return folder


@pytest.fixture
def published(metrics):
    """What belongs on the Hub of `folder`."""
    results = [".eval_results/owner--coco.yaml"] if metrics["model_type"] == "clip_rd" else []
    model = ["README.md", "config.json", "metrics.json", "model.safetensors", "plots/confusion.png"]
    return sorted([*results, *model, *CODE, *INPUT_FILES[metrics["model_type"]]])


@pytest.fixture
def hub(hub):
    """The Hub of the process, without a repository."""
    with hub.emptied():
        yield hub


def edit_here(folder, old, new):
    path = folder / "README.md"
    path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")


def edit_there(hub, old, new):
    hub.repository(NAME).edit("README.md", hub.files(NAME)["README.md"].replace(old.encode(), new.encode()))


@pytest.mark.parametrize("metrics", MAKERS, indirect=True)
def test_one_commit_with_what_belongs_on_the_hub(folder, published, metrics, hub, caplog):
    # Without a repository the folder is checked and gets its card.
    with caplog.at_level("INFO", logger="hf_blemo.hub.publishing"):
        assert publish(folder) == str(folder)
    assert ", ".join(published) in caplog.text and files_to_publish(folder) == published
    url = publish(folder, NAME, message="First", tag="v2")
    repository, files = hub.repository(NAME), hub.files(NAME)
    commit = repository.branches["main"]
    assert [commit.title, commit.parent.title] == ["First", "initial commit"] and url.endswith(f"/commit/{commit.oid}")
    assert repository.private and repository.tags == {"v2": commit}
    assert sorted(files) == published
    assert files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert files["README.md"].decode() == (folder / "README.md").read_text(encoding="utf-8")
    assert f'from_pretrained("{NAME}")' in files["README.md"].decode()
    for path, content in files.items():
        assert b"/home" not in content and b"someone/" not in content, path
    assert json.loads(files["metrics.json"])["config"]["data"] == metrics["config"]["data"].split("/")[-1]
    assert "/home/someone" in (folder / "metrics.json").read_text()
    if metrics["model_type"] == "clip_rd":
        entries = yaml.safe_load(files[".eval_results/owner--coco.yaml"])
        tasks = {entry["dataset"]["task_id"]: entry["value"] for entry in entries}
        assert tasks["coco_image_to_text_r_5"] == pytest.approx(0.51) and len(tasks) == 12
    # Tags are checked before anything is uploaded.
    edit_here(folder, "## Data", "Written here.\n\n## Data")
    for options, message in (
        ({"tag": "v2"}, f"'v2': it exists in {NAME}"),
        ({"tag": "v3", "create_pr": True}, "pull request"),
        ({"tag": "v3", "repo_id": None}, "expected a repo_id"),
    ):
        with pytest.raises(ValueError, match=message):
            publish(folder, **{"repo_id": NAME, "message": "Second", **options})
    assert repository.branches == {"main": commit} and not repository.pulls


def test_no_settings_file_takes_this_machines_folders_to_the_hub(hub, tmp_path):
    words = {"source": "/home/some one/my data", "log": "http://me:secret@host/x?sig=1", "tokens": ["/home/a/b"]}
    contents = {}
    for name in ("store.json", "tokenizers/small/tokenizer_config.json", "tokenizer.json"):
        (tmp_path / name.replace("/", "_")).write_text(json.dumps(words))
        contents[name] = tmp_path / name.replace("/", "_")
    upload(NAME, contents, "Settings")
    files = {name: json.loads(hub.files(NAME)[name]) for name in contents}
    assert files.pop("tokenizer.json") == words
    assert [*files.values()] == [{"source": "my data", "log": "http://host/x", "tokens": ["b"]}] * 2


def test_edits_on_the_hub_survive_a_new_run(folder, metrics, hub):
    publish(folder, NAME, private=False)
    assert not hub.repository(NAME).private
    edit_there(hub, "## Data", "Written on the Hub.\n\n## Data")
    edit_there(hub, "---\n", "---\nlicense: mit\n")
    set_first_number(metrics, 0.375)
    (folder / "metrics.json").write_text(json.dumps(metrics))
    # A pull request leaves the folder as it is.
    assert publish(folder, NAME, create_pr=True).endswith("/discussions/1")
    assert hub.repository(NAME).branches["main"].title == "edit"
    assert b"Written on the Hub." in hub.files(NAME, "refs/pr/1")["README.md"]
    assert "Written on the Hub." not in (folder / "README.md").read_text(encoding="utf-8")

    (folder / "README.md").unlink()
    publish(folder, NAME)
    assert hub.repository(NAME).branches["main"].title == f"Publish {metrics['model_type']} with hf_blemo"
    card = ModelCard(hub.files(NAME)["README.md"].decode())
    assert card.text.count("Written on the Hub.") == 1 and card.data.license == "mit"
    assert card.data.eval_results[0].metric_value == 0.375
    assert "0.3750 ± " in card.text
    assert "Written on the Hub." in (folder / "README.md").read_text(encoding="utf-8")


def test_a_licence_is_stated_only_where_one_is_given(folder, hub, caplog):
    publish(folder, NAME)
    assert "license" not in ModelCard(hub.files(NAME)["README.md"].decode()).data.to_dict()
    assert "states no licence" in caplog.text
    for license in ("cc-by-nc-4.0", "mit"):
        publish(folder, NAME, license=license)
        assert ModelCard(hub.files(NAME)["README.md"].decode()).data.license == license
    caplog.clear()
    publish(folder, NAME)
    assert ModelCard(hub.files(NAME)["README.md"].decode()).data.license == "mit" and "licence" not in caplog.text
    publish(folder, license="cc0-1.0")
    assert ModelCard.load(folder / "README.md").data.license == "cc0-1.0"


def test_a_commit_in_between_is_not_overwritten(folder, hub, monkeypatch):
    publish(folder, NAME)

    def merged_late(*arguments):
        edit_there(hub, "## Data", "Written on the Hub.\n\n## Data")
        return merge_card(*arguments)

    monkeypatch.setattr(publishing, "merge_card", merged_late)
    with pytest.raises(HfHubHTTPError, match="A commit has happened since"):
        publishing._upload(
            folder, files_to_publish(folder), NAME, lambda card: publishing.merge_card(card, card), message=None
        )
    assert b"Written on the Hub." in hub.files(NAME)["README.md"]


def test_a_card_that_cannot_be_fetched_is_not_overwritten(folder, hub, monkeypatch):
    publish(folder, NAME)
    edit_there(hub, "## Data", "Written on the Hub.\n\n## Data")

    def broken(*arguments, **options):
        raise LocalEntryNotFoundError("the connection broke")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", broken)
    with pytest.raises(LocalEntryNotFoundError, match="broke"):
        publish(folder, NAME)
    assert b"Written on the Hub." in hub.files(NAME)["README.md"]


def test_edits_take_turns(folder, published, hub):
    """Whichever side is edited next, and in whatever way, the other follows."""
    publish(folder, NAME)
    for here, old, new in (
        (True, "## Data", "One.\n\n## Data"),
        (False, "One.", "Two."),
        (False, "Two.\n\n", ""),
        (True, "## Data", "Three.\n\n## Data"),
        (True, "Three.", "Four."),
    ):
        edit_here(folder, old, new) if here else edit_there(hub, old, new)
        publish(folder, NAME)
        card = hub.files(NAME)["README.md"].decode()
        assert card == (folder / "README.md").read_text(encoding="utf-8")
        assert new in card and (old not in card or old == "## Data")
    assert sorted(hub.files(NAME)) == published


def test_edits_on_both_sides_are_never_dropped(folder, hub):
    publish(folder, NAME)
    edit_here(folder, "## Data", "Written here.\n\n## Data")
    edit_there(hub, "## Data", "Written on the Hub.\n\n## Data")
    with pytest.raises(ValueError, match="changed both in the folder and on the Hub"):
        publish(folder, NAME)
    assert len(hub.repository(NAME).branches["main"].history()) == 3
    assert b"Written on the Hub." in hub.files(NAME)["README.md"]
    assert "Written here." in (folder / "README.md").read_text(encoding="utf-8")
    # What was published elsewhere is no excuse to drop it.
    edit_there(hub, "Written on the Hub.\n\n", "")
    publish(folder, NAME)
    hub.create("you/second").edit("README.md", b"# Another card\n")
    with pytest.raises(ValueError, match="changed both in the folder and on the Hub"):
        publish(folder, "you/second")


def test_an_encoder_that_lies_in_the_folder_is_not_left_behind_unsaid(tmp_path):
    save_tiny_model("rank_aware_fusion", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["encoders"]["face"]["model_id"] = "./encoders/face"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ValueError, match=r"the encoder face lies in the folder \(./encoders/face\) and would not come"
    ):
        publish(tmp_path)


@pytest.mark.parametrize("metrics", MAKERS, indirect=True)
def test_every_missing_file_is_named(folder, metrics, hub, tmp_path):
    """`pooling_x.py` is named by no auto_map, but imported by `modeling_x.py`."""
    inputs = INPUT_FILES[metrics["model_type"]]
    for name in ("config.json", "model.safetensors", "modeling_x.py", "pooling_x.py", "processing_x.py", *inputs):
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        # For a file of the inputs, nothing else is missed.
        pattern = rf"[^;]*{re.escape(name)}[^;]* is missing$" if name in inputs else f".*{name}.* missing"
        with pytest.raises(ValueError, match=f"cannot be published: {pattern}"):
            publish(folder, NAME)
        (folder / name).write_bytes(content)
    assert not hub.repositories and not (folder / "README.md").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError) as error:
        publish(tmp_path / "empty")
    for name in ("config.json", "processor_config.json", "model.safetensors", "README.md"):
        assert f"{name} is missing" in str(error.value)
    with pytest.raises(ValueError, match="expected a folder"):
        publish(tmp_path / "nowhere")


@pytest.mark.parametrize("metrics", ["clip_rd"], indirect=True)
def test_inputs_depend_on_the_family(folder, published):
    (folder / "preprocessor_config.json").rename(folder / "processor_config.json")
    publish(folder)
    assert set(files_to_publish(folder)) ^ set(published) == {"preprocessor_config.json", "processor_config.json"}
    (folder / "processor_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "other"}))
    with pytest.raises(ValueError, match="cannot be published: processor_config.json is missing$"):
        publish(folder)
    (folder / "processor_config.json").write_text("{}")
    with pytest.raises(ValueError, match="expected model_type 'other' as in config.json, found 'clip_rd'"):
        publish(folder)


def test_broken_files_are_refused(folder, metrics):
    pickles = ("pytorch_model.bin", "model.pt", "model.pth", "scaler.pkl", "scaler.pickle", "last.ckpt")
    for name, content, message in (
        *((name, "", f"{name} is a pickle") for name in pickles),
        ("model.safetensors", "shorter", "model.safetensors is not a whole safetensors file"),
        ("pooling_x.py", "def pool(:\n", r"pooling_x.py is not valid Python \(line 1"),
        ("config.json", "{}", "config.json has no model_type"),
        ("config.json", "{", "config.json: expected JSON"),
        ("metrics.json", json.dumps(metrics | {"model_type": "other"}), "expected model_type .* found 'other'"),
    ):
        before = (folder / name).read_bytes() if (folder / name).exists() else None
        (folder / name).write_text(content)
        with pytest.raises(ValueError, match=message):
            publish(folder)
        (folder / name).unlink() if before is None else (folder / name).write_bytes(before)
    publish(folder)


@pytest.mark.parametrize("metrics", ["clip_rd"], indirect=True)
def test_sharded_weights_and_code_of_another_repository(folder):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="model-00002-of-00002.safetensors.*is missing"):
        publish(folder)
    save_file({"b": np.zeros(1)}, folder / "model-00002-of-00002.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "owner/other--modeling_y.YModel"}
    (folder / "config.json").write_text(json.dumps(config))
    publish(folder)
    files = set(files_to_publish(folder))
    assert {"model.safetensors.index.json", *index["weight_map"].values()} <= files
    assert not {"model.safetensors", "modeling_x.py", "modeling_y.py"} & files
    save_file({}, folder / "model-00002-of-00002.safetensors")
    with pytest.raises(ValueError, match="model-00002-of-00002.safetensors holds no weights"):
        publish(folder)
    (folder.parent / "outside.safetensors").write_bytes((folder / "model-00001-of-00002.safetensors").read_bytes())
    (folder.parent / "outside.py").touch()
    for shard in ("../outside.safetensors", str(folder.parent / "outside.safetensors")):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
        with pytest.raises(ValueError, match="index.json: found the name '.*outside.safetensors'"):
            files_to_publish(folder)
    del index["weight_map"]["b"]
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for reference in (f"{folder.parent}/outside.Model", "../outside.Model"):
        config["auto_map"] = {"AutoModel": reference}
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match="auto_map: found the name .*, expected one inside the folder"):
            files_to_publish(folder)
    del config["auto_map"]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match="index.json names no weights"):
        publish(folder)


def test_a_card_by_hand_needs_no_metrics_but_metadata(folder, metrics, hub):
    write_card(folder, metrics)
    (folder / "metrics.json").unlink()
    publish(folder, NAME)
    assert "metrics.json" not in hub.files(NAME)
    for card, message in (
        ("# No metadata\n", "expected metadata between two lines of ---"),
        ("---\nlicense: mit\n---\n# Few\n", r"expected metadata with \['library_name', 'pipeline_tag', 'tags'\]"),
        ("---\nmodel-index: nonsense\n---\n", "Invalid `model_index`"),
    ):
        (folder / "README.md").write_text(card)
        with pytest.raises(ValueError, match=message):
            publish(folder)


TRAINERS_CARD = """---
library_name: transformers
license: mit
tags:
- generated_from_trainer
model-index:
- name: out
  results: []
---

<!-- This model card has been generated automatically according to the information the Trainer had access to. -->

# out

This model was trained from scratch on an unknown dataset.
"""
TEMPLATES_CARD = "---\ntags: [mine]\n---\n# Model Card for Model ID\n\n[More Information Needed]\n"


@pytest.mark.parametrize("metrics", MAKERS, indirect=True)
@pytest.mark.parametrize("there", [None, TRAINERS_CARD, TEMPLATES_CARD])
@pytest.mark.parametrize("here", [None, TRAINERS_CARD, TEMPLATES_CARD])
def test_the_folder_of_a_trainer_gets_a_card_and_cards_made_by_programs_are_completed(here, there, folder, hub):
    (folder / "metrics.json").unlink()
    history = [{"loss": 1.0, "step": 1}, {"eval_loss": 0.25, "eval_runtime": 3.0, "step": 2}, {"train_loss": 1.0}]
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    for name in ("optimizer.pt", "scheduler.pt", "rng_state_0.pth"):
        (folder / name).write_text("never read")
    if here is not None:
        (folder / "README.md").write_text(here)
    if there is not None:
        hub.create(NAME, True).edit("README.md", there.encode())
    assert "README.md" in files_to_publish(folder)
    publish(folder, NAME)
    files = hub.files(NAME)
    assert not {"optimizer.pt", "rng_state_0.pth", "training_args.bin", "trainer_state.json"} & set(files)
    card = files["README.md"].decode()
    data = ModelCard(card).data
    assert data.pipeline_tag and "hf_blemo" in data.tags and card.count("| loss | 0.2500 |") == 1
    assert data.license == ("mit" if TRAINERS_CARD in (here, there) else None)
    assert card.count("**No licence is stated**") == (0 if data.license else 1)
    for text in ("trained from scratch on an unknown dataset", "More Information Needed"):
        assert card.count(text) == any(text in made for made in (here, there) if made), text
    # A second time changes nothing.
    publish(folder, NAME)
    assert hub.files(NAME)["README.md"].decode() == card


def test_the_checkpoints_of_a_trainer_are_named_where_there_is_no_model(tmp_path):
    for number in (9, 10, 2):
        (tmp_path / f"checkpoint-{number}").mkdir()
    with pytest.raises(ValueError, match="such as the last: .*checkpoint-10$"):
        publish(tmp_path)


@pytest.mark.parametrize("family", MAKERS)
def test_a_model_in_memory_gets_a_card_once(family, hub):
    model, processor = MAKERS[family]()
    push_model(model, processor, NAME, license="mit", base_model="you/base", tags=["mine", "hf_blemo"])
    card = ModelCard(hub.files(NAME)["README.md"].decode())
    assert (card.data.license, card.data.base_model) == ("mit", "you/base")
    assert card.data.tags.count("hf_blemo") == 1 and card.data.tags[-1] == "mine"
    assert f'from_pretrained("{NAME}")' in card.text and "No results are recorded here." in card.text
    edit_there(hub, "is not written yet", "is written here")
    push_model(model, processor, NAME, license="apache-2.0")
    assert hub.files(NAME)["README.md"].decode() == str(card).replace("is not written yet", "is written here")
    with pytest.raises(ValueError, match="found a model of type 'Linear', expected one of clip_rd, rank_aware_fusion"):
        push_model(torch.nn.Linear(2, 2), processor, NAME, license="mit")


@pytest.mark.parametrize("metrics", MAKERS, indirect=True)
def test_a_model_is_published_whole_and_the_cards_code_runs(metrics, tmp_path, hub, capsys):
    family, folder = metrics["model_type"], tmp_path / "model"
    model = save_tiny_model(family, folder)
    if family == "rank_aware_fusion":
        metrics["encoders"] = model.config.encoders
    (folder / "metrics.json").write_text(json.dumps(metrics))
    publish(folder, NAME)
    saved = {path.name for path in folder.iterdir() if path.is_file()}
    assert saved == {name for name in hub.files(NAME) if "/" not in name} and f"modeling_{family}.py" in saved
    *codes, with_remote_code = re.findall(r"```python\n(.*?)```", hub.files(NAME)["README.md"].decode(), re.DOTALL)
    found: dict = {}
    for code in codes:
        exec(code, found)
    assert "trust_remote_code=True" in with_remote_code
    assert type(found["model"]) is type(model)
    output = found["output"]
    if family == "rank_aware_fusion":
        assert output.encoder_weights.shape == (1, 2) and abs(output.encoder_weights.sum().item() - 1) < 1e-5
        assert '"emotion"' in capsys.readouterr().out.replace("'", '"')
        return
    assert output.logits_per_image.shape == (1, 2) and output.text_embeds.shape == (2, 12)
    labels = {row["label"] for row in found["classify"](found["image"], candidate_labels=["red", "ring"])}
    assert labels == {"red", "ring"}
    with torch.no_grad():
        inputs = {**found["words"], **found["image_processor"](found["image"], return_tensors="pt")}
        same = found["clip"].eval()(**inputs)
    assert type(found["clip"]).__name__ == "CLIPModel"
    assert torch.allclose(same.logits_per_image, output.logits_per_image, atol=1e-5)
