"""LoRA starts as the base, trains little and merges without loss; a linear probe trains the heads alone."""

import copy

import pytest
import torch
from peft import PeftModel, get_peft_model
from tiny_models import EXTENDED
from trainer_cases import CASES, fusion_case
from transformers import AutoModel

from hf_blemo import CLIPRDConfig, CLIPRDModel
from hf_blemo.trainer import linear_probe, lora_config
from hf_blemo.trainer.adapters import _TEXT_TARGETS, _VISION_TARGETS

SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
PATCHES = {"image_size": 16, "patch_size": 8}
TOWERS = {
    **dict.fromkeys(("clip_vision_model", "siglip_vision_model", "vit", "deit"), {**SMALL, **PATCHES}),
    "dinov2": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, **PATCHES},
    "swin": {"image_size": 16, "patch_size": 4, "embed_dim": 8, "depths": [1], "num_heads": [2], "window_size": 2},
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    **dict.fromkeys(
        ("convnext", "convnextv2"), {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "patch_size": 4}
    ),
    "efficientnet": {"width_coefficient": 0.1, "depth_coefficient": 0.1, "hidden_dim": 128, "image_size": 32},
    "mobilevit": {"hidden_sizes": [8, 12, 16], "neck_hidden_sizes": [8, 8, 8, 8, 8, 8, 16], "image_size": 32},
}
TEXTS = {
    "clip_text_model": {**SMALL, "vocab_size": 50, "eos_token_id": 2, "max_position_embeddings": 12},
    "bert": {**SMALL, "vocab_size": 50, "max_position_embeddings": 12},
    "roberta": {**SMALL, "vocab_size": 50, "max_position_embeddings": 16},
}


@pytest.fixture(params=["fusion", "extended", "clip_rd"])
def case(request):
    return fusion_case(**EXTENDED) if request.param == "extended" else CASES[request.param]()


def batch_of(case):
    return case.collator(list(case.dataset.select(range(6))))


def outputs_of(model, batch):
    with torch.no_grad():
        output = model.eval()(**batch)
    names = ("probabilities", "joint_probabilities", "image_embeds", "text_embeds")
    return {name: output[name] for name in names if name in output}


def assert_same(one, two, tolerance=1e-5):
    assert set(one) == set(two) and one
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=tolerance)


def test_an_adapter_starts_as_its_base_and_trains_alone(case, tmp_path):
    base, batch = case.make_model(), batch_of(case)
    adapted = get_peft_model(copy.deepcopy(base), lora_config(base, r=4))
    assert_same(outputs_of(adapted, batch), outputs_of(base, batch), 1e-6)
    trainer = case.trainer(
        tmp_path, model=adapted, max_steps=20, learning_rate=2e-2, save_strategy="steps", save_steps=20
    )
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert sum(losses[-4:]) < sum(losses[:4]) - 0.05
    assert {"eval_loss"} <= set(trainer.evaluate())
    found = outputs_of(adapted, batch)
    assert any((found[name] - values).abs().max() > 1e-3 for name, values in outputs_of(base, batch).items())
    # Nothing of the base has moved, and nothing of it is in the checkpoint.
    own = {name.replace(".base_layer", ""): value for name, value in adapted.get_base_model().state_dict().items()}
    for name, value in base.state_dict().items():
        assert torch.equal(own[name], value), name
    checkpoint = tmp_path / "checkpoint-20"
    assert (checkpoint / "adapter_model.safetensors").is_file() and not (checkpoint / "model.safetensors").exists()
    merged = adapted.merge_and_unload()
    assert type(merged) is type(base) and set(merged.state_dict()) == set(base.state_dict())
    assert_same(outputs_of(merged, batch), found)


def test_an_adapter_that_transformers_would_lose_a_part_of_is_refused(case, tmp_path):
    base, batch = case.make_model(), batch_of(case)
    base.save_pretrained(tmp_path / "base")
    adapted = get_peft_model(AutoModel.from_pretrained(tmp_path / "base"), lora_config(base, r=4, use_dora=True))
    with torch.no_grad():
        for name, values in adapted.named_parameters():
            values += 0.3 * torch.randn_like(values) * ("lora_" in name)
    adapted.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match="adapter whole .*magnitude.*peft.PeftModel.from_pretrained"):
        AutoModel.from_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(AutoModel.from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    assert_same(outputs_of(loaded, batch), outputs_of(adapted, batch), 0)


@pytest.mark.parametrize(
    ("vision", "text"), [(name, "clip_text_model") for name in TOWERS] + [("vit", "bert"), ("vit", "roberta")]
)
def test_every_listed_tower_has_an_adapter(vision, text):
    assert set(TOWERS) == set(_VISION_TARGETS) and set(TEXTS) == set(_TEXT_TARGETS)
    torch.manual_seed(0)
    config = CLIPRDConfig(
        vision_config={"model_type": vision, **TOWERS[vision]},
        text_config={"model_type": text, **TEXTS[text]},
        projection_dim=8,
    )
    model = CLIPRDModel(config)
    adapted = get_peft_model(copy.deepcopy(model), lora_config(model, r=2))
    changed = [name for name, _ in adapted.named_modules() if name.endswith("lora_A.default")]
    for tower in ("vision_model", "text_model", "visual_projection", "text_projection"):
        assert any(f".{tower}." in name for name in changed), tower
    trainable, total = adapted.get_nb_trainable_parameters()
    assert 0 < trainable < 0.6 * total
    size = TOWERS[vision].get("image_size", 32)
    batch = {"pixel_values": torch.randn(2, 3, size, size), "input_ids": torch.tensor([[0, 5, 2], [0, 6, 2]])}
    adapted.train()(**batch).loss.backward()
    gradients = [value.grad for name, value in adapted.named_parameters() if "lora_B" in name]
    assert gradients and all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    adapted.eval().merge_and_unload()


def test_models_without_a_list_of_targets_are_refused():
    model = CASES["clip_rd"]().make_model()
    model.config.vision_config.model_type = "regnet"
    with pytest.raises(
        ValueError, match="no list of LoRA targets for the vision tower 'regnet', known are clip_vision"
    ):
        lora_config(model)
    assert lora_config(model, target_modules=["visual_projection"]).target_modules == {"visual_projection"}
    model.config.vision_config.model_type = "resnet"
    with pytest.raises(ValueError, match="no module of this model is called"):
        lora_config(model)
    with pytest.raises(ValueError, match="expected a model of type rank_aware_fusion or clip_rd, found 'bert'"):
        lora_config(
            AutoModel.from_config(CLIPRDConfig(text_config={"model_type": "bert", **TEXTS["bert"]}).text_config)
        )


def test_the_caller_chooses_the_settings_of_lora():
    config = lora_config(CASES["fusion"]().make_model(), r=3, lora_dropout=0.1)
    assert (config.r, config.lora_alpha, config.lora_dropout, config.task_type) == (3, 6, 0.1, None)


PROBED = {"fusion": ("heads.",), "clip_rd": ("visual_projection.", "text_projection.", "logit_scale")}


@pytest.mark.parametrize("name", PROBED)
def test_only_the_last_layers_move_under_trainer(name, tmp_path):
    case = CASES[name]()
    model = linear_probe(case.make_model())
    before = copy.deepcopy(model.state_dict())
    trainer = case.trainer(tmp_path, model=model, max_steps=10, learning_rate=1e-2)
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[-1] < losses[0]
    for key, values in model.state_dict().items():
        assert key.startswith(PROBED[name]) or torch.equal(values, before[key]), key
    assert any(not torch.equal(values, before[key]) for key, values in model.state_dict().items())


def test_batch_statistics_and_dropout_of_frozen_towers_are_off(tmp_path):
    case = CASES["clip_rd"]()
    text = {**case.make_model().config.text_config.to_dict(), "attention_dropout": 0.5}
    config = CLIPRDConfig(
        vision_config={
            "model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8], "depths": [1], "layer_type": "basic",
        },
        text_config=text, projection_dim=12,
    )  # fmt: skip
    model = linear_probe(CLIPRDModel(config))
    before = copy.deepcopy(model.state_dict())
    assert any("running_mean" in key for key in before)
    trainer = case.trainer(tmp_path, model=model, max_steps=3)
    trainer.train()
    assert model.training and not model.vision_model.training and not model.text_model.training
    for key, values in model.state_dict().items():
        if key.startswith(("vision_model", "text_model")):
            assert torch.equal(values, before[key]), key
    batch = case.collator(list(case.dataset.select(range(4))))
    assert torch.equal(model(**batch).text_embeds, model(**batch).text_embeds)
    # Trained as a whole it is a model like any other again.
    model.requires_grad_(True)
    assert model.train().vision_model.training
    model(**batch)
    assert any(not torch.equal(values, before[key]) for key, values in model.state_dict().items() if "running" in key)


def test_dropout_of_a_frozen_fusion_is_off():
    case = fusion_case(dropout=0.5)
    batch = case.collator(list(case.dataset.select(range(4))))
    model = case.make_model().train()
    assert not torch.equal(model(**batch).fused_features, model(**batch).fused_features)
    linear_probe(model)
    assert model.training and torch.equal(model(**batch).fused_features, model(**batch).fused_features)


def test_a_probe_of_another_model_is_refused():
    model = CASES["clip_rd"]().make_model().vision_model
    with pytest.raises(
        ValueError, match="expected a model of type rank_aware_fusion or clip_rd, found 'clip_vision_model'"
    ):
        linear_probe(model)
