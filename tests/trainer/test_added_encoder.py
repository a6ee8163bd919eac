"""A new encoder joins a trained fusion: without it nothing changes, and only its own parts are trained."""

import copy

import numpy as np
import pytest
import torch
from peft import PeftModel, get_peft_model
from tiny_models import shaken_fusion
from transformers import AutoModel, AutoProcessor

from hf_blemo import RankAwareFusionConfig, RankAwareFusionModel, RankAwareFusionProcessor, blemore, feature_sets
from hf_blemo.built_in import make_synthetic_blends
from hf_blemo.fusion_training.feature_store import FeatureStore, fit_feature_statistics
from hf_blemo.trainer import add_encoder, lora_config

NEW = {"feature_size": 5, "modality": "audio", "pooling": "attention"}


def make_model(**settings):
    encoders = {"face": {"feature_size": 6}, "voice": {"feature_size": 4}}
    model, _ = shaken_fusion(0.3, encoders=encoders, **{"top_n": 3, **settings})
    if settings.get("gate") == "static":
        model.set_static_scores({"face": 0.4, "voice": 0.7})
    return model, RankAwareFusionProcessor(model.config.encoders, decoding="thresholds", alpha=0.2)


@pytest.mark.parametrize("level", ["fused", "encoders"])
@pytest.mark.parametrize("top_n", [1, 3])
@pytest.mark.parametrize("fusion", ["rank_aware", "weighted_sum", "concatenation"])
@pytest.mark.parametrize("gate", ["attention", "static", "uniform"])
def test_without_the_new_encoder_nothing_changes(gate, fusion, top_n, level):
    model, processor = make_model(
        gate=gate, fusion=fusion, top_n=top_n, domain_adaptation="adversarial", domain_adaptation_level=level
    )
    grown, more = add_encoder(model, processor, "breath", NEW)
    assert list(grown.config.encoders) == list(more.encoders) == ["face", "voice", "breath"]
    samples = [{"face": np.ones((3, 6)), "voice": np.full((2, 4), -1.0)}, {"voice": np.ones((1, 4))}]
    with torch.no_grad():
        one, two = model(**processor(samples)), grown(**more(samples))
        both = grown(**more([{**samples[0], "breath": np.random.default_rng(0).normal(size=(4, 5))}]))
    for name in ("probabilities", "joint_probabilities", "presence_logits", "fused_features"):
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=1e-6)
    torch.testing.assert_close(two.encoder_weights[:, :2], one.encoder_weights)
    assert (two.encoder_weights[:, 2] == 0).all() and 0 < both.encoder_weights[0, 2] < 1
    assert processor.encoder_order == ["face", "voice"] and len(model.projections) == 2


@pytest.mark.parametrize("top_n", [1, 3])
@pytest.mark.parametrize("fusion", ["rank_aware", "weighted_sum", "concatenation"])
@pytest.mark.parametrize("gate_reads", ["latents", "both"])
def test_experts_take_a_new_encoder(gate_reads, fusion, top_n, tmp_path):
    settings = {"experts": True, "fusion_maps": "encoder", "squash": "asinh", "feature_weighting": "relevance"}
    model, processor = make_model(
        fusion=fusion, top_n=top_n, gate_reads=gate_reads, gate_prior="relevance", **settings
    )
    grown, more = add_encoder(model, processor, "breath", NEW)
    samples = [{"face": np.ones((3, 6)), "voice": np.full((2, 4), -1.0)}, {"voice": np.ones((1, 4))}]
    with torch.no_grad():
        one, two = model(**processor(samples)), grown(**more(samples))
    tolerance = 1e-6 if gate_reads == "latents" else 0.2
    torch.testing.assert_close(two.joint_probabilities, one.joint_probabilities, rtol=0, atol=tolerance)
    trained = {name for name, parameter in grown.named_parameters() if parameter.requires_grad}
    assert "experts.matrices.2" in trained and all(".2" in name for name in trained)
    grown.save_pretrained(tmp_path)
    assert torch.equal(AutoModel.from_pretrained(tmp_path)(**more(samples)).probabilities, two.probabilities)


def test_only_the_new_encoders_parts_are_trained():
    grown, _ = add_encoder(*make_model(), "breath", NEW)
    trained = {name for name, parameter in grown.named_parameters() if parameter.requires_grad}
    assert trained == {
        "projections.2.linear.weight", "projections.2.linear.bias", "poolings.2.attention_hidden.weight",
        "poolings.2.attention_hidden.bias", "poolings.2.attention_score.weight",
    }  # fmt: skip
    assert (grown.config.encoder_loss_weight, grown.config.gate_loss_weight) == (0.1, 0.1)


def test_an_informative_encoder_helps_and_the_rest_stays_unchanged(tmp_path):
    train, test = (
        make_synthetic_blends(num_clips=size, seed=seed, missing=0.0) for size, seed in ((400, 0), (200, 9))
    )
    widths = feature_sets.encoder_widths(train)
    encoders = {name: {"feature_size": width} for name, width in widths.items()}
    first, new = list(widths)[:4], list(widths)[4]
    torch.manual_seed(0)
    config = RankAwareFusionConfig(encoders={name: encoders[name] for name in first}, hidden_size=24)
    model, processor = RankAwareFusionModel(config), RankAwareFusionProcessor(config.encoders)
    fit_feature_statistics(model, train)

    def fit(model, steps):
        store = FeatureStore(train, model.config, progress=False)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=3e-3)
        generator = np.random.default_rng(0)
        model.train()
        for _ in range(steps):
            rows = generator.choice(len(train), 64, replace=False)
            model(**store.batch(rows, torch.device("cpu"))).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return model.eval()

    def likelihood(model):
        store = FeatureStore(test, model.config, progress=False)
        batch = store.batch(np.arange(len(test)), torch.device("cpu"))
        labels = torch.from_numpy(blemore.label_indices(batch.pop("labels").numpy()))
        with torch.no_grad():
            joint = model(**batch).joint_probabilities
        return -joint[torch.arange(len(test)), labels].log().mean().item()

    fit(model, 80)
    grown, more = add_encoder(model, processor, new, encoders[new])
    fit_feature_statistics(grown, train, encoders=[new])
    before = copy.deepcopy(grown.state_dict())
    fit(grown, 70)
    assert likelihood(grown) < likelihood(model) - 0.15
    number = len(first)
    for name, values in grown.state_dict().items():
        assert name.startswith(f"projections.{number}.") or torch.equal(values, before[name]), name
    grown.save_pretrained(tmp_path)
    more.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert likelihood(loaded) == likelihood(grown)
    assert list(AutoProcessor.from_pretrained(tmp_path).encoders) == [*first, new]


def test_names_of_ones_own_stay_through_a_new_encoder_and_an_adapter(tmp_path):
    labels = {"id2label": dict(enumerate("abcdef")), "blend_percents": [[60, 40], [40, 30, 30]], "unblended": ["f"]}
    model, _ = make_model(label_kind="soft", presence_share=0.2, **labels)
    grown, more = add_encoder(model, RankAwareFusionProcessor.from_config(model.config), "breath", NEW)
    grown.save_pretrained(tmp_path / "base")
    more.save_pretrained(tmp_path / "base")
    base, processor = AutoModel.from_pretrained(tmp_path / "base"), AutoProcessor.from_pretrained(tmp_path / "base")
    get_peft_model(base, lora_config(base, r=2)).save_pretrained(tmp_path / "adapter")
    adapted = PeftModel.from_pretrained(AutoModel.from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    merged = adapted.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    loaded = [AutoModel.from_pretrained(tmp_path / name) for name in ("adapter", "merged")]
    for one in (grown, base, merged, *loaded):
        assert one.config.label_space == processor.label_space == model.config.label_space
        assert (one.config.label_kind, one.config.presence_share) == (processor.label_kind, 0.2) == ("soft", 0.2)
    outputs = loaded[1](**processor([{"face": np.ones((3, 6))}], labels=[[0.1, 0.9, 0, 0, 0, 0]]))
    assert outputs.loss.isfinite() and len(processor.post_process_blends(outputs)[0]) == 6


def test_invalid_encoders_are_refused():
    model, processor = make_model()
    with pytest.raises(ValueError, match="encoder 'face' exists already among face, voice"):
        add_encoder(model, processor, "face", NEW)
    with pytest.raises(ValueError, match="'feature_size' must be a positive integer"):
        add_encoder(model, processor, "breath", {"modality": "audio"})
    with pytest.raises(ValueError, match="unknown setting 'encoder_los_weight'"):
        add_encoder(model, processor, "breath", NEW, encoder_los_weight=1.0)
