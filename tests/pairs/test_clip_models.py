"""Any CLIP of transformers loads with what prepares its inputs, and what is no CLIP says why."""

import pytest
import torch
from pair_files import picture
from transformers import BertConfig, BertModel, CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

from hf_blemo import CLIPRDConfig, CLIPRDModel
from hf_blemo.built_in import synthetic_tokenizer
from hf_blemo.pairs.clip_models import image_processor_of, load_clip

TOWER = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXT = {**TOWER, "vocab_size": 44, "max_position_embeddings": 16, "bos_token_id": 2, "eos_token_id": 3}
VISION = {**TOWER, "image_size": 32, "patch_size": 8}


def clip_config():
    return CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=12)


def saved(folder, model, tokenizer=True):
    model.save_pretrained(folder)
    if tokenizer:
        synthetic_tokenizer().save_pretrained(folder)
    image_processor_of(32).save_pretrained(folder)
    return str(folder)


def clip_rd_config():
    text, vision = {"model_type": "clip_text_model", **TEXT}, {"model_type": "clip_vision_model", **VISION}
    return CLIPRDConfig(text_config=text, vision_config=vision, projection_dim=20)


MODELS = {
    "clip": (lambda: CLIPModel(clip_config()), 12),
    "siglip": (lambda: SiglipModel(SiglipConfig(text_config=TEXT, vision_config=VISION)), 16),
    "clip_rd": (lambda: CLIPRDModel(clip_rd_config()), 20),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_clip_loads_with_its_processor(tmp_path, name):
    make, dim = MODELS[name]
    model = make()
    clip = load_clip(saved(tmp_path / name, model.eval()))
    assert clip.dim == dim and not clip.model.training and clip.processor.image_size == (32, 32)
    pixels = clip.processor.images([picture(0), picture(1, "L")])
    texts = clip.processor.captions(["one small red ring", "two large plain blue squares"])
    # Siglip was trained on captions of full length.
    assert texts["input_ids"].shape == (2, 16 if name == "siglip" else 7)
    with torch.no_grad():
        one = model.get_image_features(pixel_values=pixels), model.get_text_features(**texts)
        other = clip.model.get_image_features(pixel_values=pixels), clip.model.get_text_features(**texts)
    for mine, loaded in zip(one, other, strict=True):
        assert torch.equal(getattr(mine, "pooler_output", mine), getattr(loaded, "pooler_output", loaded))


def test_a_fingerprint_tells_weights_apart(tmp_path):
    torch.manual_seed(0)
    model = CLIPModel(clip_config())
    folder = saved(tmp_path / "one", model)
    first = load_clip(folder).description()
    assert load_clip(folder).description() == first and len(first["fingerprint"]) == 32
    assert first["parameters"] == model.num_parameters()
    assert first["logit_scale"] == pytest.approx(model.logit_scale.exp().item())
    with torch.no_grad():
        model.visual_projection.weight[0, 0] += 1e-3
    assert load_clip(saved(tmp_path / "other", model)).description()["fingerprint"] != first["fingerprint"]


def test_what_is_no_clip_says_why(tmp_path):
    bert = BertModel(BertConfig(**TOWER, vocab_size=44))
    with pytest.raises(ValueError, match="model .*bert.: BertModel has no get_image_features; expected a CLIP"):
        load_clip(saved(tmp_path / "bert", bert))
    config = SiglipConfig(text_config={**TEXT, "projection_size": 16}, vision_config={**VISION, "hidden_size": 24})
    with pytest.raises(ValueError, match="teacher .*: images are embedded in a width of 24 and texts of 16"):
        load_clip(saved(tmp_path / "unequal", SiglipModel(config)), "teacher")
    with pytest.raises(FileNotFoundError, match="model '.*bare': AutoTokenizer found nothing to load"):
        load_clip(saved(tmp_path / "bare", CLIPModel(clip_config()), tokenizer=False))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty': AutoModel found nothing to load"):
        load_clip(str(tmp_path / "empty"))


def test_a_model_of_the_hub_that_cannot_be_had_is_named():
    with pytest.raises(FileNotFoundError, match="model 'nobody/nothing': no such folder, and no Hub repository"):
        load_clip("nobody/nothing")
