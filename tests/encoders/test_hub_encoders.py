"""Encoders load from the Hub, and remember the commit."""

import json
import shutil

import pytest
import torch
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file
from tiny_encoders import images
from transformers import safetensors_conversion

from hf_blemo.encoders import load_encoder, loading

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


def upload(name, folder):
    """The commit of a folder in a repository."""
    HfApi().create_repo(name, exist_ok=True)
    return HfApi().upload_folder(repo_id=name, folder_path=folder).oid


def loaded(name, **options):
    """Family and source of an encoder, and the sum of its weights."""
    encoder = load_encoder(name, device="cpu", **options)
    total = sum(float(values.detach().double().sum()) for values in encoder.model.parameters())
    return type(encoder).__name__, encoder.source.options(), total


def refused(kind, name, **options):
    with pytest.raises(kind) as caught:
        load_encoder(name, device="cpu", **options)
    text = str(caught.value)
    assert type(caught.value) is kind and "\n" not in text
    return text


def total_of(folder):
    weights = load_file(f"{folder}/model.safetensors").values()
    return pytest.approx(sum(float(values.double().sum()) for values in weights))


def test_the_commit_is_remembered(hub, checkpoint):
    commit, total = upload("you/encoder-vit", checkpoint("vit")), total_of(checkpoint("vit"))
    source = {"model_id": "you/encoder-vit", "revision": commit}
    assert loaded("you/encoder-vit") == loaded("you/encoder-vit", revision=commit) == ("ImageEncoder", source, total)
    extraction = {"frames_per_second": 2}
    found = loaded("you/encoder-vit", revision="main", extraction=extraction)
    assert found == ("ImageEncoder", {**source, "extraction": extraction}, total)
    for name, revision, line in (
        ("you/encoder-vit", "gone", "you/encoder-vit, revision gone: the repository has no such revision"),
        ("you/encoder-vit", "0" * 40, f"you/encoder-vit, revision {'0' * 40}: the repository has no such revision"),
        ("you/no-encoder", None, "you/no-encoder: no such folder, and no Hub repository that can be read; "),
    ):
        assert refused(FileNotFoundError, name, revision=revision).startswith(line)


def test_all_parts_are_of_one_commit(hub, checkpoint, monkeypatch):
    commit = upload("you/encoder-moving", checkpoint("vit"))
    load = loading.load_part

    def and_then_move(auto_class, *arguments, **options):
        # Another commit comes between the reading of the config and that of the weights.
        found = load(auto_class, *arguments, **options)
        if auto_class.__name__ == "AutoConfig":
            assert upload("you/encoder-moving", checkpoint("hubert")) != commit
        return found

    monkeypatch.setattr(loading, "load_part", and_then_move)
    source = {"model_id": "you/encoder-moving", "revision": commit}
    assert loaded("you/encoder-moving") == ("ImageEncoder", source, total_of(checkpoint("vit")))


def test_weights_that_the_hub_has_converted_are_found(hub, checkpoint, tmp_path, monkeypatch):
    name, folder = "you/encoder-pickled", tmp_path / "pickled"
    shutil.copytree(checkpoint("vit"), folder)
    (folder / "model.safetensors").unlink()
    upload(name, folder)
    assert refused(FileNotFoundError, name).startswith(f"{name}: AutoModel found nothing to load: ")
    torch.save(load_file(f"{checkpoint('vit')}/model.safetensors"), folder / "pytorch_model.bin")
    pickled = upload(name, folder)
    assert refused(FileNotFoundError, name).startswith(f"{name}: AutoModel found nothing to load: ")
    # A pull request, as the Hub's converter opens one.
    weights = {"path_or_fileobj": f"{checkpoint('vit')}/model.safetensors", "path_in_repo": "model.safetensors"}
    converted = HfApi().upload_file(**weights, repo_id=name, create_pr=True).oid
    monkeypatch.setattr(safetensors_conversion, "get_conversion_pr_reference", lambda *_, **__: "refs/pr/1")
    expected = ("ImageEncoder", {"model_id": name, "revision": converted}, total_of(checkpoint("vit")))
    assert loaded(name) == loaded(name, revision=converted) == expected
    text = refused(FileNotFoundError, name, revision=pickled)
    assert text.startswith(f"{name}, revision {pickled}: AutoModel found nothing to load: ")


def test_code_of_a_repository_runs_where_it_is_allowed_and_pinned(hub, tmp_path):
    (tmp_path / "own.py").write_text(CODE)
    images().save_pretrained(tmp_path)
    weights = {"layer.weight": torch.ones(5, 3), "layer.bias": torch.zeros(5)}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    entries = {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own_of_you", "auto_map": entries}))
    source = {"model_id": "you/encoder-own", "revision": upload("you/encoder-own", tmp_path)}
    assert loaded(str(tmp_path), trust_remote_code=True) == ("ImageEncoder", {"model_id": str(tmp_path)}, 15.0)
    found = loaded("you/encoder-own", trust_remote_code=True, revision=source["revision"])
    assert found == ("ImageEncoder", source, 15.0)
    assert "trust_remote_code" in refused(FileNotFoundError, "you/encoder-own", revision=source["revision"])
    text = refused(FileNotFoundError, "you/encoder-own", trust_remote_code=True, revision="0" * 40)
    assert text.startswith(f"you/encoder-own, revision {'0' * 40}: ")


@pytest.mark.parametrize("on_hub", [True, False])
@pytest.mark.parametrize(
    ("file", "content", "named"),
    [
        ("config.json", {"auto_map": {"AutoConfig": "you/else--own.Own"}}, "you/else--own.Own"),
        ("processor_config.json", {"image_processor": {"auto_map": {"AutoImageProcessor": "a/b--c.D"}}}, "a/b--c.D"),
        ("preprocessor_config.json", {"auto_map": {"AutoFeatureExtractor": "a/b--c.D"}}, "a/b--c.D"),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": [None, "a/b--c.D"]}}, "a/b--c.D"),
        ("video_preprocessor_config.json", {"auto_map": {"AutoVideoProcessor": "../c.D"}}, "../c.D"),
        ("config.4.0.json", {"vision_config": {"auto_map": {"AutoModel": "/tmp/c.D"}}}, "/tmp/c.D"),
        ("adapter_config.json", {"base_model_name_or_path": "you/else"}, "you/else"),
    ],
)
def test_code_of_another_repository_is_refused_whatever_file_names_it(
    hub, checkpoint, tmp_path, on_hub, file, content, named
):
    shutil.copytree(checkpoint("vit"), tmp_path, dirs_exist_ok=True)
    earlier = json.loads((tmp_path / file).read_text()) if (tmp_path / file).is_file() else {}
    (tmp_path / file).write_text(json.dumps({**earlier, **content}))
    name = f"you/pinned-{file.replace('_', '-')}" if on_hub else str(tmp_path)
    revision = upload(name, tmp_path) if on_hub else None
    text = refused(ValueError, name, trust_remote_code=True, revision=revision)
    assert f"{file} refers to the code {named} of another repository" in text
