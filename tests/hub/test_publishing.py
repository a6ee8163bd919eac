"""Publishing: incomplete folders are refused by name, one commit holds what belongs on the Hub and nothing else."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from huggingface_hub import HfApi, ModelCard, RepoUrl
from huggingface_hub.errors import EntryNotFoundError
from huggingface_hub.hf_api import CommitInfo
from safetensors.numpy import save_file

from hf_blemo.hub import files_to_publish, publish, uploads, write_card

# What a model needs to read its inputs, by family.
INPUT_FILES = {
    "rank_aware_fusion": ["processor_config.json"],
    "clip_rd": ["preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"],
}


@pytest.fixture
def folder(tmp_path, metrics):
    """What a training run leaves: the model, and beside it things that must not be published."""
    folder = tmp_path / "model"
    folder.mkdir()
    auto_map = {"AutoConfig": "configuration_x.XConfig", "AutoModel": "modeling_x.XModel"}
    (folder / "config.json").write_text(json.dumps({"model_type": metrics["model_type"], "auto_map": auto_map}))
    for name in INPUT_FILES[metrics["model_type"]]:
        (folder / name).write_text(json.dumps({"auto_map": {"AutoProcessor": "processing_x.XProcessor"}}))
    (folder / "configuration_x.py").write_text("class XConfig: pass\n")
    (folder / "modeling_x.py").write_text("from .configuration_x import XConfig\nfrom .pooling_x import pool\n")
    (folder / "pooling_x.py").write_text("import torch\n")
    (folder / "processing_x.py").write_text("class XProcessor: pass\n")
    (folder / "metrics.json").write_text(json.dumps(metrics))
    save_file({"weight": np.zeros((2, 2), dtype=np.float32)}, folder / "model.safetensors")
    (folder / "plots").mkdir()
    (folder / "plots" / "confusion.png").write_bytes(b"png")
    (folder / "training_args.bin").write_bytes(b"pickle")
    (folder / "notes.py").write_text("")
    (folder / "history.jsonl").write_text("")
    (folder / "clips.parquet").write_bytes(b"data")
    (folder / "checkpoint-10").mkdir()
    (folder / "checkpoint-10" / "optimizer.bin").write_bytes(b"state")
    return folder


@pytest.fixture
def published(metrics):
    """What belongs on the Hub of `folder`."""
    results = [".eval_results/owner--coco.yaml"] if metrics["model_type"] == "clip_rd" else []
    return sorted(
        [
            *results,
            "README.md",
            "config.json",
            "configuration_x.py",
            "metrics.json",
            "model.safetensors",
            "modeling_x.py",
            "plots/confusion.png",
            "pooling_x.py",
            "processing_x.py",
            *INPUT_FILES[metrics["model_type"]],
        ]
    )


class RecordingHub(HfApi):
    """The Hub's answers without the network: one repository in memory, and a list of what was asked of it."""

    files: dict = {}
    calls: list = []
    cache = None

    def create_repo(self, repo_id, **options):
        self.calls.append(("create_repo", repo_id, options))
        return RepoUrl(f"https://huggingface.co/{repo_id}")

    def list_repo_refs(self, repo_id, repo_type):
        return SimpleNamespace(tags=[SimpleNamespace(name="v1")])

    def repo_info(self, repo_id, repo_type):
        return SimpleNamespace(sha="parent")

    def hf_hub_download(self, repo_id, filename, repo_type, revision):
        assert revision == "parent"
        if filename not in self.files:
            raise EntryNotFoundError(filename)
        path = self.cache / filename
        path.write_bytes(self.files[filename])
        return str(path)

    def create_commit(self, repo_id, operations, **options):
        self.calls.append(("create_commit", repo_id, options))
        for operation in operations:
            with operation.as_file() as file:
                self.files[operation.path_in_repo] = file.read()
        pull_request = f"https://huggingface.co/{repo_id}/discussions/1" if options["create_pr"] else None
        url = f"https://huggingface.co/{repo_id}/commit/abc"
        return CommitInfo(url, options["commit_message"], "", "abc", pr_url=pull_request)

    def create_tag(self, repo_id, **options):
        self.calls.append(("create_tag", repo_id, options))


@pytest.fixture
def hub(monkeypatch, tmp_path):
    monkeypatch.setattr(RecordingHub, "files", {})
    monkeypatch.setattr(RecordingHub, "calls", [])
    monkeypatch.setattr(RecordingHub, "cache", tmp_path)
    monkeypatch.setattr(uploads, "HfApi", RecordingHub)
    return RecordingHub


def test_without_a_repository_the_folder_is_checked_and_gets_its_card(folder, published, hub, caplog):
    with caplog.at_level("INFO", logger="hf_blemo.hub.publishing"):
        assert publish(folder) == str(folder)
    assert hub.calls == []
    assert ", ".join(published) in caplog.text
    assert ModelCard.load(folder / "README.md").data.eval_results
    assert files_to_publish(folder) == published


def test_one_commit_with_what_belongs_on_the_hub(folder, published, metrics, hub):
    url = publish(folder, "owner/fusion", message="First", tag="v2")
    assert url == "https://huggingface.co/owner/fusion/commit/abc"
    assert [call[0] for call in hub.calls] == ["create_repo", "create_commit", "create_tag"]
    assert hub.calls[0][2] == {"repo_type": "model", "private": True, "exist_ok": True}
    assert hub.calls[1][2] == {
        "commit_message": "First",
        "repo_type": "model",
        "create_pr": False,
        "parent_commit": "parent",
    }
    assert hub.calls[2][2] == {"tag": "v2", "revision": "abc", "repo_type": "model"}
    assert sorted(hub.files) == published
    assert hub.files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert hub.files["README.md"].decode() == (folder / "README.md").read_text(encoding="utf-8")
    assert b'from_pretrained("owner/fusion")' in hub.files["README.md"]
    for name, content in hub.files.items():
        assert b"/home" not in content and b"someone/" not in content, name
    assert json.loads(hub.files["metrics.json"])["config"]["data"] == metrics["config"]["data"].split("/")[-1]
    assert "/home/someone" in (folder / "metrics.json").read_text()


def test_pull_request(folder, metrics, hub):
    assert publish(folder, "owner/fusion", create_pr=True, private=False).endswith("/discussions/1")
    assert hub.calls[0][2]["private"] is False and hub.calls[1][2]["create_pr"] is True
    assert hub.calls[1][2]["commit_message"] == f"Publish {metrics['model_type']} with hf_blemo"


def test_edits_on_the_hub_survive_a_new_run(folder, metrics, hub):
    publish(folder, "owner/fusion")
    edited = hub.files["README.md"].decode().replace("## Data", "Written on the Hub.\n\n## Data")
    hub.files["README.md"] = edited.replace("license: apache-2.0", "license: mit").encode()
    first = (
        metrics["evaluation"]["tasks"]["zero_shot"] if "evaluation" in metrics else metrics["summary"]["acc_presence"]
    )
    first["top_1" if "evaluation" in metrics else "mean"] = 0.375
    (folder / "metrics.json").write_text(json.dumps(metrics))

    (folder / "README.md").unlink()
    publish(folder, "owner/fusion")
    card = ModelCard(hub.files["README.md"].decode())
    assert card.text.count("Written on the Hub.") == 1 and card.data.license == "mit"
    assert card.data.eval_results[0].metric_value == 0.375
    assert "0.3750 ± " in card.text or "| 37.5% |" in card.text
    assert "Written on the Hub." in (folder / "README.md").read_text(encoding="utf-8")


def test_edits_take_turns(folder, published, hub):
    """Whichever side is edited next, and in whatever way, the other follows."""
    publish(folder, "owner/fusion")
    path = folder / "README.md"
    steps = [("local", "## Data", "One.\n\n## Data"), ("hub", "One.", "Two."), ("hub", "Two.\n\n", "")]
    for side, old, new in [*steps, ("local", "## Data", "Three.\n\n## Data"), ("local", "Three.", "Four.")]:
        if side == "local":
            path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
        else:
            hub.files["README.md"] = hub.files["README.md"].replace(old.encode(), new.encode())
        publish(folder, "owner/fusion")
        card = hub.files["README.md"].decode()
        assert card == path.read_text(encoding="utf-8")
        assert old not in card or old == "## Data"
        assert new in card
    assert sorted(hub.files) == published


def test_what_was_published_elsewhere_is_no_excuse_to_drop_it(folder, hub):
    publish(folder, "owner/first")
    path = folder / "README.md"
    path.write_text(path.read_text(encoding="utf-8").replace("## Data", "Written here.\n\n## Data"), encoding="utf-8")
    publish(folder, "owner/first")
    hub.files["README.md"] = b"---\nlicense: mit\n---\n# Another card\n"
    with pytest.raises(ValueError, match="changed both in the folder and on the Hub"):
        publish(folder, "owner/second")


def test_a_pull_request_leaves_the_folder_as_it_is(folder, hub):
    publish(folder, "owner/fusion")
    hub.files["README.md"] = hub.files["README.md"].replace(b"## Data", b"Written on the Hub.\n\n## Data")
    publish(folder, "owner/fusion", create_pr=True)
    assert b"Written on the Hub." in hub.files["README.md"]
    assert "Written on the Hub." not in (folder / "README.md").read_text(encoding="utf-8")


def test_edits_on_both_sides_are_never_dropped(folder, hub):
    publish(folder, "owner/fusion")
    path = folder / "README.md"
    path.write_text(path.read_text(encoding="utf-8").replace("## Data", "Written here.\n\n## Data"), encoding="utf-8")
    hub.files["README.md"] = hub.files["README.md"].replace(b"## Data", b"Written on the Hub.\n\n## Data")
    with pytest.raises(ValueError, match="changed both in the folder and on the Hub"):
        publish(folder, "owner/fusion")
    assert [call[0] for call in hub.calls].count("create_commit") == 1
    assert b"Written on the Hub." in hub.files["README.md"]
    assert "Written here." in path.read_text(encoding="utf-8")


def test_tags_are_checked_before_anything_is_uploaded(folder, hub):
    with pytest.raises(ValueError, match="'v1': it exists in owner/fusion"):
        publish(folder, "owner/fusion", tag="v1")
    with pytest.raises(ValueError, match="pull request"):
        publish(folder, "owner/fusion", tag="v2", create_pr=True)
    with pytest.raises(ValueError, match="expected a repo_id"):
        publish(folder, tag="v2")
    assert hub.files == {}


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "model.safetensors",
        "modeling_x.py",
        "pooling_x.py",  # named by no auto_map, but imported by modeling_x.py
        "processing_x.py",
    ],
)
def test_a_missing_file_is_named(folder, hub, name):
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"cannot be published: .*{name}.* missing"):
        publish(folder, "owner/fusion")
    assert hub.calls == [] and not (folder / "README.md").exists()


def test_a_missing_file_of_the_inputs_is_named(folder, metrics, hub):
    for name in INPUT_FILES[metrics["model_type"]]:
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        with pytest.raises(ValueError, match=rf"cannot be published: [^;]*{re.escape(name)}[^;]* is missing$"):
            publish(folder, "owner/fusion")
        (folder / name).write_bytes(content)
    assert hub.calls == []


@pytest.mark.parametrize("metrics", ["clip_rd"], indirect=True)
def test_an_image_processor_may_lie_in_either_file(folder, published):
    (folder / "preprocessor_config.json").rename(folder / "processor_config.json")
    publish(folder)
    assert set(files_to_publish(folder)) ^ set(published) == {"preprocessor_config.json", "processor_config.json"}


@pytest.mark.parametrize("metrics", ["clip_rd"], indirect=True)
def test_another_family_needs_a_processor(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "other"}))
    with pytest.raises(ValueError, match="cannot be published: processor_config.json is missing$"):
        publish(folder)
    (folder / "processor_config.json").write_text("{}")
    with pytest.raises(ValueError, match="expected model_type 'other' as in config.json, found 'clip_rd'"):
        publish(folder)


def test_all_that_is_missing_is_named_at_once(tmp_path):
    with pytest.raises(ValueError) as error:
        publish(tmp_path)
    for name in ("config.json", "processor_config.json", "model.safetensors", "README.md"):
        assert f"{name} is missing" in str(error.value)
    with pytest.raises(ValueError, match="expected a folder"):
        publish(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "scaler.pkl", "last.ckpt"])
def test_pickles_are_refused(folder, name):
    (folder / name).write_bytes(b"pickle")
    with pytest.raises(ValueError, match=f"{name} is a pickle"):
        publish(folder)


def test_truncated_weights_are_refused(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match="model.safetensors is not a whole safetensors file"):
        publish(folder)


def test_sharded_weights(folder):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="model-00002-of-00002.safetensors.*is missing"):
        publish(folder)
    save_file({"b": np.zeros(1)}, folder / "model-00002-of-00002.safetensors")
    publish(folder)
    assert {"model.safetensors.index.json", *index["weight_map"].values()} <= set(files_to_publish(folder))
    assert "model.safetensors" not in files_to_publish(folder)


def test_broken_settings_are_refused(folder, metrics):
    (folder / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="config.json has no model_type"):
        publish(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json: expected JSON"):
        publish(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": metrics["model_type"]}))
    (folder / "metrics.json").write_text(json.dumps(metrics | {"model_type": "other"}))
    with pytest.raises(
        ValueError, match=f"expected model_type '{metrics['model_type']}' as in config.json, found 'other'"
    ):
        publish(folder)


def test_code_that_python_cannot_read_is_refused(folder):
    (folder / "pooling_x.py").write_text("def pool(:\n")
    with pytest.raises(ValueError, match=r"pooling_x.py is not valid Python \(line 1"):
        publish(folder)


def test_code_of_another_repository_is_not_expected_here(folder):
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "owner/other--modeling_y.YModel"}
    (folder / "config.json").write_text(json.dumps(config))
    publish(folder)
    assert "modeling_x.py" not in files_to_publish(folder)


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ("# No metadata\n", "expected metadata between two lines of ---"),
        ("---\nlicense: mit\n---\n# Few\n", r"expected metadata with \['library_name', 'pipeline_tag', 'tags'\]"),
        ("---\nmodel-index: nonsense\n---\n", "Invalid `model_index`"),
    ],
)
def test_cards_with_bad_metadata_are_refused(folder, card, message):
    (folder / "metrics.json").unlink()
    (folder / "README.md").write_text(card)
    with pytest.raises(ValueError, match=message):
        publish(folder)


def test_a_card_by_hand_needs_no_metrics(folder, metrics, hub):
    write_card(folder, metrics)
    (folder / "metrics.json").unlink()
    publish(folder, "owner/fusion")
    assert "metrics.json" not in hub.files
    (folder / "README.md").unlink()
    with pytest.raises(ValueError, match="README.md is missing, and metrics.json"):
        publish(folder)


def download(hub, folder):
    folder.mkdir()
    for name, content in hub.files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_a_fusion_is_published_whole_and_the_cards_code_runs(tmp_path, fusion_metrics, hub, capsys):
    import hf_blemo

    encoders = {
        "wavlm": {"feature_size": 8, "modality": "audio", "pooling": "attention"},
        "clip": {"feature_size": 6, "modality": "video", "pooling": "mean"},
    }
    config = hf_blemo.RankAwareFusionConfig(encoders=encoders, top_n=1, hidden_size=8)
    hf_blemo.RankAwareFusionModel(config).save_pretrained(tmp_path / "model")
    hf_blemo.RankAwareFusionProcessor(config.encoders).save_pretrained(tmp_path / "model")
    metrics = fusion_metrics | {"encoders": config.encoders}
    (tmp_path / "model" / "metrics.json").write_text(json.dumps(metrics))
    publish(tmp_path / "model", "owner/fusion")

    downloaded = download(hub, tmp_path / "downloaded")
    saved_code = {path.name for path in (tmp_path / "model").glob("*.py")}
    assert saved_code and {name for name in hub.files if name.endswith(".py")} == saved_code

    usage, with_remote_code = re.findall(r"```python\n(.*?)```", hub.files["README.md"].decode(), re.DOTALL)
    variables: dict = {}
    exec(usage.replace("owner/fusion", str(downloaded)), variables)
    assert type(variables["model"]).__name__ == "RankAwareFusionModel"
    weights = variables["output"].encoder_weights
    assert weights.shape == (1, 2) and abs(weights.sum().item() - 1) < 1e-5
    assert '"emotion"' in capsys.readouterr().out.replace("'", '"')
    assert "trust_remote_code=True" in with_remote_code


def test_a_student_is_published_whole_and_the_cards_code_runs(tmp_path, clip_rd_metrics, hub):
    import torch
    from transformers import CLIPImageProcessorPil

    from hf_blemo import CLIPRDConfig, CLIPRDModel
    from hf_blemo.built_in.synthetic_pairs import MAX_TOKENS, synthetic_tokenizer

    tokenizer = synthetic_tokenizer()
    tiny = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokens = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = CLIPRDConfig(
        vision_config={"model_type": "clip_vision_model", "image_size": 32, "patch_size": 16, **tiny},
        text_config={
            "model_type": "clip_text_model",
            "vocab_size": len(tokenizer),
            "max_position_embeddings": MAX_TOKENS,
            **tokens,
            **tiny,
        },
        projection_dim=8,
    )
    folder = tmp_path / "model"
    for part in (
        CLIPRDModel(config),
        tokenizer,
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
    ):
        part.save_pretrained(folder)
    (folder / "metrics.json").write_text(json.dumps(clip_rd_metrics))
    publish(folder, "owner/student")
    files = {path.name for path in folder.iterdir() if path.is_file()}
    assert files | {".eval_results/owner--coco.yaml"} == set(hub.files)

    downloaded = download(hub, tmp_path / "downloaded")
    codes = re.findall(r"```python\n(.*?)```", hub.files["README.md"].decode(), re.DOTALL)
    variables: dict = {}
    for code in codes[:2]:
        exec(code.replace("owner/student", str(downloaded)), variables)
    output = variables["output"]
    assert output.logits_per_image.shape == (1, 2) and output.text_embeds.shape == (2, 8)
    assert {row["label"] for row in variables["classify"](variables["image"], candidate_labels=["red", "ring"])} == {
        "red",
        "ring",
    }
    with torch.no_grad():
        inputs = {**variables["words"], **variables["image_processor"](variables["image"], return_tensors="pt")}
        same = variables["clip"].eval()(**inputs)
    assert type(variables["clip"]).__name__ == "CLIPModel"
    assert torch.allclose(same.logits_per_image, output.logits_per_image, atol=1e-5)
