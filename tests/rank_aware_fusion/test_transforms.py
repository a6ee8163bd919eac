"""The model under vmap over stacked models, and in lower precisions. `tests/hub/test_onnx_export.py` exports it."""

import copy

import pytest
import torch
from tiny_models import EXTENDED

GATES = ["attention", "static", "uniform"]
FUSIONS = ["rank_aware", "weighted_sum", "concatenation"]
ABSENT = {1: ["clip"], 2: ["wavlm.large", "clip", "action units"], 3: ["hicmae/logits"]}


def stack(batches: list[dict]) -> dict:
    """Batches of equal shapes, with a leading axis, at any depth."""
    first = batches[0]
    if isinstance(first, dict):
        return {name: stack([batch[name] for batch in batches]) for name in first}
    return torch.stack(batches)


def run_stacked(models, batch, in_dims=0, names=("loss",)):
    """The outputs named, of every model, by one call of vmap; the parameters, to ask for their gradients."""
    parameters, buffers = torch.func.stack_module_state(models)
    template = copy.deepcopy(models[0]).to("meta")

    def run(parameters, buffers, batch):
        output = torch.func.functional_call(template, (parameters, buffers), kwargs=batch)
        return {name: output[name] for name in names}

    outputs = torch.vmap(run, in_dims=(0, 0, in_dims), randomness="different")(parameters, buffers, batch)
    return outputs, parameters


@pytest.mark.parametrize("more", [{}, EXTENDED], ids=["plain", "extended"])
@pytest.mark.parametrize(
    ("gate", "fusion", "kind"), list(zip(GATES, FUSIONS, ("mmd", "coral", "adversarial"), strict=True))
)
def test_stacked_models_are_the_separate_ones(
    make_model, make_samples, make_labels, collate, gate, fusion, kind, more
):
    options = {**more, "gate": gate, "fusion": fusion, "domain_adaptation": kind, "encoder_loss_weight": 0.3}
    models = [make_model(seed=seed, gate_loss_weight=0.2, **options).train() for seed in range(3)]
    # Different rows are labelled for each model; for the last, all of them.
    unlabelled = [[0], [1, 3, 4], []]
    batch = collate(make_samples(5, ABSENT))
    batches = [{**batch, "labels": make_labels(5, rows, seed)} for seed, rows in enumerate(unlabelled)]
    names = ("loss", "joint_probabilities", "selected_encoders", "encoder_weights", "domain_adaptation_loss")
    outputs, parameters = run_stacked(models, stack(batches), names=names)
    outputs["loss"].sum().backward()
    for index, (model, batch) in enumerate(zip(models, batches, strict=True)):
        output = model(**batch)
        for name in names:
            torch.testing.assert_close(outputs[name][index], output[name], rtol=1e-4, atol=1e-5)
        output.loss.backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameters[name].grad[index], parameter.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"gate_noise": 1.0},
        {"dropout": 0.5},
        {"input_dropout": 0.5},
        {"encoder_dropout": 0.5},
        {"modality_dropout": 0.5},
    ],
    ids=lambda options: next(iter(options)),
)
def test_stacked_models_draw_their_own_noise(make_model, make_samples, collate, options):
    models = [make_model(seed=0, **options).train() for _ in range(2)]
    outputs, _ = run_stacked(models, collate(make_samples(20)), in_dims=None, names=("probabilities",))
    first, second = outputs["probabilities"]
    assert (first - second).abs().max() > 1e-3


@pytest.mark.parametrize("more", [{}, EXTENDED], ids=["plain", "extended"])
@pytest.mark.parametrize(("gate", "fusion"), list(zip(GATES, FUSIONS, strict=True)))
def test_bfloat16_model_trains_and_is_near_the_float32_one(
    make_model, make_samples, make_labels, collate, gate, fusion, more
):
    options = {**more, "gate": gate, "fusion": fusion, "domain_adaptation": "mmd", "encoder_loss_weight": 0.2}
    batch, labels = collate(make_samples(5, ABSENT), fill=float("nan")), make_labels(5, [4])
    expected = make_model(top_n=4, **options)(**batch, labels=labels)
    model = make_model(top_n=4, **options).bfloat16()
    output = model(**batch, labels=labels)
    # All encoders are selected: rounding may swap two of nearly the same weight, never change which are used.
    for name in ("probabilities", "joint_probabilities", "encoder_weights"):
        assert output[name].dtype == torch.float32
        torch.testing.assert_close(output[name].sum(-1), torch.ones(5), rtol=0, atol=1e-5)
        if fusion != "rank_aware":
            torch.testing.assert_close(output[name], expected[name], rtol=0, atol=0.05)
    output.loss.backward()
    assert output.loss.item() == pytest.approx(expected.loss.item(), rel=0.1)
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_valid_labels_stay_exact_in_lower_precisions(make_model, make_samples, collate):
    # With all heads silent the joint distribution follows from the labels' own numbers.
    joint = []
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        model = make_model()
        with torch.no_grad():
            for parameter in model.heads.parameters():
                parameter.zero_()
        joint.append(model.to(dtype)(**collate(make_samples(2))).joint_probabilities)
    for found in joint[1:]:
        torch.testing.assert_close(found, joint[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_features_of_any_precision_are_read_in_float32(make_model, make_samples, collate, dtype):
    model, batch = make_model(), collate(make_samples(5, ABSENT))
    features = {name: values.to(dtype) for name, values in batch["features"].items()}
    expected = model({name: values.float() for name, values in features.items()}, batch["feature_mask"])
    found = model(features, batch["feature_mask"])
    mask = {name: values.long() for name, values in batch["feature_mask"].items()}
    torch.testing.assert_close(model(features, mask).probabilities, expected.probabilities)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=0)
