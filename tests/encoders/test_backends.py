"""Other backends than eager torch: the same features, graphs exported once, and what is said where one cannot run."""

import logging
import sys
from functools import partial

import numpy as np
import pytest
import torch
from known_clips import encoded

from hf_blemo.encoders import backends, load_encoder
from hf_blemo.errors import MissingExtraError

pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """The folder of graphs, for all tests here."""
    folder = tmp_path_factory.mktemp("assets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(folder))
        yield folder / "hf_blemo" / "encoders" / "onnx"


def features_of(checkpoint, name, clips, **options):
    return np.concatenate(
        [features for features, _ in encoded([clip.path for clip in clips], checkpoint(name), **options)]
    )


@pytest.mark.parametrize(
    ("name", "extraction"),
    [
        ("student", {}),
        ("videomae", {"layer": 1}),
        # Windows of different length, so padded ones, too.
        ("hubert", {"layers": "0-1"}),
        ("hubert_base", {"layers": [1, 0]}),
        ("wav2vec2_bert", {}),
    ],
)
def test_features_are_those_of_eager_torch(name, extraction, checkpoint, clips, cache):
    expected = features_of(checkpoint, name, clips, extraction=extraction)
    found = features_of(checkpoint, name, clips, extraction=extraction, backend="onnxruntime")
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("sharpness", [1, 4])
def test_int8_comes_close_to_float32(sharpness, checkpoint, clips, cache):
    """Trained networks have heads that look at few tokens beside heads that look at all."""
    encoder = load_encoder(checkpoint("student"), device="cpu")
    for block in encoder.model.vision_model.encoder.layers:
        attention = block.self_attn
        attention.q_proj.weight.data[: attention.head_dim] *= sharpness
        attention.k_proj.weight.data[: attention.head_dim] *= sharpness
    expected = encoder.encode(clips[2].path).features
    backends.use_backend(encoder, "onnxruntime", int8=True)
    found = encoder.encode(clips[2].path).features
    cosines = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    assert not np.array_equal(found, expected) and cosines.min() >= 0.99


def test_a_network_is_exported_once_for_each_use(checkpoint, cache, monkeypatch, caplog):
    load = partial(load_encoder, checkpoint("student"), backend="onnxruntime")
    load()
    exports = []
    write = backends.write_graph
    monkeypatch.setattr(
        backends, "write_graph", lambda *given, **options: exports.append(given[1].name) or write(*given, **options)
    )
    load()
    load(extraction={"frames_per_second": 5, "image_backend": "torchvision"})
    assert not exports
    [path] = [path for path in cache.glob("clip_rd_*.onnx") if "int8" not in path.name]
    path.write_bytes(path.read_bytes()[:1000])
    with caplog.at_level(logging.WARNING):
        load()
    assert len(exports) == 1 and f"{path} is exported anew" in caplog.text
    load()
    assert len(exports) == 1 and not list(cache.glob(".*.tmp"))


def test_processes_that_export_one_graph_at_once_disturb_each_other_in_nothing(checkpoint, cache, monkeypatch):
    load = partial(load_encoder, checkpoint("dinov2"), backend="onnxruntime")
    write, exports = backends.write_graph, []

    def write_slowly(program, path, *given, **options):
        write(program, path, *given, **options)
        exports.append(path)
        if len(exports) == 1:
            whole = path.read_bytes()
            path.write_bytes(whole[: len(whole) // 2])
            # Another process comes while half of the file is written.
            load()
            path.write_bytes(whole)

    monkeypatch.setattr(backends, "write_graph", write_slowly)
    load()
    assert len(set(exports)) == 2
    load()
    assert len(exports) == 2 and len(list(cache.glob("dinov2_*"))) == 1 and not list(cache.glob(".*"))


def test_another_way_of_exporting_exports_anew(checkpoint, cache, monkeypatch, tmp_path):
    load = partial(load_encoder, checkpoint("student"), backend="onnxruntime")
    load()
    before = set(cache.iterdir())
    changed = tmp_path / "onnx_graphs.py"
    changed.write_text("# another version\n")
    monkeypatch.setattr(backends.onnx_graphs, "__file__", str(changed))
    load()
    assert len(set(cache.iterdir()) - before) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "onxruntime"}, "backend 'onxruntime' is not one of eager, compile, onnxruntime"),
        ({"dtype": "int8"}, "dtype 'int8' is not one of float32, bfloat16, float16, those of backend eager"),
        (
            {"dtype": "bfloat16", "backend": "onnxruntime"},
            "dtype 'bfloat16' is not one of float32, int8, those of backend onnxruntime",
        ),
        ({"backend": "onnxruntime", "device": "meta"}, "backend onnxruntime runs on the CPU, found device meta"),
    ],
)
def test_what_no_backend_does_is_refused(checkpoint, options, message):
    with pytest.raises(ValueError, match=message):
        load_encoder(checkpoint("student"), **options)


def test_a_network_that_cannot_be_exported_is_named(checkpoint, cache, monkeypatch):
    def unknown(*_):
        raise RuntimeError("no such operator\nin a long report")

    monkeypatch.setattr(backends, "exported_program", unknown)
    with pytest.raises(ValueError, match=r"vit: its network cannot be exported for backend onnxruntime \(no such op"):
        load_encoder(checkpoint("vit"), backend="onnxruntime")


def test_a_graph_of_other_features_is_refused(checkpoint, cache, monkeypatch):
    monkeypatch.setattr(backends, "_TOLERANCE", -1.0)
    with pytest.raises(ValueError, match=r"features of backend onnxruntime differ by .* leave the backend out"):
        load_encoder(checkpoint("resnet"), backend="onnxruntime")


def test_compiled_networks_give_the_features_of_eager_ones(checkpoint, clips, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda call, **options: compiled.append(call) or call)
    expected = features_of(checkpoint, "vit", clips[2:])
    np.testing.assert_array_equal(features_of(checkpoint, "vit", clips[2:], backend="compile"), expected)
    assert len(compiled) == 1


def test_a_missing_package_is_named_before_anything_is_loaded(checkpoint, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match="backend onnxruntime needs onnxruntime: pip install"):
        load_encoder(checkpoint("student"), backend="onnxruntime")
