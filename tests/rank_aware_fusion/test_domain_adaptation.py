"""The three terms against loops written from their definitions."""

import numpy as np
import pytest
import torch

from hf_blemo import RankAwareFusionConfig
from hf_blemo.rank_aware_fusion.domain_adaptation_rank_aware_fusion import RankAwareFusionDomainAdaptation

TERMS = ["mmd", "coral", "adversarial"]
# Numbers of source and target rows.
COUNTS = [(5, 2), (2, 7), (1, 3), (1, 1)]
BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)


def make_rows(num_source: int, num_target: int, seed: int = 0):
    """Source and target rows in mixed order, and which are source."""
    generator = torch.Generator().manual_seed(seed)
    is_source = torch.zeros(num_source + num_target, dtype=torch.bool)
    is_source[torch.randperm(len(is_source), generator=generator)[:num_source]] = True
    features = torch.randn(len(is_source), 3, generator=generator)
    features = torch.where(is_source.unsqueeze(-1), features, 1.5 * features + 0.7)
    return features, is_source


def make_module(name: str, level: str = "fused") -> RankAwareFusionDomainAdaptation:
    torch.manual_seed(1)
    encoders = {"a": {"feature_size": 1}, "b": {"feature_size": 1}}
    options = {"hidden_size": 3, "domain_adaptation": name, "domain_adaptation_level": level}
    return RankAwareFusionDomainAdaptation(RankAwareFusionConfig(encoders=encoders, **options))


def term(module, features, is_source):
    """The term of fused features, whatever the latents; no row lacks every encoder."""
    latents = torch.full((len(features), 2, 3), torch.nan)
    return module(features, latents, torch.tensor([[True, False]] * len(features)), is_source)


def brute_force(name: str, features: torch.Tensor, is_source: torch.Tensor, discriminator=None) -> float:
    source, target = features[is_source].double().numpy(), features[~is_source].double().numpy()
    if name == "mmd":
        # Mean kernel within the source, within the target, minus twice that between, pair by pair.
        rows = features.double().numpy()
        distances = [((a - b) ** 2).sum() for i, a in enumerate(rows) for j, b in enumerate(rows) if i != j]

        def kernel(one, two):
            squared = np.array([[((a - b) ** 2).sum() for b in two] for a in one])
            return np.mean([np.exp(-squared / (2 * factor * np.mean(distances))) for factor in BANDWIDTHS])

        return kernel(source, source) + kernel(target, target) - 2 * kernel(source, target)
    if name == "coral":
        # Covariances with n - 1, a single row having none.
        one, two = (np.cov(rows, rowvar=False) if len(rows) > 1 else np.zeros((3, 3)) for rows in (source, target))
        return ((one - two) ** 2).sum() / 36 + ((source.mean(0) - target.mean(0)) ** 2).sum() / 3
    hidden = torch.nn.functional.gelu(features @ discriminator.hidden.weight.T + discriminator.hidden.bias)
    share = (hidden @ discriminator.output.weight[0] + discriminator.output.bias).sigmoid()
    return (-share[is_source].log().mean() - (1 - share[~is_source]).log().mean()).item() / 2


@pytest.mark.parametrize("counts", COUNTS, ids=str)
@pytest.mark.parametrize("name", TERMS)
def test_term_and_gradient_with_unequal_counts_in_any_order(name, counts):
    features, is_source = make_rows(*counts)
    features.requires_grad_()
    module = make_module(name)
    value = term(module, features, is_source)
    expected = brute_force(name, features.detach(), is_source, *module)
    assert value.item() == pytest.approx(expected, rel=1e-4, abs=1e-6)
    value.backward()
    assert features.grad.isfinite().all() and features.grad.abs().sum(-1).gt(0).all()


@pytest.mark.parametrize("name", TERMS)
def test_terms_of_the_encoders_are_over_the_rows_that_have_them(name):
    rows = [make_rows(4, 5, seed=seed)[0] for seed in (1, 2)]
    is_source = make_rows(4, 5)[1]
    present = torch.ones(9, 2, dtype=torch.bool)
    present[[0, 3], 1] = False
    module = make_module(name, "encoders")
    found = module(torch.full((9, 3), torch.nan), torch.stack(rows, 1), present, is_source)
    discriminators = list(module) or [None, None]
    expected = [
        brute_force(name, part[used], is_source[used], discriminator)
        for part, used, discriminator in zip(rows, present.T, discriminators, strict=True)
    ]
    assert found.item() == pytest.approx(np.mean(expected), rel=1e-4)


@pytest.mark.parametrize("counts", [(4, 0), (0, 1)], ids=str)
@pytest.mark.parametrize("name", TERMS)
def test_a_batch_of_one_domain_gives_zero_and_no_gradient(name, counts):
    features, is_source = make_rows(*counts)
    features.requires_grad_()
    module = make_module(name)
    value = term(module, features, is_source)
    assert value.item() == 0
    value.backward()
    assert all(tensor.grad.eq(0).all() for tensor in [features, *module.parameters()])


@pytest.mark.parametrize("name", TERMS)
def test_equal_rows_have_finite_gradients(name):
    features = torch.ones(4, 3, requires_grad=True)
    value = term(make_module(name), features, torch.tensor([True, True, False, False]))
    value.backward()
    assert value.isfinite() and features.grad.isfinite().all()
    if name != "adversarial":
        assert value.item() == 0
