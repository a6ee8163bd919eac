"""Loss, model and distiller on an accelerator: the numbers of the CPU, without waiting for the device."""

import warnings

import pytest
import torch
from losses_on_processes import make_batch, make_distiller, make_taught_by_two
from torch.nn import functional

from hf_blemo.clip_rd.distillation_clip_rd import CLIPRDDistiller
from hf_blemo.clip_rd.losses_clip_rd import CLIPRDLoss

pytestmark = pytest.mark.gpu


def embeddings_of(num_pairs, width, closeness, device):
    """Student and teacher that resemble each other, student first."""
    generator = torch.Generator().manual_seed(num_pairs)
    shared = torch.randn(num_pairs, width, generator=generator)
    return [(shared + closeness * torch.randn(num_pairs, width, generator=generator)).to(device) for _ in range(4)]


def gradients_of(loss, parts):
    image, text = (part.detach().clone().requires_grad_() for part in parts[:2])
    scale = torch.tensor(50.0, device=image.device, dtype=image.dtype, requires_grad=True)
    found = loss(image, text, *parts[2:], scale, 100.0)
    found.loss.backward()
    return found.loss.item(), torch.cat([value.grad.double().flatten().cpu() for value in (image, text, scale)])


@pytest.mark.parametrize(("num_pairs", "width"), [(2048, 512), (1000, 72), (3, 5)])
@pytest.mark.parametrize("closeness", [1.0, 0.1])
@pytest.mark.parametrize(("precision", "allowed"), [("exact", 2e-5), ("fast", 2e-3)])
def test_gradients_are_those_of_float64(num_pairs, width, closeness, precision, allowed):
    parts = embeddings_of(num_pairs, width, closeness, "cuda")
    value, expected = gradients_of(CLIPRDLoss(width, dense=True).double().cuda(), [part.double() for part in parts])
    found_value, found = gradients_of(CLIPRDLoss(width, precision=precision).cuda(), parts)
    assert abs(found_value / value - 1) < allowed / 10
    assert (found - expected).norm() / expected.norm() < allowed


def test_the_loss_never_waits_for_the_device():
    parts = embeddings_of(512, 64, 1.0, "cuda")
    loss = CLIPRDLoss(64).cuda()
    gradients_of(loss, parts)
    scales = torch.tensor(50.0, device="cuda", requires_grad=True), torch.tensor(100.0, device="cuda")
    parts = [part.requires_grad_(place < 2) for place, part in enumerate(parts)]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss(*parts, *scales).loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("make", [make_distiller, make_taught_by_two], ids=["one teacher", "two"])
def test_a_step_of_the_distiller_is_that_of_the_cpu(make, compiled):
    batch, found = make_batch(), {}
    for device in ("cpu", "cuda"):
        distiller = make()
        distiller.loss.precision = "exact"
        distiller = distiller.to(device, torch.float32).train()
        if compiled and device == "cuda":
            distiller.compile_towers()
        inputs = {
            name: value.to(device, torch.float32 if value.is_floating_point() else value.dtype)
            for name, value in batch.items()
        }
        with warnings.catch_warnings():
            # Compilers warn of what they could do better.
            warnings.simplefilter("ignore")
            distiller(inputs).loss.backward()
        found[device] = {name: value.grad.cpu() for name, value in distiller.named_parameters()}
    for name, expected in found["cpu"].items():
        torch.testing.assert_close(found["cuda"][name], expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_student_in_half_precision_embeds_as_in_float32(make_model, make_batch, dtype):
    model, batch = make_model(), make_batch()
    expected = model(**batch)
    model.to("cuda", dtype)
    with torch.no_grad():
        found = model(**{name: value.cuda() for name, value in batch.items()})
    for name in ("image_embeds", "text_embeds"):
        cosines = functional.cosine_similarity(found[name].float().cpu(), expected[name], dim=-1)
        assert cosines.min() > 0.999


def test_the_teacher_moves_with_the_distiller():
    distiller: CLIPRDDistiller = make_distiller().cuda()
    assert {value.device.type for value in (*distiller.parameters(), *distiller.teacher.parameters())} == {"cuda"}
