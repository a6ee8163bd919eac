"""Checkpoints: what comes back is what was saved, statistics and buffers included."""

import copy

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file
from tiny_models import EXTENDED
from transformers import AutoModel

from hf_blemo import RankAwareFusionConfig, RankAwareFusionModel
from hf_blemo.rank_aware_fusion.label_space_rank_aware_fusion import EMOTIONS, LabelSpace

VARIANTS = {
    "default": {},
    "static": {"gate": "static", "fusion": "concatenation", "learn_head_exponent": False, "head_exponent": 0.3},
    "uniform": {"gate": "uniform", "fusion": "weighted_sum", "joint_interaction": False},
    "adversarial": {"domain_adaptation": "adversarial", "gate_context": False, "head_fusion": "presence"},
    "extended": EXTENDED,
}


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS.keys())
def model(request, make_model):
    """A model whose buffers, too, are at values that no initialisation gives."""
    model = make_model(**request.param)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if buffer.is_floating_point() and "label" not in name:
                buffer.add_(torch.rand_like(buffer))
    return model


def test_round_trip_keeps_every_tensor_and_every_output(model, make_samples, collate, tmp_path):
    batch = collate(make_samples(5, {1: ["clip"]}))
    model.save_pretrained(tmp_path)
    loaded, info = RankAwareFusionModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert not loaded.training
    before, after = model.state_dict(), loaded.state_dict()
    assert list(before) == list(after)
    assert {name for name, _ in model.named_buffers()} <= set(before), "a buffer is not in the file"
    for name in before:
        assert after[name].device.type == "cpu"
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=0, msg=name)
    expected, found = model(**batch), loaded(**batch)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=0)


def test_missing_tensors_are_made_anew_and_never_left_as_they_lie_in_memory(model, tmp_path):
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    # Copies, since the file that they may lie in is written anew.
    saved = {name: tensor.clone() for name, tensor in load_file(path).items()}
    # One tensor has to stay: of an empty file nothing can be loaded.
    kept = "heads.presence.weight"
    save_file({kept: saved[kept]}, path, metadata={"format": "pt"})
    loaded, info = RankAwareFusionModel.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == set(saved) - {kept}
    fresh = RankAwareFusionModel(copy.deepcopy(model.config))
    for name, parameter in loaded.named_parameters():
        assert parameter.isfinite().all() and parameter.abs().max() < 5, name
    for name, buffer in fresh.named_buffers():
        torch.testing.assert_close(loaded.state_dict()[name], buffer, rtol=0, atol=0, msg=name)
    torch.testing.assert_close(loaded.state_dict()[kept], saved[kept], rtol=0, atol=0)


def test_round_trip_in_lower_precision(make_model, tmp_path):
    model = make_model().bfloat16()
    model.save_pretrained(tmp_path)
    loaded = RankAwareFusionModel.from_pretrained(tmp_path)
    assert loaded.dtype == torch.bfloat16
    for name, value in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, rtol=0, atol=0, msg=name)
    assert RankAwareFusionModel.from_pretrained(tmp_path, dtype=torch.float32).dtype == torch.float32


def test_initial_values_depend_on_the_seed_and_start_plain(encoders):
    models = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        models.append(RankAwareFusionModel(RankAwareFusionConfig(encoders=encoders)))
    first, same, other = (model.state_dict() for model in models)
    for name in first:
        torch.testing.assert_close(first[name], same[name], rtol=0, atol=0, msg=name)
    differing = {name for name in first if not torch.equal(first[name], other[name])}
    assert {"gate.query", "fusion.linear.weight", "projections.3.linear.weight"} <= differing
    # Features pass unchanged until their statistics are set.
    assert first["poolings.3.feature_mean"].eq(0).all() and first["poolings.3.feature_std"].eq(1).all()


def test_settings_given_to_from_pretrained_are_checked(make_model, tmp_path):
    make_model().save_pretrained(tmp_path)
    with pytest.raises(StrictDataclassError, match="gate_noise"):
        RankAwareFusionModel.from_pretrained(tmp_path, gate_noise=-1.0)


@pytest.mark.parametrize(("top_n", "more"), [*((top_n, {}) for top_n in (1, 2, 3, 4)), (1, EXTENDED), (4, EXTENDED)])
def test_a_changed_number_of_ranks_keeps_those_that_fit(top_n, more, make_model, make_samples, collate, tmp_path):
    model, batch = make_model(top_n=2, **more), collate(make_samples(5))
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, top_n=top_n)
    kept = min(2, top_n)
    for name, value in model.state_dict().items():
        found = loaded.state_dict()[name]
        if "rank_" in name:
            assert len(found) == min(top_n, 4) and torch.equal(
                found[kept:], value[1:].expand(len(found) - kept, *value.shape[1:])
            )
            found, value = found[:kept], value[:kept]
        torch.testing.assert_close(found, value, rtol=0, atol=0, msg=name)
    assert loaded.config.top_n == loaded(**batch).selected_encoders.shape[1] == top_n
    loaded.save_pretrained(tmp_path / "again")
    again = AutoModel.from_pretrained(tmp_path / "again")
    assert torch.equal(again(**batch).joint_probabilities, loaded(**batch).joint_probabilities)


def test_other_names_make_new_heads_and_keep_the_rest(make_model, make_samples, collate, tmp_path):
    model, batch = make_model(), collate(make_samples(5))
    model.save_pretrained(tmp_path)
    names = ["calm", "tense", "tired"]
    labels = {"id2label": dict(enumerate(names)), "blend_percents": [], "unblended": []}
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        AutoModel.from_pretrained(tmp_path, **labels)
    loaded = AutoModel.from_pretrained(tmp_path, ignore_mismatched_sizes=True, **labels)
    assert loaded.config.label_space == LabelSpace(names) and loaded(**batch).joint_probabilities.shape == (5, 3)
    old, new = model.state_dict(), loaded.state_dict()
    changed = {name for name, value in old.items() if name in new and not torch.equal(value, new[name])}
    heads = {f"heads.{head}.{part}" for head in ("presence", "salience") for part in ("weight", "bias")}
    assert changed == heads | {"heads.label_percent"} and new.keys() <= old.keys()
    # Where nothing blends the joint distribution has no weights of its own.
    assert old.keys() - new.keys() == {"heads.joint_scale", "heads.joint_bias", "heads.interaction.weight"}
    loaded(**batch, labels=torch.eye(3)[[0, 1, 2, 0, 1]]).loss.backward()
    # As many names: places matter, and another word for a name does not.
    turned, words = EMOTIONS[::-1], ["anger", *EMOTIONS[1:]]
    with pytest.raises(RuntimeError, match="6 names neu, .*has the 6 names ang, .*ignore_mismatched_sizes"):
        AutoModel.from_pretrained(tmp_path, id2label=dict(enumerate(turned)))
    anew = AutoModel.from_pretrained(tmp_path, id2label=dict(enumerate(turned)), ignore_mismatched_sizes=True)
    assert anew.config.label_space.names == turned
    assert not torch.equal(anew.heads.presence.weight, model.heads.presence.weight)
    assert torch.equal(anew.gate.query, model.gate.query)
    renamed = AutoModel.from_pretrained(tmp_path, id2label=dict(enumerate(words)))
    assert torch.equal(renamed.heads.presence.weight, model.heads.presence.weight)
    # As many labels of other blends: the table of labels is the config's.
    other = AutoModel.from_pretrained(tmp_path, unblended=["ang"])
    assert (other.heads.label_percent.numpy() == other.config.label_space.percent).all()
