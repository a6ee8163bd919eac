"""The fusion on an accelerator gives the numbers of the CPU, forwards and backwards."""

import pytest
import torch

pytestmark = pytest.mark.gpu


def moved(values, device):
    if isinstance(values, dict):
        return {name: moved(value, device) for name, value in values.items()}
    return values.to(device)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gate": "static"},
        {"fusion_maps": "encoder", "experts": True, "squash": "asinh", "gate_reads": "both"},
        {"domain_adaptation": "mmd"},
        {"domain_adaptation": "coral", "domain_adaptation_level": "encoders"},
    ],
    ids=str,
)
def test_outputs_and_gradients_are_those_of_the_cpu(make_model, make_samples, collate, make_labels, options):
    batch = collate(make_samples(6, {1: ["clip"]}))
    labels, found = make_labels(6, unlabelled=[2, 5]), {}
    for device in ("cpu", "cuda"):
        model = make_model(**options).to(device).train()
        output = model(**moved(batch, device), labels=labels.to(device))
        output.loss.backward()
        gradients = {name: value.grad.cpu() for name, value in model.named_parameters() if value.grad is not None}
        found[device] = output.probabilities.detach().cpu(), output.encoder_weights.detach().cpu(), gradients
    for name, expected in found["cpu"][2].items():
        torch.testing.assert_close(found["cuda"][2][name], expected, rtol=1e-3, atol=1e-5, msg=name)
    for place in (0, 1):
        torch.testing.assert_close(found["cuda"][place], found["cpu"][place], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near(make_model, make_samples, collate, dtype):
    batch = collate(make_samples(6))
    expected = make_model()(**batch).probabilities
    with torch.no_grad():
        found = make_model().to("cuda", dtype)(**moved(batch, "cuda")).probabilities
    torch.testing.assert_close(found.float().cpu(), expected, rtol=0, atol=0.05)
