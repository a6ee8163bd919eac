"""Linear probing trains the last layers; frozen parts do not move, dropout and batch statistics included."""

import copy

import pytest
import torch
from trainer_cases import CASES, fusion_case

from hf_blemo import CLIPRDConfig, CLIPRDModel
from hf_blemo.trainer import linear_probe

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


def test_batch_statistics_and_dropout_of_frozen_towers_stand_still(tmp_path):
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


def test_dropout_of_a_frozen_fusion_stands_still():
    case = fusion_case(dropout=0.5)
    batch = case.collator(list(case.dataset.select(range(4))))
    model = case.make_model().train()
    assert not torch.equal(model(**batch).fused_features, model(**batch).fused_features)
    linear_probe(model)
    assert model.training and torch.equal(model(**batch).fused_features, model(**batch).fused_features)


def test_another_model_is_refused():
    model = CASES["clip_rd"]().make_model().vision_model
    with pytest.raises(
        ValueError, match="expected a model of type rank_aware_fusion or clip_rd, found 'clip_vision_model'"
    ):
        linear_probe(model)
