"""The three terms against loops written from their definitions."""

import numpy as np
import pytest
import torch

from hf_blemo.rank_aware_fusion.domain_adaptation_rank_aware_fusion import (
    BANDWIDTHS,
    GradientReversal,
    RankAwareFusionDomainDiscriminator,
    correlation_alignment,
    domain_weights,
    maximum_mean_discrepancy,
)

TERMS = ["mmd", "coral", "adversarial"]
# Numbers of source and target rows.
COUNTS = [(4, 4), (5, 2), (2, 7), (1, 3), (3, 1), (1, 1)]


def make_rows(num_source: int, num_target: int, shift: float = 0.7, size: int = 3, seed: int = 0):
    """Source and target rows in mixed order, and which are source."""
    generator = torch.Generator().manual_seed(seed)
    is_source = torch.zeros(num_source + num_target, dtype=torch.bool)
    is_source[torch.randperm(len(is_source), generator=generator)[:num_source]] = True
    features = torch.randn(len(is_source), size, generator=generator)
    features = torch.where(is_source.unsqueeze(-1), features, 1.5 * features + shift)
    return features, is_source


def make_term(name: str, size: int = 3):
    """A function of the features and the two weight vectors, and the parameters it has."""
    if name == "mmd":
        return maximum_mean_discrepancy, []
    if name == "coral":
        return correlation_alignment, []
    torch.manual_seed(1)
    discriminator = RankAwareFusionDomainDiscriminator(size)
    return discriminator, list(discriminator.parameters())


def brute_force_mmd(features: np.ndarray, is_source: np.ndarray) -> float:
    """Mean kernel within the source, within the target, minus twice that between, pair by pair."""
    num_rows = len(features)
    squared = [[float(((a - b) ** 2).sum()) for b in features] for a in features]
    scale = sum(squared[i][j] for i in range(num_rows) for j in range(num_rows) if i != j) / (num_rows**2 - num_rows)

    def mean_kernel(rows, columns):
        kernels = [
            np.mean([np.exp(-squared[i][j] / (2 * factor * scale)) for factor in BANDWIDTHS])
            for i in rows
            for j in columns
        ]
        return np.mean(kernels)

    source, target = np.flatnonzero(is_source), np.flatnonzero(~is_source)
    return mean_kernel(source, source) + mean_kernel(target, target) - 2 * mean_kernel(source, target)


def brute_force_coral(features: np.ndarray, is_source: np.ndarray) -> float:
    """Covariances with n - 1, a single row having none."""
    size = features.shape[1]

    def covariance(rows):
        return np.cov(rows, rowvar=False) if len(rows) > 1 else np.zeros((size, size))

    source, target = features[is_source], features[~is_source]
    distance = ((covariance(source) - covariance(target)) ** 2).sum() / (4 * size**2)
    return distance + ((source.mean(0) - target.mean(0)) ** 2).sum() / size


def brute_force_adversarial(features: torch.Tensor, is_source: torch.Tensor, discriminator) -> float:
    """Mean cross-entropy of the source rows and of the target rows, averaged."""
    hidden = torch.nn.functional.gelu(features @ discriminator.hidden.weight.T + discriminator.hidden.bias)
    share = (hidden @ discriminator.output.weight[0] + discriminator.output.bias).sigmoid()
    return (-(share[is_source].log().mean()) - (1 - share[~is_source]).log().mean()).item() / 2


def expected_term(name: str, features: torch.Tensor, is_source: torch.Tensor, term) -> float:
    if name == "adversarial":
        return brute_force_adversarial(features, is_source, term)
    brute_force = {"mmd": brute_force_mmd, "coral": brute_force_coral}[name]
    return brute_force(features.double().numpy(), is_source.numpy())


def test_domain_weights_are_uniform_over_the_rows_of_each_domain():
    source, target = domain_weights(torch.tensor([True, False, False, True, False]))
    torch.testing.assert_close(source, torch.tensor([0.5, 0, 0, 0.5, 0]))
    torch.testing.assert_close(target, torch.tensor([0, 1, 1, 0, 1]) / 3)
    source, target = domain_weights(torch.zeros(3, dtype=torch.bool))
    assert source.tolist() == [0, 0, 0] and target.sum() == pytest.approx(1)


@pytest.mark.parametrize("counts", COUNTS, ids=str)
@pytest.mark.parametrize("name", TERMS)
def test_term_by_brute_force_with_unequal_counts(name, counts):
    features, is_source = make_rows(*counts)
    term, _ = make_term(name)
    expected = expected_term(name, features, is_source, term)
    assert term(features, *domain_weights(is_source)).item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("counts", [(4, 0), (0, 4), (1, 0), (0, 1)], ids=str)
@pytest.mark.parametrize("name", TERMS)
def test_a_batch_of_one_domain_gives_zero_and_no_gradient(name, counts):
    features, is_source = make_rows(*counts)
    features.requires_grad_()
    term, parameters = make_term(name)
    value = term(features, *domain_weights(is_source))
    assert value.item() == 0
    value.backward()
    assert all(tensor.grad.eq(0).all() for tensor in [features, *parameters])


@pytest.mark.parametrize("counts", COUNTS, ids=str)
@pytest.mark.parametrize("name", TERMS)
def test_gradients_are_finite_and_reach_every_row_of_both_domains(name, counts):
    features, is_source = make_rows(*counts)
    features.requires_grad_()
    term, _ = make_term(name)
    term(features, *domain_weights(is_source)).backward()
    assert features.grad.isfinite().all()
    assert features.grad.abs().sum(-1).gt(0).all()


@pytest.mark.parametrize("name", TERMS)
def test_equal_rows_have_finite_gradients(name):
    features = torch.ones(4, 3, requires_grad=True)
    term, _ = make_term(name)
    value = term(features, *domain_weights(torch.tensor([True, True, False, False])))
    value.backward()
    assert value.isfinite() and features.grad.isfinite().all()
    if name != "adversarial":
        assert value.item() == 0


@pytest.mark.parametrize("name", ["mmd", "coral"])
def test_distance_is_zero_between_copies_and_grows_with_the_shift(name):
    term, _ = make_term(name)
    rows = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    is_source = torch.arange(12) < 6
    distances = [
        term(torch.cat([rows, rows + shift]), *domain_weights(is_source)).item() for shift in (0.0, 0.3, 0.6, 1.2)
    ]
    assert distances[0] == pytest.approx(0, abs=1e-6)
    assert distances[1] > 1e-3
    assert distances == sorted(distances)


def test_coral_sees_a_change_of_covariance_alone():
    rows = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    rows = rows - rows.mean(0)
    weights = domain_weights(torch.arange(100) < 50)
    assert correlation_alignment(torch.cat([rows, 2 * rows]), *weights).item() > 0.1
    assert correlation_alignment(torch.cat([rows, rows]), *weights).item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("name", TERMS)
def test_order_of_the_rows_does_not_matter(name):
    features, is_source = make_rows(5, 3)
    term, _ = make_term(name)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    expected = term(features, *domain_weights(is_source))
    torch.testing.assert_close(term(features[order], *domain_weights(is_source[order])), expected)


def test_gradient_reversal_is_the_identity_with_the_opposite_gradient():
    values = torch.randn(4, 3, requires_grad=True)
    output = GradientReversal.apply(values)
    torch.testing.assert_close(output, values)
    upstream = torch.randn(4, 3)
    output.backward(upstream)
    torch.testing.assert_close(values.grad, -upstream)


def test_discriminator_learns_while_the_features_learn_to_confuse_it():
    features, is_source = make_rows(6, 4)
    features.requires_grad_()
    discriminator, parameters = make_term("adversarial")
    weights = domain_weights(is_source)
    before = discriminator(features, *weights)
    before.backward()
    step = 1e-2
    with torch.no_grad():
        confused = discriminator(features - step * features.grad, *weights)
        for parameter in parameters:
            parameter -= step * parameter.grad
        learned = discriminator(features, *weights)
    assert confused.item() > before.item() > learned.item()


@pytest.mark.parametrize("name", TERMS)
def test_value_and_gradient_are_the_same_under_vmap(name):
    batches = [make_rows(*counts, seed=seed) for seed, counts in enumerate([(4, 2), (1, 5), (6, 0), (3, 3)])]
    features = torch.stack([rows for rows, _ in batches])
    is_source = torch.stack([rows for _, rows in batches])
    term, _ = make_term(name)

    def run(rows, is_source):
        return term(rows, *domain_weights(is_source))

    gradients, values = torch.vmap(torch.func.grad_and_value(run))(features, is_source)
    for index, (rows, domains) in enumerate(batches):
        gradient, value = torch.func.grad_and_value(run)(rows, domains)
        torch.testing.assert_close(values[index], value)
        torch.testing.assert_close(gradients[index], gradient)
