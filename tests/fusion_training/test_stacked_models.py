"""A stack of models against the same models one by one: outputs, gradients, clipping, weights."""

import numpy as np
import pytest
import torch
from torch import nn

from hf_blemo import RankAwareFusionConfig, RankAwareFusionModel, RankAwareFusionProcessor, blemore
from hf_blemo.fusion_training.lockstep import _StackedModels

ENCODERS = {
    "voice": {"feature_size": 4, "modality": "audio", "pooling": "attention"},
    "face": {"feature_size": 3, "pooling": "statistics"},
    "noise": {"feature_size": 2},
}
VARIANTS = {
    "the method": {},
    "all terms": {
        "encoder_loss_weight": 0.3,
        "gate_loss_weight": 0.2,
        "domain_adaptation": "mmd",
        "learn_head_exponent": False,
    },
    "static concatenation": {"gate": "static", "fusion": "concatenation"},
    "uniform sum": {"gate": "uniform", "fusion": "weighted_sum", "head_fusion": "presence"},
    "adversarial": {"domain_adaptation": "adversarial"},
    "coral": {"domain_adaptation": "coral"},
}


def make_models(num_models=3, **options):
    config = RankAwareFusionConfig(
        encoders=ENCODERS, **{"top_n": 2, "hidden_size": 8, "dropout": 0.0, "gate_noise": 0.0, **options}
    )
    models = []
    for seed in range(num_models):
        torch.manual_seed(seed)
        model = RankAwareFusionModel(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        for name in ENCODERS:
            size = config.pooled_size(name)
            model.set_feature_statistics(name, torch.randn(size), 0.5 + torch.rand(size))
        if config.gate == "static":
            model.set_static_scores(dict(zip(ENCODERS, torch.randperm(3).tolist(), strict=True)))
        models.append(model)
    return models


def make_batch(data, rows):
    """Rows 2 and 5 of the batch are unlabelled."""
    labels = np.asarray(data["labels"])[rows]
    labels[[2, 5]] = -100
    return dict(RankAwareFusionProcessor(ENCODERS)(blemore.read_features(data, rows), labels=labels))


def stack_batches(batches):
    return {
        key: {name: torch.stack([batch[key][name] for batch in batches]) for name in value}
        if isinstance(value, dict)
        else torch.stack([batch[key] for batch in batches])
        for key, value in batches[0].items()
    }


@pytest.fixture(scope="module")
def batches(make_data):
    """Three batches of the same shape with encoders missing here and there."""
    data = make_data(40, missing=[(0, "voice"), (9, "voice"), (9, "noise"), (17, "face"), (30, "noise")])
    found = []
    for start in (0, 8, 16):
        rows = list(range(start, start + 12))
        found.append(make_batch(data, rows))
    longest = max(batch["features"]["voice"].shape[1] for batch in found)
    assert all(batch["features"]["voice"].shape[1] == longest for batch in found)
    return found


def named_gradients(stack, index):
    return {
        name: None if value.grad is None else value.grad[index]
        for name, value in zip(stack.parameter_names, stack.stacked, strict=True)
    }


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
def test_outputs_and_gradients_equal_those_of_separate_models(options, batches):
    models = make_models(**options)
    stack = _StackedModels(models).train()
    outputs = stack(stack_batches(batches))
    outputs["loss"].sum().backward()
    for index, (model, batch) in enumerate(zip(models, batches, strict=True)):
        expected = model.train()(**batch)
        expected["loss"].backward()
        assert set(outputs) == {name for name, value in expected.items() if value is not None}
        for name, values in outputs.items():
            torch.testing.assert_close(values[index], expected[name], atol=2e-5, rtol=2e-5, msg=name)
        gradients = named_gradients(stack, index)
        assert set(gradients) == {name for name, _ in model.named_parameters()}
        for name, parameter in model.named_parameters():
            wanted = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            torch.testing.assert_close(gradients[name], wanted, atol=2e-5, rtol=2e-4, msg=name)


def test_shared_rows_and_subsets(batches):
    models = make_models(4)
    stack = _StackedModels(models).eval()
    subset = [3, 1]
    with torch.no_grad():
        everyone = stack(batches[1], shared=True)
        some = stack(batches[1], shared=True, subset=subset)
        own = stack(stack_batches(batches[:2]), subset=subset)
        for position, index in enumerate(subset):
            expected = models[index].eval()(**batches[1])
            for outputs, place in ((everyone, index), (some, position)):
                torch.testing.assert_close(outputs["joint_probabilities"][place], expected["joint_probabilities"])
                assert torch.equal(outputs["selected_encoders"][place], expected["selected_encoders"])
            expected = models[index](**batches[position])
            torch.testing.assert_close(own["probabilities"][position], expected["probabilities"])


def test_gradients_are_clipped_model_by_model(batches):
    models = make_models()
    stack = _StackedModels(models).train()
    # One model far above the limit, one just above, one below.
    scales = torch.tensor([50.0, 1.0, 1e-3])
    (stack(stack_batches(batches))["loss"] * scales).sum().backward()
    before = stack.stacked[0].grad.clone()
    stack.clip_gradients(0.5)
    norms = []
    for index, (model, batch) in enumerate(zip(models, batches, strict=True)):
        (model.train()(**batch)["loss"] * scales[index]).backward()
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), 0.5)))
        gradients = named_gradients(stack, index)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-6, rtol=1e-4, msg=name)
    assert norms[0] > 10 and norms[1] > 0.5 > norms[2]
    assert torch.equal(stack.stacked[0].grad[2], before[2])


def test_clipping_leaves_zero_gradients_alone(batches):
    stack = _StackedModels(make_models()).train()
    (stack(stack_batches(batches))["loss"] * torch.tensor([0.0, 1.0, 0.0])).sum().backward()
    stack.clip_gradients(0.1)
    for value in stack.stacked:
        assert value.grad.isfinite().all() and not value.grad[0].any() and not value.grad[2].any()


@pytest.mark.parametrize("options", [{}, {"gate": "static"}])
def test_an_unstacked_model_saves_and_loads_with_its_own_weights(options, batches, tmp_path):
    models = make_models(**options)
    stack = _StackedModels(models)
    with torch.no_grad():
        for value in stack.stacked:
            value.mul_(1.1)
    stack.unstack(1, RankAwareFusionModel(models[0].config)).save_pretrained(tmp_path)
    loaded = RankAwareFusionModel.from_pretrained(tmp_path)
    expected = models[1].state_dict()
    parameters = dict(models[1].named_parameters())
    assert set(loaded.state_dict()) == set(expected)
    for name, value in loaded.state_dict().items():
        wanted = expected[name] * 1.1 if name in parameters else expected[name]
        assert torch.equal(value, wanted), name
    with torch.no_grad():
        stacked = stack.eval()(batches[0], shared=True)
        torch.testing.assert_close(
            loaded.eval()(**batches[0])["joint_probabilities"], stacked["joint_probabilities"][1]
        )


def test_the_stack_owns_its_weights_and_nothing_else():
    models = make_models()
    stack = _StackedModels(models)
    assert sum(value.numel() for value in stack.parameters()) == 3 * models[0].num_parameters()
    assert len(list(stack.parameters())) == len(list(models[0].parameters()))
    with torch.no_grad():
        stack.stacked[0].add_(1)
    assert torch.equal(next(models[0].parameters()), next(make_models(1)[0].parameters()))


def test_only_matrices_decay():
    stack = _StackedModels(make_models(domain_adaptation="adversarial"))
    decayed, others = stack.optimizer_groups(0.7)
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.7, 0.0)
    names = {id(value): name for name, value in zip(stack.parameter_names, stack.stacked, strict=True)}
    found = {names[id(value)] for value in decayed["params"]}
    assert len(decayed["params"]) + len(others["params"]) == len(names)
    expected = {
        "poolings.0.attention_hidden.weight",
        "poolings.0.attention_score.weight",
        *(f"projections.{index}.linear.weight" for index in range(3)),
        "gate.key.weight",
        "gate.context.weight",
        "fusion.linear.weight",
        *(f"heads.{name}.weight" for name in ("presence", "salience", "interaction")),
        "discriminators.0.hidden.weight",
        "discriminators.0.output.weight",
    }
    assert found == expected


def test_equal_models_draw_different_dropout_and_none_in_evaluation(batches):
    model = make_models(1, dropout=0.5)[0]
    stack = _StackedModels([model, model]).train()
    outputs = stack(batches[0], shared=True)["fused_features"]
    assert not torch.allclose(outputs[0], outputs[1])
    outputs = stack.eval()(batches[0], shared=True)["fused_features"]
    assert torch.equal(outputs[0], outputs[1])
    outputs = stack.train()(batches[0], shared=True)["fused_features"]
    assert not torch.allclose(outputs[0], outputs[1])
