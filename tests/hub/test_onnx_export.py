"""Exported models give what PyTorch gives, for batches and lengths that the exporter never saw."""

import contextlib
import io
import json
import sys
from functools import partial

import numpy as np
import pytest
import torch
from tiny_models import EXTENDED, make_fusion, make_student, save_tiny_model

from hf_blemo import RankAwareFusionConfig, RankAwareFusionModel, RankAwareFusionProcessor
from hf_blemo.cli import main
from hf_blemo.errors import MissingExtraError
from hf_blemo.hub import export_onnx, onnx_export, onnx_inputs
from hf_blemo.hub.onnx_export import _FUSION_OUTPUTS, _fusion_program, _FusionGraph, _tower_programs, _TowerGraph

pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
SWIN = {"model_type": "swin", "image_size": 16, "patch_size": 4, "embed_dim": 8, "window_size": 2}
SWIN |= {"depths": [1], "num_heads": [2]}
RESNET = {"model_type": "resnet", "embedding_size": 4, "hidden_sizes": [4], "depths": [1], "layer_type": "basic"}
FILES = {
    "rank_aware_fusion": ["model.onnx", "model_int8.onnx"],
    "clip_rd": ["image_model.onnx", "image_model_int8.onnx", "text_model.onnx", "text_model_int8.onnx"],
}


def make_kind(**settings):
    """A fusion of three poolings, no parameter of which is at a special value, and its processor."""
    encoders = {
        "face": {"feature_size": 6, "pooling": "attention"},
        "voice": {"feature_size": 4, "pooling": "statistics", "modality": "audio"},
        "logits": {"feature_size": 6, "pooling": "mean", "transform": "log_softmax"},
    }
    torch.manual_seed(0)
    model = RankAwareFusionModel(RankAwareFusionConfig(encoders=encoders, hidden_size=8, **settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        for matrix in model.experts.parameters() if model.experts else ():
            matrix.mul_(0.05)
        for pooling in model.poolings if model.config.feature_weighting == "relevance" else ():
            pooling.feature_relevance.uniform_()
    return model.eval(), RankAwareFusionProcessor.from_config(model.config)


LABELS = {
    "names": ["joy", "awe", "envy", 'it\'s "calm"'],
    "blend_percents": [[60, 40], [40, 30, 30]],
    "unblended": ["awe"],
    "label_kind": "soft",
}
LABEL_SETTINGS = {
    "id2label": dict(enumerate(LABELS["names"])),
    **{name: LABELS[name] for name in ("blend_percents", "unblended", "label_kind")},
}
SETTINGS = {**EXTENDED, **LABEL_SETTINGS, "top_n": 2}
MODELS = {
    "rank_aware_fusion": partial(make_kind, **SETTINGS),
    # Swin's windows need the plain formula of attention.
    "clip_rd": partial(make_student, vision=SWIN),
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Family -> the folder that the command has exported a tiny model to, the command and what it printed."""
    found = {}
    for family, make in MODELS.items():
        folder = tmp_path_factory.mktemp(family)
        for part in make():
            part.save_pretrained(folder / "model")
        command = ["export", str(folder / "model"), "--output", str(folder / "onnx"), "--int8"]
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            assert main(command) == 0
        found[family] = folder / "onnx", command, printed.getvalue()
    return found


def session(path):
    import onnxruntime

    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def axes(path, kind):
    return getattr(session(path), f"get_{kind}")()


def fusion_inputs(model, batch_size, length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features, masks = [], []
    for place, options in enumerate(model.config.encoders.values()):
        values = torch.randn(batch_size, length + place, options["feature_size"], generator=generator)
        mask = torch.rand(values.shape[:2], generator=generator) < 0.7
        # Each encoder is absent somewhere, and none is everywhere.
        mask[:, 0] = True
        if batch_size > 1:
            mask[place % batch_size] = False
            mask[(place + 1) % batch_size, 0] = True
        features.append(values)
        masks.append(mask)
    return *features, *masks


def test_a_fusion_of_every_pooling_and_its_quantised_file(exported):
    model, _ = make_kind(**SETTINGS)
    path, small = (exported["rank_aware_fusion"][0] / name for name in FILES["rank_aware_fusion"])
    names = [f"{kind}.{name}" for kind in ("features", "feature_mask") for name in model.config.encoders]
    for batch_size, length in ((1, 1), (4, 9), (7, 2)):
        inputs = fusion_inputs(model, batch_size, length)
        feed = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        found = session(path).run(None, feed)
        with torch.no_grad():
            expected = _FusionGraph(model)(*inputs)
        for name, one, two in zip(_FUSION_OUTPUTS, found, expected, strict=True):
            np.testing.assert_allclose(one, two.numpy(), rtol=0, atol=1e-4, err_msg=name)
    place = _FUSION_OUTPUTS.index("probabilities")
    assert 0 < np.abs(found[place] - session(small).run(["probabilities"], feed)[0]).max() < 0.05
    import onnx

    assert any("Integer" in node.op_type for node in onnx.load(small).graph.node)
    for file in (path, small):
        metadata = session(file).get_modelmeta().custom_metadata_map
        assert {name: json.loads(metadata[name]) for name in LABELS} == LABELS
    description = json.loads((path.parent / "onnx.json").read_text())
    assert {name: description[name] for name in LABELS} == LABELS
    assert description["encoders"] == list(model.config.encoders)
    assert description["outputs"] == list(_FUSION_OUTPUTS)
    shapes = {value.name: value.shape for value in session(path).get_inputs()}
    assert list(shapes) == description["inputs"] == names
    assert all(isinstance(axis, str) for shape in shapes.values() for axis in shape[:2])


@pytest.mark.parametrize(
    "settings",
    [
        {"gate": "static", "fusion": "concatenation", "top_n": 1},
        {"gate": "uniform", "fusion": "weighted_sum", "top_n": 3, "head_fusion": "presence"},
        {"id2label": dict(enumerate("abcdefgh"))},
        {**LABEL_SETTINGS, "top_n": 2},
    ],
)
def test_other_kinds_become_programs_of_torch(settings):
    model, _ = make_kind(**settings)
    program = _fusion_program(model).module()
    for batch_size, length in ((1, 1), (4, 3)):
        inputs = fusion_inputs(model, batch_size, length)
        for one, two in zip(program(*inputs), _FusionGraph(model)(*inputs), strict=True):
            torch.testing.assert_close(one, two, rtol=0, atol=1e-6)


def test_what_the_processor_gives_is_what_the_graph_takes(exported):
    folder = exported["rank_aware_fusion"][0]
    model, processor = make_kind(**SETTINGS)
    first, *others = model.config.encoders
    size = model.config.encoders[first]["feature_size"]
    batch = processor([{first: np.random.default_rng(length).standard_normal((length, size))} for length in (3, 7)])
    assert not set(others) & set(batch["features"])
    inputs = onnx_inputs(batch, model.config.encoders)
    assert list(inputs) == [f"{kind}.{name}" for name in (first, *others) for kind in ("features", "feature_mask")]
    [probabilities] = session(folder / "model.onnx").run(["probabilities"], inputs)
    with torch.no_grad():
        np.testing.assert_allclose(probabilities, model(**batch).probabilities.numpy(), atol=1e-5)
    with pytest.raises(ValueError, match=f"found features of other, expected of {first}"):
        onnx_inputs({"features": {"other": np.zeros((2, 1, 3))}, "feature_mask": {}}, model.config.encoders)


def test_both_towers_of_a_student(exported):
    model, folder = make_student(vision=SWIN)[0].eval(), exported["clip_rd"][0]
    generator = torch.Generator().manual_seed(1)
    for batch_size, length in ((1, 3), (5, 12)):
        pixels = torch.randn(batch_size, 3, 16, 16, generator=generator)
        tokens = torch.randint(3, 40, (batch_size, length), generator=generator)
        tokens[:, -1] = tokens[0, length // 2] = model.config.text_config.eos_token_id
        mask = torch.ones_like(tokens)
        mask[0, length // 2 + 1 :] = 0
        with torch.no_grad():
            expected = model(input_ids=tokens, pixel_values=pixels, attention_mask=mask)
        image = session(folder / "image_model.onnx").run(None, {"pixel_values": pixels.numpy()})[0]
        feed = {"input_ids": tokens.numpy(), "attention_mask": mask.numpy()}
        text = session(folder / "text_model.onnx").run(None, feed)[0]
        np.testing.assert_allclose(image, expected.image_embeds.numpy(), rtol=0, atol=1e-4)
        np.testing.assert_allclose(text, expected.text_embeds.numpy(), rtol=0, atol=1e-4)
        about = json.loads((folder / "onnx.json").read_text())
        for name, file in about["files"].items():
            shapes = {value.name: value.shape for kind in ("inputs", "outputs") for value in axes(folder / name, kind)}
            for kind, sizes in file.items():
                assert [size for size in sizes if isinstance(size, int)] == [
                    size for size in shapes[kind] if isinstance(size, int)
                ], (name, kind)
        scale = about["logit_scale"]
        np.testing.assert_allclose(scale * image @ text.T, expected.logits_per_image.numpy(), rtol=0, atol=1e-3)


def test_a_tower_without_an_image_size_takes_that_of_the_processor():
    model, _ = make_student(vision=RESNET)
    pixels = torch.randn(2, 3, 224, 224)
    expected = _TowerGraph(model.eval(), "image")(pixels)
    torch.testing.assert_close(_tower_programs(model)["image"].module()(pixels), expected, rtol=0, atol=1e-4)


def test_the_model_is_exported_in_float32_and_left_as_it_was(tmp_path, monkeypatch):
    model = make_fusion()[0].to(torch.bfloat16).train()
    seen = []
    monkeypatch.setattr(onnx_export, "_fusion_program", lambda found: seen.append((found.training, found.dtype)))
    monkeypatch.setattr(onnx_export, "write_graph", lambda *_: None)
    export_onnx(model, tmp_path)
    assert seen == [(False, torch.float32)] and model.training and model.dtype == torch.bfloat16


def test_the_command_exports_either_family_and_overwrites_nothing(exported, capsys):
    for family, (folder, command, printed) in exported.items():
        assert sorted(path.name for path in folder.glob("*.onnx")) == FILES[family]
        assert all(name in printed for name in FILES[family])
        beside = {"tokenizer.json", "processor_config.json"} if family == "clip_rd" else set()
        assert {path.name for path in folder.iterdir()} == {*FILES[family], *beside, "onnx.json"} | (
            {"tokenizer_config.json"} if beside else set()
        )
        assert main(command) == 2
        assert "holds ONNX files already; pass --overwrite" in capsys.readouterr().err


def test_export_errors_are_one_line(tmp_path, capsys, monkeypatch):
    assert main(["export", str(tmp_path / "absent"), "--output", str(tmp_path / "out")]) == 2
    assert "not a file, folder or Hub id" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["export", str(tmp_path), "--output", str(tmp_path / "file")]) == 2
    assert "found a file, expected a folder" in capsys.readouterr().err
    with pytest.raises(ValueError, match="expected a RankAwareFusionModel or a CLIPRDModel, found Linear"):
        export_onnx(torch.nn.Linear(2, 2), tmp_path / "out")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    save_tiny_model("rank_aware_fusion", tmp_path / "model")
    with pytest.raises(
        MissingExtraError, match=r'ONNX needs onnxscript: pip install "onnx>=.*" "onnxruntime>=.*" "onnxscript>='
    ):
        export_onnx(make_fusion()[0], tmp_path / "out")
    assert main(["export", str(tmp_path / "model"), "--output", str(tmp_path / "out")]) == 2
    assert 'pip install "onnx>=' in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
