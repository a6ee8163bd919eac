"""Models of open_clip embed, teach and are stored as open_clip itself would have them; needs the extra `openclip`."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pair_files import encoded, picture
from PIL import Image

open_clip = pytest.importorskip("open_clip", reason="needs the extra openclip, and the torchvision that fits torch")

from hf_blemo.clip_evaluation import standard_sets  # noqa: E402
from hf_blemo.clip_rd_training.embedding import embed  # noqa: E402
from hf_blemo.clip_rd_training.run import distill  # noqa: E402
from hf_blemo.clip_rd_training.settings import DistillationSettings, EmbeddingSettings  # noqa: E402
from hf_blemo.pairs.clip_models import load_clip  # noqa: E402
from hf_blemo.programs.settings import read_settings  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
NAME = "tiny-of-tests"
CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 48, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A registered architecture, and the file of its weights."""
    folder = tmp_path_factory.mktemp("open_clip")
    (folder / f"{NAME}.json").write_text(json.dumps(CONFIG))
    open_clip.add_model_config(folder / f"{NAME}.json")
    torch.manual_seed(0)
    model = open_clip.create_model(NAME)
    path = folder / "weights.pt"
    torch.save(model.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def reference(weights):
    model, _, preprocess = open_clip.create_model_and_transforms(NAME, pretrained=str(weights))
    return model.eval(), preprocess, open_clip.get_tokenizer(NAME)


def test_embeddings_are_those_of_open_clip(weights, reference):
    model, preprocess, tokenizer = reference
    clip = load_clip(f"open_clip:{NAME}/{weights}")
    assert clip.dim == 24 and clip.processor.image_size == (48, 48)
    images = [picture(0, size=(80, 60)), picture(1, "L", (50, 90)), picture(2, size=(48, 48))]
    images.append(Image.fromarray(np.tile(np.arange(200, dtype=np.uint8), (100, 1))))
    texts = ["a small red ring", "", " ".join(["word"] * 100)]
    with torch.no_grad():
        expected = model.encode_image(torch.stack([preprocess(image) for image in images]))
        found = clip.model.get_image_features(clip.processor.images([encoded(image) for image in images]))
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
        expected = model.encode_text(tokenizer(texts))
        found = clip.model.get_text_features(**clip.processor.captions(texts))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert clip.model.logit_scale.item() == model.logit_scale.item()
    assert clip.description() == load_clip(f"open_clip:{NAME}/{weights}").description()


@pytest.mark.parametrize("name", ["no-such-model/openai", f"{NAME}/no-such-weights", NAME])
def test_what_open_clip_does_not_have_is_one_error(weights, name):
    with pytest.raises(FileNotFoundError, match=f"teacher open_clip:{name}: open_clip found nothing to load"):
        load_clip(f"open_clip:{name}", "teacher")


def test_imagenet_has_the_same_names_and_templates():
    pytest.importorskip("clip_benchmark", reason="needs clip_benchmark (pip install --no-deps clip_benchmark)")
    names, templates, _ = standard_sets._read(standard_sets.STANDARD_SETS["imagenet"], "imagenet")
    assert names == list(open_clip.IMAGENET_CLASSNAMES)
    assert templates == [template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES]


def test_it_teaches_live_and_from_a_store(weights, tmp_path, fresh_accelerate_state):
    teacher = f"open_clip:{NAME}/{weights}"
    crops = {"scale": [0.5, 1.0], "variants": 2}
    pairs = {"num_pairs": 16, "image_size": 64}
    data = {"data": "synthetic", "synthetic": pairs, "augmentation": crops}
    embed(EmbeddingSettings(output_dir=str(tmp_path / "store"), teachers={"tiny": teacher}, **data))

    def run(*arguments):
        config = str(ROOT / "training" / "configs" / "clip_rd_synthetic.yaml")
        common = ["--config", config, "--synthetic", json.dumps(pairs), "--augmentation", json.dumps(crops)]
        sizes = ["--batch_size", "8", "--num_steps", "2", "--log_every", "1", "--dtype", "float64"]
        return distill(read_settings(DistillationSettings, [*common, *sizes, *arguments]))

    live = run("--teacher", teacher, "--output_dir", str(tmp_path / "live"))
    stored = run("--teacher_store", str(tmp_path / "store"), "--output_dir", str(tmp_path / "stored"))
    for one, other in zip(live["history"], stored["history"], strict=True):
        assert one["xrd"] > 0 if "xrd" in one else one["step"] == 1
        for name, value in one.items():
            assert other[name] == pytest.approx(value, rel=5e-4), name
