"""The losses by hand, the part unlabelled rows take in them, and training steps of every method."""

import copy

import numpy as np
import pytest
import torch
from tiny_models import EXTENDED

from hf_blemo import RankAwareFusionConfig, RankAwareFusionModel, blemore

GATES = ["attention", "static", "uniform"]
FUSIONS = ["rank_aware", "weighted_sum", "concatenation"]
TERMS = ["presence", "salience", "alignment", "joint"]
NO_LOSS = {"gate_balance_weight": 0.0, **{f"{term}_loss_weight": 0.0 for term in TERMS}}
ALL_LOSSES = {"gate_balance_weight": 0.3, "encoder_loss_weight": 0.5, "gate_loss_weight": 0.4}
# The third of four clips has one encoder, the first all four.
ABSENT = {1: ["clip"], 2: ["wavlm.large", "clip", "action units"], 3: ["hicmae/logits"]}


def term_by_hand(term: str, output, row: int, label: np.ndarray) -> float:
    """One of the four losses of one clip, from the outputs the user sees."""
    values = {name: output[name][row].detach().double().numpy() for name in output if output[name].dim() > 1}
    if term == "presence":
        share = 1 / (1 + np.exp(-values["presence_logits"]))
        return float(np.mean([-np.log(share[i]) if label[i] > 0 else -np.log(1 - share[i]) for i in range(6)]))
    if term == "joint":
        index = blemore.label_indices(label[None])[0]
        return float(-np.log(values["joint_probabilities"][index]))
    if term == "salience":
        exponentials = np.exp(values["salience_logits"])
        predicted = exponentials / exponentials.sum()
    else:
        predicted = values["probabilities"]
    return float(sum(label[i] * np.log(label[i] / predicted[i]) for i in range(6) if label[i] > 0))


def gradients_of(model, output) -> dict[str, torch.Tensor]:
    model.zero_grad()
    output.loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def test_terms_by_hand_over_all_labels(make_model, make_samples, collate):
    weights = {"presence": 0.3, "salience": 1.1, "alignment": 0.7, "joint": 2.0}
    model = make_model(**NO_LOSS | {f"{term}_loss_weight": weight for term, weight in weights.items()})
    labels = blemore.LABEL_MATRIX
    output = model(**collate(make_samples(36, ABSENT)), labels=torch.tensor(labels, dtype=torch.float32))
    expected = {term: np.mean([term_by_hand(term, output, row, labels[row]) for row in range(36)]) for term in weights}
    total = sum(weights[term] * expected[term] for term in weights)
    assert output.loss.item() == pytest.approx(total, rel=1e-5)
    assert output.domain_adaptation_loss.item() == 0


def test_the_nearest_label_of_votes_is_the_label_spaces_on_ties_too():
    pairs = [[70, 30], [50, 50], [30, 70]]
    config = RankAwareFusionConfig(
        encoders={"voice": {"feature_size": 2, "modality": "audio"}}, id2label=dict(enumerate("abc")),
        blend_percents=pairs, label_kind="soft", **NO_LOSS | {"joint_loss_weight": 1.0},
    )  # fmt: skip
    model = RankAwareFusionModel(config).eval()
    votes = [[a / 10, b / 10, (10 - a - b) / 10] for a in range(11) for b in range(11 - a)]
    labels, features = torch.tensor(votes), {"voice": torch.ones(len(votes), 1, 2)}
    nearest = config.label_space.nearest(np.array(votes))
    np.testing.assert_array_equal(nearest, config.label_space.nearest(labels.numpy()))
    output = model(features, labels=labels)
    expected = [-np.log(row[index]) for row, index in zip(output.joint_probabilities.tolist(), nearest, strict=True)]
    assert output.loss.item() == pytest.approx(np.mean(expected), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_labels_of_any_precision_give_the_same_loss(make_model, make_samples, make_labels, collate, dtype):
    model, batch, labels = make_model(), collate(make_samples(6)), make_labels(6, unlabelled=[2])
    expected = model(**batch, labels=labels).loss.item()
    assert model(**batch, labels=labels.to(dtype)).loss.item() == pytest.approx(expected, rel=1e-3)


def test_balance_term_by_hand_over_the_encoders_that_are_there(make_model, make_samples, make_labels, collate):
    model = make_model(**{**NO_LOSS, "gate_balance_weight": 0.6})
    samples = make_samples(7, {**dict.fromkeys(range(7), ["clip"]), 2: ["wavlm.large", "clip"]})
    output = model(**collate(samples), labels=make_labels(7))
    weights = np.delete(output.encoder_weights.detach().double().numpy(), 1, axis=1)
    share = weights.sum(0) / (weights > 0).sum(0)
    assert output.loss.item() == pytest.approx(0.6 * share.var() / share.mean() ** 2, rel=1e-4)
    assert output.loss.item() > 1e-3


@pytest.mark.parametrize("prior", ["uniform", "relevance"])
def test_penalty_of_experts_and_divergence_from_the_prior_by_hand(
    make_model, make_samples, make_labels, collate, prior
):
    """The prior is one over the encoders that are there; an unlabelled row has no part in it."""
    options = {**EXTENDED, **NO_LOSS, "gate_prior": prior, "gate_prior_weight": 0.7, "expert_penalty": 0.02}
    model, samples = make_model(**options), make_samples(5, ABSENT)
    output = model(**collate(samples), labels=make_labels(5, unlabelled=[4]))
    penalty = sum(float((32 * matrix.detach().double()).square().sum()) for matrix in model.experts.matrices) / 2
    relevance = [float(pooling.feature_relevance.square().mean().sqrt()) for pooling in model.poolings]
    start = np.array(relevance if prior == "relevance" else [1.0] * 4)
    divergences = []
    for row in range(4):
        there = np.array([name in samples[row] for name in model.config.encoders])
        shares = start[there] / start[there].sum()
        weights = output.encoder_weights[row].detach().double().numpy()[there]
        divergences.append((shares * np.log(shares / weights)).sum())
    assert divergences[2] == pytest.approx(0, abs=1e-6) and max(divergences) > 1e-2
    assert output.loss.item() == pytest.approx(0.02 * penalty + 0.7 * np.mean(divergences), rel=1e-4)
    gradients = gradients_of(model, output)
    # The gate reads the experts and does not teach them.
    for index, matrix in enumerate(model.experts.matrices):
        torch.testing.assert_close(gradients[f"experts.matrices.{index}"], 0.02 * 32**2 * matrix.detach())
    assert gradients["experts.bias"].eq(0).all() and gradients["gate.reading"].abs().amax((1, 2)).min() > 1e-5


def test_soft_labels_of_single_names_are_expected(make_model, make_samples, collate):
    options = {**NO_LOSS, "joint_loss_weight": 0.4, "encoder_loss_weight": 0.5, "gate_balance_weight": 0.0}
    model = make_model(**{**EXTENDED, **options, "gate_prior_weight": 0.0, "expert_penalty": 0.0},
                       id2label=dict(enumerate("abc")), label_kind="soft")  # fmt: skip
    samples, labels = make_samples(4, ABSENT), torch.tensor(np.random.default_rng(0).dirichlet([1, 1, 1], 4))

    def loss(batch, label):
        return -(label * model(**collate(batch)).joint_probabilities.double().log()).sum(-1).mean().item()

    alone = [
        np.mean([loss([{name: steps}], label) for name, steps in sample.items()])
        for sample, label in zip(samples, labels, strict=True)
    ]
    expected = 0.4 * loss(samples, labels) + 0.5 * np.mean(alone)
    assert model(**collate(samples), labels=labels).loss.item() == pytest.approx(expected, rel=1e-4)


def encoder_losses(model, samples, collate, labels) -> list[dict[str, float]]:
    """Of every clip, the joint loss of each of its encoders where it is the only one there."""
    return [
        {
            name: term_by_hand("joint", model(**collate([{name: steps}])), 0, label.double().numpy())
            for name, steps in sample.items()
        }
        for sample, label in zip(samples, labels, strict=True)
    ]


@pytest.mark.parametrize(("fusion", "top_n"), [("rank_aware", 3), ("weighted_sum", 1), ("concatenation", 3)])
def test_losses_of_each_encoder_alone_and_of_the_gate(make_model, make_samples, make_labels, collate, fusion, top_n):
    """The gate's target is the softmax of minus the losses of the encoders."""
    options = {**NO_LOSS, "encoder_loss_weight": 0.5, "gate_loss_weight": 0.8}
    model = make_model(**options, fusion=fusion, top_n=top_n)
    samples, labels = make_samples(4, ABSENT), make_labels(4)
    alone = encoder_losses(model, samples, collate, labels)
    output = model(**collate(samples), labels=labels)
    names, divergences = list(model.config.encoders), []
    for weights, losses in zip(output.encoder_weights.detach().double().numpy(), alone, strict=True):
        scores = {names.index(name): np.exp(-loss) for name, loss in losses.items()}
        target = {index: score / sum(scores.values()) for index, score in scores.items()}
        divergences.append(sum(share * np.log(share / weights[index]) for index, share in target.items()))
    expected = 0.5 * np.mean([np.mean(list(losses.values())) for losses in alone])
    without = make_model(**{**options, "gate_loss_weight": 0.0}, fusion=fusion, top_n=top_n)
    assert without(**collate(samples), labels=labels).loss.item() == pytest.approx(expected, rel=1e-4)
    assert output.loss.item() - expected == pytest.approx(0.8 * np.mean(divergences), rel=1e-3)


def test_gate_loss_moves_the_gate_alone(make_model, make_samples, make_labels, collate):
    batch, labels = collate(make_samples(4, ABSENT)), make_labels(4)
    options = {**NO_LOSS, "encoder_loss_weight": 0.5, "gate_context": False}
    gradients = []
    for weight in (0.0, 0.8):
        model = make_model(**options, gate_loss_weight=weight)
        gradients.append(gradients_of(model, model(**batch, labels=labels)))
    for name in gradients[0]:
        if name.startswith(("heads.", "fusion.")):
            torch.testing.assert_close(gradients[1][name], gradients[0][name])
    assert gradients[1]["gate.query"].abs().max() > 1e-4 > gradients[0]["gate.query"].abs().max()


@pytest.mark.parametrize("gate", ["attention", "static"])
def test_unlabelled_rows_change_neither_loss_nor_gradients(make_model, make_samples, make_labels, collate, gate):
    samples, labels = make_samples(7, ABSENT), make_labels(7, unlabelled=[0, 3, 4])
    model = make_model(gate=gate, **ALL_LOSSES)
    kept = [1, 2, 5, 6]
    output = model(**collate(samples), labels=labels)
    expected = model(**collate([samples[row] for row in kept]), labels=labels[kept])
    assert output.loss.item() == pytest.approx(expected.loss.item(), rel=1e-5)
    torch.testing.assert_close(gradients_of(model, output), gradients_of(model, expected), rtol=1e-4, atol=1e-6)


def test_a_batch_without_labels_has_no_loss_and_no_gradient(make_model, make_samples, make_labels, collate):
    model = make_model(**ALL_LOSSES)
    output = model(**collate(make_samples(3)), labels=make_labels(3, unlabelled=[0, 1, 2]))
    assert output.loss.item() == 0
    assert all(gradient.eq(0).all() for gradient in gradients_of(model, output).values())


def test_predictions_do_not_depend_on_the_labels(make_model, make_samples, make_labels, collate):
    model, batch = make_model(domain_adaptation="mmd"), collate(make_samples(5))
    expected = model(**batch)
    found = model(**batch, labels=make_labels(5, unlabelled=[1]))
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=0)


@pytest.mark.parametrize(("kind", "level"), [("mmd", "fused"), ("adversarial", "encoders")])
def test_adaptation_term_joins_the_loss_by_its_weight(
    make_model, make_samples, make_labels, collate, monkeypatch, kind, level
):
    unlabelled = [1, 4]
    batch, labels = collate(make_samples(7, ABSENT)), make_labels(7, unlabelled)
    options = {"domain_adaptation": kind, "domain_adaptation_level": level}
    model = make_model(**options, domain_adaptation_weight=0.4)
    seen = []
    forward = model.discriminators.forward
    monkeypatch.setattr(model.discriminators, "forward", lambda *inputs: seen.append(inputs) or forward(*inputs))
    output = model(**batch, labels=labels)
    ((fused, latents, present, labelled),) = seen
    torch.testing.assert_close(fused, output.fused_features, rtol=0, atol=0)
    assert latents.shape == (7, 4, 8) and present.tolist() == output.encoder_weights.gt(0).tolist()
    assert labelled.tolist() == [row not in unlabelled for row in range(7)]
    expected = forward(*seen[0]).item()
    assert output.domain_adaptation_loss.item() == pytest.approx(expected, rel=1e-5)
    assert expected > 1e-3
    without = make_model(**options, domain_adaptation_weight=0.0)(**batch, labels=labels)
    assert without.domain_adaptation_loss.item() == pytest.approx(expected, rel=1e-5)
    assert output.loss.item() == pytest.approx(without.loss.item() + 0.4 * expected, rel=1e-4)


def test_adversarial_gradient_is_reversed_before_the_features_alone(make_model, make_samples, make_labels, collate):
    model = make_model(**NO_LOSS, domain_adaptation="adversarial")
    batch, labels = collate(make_samples(6)), make_labels(6, [1, 2])
    reversed_gradients = gradients_of(model, model(**batch, labels=labels))
    output = model(**batch, labels=labels)
    labelled = torch.tensor([row not in (1, 2) for row in range(6)])
    discriminator = model.discriminators[0]
    hidden = torch.nn.functional.gelu(discriminator.hidden(output.fused_features))
    logits = discriminator.output(hidden).squeeze(-1)
    losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, labelled.float(), reduction="none")
    model.zero_grad()
    (0.5 * losses[labelled].mean() + 0.5 * losses[~labelled].mean()).backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            sign = 1 if name.startswith("discriminators") else -1
            torch.testing.assert_close(reversed_gradients[name], sign * parameter.grad, rtol=1e-4, atol=1e-6)


def train(model, batch, labels, num_steps: int = 30) -> tuple[list[float], dict[str, float]]:
    """Losses of Adam's steps, and the largest gradient of each parameter in any of them."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses, largest = [], dict.fromkeys(dict(model.named_parameters()), 0.0)
    for _ in range(num_steps):
        optimizer.zero_grad()
        loss = model(**batch, labels=labels).loss
        loss.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, f"{name} takes no part in the loss"
            largest[name] = max(largest[name], parameter.grad.abs().max().item())
        optimizer.step()
        losses.append(loss.item())
    return losses, largest


@pytest.mark.parametrize(
    ("gate", "fusion", "options"),
    [
        *zip(GATES, FUSIONS, ({}, ALL_LOSSES, {}), strict=True),
        *zip(GATES, (*FUSIONS[1:], FUSIONS[0]), (ALL_LOSSES, {}, ALL_LOSSES), strict=True),
        *zip(GATES, FUSIONS, [{**EXTENDED, **ALL_LOSSES}] * 3, strict=True),
        ("attention", "rank_aware", {"experts": True, "gate_reads": "experts", "expert_penalty": 0.0}),
        ("attention", "weighted_sum", {**EXTENDED, "id2label": dict(enumerate("abcdef"))}),
    ],
    ids=str,
)
def test_every_method_trains_every_parameter(make_model, make_samples, make_labels, collate, gate, fusion, options):
    model = make_model(gate=gate, fusion=fusion, top_n=3, **options).train()
    before = copy.deepcopy(model.state_dict())
    # With four encoders and three ranks every encoder must be selected somewhere, or its projection cannot learn.
    batch, labels = collate(make_samples(12, {0: ["clip"], 1: ["action units"], 2: ["wavlm.large"]})), make_labels(12)
    losses, largest = train(model, batch, labels)
    assert losses[-1] < 0.7 * losses[0]
    # Rounding alone gives a gradient of up to 1e-7 to a parameter that cannot matter.
    assert {name: value for name, value in largest.items() if value < 1e-6} == {}
    for name, parameter in model.named_parameters():
        assert (parameter - before[name]).abs().max() > 1e-4, name
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(buffer, before[name], rtol=0, atol=0)


@pytest.mark.parametrize("more", [{}, EXTENDED, {**EXTENDED, "gate_prior": "uniform"}], ids=["plain", "all", "equal"])
def test_every_parameter_trains_from_its_initial_value(encoders, make_samples, make_labels, collate, more):
    torch.manual_seed(0)
    options = {**more, "domain_adaptation": "adversarial", "encoder_dropout": 0.2, "modality_dropout": 0.1}
    model = RankAwareFusionModel(RankAwareFusionConfig(encoders=encoders, hidden_size=16, **options)).train()
    batch, labels = collate(make_samples(16, ABSENT)), make_labels(16, unlabelled=range(10, 16))
    losses, largest = train(model, batch, labels, num_steps=40)
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    assert {name: value for name, value in largest.items() if value < 1e-6} == {}
