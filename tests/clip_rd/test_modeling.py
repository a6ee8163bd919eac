"""The model: presets' sizes, features and loss for every kind of tower, initial values, training, dtype and saving."""

import json
import os
from pathlib import Path

import pytest
import torch
from fresh_processes import run_python
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import AutoModel, CLIPConfig, CLIPModel
from transformers.utils import is_timm_available

from hf_blemo import CLIPRDConfig, CLIPRDModel
from hf_blemo.clip_rd import modeling_clip_rd
from hf_blemo.clip_rd.configuration_clip_rd import PRESETS

VISION = ("clip", "vit", "mobilevit", "swin", "efficientnet", "resnet")
PAIRS = [*((vision, "clip") for vision in VISION), ("clip", "bert"), ("resnet", "roberta")]


@pytest.fixture(params=PAIRS, ids="-".join)
def towers(request):
    """Names of a vision and a text tower."""
    return request.param


# --- Presets ---

# All parameters, and those of the vision tower with its projection.
SIZES = {
    "vit-t-16": (46_116_097, 5_622_912),
    "vit-b-16": (149_620_737, 86_192_640),
    "vit-l-14": (427_616_513, 303_966_208),
    "mobilevit-s": (45_758_497, 5_265_312),
    "swin-t": (68_405_755, 27_912_570),
    "efficientnet-b0": (45_156_093, 4_662_908),
    "mobilenet-v3-s": (42_535_329, 2_042_144),
    "resnet-18": (51_931_841, 11_438_656),
    "resnet-50": (89_295_425, 25_605_184),
}


@pytest.mark.parametrize("name", {**PRESETS, **SIZES})
def test_sizes_of_the_presets(name):
    if name == "mobilenet-v3-s" and not is_timm_available():
        pytest.skip("needs timm")
    with torch.device("meta"):
        model = CLIPRDModel(CLIPRDConfig.from_preset(name))
    visual = (*model.vision_model.parameters(), model.visual_projection.weight)
    assert sum(parameter.numel() for parameter in model.parameters()) == SIZES[name][0]
    assert sum(parameter.numel() for parameter in visual) == SIZES[name][1]


def test_vit_t_16_runs_at_its_own_size():
    torch.manual_seed(0)
    model = CLIPRDModel(CLIPRDConfig.from_preset("vit-t-16")).eval()
    with torch.no_grad():
        output = model(torch.tensor([[49406, 320, 1125, 49407]]), torch.randn(1, 3, 224, 224))
    assert output.image_embeds.shape == output.text_embeds.shape == (1, 512)
    assert type(model.vision_model.encoder.layers[0].mlp.activation_fn).__name__ == "GELUActivation"


def test_timm_missing_is_one_line_that_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(modeling_clip_rd, "is_timm_available", lambda: False)
    with pytest.raises(
        ImportError,
        match=r"'mobilenetv3_small_100' needs timm and torchvision: pip install \"timm>=[\d.]+\" torchvision$",
    ):
        CLIPRDModel(CLIPRDConfig.from_preset("mobilenet-v3-s"))


# --- Features and outputs ---


def test_features_are_the_pooled_outputs_projected(towers, make_model, make_batch):
    model, batch = make_model(*towers), make_batch()
    text = {name: batch[name] for name in ("input_ids", "attention_mask")}
    image = {"pixel_values": batch["pixel_values"]}
    for features, tower, projection in (
        (model.get_image_features(**image), model.vision_model(**image), model.visual_projection),
        (model.get_text_features(**text), model.text_model(**text), model.text_projection),
    ):
        assert features.shape == (4, 8)
        expected = tower.pooler_output.reshape(4, -1) @ projection.weight.t()
        torch.testing.assert_close(features, expected)
        # Neither normalised nor the same for every input.
        assert (features.norm(dim=-1) - 1).abs().min() > 1e-3
        assert features.std(0).max() > 1e-3


def test_output_compares_normalised_features(towers, make_model, make_batch):
    model, batch = make_model(*towers), make_batch()
    image = functional.normalize(model.get_image_features(batch["pixel_values"]), dim=-1)
    text = functional.normalize(model.get_text_features(batch["input_ids"], batch["attention_mask"]), dim=-1)
    output = model(**batch)
    assert list(output) == ["loss", "logits_per_image", "logits_per_text", "text_embeds", "image_embeds"]
    logits = model.logit_scale.exp() * image @ text.t()
    expected = {"logits_per_image": logits, "logits_per_text": logits.t(), "image_embeds": image, "text_embeds": text}
    for name, value in expected.items():
        torch.testing.assert_close(output[name], value, msg=name)
    # Mean over both directions of minus the log-probability of the right partner.
    right = logits.log_softmax(1).diagonal() + logits.log_softmax(0).diagonal()
    torch.testing.assert_close(output.loss, -right.mean() / 2)


def test_loss_is_there_by_default_where_images_and_texts_are_pairs(make_model, make_batch):
    model = make_model()
    assert model(**make_batch(3)).loss is not None
    assert model(**make_batch(3), return_loss=False).loss is None
    output = model(**make_batch(1, 5))
    assert output.loss is None and output.logits_per_image.shape == (1, 5)
    assert model(**make_batch(1)).loss.item() == pytest.approx(0, abs=1e-6)
    assert len(model(**make_batch(2), return_dict=False)) == 5
    with torch.no_grad():
        model.visual_projection.weight.zero_()
    output = model(**make_batch())
    assert output.loss.isfinite() and output.logits_per_image.eq(0).all()


def test_text_cut_to_the_longest_gives_equal_features(make_model, make_batch):
    model, batch = make_model(), make_batch()
    input_ids, attention_mask = batch["input_ids"], batch["attention_mask"]
    expected = model.get_text_features(input_ids, attention_mask)
    for row in range(len(input_ids)):
        length = int(attention_mask[row].sum())
        cut = model.get_text_features(input_ids[row : row + 1, :length])
        torch.testing.assert_close(cut[0], expected[row])
    padded = functional.pad(input_ids, (0, 6), value=513)
    torch.testing.assert_close(model.get_text_features(padded), expected)
    # What stands before the end of the text counts.
    changed = input_ids.clone()
    changed[:, 1] = (changed[:, 1] + 1) % 500
    assert (model.get_text_features(changed, attention_mask) - expected).abs().max(-1).values.gt(1e-4).all()


def test_inputs_reach_the_text_tower_that_knows_them(make_model, make_batch):
    input_ids = make_batch()["input_ids"]
    model = make_model(text="bert")
    types = torch.ones_like(input_ids)
    assert not torch.equal(
        model.get_text_features(input_ids), model.get_text_features(input_ids, token_type_ids=types)
    )
    positions = torch.arange(input_ids.shape[1]).flip(0)[None]
    for text in ("clip", "bert"):
        model = make_model(text=text)
        shifted = model.get_text_features(input_ids, position_ids=positions)
        assert not torch.allclose(model.get_text_features(input_ids), shifted, atol=1e-4)


def test_images_of_another_size_by_interpolation(make_model):
    pixel_values = torch.randn(2, 3, 96, 96)
    assert make_model().get_image_features(pixel_values, interpolate_pos_encoding=True).shape == (2, 8)
    with pytest.raises(ValueError, match="vision tower 'resnet' takes no interpolate_pos_encoding"):
        make_model("resnet").get_image_features(pixel_values, interpolate_pos_encoding=True)


# --- Inputs and towers that are refused ---


def test_missing_or_unknown_inputs_are_refused(make_model, make_batch):
    model, batch = make_model(), make_batch()
    with pytest.raises(ValueError, match="forward embeds images, texts or both: give pixel_values, input_ids or both"):
        model(attention_mask=batch["attention_mask"])
    with pytest.raises(ValueError, match="text tower 'clip_text_model' takes no token_type_ids"):
        model(**batch, token_type_ids=torch.zeros_like(batch["input_ids"]))


def test_towers_of_another_width_or_without_a_pooled_output_are_refused(make_config, make_batch):
    model = CLIPRDModel(make_config("resnet", vision_hidden_size=7))
    with pytest.raises(ValueError, match="'resnet' pools to a width of 10, the config says 7: set vision_hidden_size"):
        model(**make_batch())
    text = {"model_type": "distilbert", "dim": 8, "n_heads": 2, "n_layers": 1, "hidden_dim": 8, "vocab_size": 514}
    with pytest.raises(ValueError, match="text tower 'distilbert' has no pooled output"):
        CLIPRDModel(make_config(text_config=text))(**make_batch())


# --- Initial values ---


def test_clip_towers_start_exactly_as_clip_does(make_config):
    config = make_config(initializer_factor=1.5)
    settings = {name: getattr(config, name) for name in ("vision_config", "text_config", "projection_dim")}
    torch.manual_seed(0)
    clip = CLIPModel(CLIPConfig(**settings, initializer_factor=1.5))
    torch.manual_seed(0)
    model = CLIPRDModel(config)
    assert list(model.state_dict()) == list(clip.state_dict())
    for name, value in clip.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=0, atol=0, msg=name)


def test_projections_and_scale_start_as_configured(make_config):
    wide = {"model_type": "resnet", "hidden_sizes": [4, 400], "depths": [1, 1], "embedding_size": 4}
    model = CLIPRDModel(make_config(vision_config=wide, projection_dim=400, initializer_factor=0.5))
    assert model.visual_projection.weight.std().item() == pytest.approx(0.5 * 400**-0.5, rel=0.02)
    assert model.text_projection.weight.std().item() == pytest.approx(0.5 * 16**-0.5, rel=0.05)
    assert model.logit_scale.item() == pytest.approx(2.6592)
    assert CLIPRDModel(make_config(logit_scale_init_value=1)).logit_scale.item() == 1


@pytest.mark.parametrize("name", ["mobilevit-s", "efficientnet-b0"])
def test_towers_made_for_loaded_weights_start_so_that_they_can_be_trained(name):
    torch.manual_seed(0)
    model = CLIPRDModel(CLIPRDConfig.from_preset(name, text_config={"num_hidden_layers": 1})).train()
    images = torch.randn(4, 3, 64, 64) if name == "efficientnet-b0" else torch.randn(4, 3, 224, 224)
    # As transformers starts them, EfficientNet-B0 gives 1e-31 here and MobileViT-S 0.004.
    with torch.no_grad():
        features = model.vision_model(pixel_values=images).pooler_output
    assert 0.05 < features.std(0).mean() < 5


def test_rescaling_leaves_loaded_weights_alone(make_model, tmp_path):
    model = make_model("efficientnet")
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    missing = {"logit_scale", "visual_projection.weight", "vision_model.encoder.top_conv.weight"}
    save_file({k: v for k, v in saved.items() if k not in missing}, tmp_path / "model.safetensors", {"format": "pt"})
    loaded, info = CLIPRDModel.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == missing and not info["unexpected_keys"]
    for name, value in loaded.state_dict().items():
        if name not in missing:
            torch.testing.assert_close(value, saved[name], rtol=0, atol=0, msg=name)
    assert loaded.logit_scale.item() == pytest.approx(2.6592)
    assert 0.1 < loaded.visual_projection.weight.std() < 0.4
    assert 0.1 < loaded.vision_model.encoder.top_conv.weight.std() < 1


# --- Training ---


def test_every_parameter_is_trained(towers, make_model, make_batch):
    model = make_model(*towers).train()
    model(**make_batch(5)).loss.backward()
    for name, parameter in model.named_parameters():
        # A key's bias shifts all scores of a query alike.
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any() or name.endswith((".k_proj.bias", ".key.bias")), name


@pytest.mark.parametrize("vision", ["clip", "mobilevit", "swin", "resnet"])
def test_checkpointed_activations_give_equal_gradients(vision, make_model, make_batch):
    gradients, calls = [], []
    for checkpointed in (False, True):
        model = make_model(vision).train()
        assert model.supports_gradient_checkpointing
        if checkpointed:
            # The older name, under which transformers before 5.23 have it.
            getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
        layers = [model.text_model.encoder.layers[0].layer_norm1]
        layers += {
            "clip": lambda tower: [tower.encoder.layers[0].layer_norm1],
            "swin": lambda tower: [tower.encoder.layers[0].blocks[0].layernorm_before],
            "mobilevit": lambda tower: [tower.encoder.layer[2].downsampling_layer],
            "resnet": lambda tower: [],
        }[vision](model.vision_model)
        counts = [[] for _ in layers]
        for layer, count in zip(layers, counts, strict=True):
            layer.register_forward_hook(lambda *arguments, count=count: count.append(1))
        model(**make_batch(5)).loss.backward()
        calls.append([len(count) for count in counts])
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    # Swin recomputes stages and, within them, blocks.
    assert set(calls[0]) == {1} and min(calls[1]) >= 2
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_text_embedding_can_be_resized(make_model, make_batch):
    model, input_ids = make_model(), make_batch()["input_ids"]
    before = model.get_text_features(input_ids)
    model.resize_token_embeddings(520, mean_resizing=False)
    assert model.get_input_embeddings().weight.shape[0] == model.config.text_config.vocab_size == 520
    torch.testing.assert_close(model.get_text_features(input_ids), before)


# --- dtype, attention, saving ---


def test_round_trip_keeps_every_tensor_and_output(towers, make_model, make_batch, tmp_path):
    model, batch = make_model(*towers), make_batch()
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.add_(torch.rand_like(buffer))
    model.save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors", ".py"}
    loaded, info = CLIPRDModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert list(loaded.state_dict()) == list(model.state_dict())
    for name, value in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, rtol=0, atol=0, msg=name)
    # Not to the last bit: where weights lie in memory decides which convolution kernel runs.
    expected, found = model(**batch), loaded(**batch)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-6)


def test_bfloat16(towers, make_model, make_batch, tmp_path):
    model, batch = make_model(*towers), make_batch()
    expected = model(**batch)
    model.save_pretrained(tmp_path)
    for loaded in (CLIPRDModel.from_pretrained(tmp_path, dtype=torch.bfloat16), model.to(torch.bfloat16)):
        assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
        # Images stay in float32, as an image processor gives them.
        output = loaded(**batch)
        assert output.image_embeds.dtype == torch.bfloat16 and output.loss.dtype == torch.float32
        for name in ("image_embeds", "text_embeds"):
            cosines = functional.cosine_similarity(output[name].float(), expected[name], dim=-1)
            assert cosines.min() > 0.99, name
    loaded.save_pretrained(tmp_path / "half")
    again = CLIPRDModel.from_pretrained(tmp_path / "half")
    assert again.dtype == again.vision_model.dtype == again.text_model.dtype == torch.bfloat16
    assert CLIPRDModel.from_pretrained(tmp_path / "half", dtype=torch.float32).vision_model.dtype == torch.float32


def test_attention_is_chosen_for_the_towers_that_have_it(make_model, make_batch, tmp_path):
    model, batch = make_model(), make_batch()
    assert model.text_model.config._attn_implementation == model.vision_model.config._attn_implementation == "sdpa"
    model.save_pretrained(tmp_path)
    eager = AutoModel.from_pretrained(tmp_path, attn_implementation="eager")
    assert eager.text_model.config._attn_implementation == eager.vision_model.config._attn_implementation == "eager"
    torch.testing.assert_close(eager(**batch).logits_per_image, model(**batch).logits_per_image)
    make_model("resnet").save_pretrained(tmp_path / "resnet")
    mixed = AutoModel.from_pretrained(tmp_path / "resnet", attn_implementation={"text_config": "eager"})
    assert mixed.text_model.config._attn_implementation == "eager"


# --- Towers of timm ---

# Enough of timm for transformers' wrapper, with a head that widens the features as MobileNetV3's does.
TIMM = """
import torch
from torch import nn
__version__ = "1.0.20"

class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 6, 3, 2), nn.BatchNorm2d(6), nn.Linear(6, 10)
    def forward_features(self, x):
        return self.norm(self.conv(x)).relu()
    def forward_head(self, x):
        return self.head(x.mean((2, 3)))

def create_model(name, pretrained, num_classes, **options):
    assert (name, pretrained, num_classes, options) == ("small", False, 0, {})
    return Small()
"""
TIMM_DATA = "ImageNetInfo = None\ndef infer_imagenet_subset(config): return None\n"
TIMM_PROGRAM = """
import sys, torch, transformers
from transformers.utils import import_utils

# The real timm needs torchvision, this one does not.
import_utils.is_timm_available = transformers.utils.is_timm_available = lambda: True
import_utils.BACKENDS_MAPPING["timm"] = (lambda: True, "")
from transformers import AutoModel
from hf_blemo import CLIPRDConfig, CLIPRDModel

torch.manual_seed(0)
text = {"model_type": "clip_text_model", "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
vision = {"model_type": "timm_wrapper", "architecture": "small"}
model = CLIPRDModel(CLIPRDConfig(vision_config=vision, text_config=text, vision_hidden_size=10)).eval()
images = torch.randn(3, 3, 16, 16)
features = model.get_image_features(images)
torch.testing.assert_close(features, model.vision_model.timm_model.forward_head(
    model.vision_model.timm_model.forward_features(images)) @ model.visual_projection.weight.t())
# Of He's fan-out initialisation: the square root of 2 / (6 * 9).
assert 0.12 < model.vision_model.timm_model.conv.weight.std() < 0.28
model.save_pretrained(sys.argv[1])
loaded = AutoModel.from_pretrained(sys.argv[1])
assert type(loaded.config.vision_config).__name__ == "TimmWrapperConfig"
torch.testing.assert_close(loaded.get_image_features(images), features, rtol=0, atol=0)
print("done", tuple(features.shape))
"""


def test_a_tower_of_timm(tmp_path):
    package = tmp_path / "site" / "timm"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(TIMM)
    (package / "data.py").write_text(TIMM_DATA)
    metadata = tmp_path / "site" / "timm-1.0.20.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: timm\nVersion: 1.0.20\n")
    root = Path(modeling_clip_rd.__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(package.parent), str(root)])}
    result = run_python(["-c", TIMM_PROGRAM, tmp_path / "saved"], cwd=tmp_path, env=environment)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split("\n")[-2] == "done (3, 512)"
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["vision_config"]["architecture"] == "small" and config["vision_hidden_size"] == 10
