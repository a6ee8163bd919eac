"""To and from transformers' CLIPModel: equal outputs, values kept, weights not shared."""

import pytest
import torch
from transformers import CLIPConfig, CLIPModel, CLIPTextModelWithProjection, CLIPVisionModelWithProjection

from hf_blemo import CLIPRDModel

OUTPUTS = ("loss", "logits_per_image", "logits_per_text", "text_embeds", "image_embeds")


def make_clip(make_config, **options) -> CLIPModel:
    config = make_config()
    torch.manual_seed(1)
    settings = {
        "vision_config": {**config.vision_config.to_dict(), "hidden_act": "quick_gelu"},
        "text_config": {**config.text_config.to_dict(), "eos_token_id": 513},
        "projection_dim": 6,
        "logit_scale_init_value": 3.0,
        "initializer_factor": 2.0,
    }
    model = CLIPModel(CLIPConfig(**{**settings, **options})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def assert_equal_outputs(clip: CLIPModel, model: CLIPRDModel, batch, **tolerance) -> None:
    expected, found = clip(**batch, return_loss=True), model(**batch)
    for name in OUTPUTS:
        torch.testing.assert_close(found[name], expected[name], msg=name, **tolerance)
    image = {"pixel_values": batch["pixel_values"]}
    text = {name: batch[name] for name in ("input_ids", "attention_mask")}
    expected = clip.get_image_features(**image).pooler_output, clip.get_text_features(**text).pooler_output
    found = model.get_image_features(**image), model.get_text_features(**text)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_from_clip_gives_equal_outputs_and_keeps_settings(make_config, make_batch):
    clip = make_clip(make_config)
    model = CLIPRDModel.from_clip(clip)
    assert not model.training and list(model.state_dict()) == list(clip.state_dict())
    assert not {one.data_ptr() for one in model.parameters()} & {one.data_ptr() for one in clip.parameters()}
    assert_equal_outputs(clip, model, make_batch(), rtol=1e-6, atol=1e-6)
    config = model.config
    assert config.vision_config.hidden_act == "quick_gelu" and config.text_config.hidden_act == "gelu"
    assert (config.projection_dim, config.logit_scale_init_value, config.initializer_factor) == (6, 3.0, 2.0)
    assert config.text_config.eos_token_id == 513
    # Checkpoints with the old end of text pool otherwise.
    clip = make_clip(make_config, text_config={**make_config().text_config.to_dict(), "eos_token_id": 2})
    assert_equal_outputs(clip, CLIPRDModel.from_clip(clip), make_batch(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_conversion_keeps_dtype_mode_and_attention(make_config, dtype):
    clip = make_clip(make_config).to(dtype).train()
    clip.set_attn_implementation("eager")
    for converted in (CLIPRDModel.from_clip(clip), CLIPRDModel.from_clip(clip).to_clip()):
        assert converted.training
        assert {parameter.dtype for parameter in converted.parameters()} == {dtype}
        assert converted.config.dtype == dtype
        assert converted.vision_model.config._attn_implementation == "eager"


def test_to_clip_gives_equal_outputs_and_comes_back_equal(make_model, make_batch):
    model = make_model()
    clip = model.to_clip()
    assert type(clip) is CLIPModel and not clip.training
    assert_equal_outputs(clip, model, make_batch(), rtol=1e-6, atol=1e-6)
    again = CLIPRDModel.from_clip(clip)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, rtol=0, atol=0, msg=name)
    assert again.config.vision_config.to_dict() == clip.config.vision_config.to_dict()
    # They share nothing.
    before = model(**make_batch()).logits_per_image
    with torch.no_grad():
        for parameter in clip.parameters():
            parameter.zero_()
    clip.config.text_config.vocab_size = 1
    torch.testing.assert_close(model(**make_batch()).logits_per_image, before, rtol=0, atol=0)
    assert model.config.text_config.vocab_size == 514


def test_saved_as_clip_loads_whole_and_as_single_towers(make_model, make_batch, tmp_path):
    model, batch = make_model(), make_batch()
    model.to_clip().save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
    assert_equal_outputs(CLIPModel.from_pretrained(tmp_path), model, batch, rtol=1e-6, atol=1e-6)
    vision = CLIPVisionModelWithProjection.from_pretrained(tmp_path)
    text = CLIPTextModelWithProjection.from_pretrained(tmp_path)
    torch.testing.assert_close(
        vision(batch["pixel_values"]).image_embeds, model.get_image_features(batch["pixel_values"])
    )
    torch.testing.assert_close(text(batch["input_ids"]).text_embeds, model.get_text_features(batch["input_ids"]))


def test_other_models_are_not_converted(make_model):
    with pytest.raises(ValueError, match="the vision tower is 'resnet', expected 'clip_vision_model'"):
        make_model("resnet").to_clip()
    with pytest.raises(ValueError, match="the text tower is 'bert', expected 'clip_text_model'"):
        make_model("clip", "bert").to_clip()
    with pytest.raises(ValueError, match="expected a CLIPModel, found CLIPRDModel"):
        CLIPRDModel.from_clip(make_model())
