"""The config: towers of every kind, their pooled widths, presets, saving, and settings that are refused."""

import pytest
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import (
    AutoConfig,
    BertConfig,
    CLIPConfig,
    CLIPTextConfig,
    CLIPVisionConfig,
    MobileViTConfig,
    MobileViTV2Config,
    ResNetConfig,
)

from hf_blemo import CLIPRDConfig


def test_defaults_are_those_of_clip():
    config, clip = CLIPRDConfig(), CLIPConfig()
    assert type(config.vision_config) is CLIPVisionConfig and type(config.text_config) is CLIPTextConfig
    assert config.vision_config.to_dict() == clip.vision_config.to_dict()
    assert config.text_config.to_dict() == clip.text_config.to_dict()
    for name in ("projection_dim", "logit_scale_init_value", "initializer_factor"):
        assert getattr(config, name) == getattr(clip, name)


def test_towers_from_objects_and_dicts_come_back_typed(tmp_path):
    config = CLIPRDConfig(
        vision_config=MobileViTConfig(image_size=64, neck_hidden_sizes=[4, 4, 8, 8, 12, 12, 20]),
        text_config={"model_type": "bert", "hidden_size": 24, "num_attention_heads": 2},
        projection_dim=7,
        logit_scale_init_value=1,
        text_hidden_size=24,
    )
    assert type(config.text_config) is BertConfig and config.text_config.hidden_size == 24
    # An object is copied.
    copied = CLIPRDConfig(vision_config=config.vision_config)
    copied.vision_config.image_size = 32
    assert config.vision_config.image_size == 64
    config.save_pretrained(tmp_path)
    for loaded in (CLIPRDConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(loaded) is CLIPRDConfig
        assert type(loaded.vision_config) is MobileViTConfig and type(loaded.text_config) is BertConfig
        assert loaded.vision_config.neck_hidden_sizes == [4, 4, 8, 8, 12, 12, 20]
        assert loaded.vision_config.image_size == 64 and loaded.text_config.hidden_size == 24
        assert (loaded.projection_dim, loaded.logit_scale_init_value, loaded.text_hidden_size) == (7, 1, 24)
        assert (loaded.vision_pooled_size, loaded.text_pooled_size) == (20, 24)


# --- Pooled widths ---


@pytest.mark.parametrize(
    ("tower", "width"),
    [
        ({"model_type": "clip_vision_model", "hidden_size": 48}, 48),
        ({"model_type": "vit", "hidden_size": 48}, 48),
        ({"model_type": "siglip_vision_model", "hidden_size": 48}, 48),
        ({"model_type": "mobilevit"}, 640),
        ({"model_type": "swin", "embed_dim": 8, "depths": [1, 1, 1]}, 32),
        ({"model_type": "efficientnet", "hidden_dim": 1280}, 1280),
        ({"model_type": "resnet"}, 2048),
        ({"model_type": "convnext"}, 768),
    ],
)
def test_pooled_width_of_a_vision_tower(tower, width):
    assert CLIPRDConfig(vision_config=tower).vision_pooled_size == width
    assert CLIPRDConfig(vision_config=tower, vision_hidden_size=5).vision_pooled_size == 5


def test_a_tower_of_unknown_width_is_refused_by_name_and_accepted_with_its_width():
    message = "vision tower 'mobilevitv2' is not in its config: set vision_hidden_size"
    with pytest.raises(ValueError, match=message):
        CLIPRDConfig(vision_config=MobileViTV2Config())
    with pytest.raises(ValueError, match="vision tower 'timm_wrapper' .* set vision_hidden_size"):
        CLIPRDConfig(vision_config={"model_type": "timm_wrapper", "architecture": "resnet10t"})
    with pytest.raises(ValueError, match="text tower 'mobilevitv2' .* set text_hidden_size"):
        CLIPRDConfig(text_config={"model_type": "mobilevitv2"})
    assert CLIPRDConfig(vision_config=MobileViTV2Config(), vision_hidden_size=512).vision_pooled_size == 512


# --- Settings that are refused ---


def test_a_whole_image_text_model_is_no_tower():
    with pytest.raises(ValueError, match="text_config is of a whole image-text model, 'clip': give its text_config"):
        CLIPRDConfig(text_config=CLIPConfig())
    with pytest.raises(ValueError, match="vision_config is of a whole image-text model, 'siglip'"):
        CLIPRDConfig(vision_config={"model_type": "siglip"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"projection_dims": 4}, "unknown setting 'projection_dims'; did you mean 'projection_dim'"),
        ({"projection_dim": 0}, "projection_dim must be at least 1, found 0"),
        ({"vision_hidden_size": -1}, "vision_hidden_size must be at least 1, found -1"),
        ({"initializer_factor": -1.0}, "initializer_factor must not be negative"),
        ({"vision_config": {"model_type": "no_such_model"}}, "no_such_model"),
        ({"projection_dim": "512"}, "projection_dim"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises((ValueError, StrictDataclassFieldValidationError), match=message):
        CLIPRDConfig(**settings)


# --- Presets ---


def test_unknown_preset_names_the_nearest_and_all():
    with pytest.raises(ValueError, match="unknown preset 'vit-t16', .*resnet-50; did you mean 'vit-t-16'?") as error:
        CLIPRDConfig.from_preset("vit-t16")
    assert "mobilenet-v3-s" in str(error.value)
    with pytest.raises(ValueError, match="unknown preset 'xyz', expected one of vit-t-16, .*resnet-50$"):
        CLIPRDConfig.from_preset("xyz")


def test_overrides_change_what_they_name_and_no_later_preset():
    changed = CLIPRDConfig.from_preset(
        "vit-t-16", projection_dim=64, vision_config={"image_size": 96}, text_config=BertConfig(hidden_size=24)
    )
    assert changed.projection_dim == 64 and changed.vision_config.image_size == 96
    assert (changed.vision_config.hidden_size, changed.vision_config.hidden_act) == (192, "gelu")
    assert type(changed.text_config) is BertConfig
    replaced = CLIPRDConfig.from_preset("vit-t-16", vision_config={"model_type": "resnet"})
    assert type(replaced.vision_config) is ResNetConfig
    assert replaced.vision_config.to_dict() == ResNetConfig().to_dict()
    plain = CLIPRDConfig.from_preset("vit-t-16")
    assert plain.projection_dim == 512 and plain.vision_config.image_size == 224
    assert (plain.text_config.hidden_size, plain.text_config.hidden_act) == (384, "gelu")


def test_presets_train_like_the_published_students():
    assert CLIPRDConfig.from_preset("mobilevit-s").vision_config.hidden_dropout_prob == 0
    # PyTorch's momentum, not Keras's: 0.99 would forget all batches but the last.
    assert CLIPRDConfig.from_preset("efficientnet-b0").vision_config.batch_norm_momentum == 0.1
