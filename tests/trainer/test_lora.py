"""LoRA on every family: starts as the base, trains little, and is saved, loaded and merged without loss."""

import copy

import pytest
import torch
from peft import PeftModel, get_peft_model
from trainer_cases import CASES
from transformers import AutoModel, Trainer

from hf_blemo import CLIPRDConfig, CLIPRDModel
from hf_blemo.trainer import lora_config
from hf_blemo.trainer.adapters import _TEXT_TARGETS, _VISION_TARGETS

# PEFT 0.21 asks transformers by the name from before 5.22.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
TOWERS = {
    "clip_vision_model": {**SMALL, "image_size": 16, "patch_size": 8},
    "siglip_vision_model": {**SMALL, "image_size": 16, "patch_size": 8},
    "vit": {**SMALL, "image_size": 16, "patch_size": 8},
    "deit": {**SMALL, "image_size": 16, "patch_size": 8},
    "dinov2": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "patch_size": 8},
    "swin": {"image_size": 16, "patch_size": 4, "embed_dim": 8, "depths": [1], "num_heads": [2], "window_size": 2},
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    "convnext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "patch_size": 4},
    "convnextv2": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "patch_size": 4},
    "efficientnet": {"width_coefficient": 0.1, "depth_coefficient": 0.1, "hidden_dim": 128, "image_size": 32},
    "mobilevit": {"hidden_sizes": [8, 12, 16], "neck_hidden_sizes": [8, 8, 8, 8, 8, 8, 16], "image_size": 32},
}
TEXTS = {
    "clip_text_model": {**SMALL, "vocab_size": 50, "eos_token_id": 2, "max_position_embeddings": 12},
    "bert": {**SMALL, "vocab_size": 50, "max_position_embeddings": 12},
    "roberta": {**SMALL, "vocab_size": 50, "max_position_embeddings": 16},
}


@pytest.fixture(params=["fusion", "clip_rd"])
def case(request):
    return CASES[request.param]()


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


def trained(case, tmp_path):
    """A base, and an adapter of it that Trainer has trained."""
    base = case.make_model()
    adapted = get_peft_model(copy.deepcopy(base), lora_config(base, r=4))
    assert_same(outputs_of(adapted, batch_of(case)), outputs_of(base, batch_of(case)), 1e-6)
    trainer = case.trainer(
        tmp_path / "run", model=adapted, max_steps=20, learning_rate=2e-2, save_strategy="steps", save_steps=20
    )
    assert type(trainer) is Trainer
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert sum(losses[-4:]) < sum(losses[:4]) - 0.05
    assert {"eval_loss"} <= set(trainer.evaluate())
    return base, adapted


def test_an_adapter_trains_alone_and_is_saved_loaded_and_merged(case, tmp_path):
    base, adapted = trained(case, tmp_path)
    batch = batch_of(case)
    expected = outputs_of(adapted, batch)
    assert any((expected[name] - values).abs().max() > 1e-3 for name, values in outputs_of(base, batch).items())
    # Nothing of the base has moved.
    own = {name.replace(".base_layer", ""): value for name, value in adapted.get_base_model().state_dict().items()}
    for name, value in base.state_dict().items():
        assert torch.equal(own[name], value), name
    checkpoint = tmp_path / "run" / "checkpoint-20"
    assert (checkpoint / "adapter_model.safetensors").is_file() and not (checkpoint / "model.safetensors").exists()

    base.save_pretrained(tmp_path / "base")
    adapted.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    adapted.save_pretrained(tmp_path / "adapter")
    onto = PeftModel.from_pretrained(AutoModel.from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    assert_same(outputs_of(onto, batch), expected)
    assert_same(outputs_of(AutoModel.from_pretrained(tmp_path / "adapter"), batch), expected)
    merged = onto.merge_and_unload()
    assert_same(outputs_of(merged, batch), expected)
    merged.save_pretrained(tmp_path / "merged")
    plain = AutoModel.from_pretrained(tmp_path / "merged")
    assert type(plain) is type(base) and set(plain.state_dict()) == set(base.state_dict())
    assert_same(outputs_of(plain, batch), expected)


@pytest.mark.parametrize("vision", TOWERS)
def test_every_listed_vision_tower_has_an_adapter(vision):
    check_towers(vision, "clip_text_model")


@pytest.mark.parametrize("text", TEXTS)
def test_every_listed_text_tower_has_an_adapter(text):
    check_towers("clip_vision_model", text)


def check_towers(vision, text):
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


def test_the_lists_and_the_tests_speak_of_the_same_towers():
    assert set(TOWERS) == set(_VISION_TARGETS) and set(TEXTS) == set(_TEXT_TARGETS)


def test_what_has_no_list_is_said():
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


def test_settings_of_lora_are_the_callers_choice():
    config = lora_config(CASES["fusion"]().make_model(), r=3, lora_dropout=0.1)
    assert (config.r, config.lora_alpha, config.lora_dropout, config.task_type) == (3, 6, 0.1, None)
