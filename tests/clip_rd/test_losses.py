"""The loss: equal to the reference case and to its formulas, whatever the tiles; clear errors; no N x N memory."""

import logging
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hf_blemo.clip_rd import tiles_clip_rd
from hf_blemo.clip_rd.losses_clip_rd import AFFINITY_MIMICKING_WEIGHTS, CLIP_KD_WEIGHTS, CLIPRDLoss
from hf_blemo.clip_rd.weights_clip_rd import CLIP_RD_WEIGHTS, TERMS

REFERENCE = Path(__file__).resolve().parents[3] / "shared" / "data" / "clip_rd_reference.npz"
SCALES = ("cross_scale", "image_scale", "text_scale")


def make_embeddings(num_pairs, student_dim=6, teacher_dim=6, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    widths = (student_dim, student_dim, teacher_dim, teacher_dim)
    values = [torch.randn(num_pairs, width, generator=generator, dtype=torch.float64).to(dtype) for width in widths]
    return [value.requires_grad_(index < 2) for index, value in enumerate(values)]


def make_loss(*arguments, seed=0, dtype=torch.float64, **options):
    torch.manual_seed(seed)
    loss = CLIPRDLoss(*arguments, **options).to(dtype)
    with torch.no_grad():
        for value, name in zip((2.0, 3.5, 2.4), SCALES, strict=True):
            getattr(loss, name).fill_(value if loss.scales == "released" else math.log(value))
    return loss


def results(loss, embeddings, student_scale=14.0, teacher_scale=20.0, **ids):
    """Terms and every gradient."""
    scale = torch.tensor(student_scale, dtype=torch.float64, requires_grad=True)
    terms = loss(*embeddings, scale, teacher_scale, **ids)
    leaves = {"student_image": embeddings[0], "student_text": embeddings[1], "student_logit_scale": scale}
    leaves |= dict(loss.named_parameters())
    found = torch.autograd.grad(terms.loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return terms, dict(zip(leaves, found, strict=True))


def assert_same(found, expected, **tolerance):
    for mine, theirs in zip(found, expected, strict=True):
        assert set(mine) == set(theirs)
        for name in theirs:
            torch.testing.assert_close(mine[name], theirs[name], **tolerance, msg=lambda text, name=name: name + text)


@pytest.mark.skipif(not REFERENCE.is_file(), reason=f"no {REFERENCE.name} in ../shared/data")
@pytest.mark.parametrize("tile_size", [1, 3, 8, 512])
def test_the_reference_case_comes_out_value_by_value_and_gradient_by_gradient(tile_size):
    with np.load(REFERENCE, allow_pickle=False) as arrays:
        case = {name: torch.from_numpy(np.asarray(arrays[name])) for name in arrays}
    loss = CLIPRDLoss(16, tile_size=tile_size).double()
    with torch.no_grad():
        for name in SCALES:
            getattr(loss, name).copy_(case[name])
    embeddings = [case[name] for name in ("student_image", "student_text", "teacher_image", "teacher_text")]
    embeddings = [value.requires_grad_(index < 2) for index, value in enumerate(embeddings)]
    scales = case["student_logit_scale"].item(), case["teacher_logit_scale"].item()
    terms, gradients = results(loss, embeddings, *scales)
    assert terms.loss.item() == pytest.approx(case["total"].item(), abs=1e-10)
    for name in TERMS:
        assert terms[name].item() == pytest.approx(case[f"loss_{name}"].item(), abs=1e-10), name
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, case[f"grad_{name}"], rtol=0, atol=1e-10)


SUBSETS = {
    "clip-rd": CLIP_RD_WEIGHTS,
    "clip-kd": CLIP_KD_WEIGHTS,
    "affinity mimicking": AFFINITY_MIMICKING_WEIGHTS,
    **{name: {name: 1.7} for name in TERMS},
    "odd": dict(zip(TERMS, (0.3, 11.0, 0.7, 1.3, 0.2, 0.9, 1.1, 2.3), strict=True)),
    "vrd and image": {"vrd": 0.5, "vrd_image": 2.0},
    "xrd and icl": {"xrd": 0.5, "icl": 2.0},
}


@pytest.mark.parametrize("weights", SUBSETS.values(), ids=SUBSETS.keys())
@pytest.mark.parametrize("widths", [(6, 6), (5, 6)], ids=["equal widths", "projected"])
@pytest.mark.parametrize("scales", ["released", "exponentiated"])
def test_tiles_equal_the_formulas(weights, widths, scales):
    expected = results(make_loss(*widths, weights, scales, dense=True), make_embeddings(7, *widths))
    found = results(make_loss(*widths, weights, scales, tile_size=3), make_embeddings(7, *widths))
    assert_same(found, expected, rtol=1e-11, atol=1e-12)
    assert set(found[0]) - {"loss"} == {name for name in TERMS if weights.get(name)}
    total = sum(weights.get(name, 0) * found[0][name] for name in TERMS if weights.get(name))
    assert found[0].loss.item() == pytest.approx(total.item())


@pytest.mark.parametrize("num_pairs", [1, 2, 5, 16, 17])
@pytest.mark.parametrize("tile_size", [1, 2, 4, 16, 100])
def test_any_number_of_pairs_and_any_tile_give_the_same(num_pairs, tile_size):
    expected = results(make_loss(6, dense=True), make_embeddings(num_pairs))
    found = results(make_loss(6, tile_size=tile_size), make_embeddings(num_pairs))
    assert_same(found, expected, rtol=1e-11, atol=1e-12)


IDS = {
    "pictures": {"image_ids": [4, 4, 9, 4, -7, 9, 2]},
    "captions": {"text_ids": [1, 2, 1, 2, 1, 2, 1]},
    "both": {"image_ids": [4, 4, 9, 4, -7, 9, 2], "text_ids": [5, 5, 6, 6, 7, 8, 8]},
    "all alike": {"image_ids": [3] * 7, "text_ids": [3] * 7},
}


def ids_of(case):
    return {name: torch.tensor(values) for name, values in IDS[case].items()}


@pytest.mark.parametrize("weights", SUBSETS.values(), ids=SUBSETS.keys())
@pytest.mark.parametrize("case", IDS)
def test_duplicates_share_their_targets_in_tiles_as_in_the_formulas(case, weights):
    expected = results(make_loss(5, 6, weights, dense=True), make_embeddings(7, 5, 6), **ids_of(case))
    found = results(make_loss(5, 6, weights, tile_size=3), make_embeddings(7, 5, 6), **ids_of(case))
    assert_same(found, expected, rtol=1e-11, atol=1e-12)


def test_the_targets_of_duplicates_are_even_over_the_matches():
    image, text, *teacher = make_embeddings(7)
    ids = ids_of("both")
    same_image, same_text = (values[:, None] == values for values in ids.values())
    cross, own = same_image | same_text, nn.functional.normalize
    logits = 14.0 * own(image) @ own(text).T
    targets = cross / cross.sum(1, keepdim=True)
    task = [nn.functional.cross_entropy(values, targets.double()) for values in (logits, logits.T)]
    logits = 3.5 * own(image) @ own(teacher[0]).T
    targets = same_image / same_image.sum(1, keepdim=True)
    between = [nn.functional.cross_entropy(values, targets.double()) for values in (logits, logits.T)]
    terms = make_loss(6, tile_size=2)(image, text, *teacher, 14.0, 20.0, **ids)
    torch.testing.assert_close(terms.task, sum(task).detach() / 2)
    torch.testing.assert_close(terms.vrd_image, sum(between).detach() / 2)


@pytest.mark.parametrize("ids", [{}, {"image_ids": torch.arange(7), "text_ids": torch.arange(7) - 3}])
def test_without_duplicates_nothing_changes_by_a_bit(ids):
    expected = results(make_loss(6, tile_size=3), make_embeddings(7))
    assert_same(results(make_loss(6, tile_size=3), make_embeddings(7), **ids), expected, rtol=0, atol=0)


def test_the_fast_precision_shares_targets_too():
    def run(precision):
        return results(make_loss(6, precision=precision, dtype=torch.float32), make_embeddings(7), **ids_of("both"))[1]

    exact, fast = run("exact"), run("fast")
    for name, value in exact.items():
        assert (fast[name] - value).norm() <= 2e-3 * value.norm(), name


@pytest.mark.parametrize("ids", [torch.arange(6), torch.arange(7.0), torch.zeros(7, 1, dtype=torch.long)])
def test_ids_that_are_not_one_whole_number_a_pair_are_refused(ids):
    with pytest.raises(ValueError, match="image_ids and text_ids are not one whole number for each pair"):
        make_loss(6)(*make_embeddings(7), 14.0, 20.0, text_ids=ids)


def test_gradients_are_those_of_finite_differences():
    loss = make_loss(3, 4, tile_size=2, scales="exponentiated")
    # The scales of a stopped target move the value and not the gradient: without the relations between models.
    loss.set_weights({"task": 1.0, "fd": 5.0, "icl": 0.5, "vrd_image": 0.3, "vrd_text": 0.7})
    image, text, *teacher = make_embeddings(5, 3, 4)

    def value(image, text, scale, *parameters):
        names = dict(loss.named_parameters())
        replaced = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(loss, replaced, (image, text, *teacher, scale, 20.0)).loss

    scale = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(value, (image, text, scale, *loss.parameters()))


@pytest.mark.parametrize("tile_size", [7, 64])
def test_float32_is_right_at_a_scale_of_100_for_rows_without_a_near_neighbour(tile_size):
    """All cosines of most rows are near -0.9: bounded by the scale, exp(100 * (-0.9 - 1)) underflows."""
    generator = torch.Generator().manual_seed(0)
    direction = torch.zeros(16)
    direction[0] = 1.0
    image = direction + 0.05 * torch.randn(40, 16, generator=generator)
    text = -direction + 0.05 * torch.randn(40, 16, generator=generator)
    # Two pairs agree fully, so that the largest logit of a tile is far above that of other rows.
    text[:2] = image[:2]
    teachers = image + 0.02 * torch.randn(40, 16, generator=generator), text.clone()

    def run(dtype, **options):
        loss = CLIPRDLoss(16, **options).to(dtype)
        with torch.no_grad():
            for name in SCALES:
                getattr(loss, name).fill_(100.0)
        values = [value.to(dtype) for value in (image, text, *teachers)]
        embeddings = [value.requires_grad_(index < 2) for index, value in enumerate(values)]
        return results(loss, embeddings, 100.0, 100.0)

    expected, found = run(torch.float64, dense=True), run(torch.float32, tile_size=tile_size)
    assert all(value.isfinite().all() for value in [*found[0].values(), *found[1].values()])
    for name, value in expected[0].items():
        torch.testing.assert_close(found[0][name].double(), value, rtol=1e-4, atol=1e-4)
    for name, value in expected[1].items():
        error = (found[1][name].double() - value).abs().max() / value.abs().max().clamp_min(1e-3)
        assert error < 1e-3, (name, error)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_embeddings_are_computed_in_float32_under_autocast(dtype):
    exact = make_embeddings(9, dtype=dtype)
    wide = [value.detach().float().requires_grad_(index < 2) for index, value in enumerate(exact)]
    loss = make_loss(6, 6, tile_size=4, dtype=torch.float32)
    expected, expected_gradients = results(loss, wide)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, gradients = results(loss, exact)
    assert found.loss.dtype == torch.float32
    assert found.loss.item() == expected.loss.item()
    # Large values do not pass for infinite.
    values = [torch.full((3, 6), 60000.0, dtype=torch.float16) + torch.arange(6) * 32 for _ in range(4)]
    assert loss(*values, 14.0, 20.0).loss.isfinite()
    assert gradients["student_image"].dtype == dtype
    torch.testing.assert_close(gradients["student_image"], expected_gradients["student_image"].to(dtype))


def test_values_need_neither_gradients_nor_lengths_of_the_embeddings():
    loss, (image, text, *teacher) = make_loss(6, tile_size=4), make_embeddings(9)
    expected = loss(image, text, *teacher, 14.0, 20.0)
    with torch.no_grad():
        found = loss(image, text, *teacher, 14.0, 20.0)
    assert_same([found], [{name: value.detach() for name, value in expected.items()}])
    assert not found.loss.requires_grad and expected.loss.requires_grad
    assert not any(value.requires_grad for name, value in expected.items() if name != "loss")
    longer = loss(3 * image, 0.1 * text, 7 * teacher[0], 0.2 * teacher[1], 14.0, 20.0)
    torch.testing.assert_close(longer.loss, expected.loss)


def test_a_learned_scale_comes_back_from_its_bounds():
    loss = CLIPRDLoss(6, scales="exponentiated").double()
    with torch.no_grad():
        loss.cross_scale.fill_(9.0)
        loss.image_scale.fill_(-3.0)
    assert [value.item() for value in loss.multipliers()] == pytest.approx([100, 1, 1 / 0.07])
    _, gradients = results(loss, make_embeddings(5))
    assert gradients["cross_scale"] != 0 and gradients["image_scale"] != 0
    loss.clamp_scales()
    assert [loss.cross_scale.item(), loss.image_scale.item()] == pytest.approx([math.log(100), 0])
    released = CLIPRDLoss(6)
    with torch.no_grad():
        released.cross_scale.fill_(9.0)
    released.clamp_scales()
    assert released.cross_scale.item() == 9


# --- Cost ---


class CountProducts(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts matrix products and remembers the largest tensor made."""

    def __init__(self):
        super().__init__()
        self.products, self.largest = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        self.products += function.overloadpacket.__name__ in ("mm", "addmm", "addmm_", "bmm", "matmul")
        if isinstance(output, torch.Tensor):
            self.largest = max(self.largest, output.numel())
        return output


@pytest.mark.parametrize(
    ("weights", "products"),
    [
        (CLIP_RD_WEIGHTS, 18),
        ({"fd": 1.0}, 0),
        ({"task": 1.0}, 4),
        ({"hrd": 1.0}, 6),
        ({"task": 1.0, "hrd": 1.0}, 6),
        ({"icl": 1.0}, 6),
        ({"vrd_image": 1.0}, 3),
        ({"vrd_text": 1.0}, 3),
        ({"vrd": 1.0}, 5),
        ({"xrd": 1.0}, 6),
        (CLIP_KD_WEIGHTS, 12),
    ],
)
def test_a_term_without_weight_costs_no_product(weights, products):
    embeddings = make_embeddings(8)
    with CountProducts() as count:
        make_loss(6, weights=weights)(*embeddings, 14.0, 20.0).loss.backward()
    assert count.products == products
    if weights.keys() <= {"task", "hrd"}:
        # Nor do projections that no term reads; they have a gradient of zero.
        loss, embeddings = make_loss(5, 6, weights=weights), make_embeddings(8, 5, 6)
        with CountProducts() as count:
            loss(*embeddings, 14.0, 20.0).loss.backward()
        assert count.products == products
        assert all(value.grad is not None and not value.grad.any() for value in loss.visual_projection.parameters())


def test_nothing_as_large_as_the_matrix_of_all_pairs_is_ever_made():
    embeddings = make_embeddings(100, 4, 4)
    with CountProducts() as count:
        make_loss(4, tile_size=16)(*embeddings, 14.0, 20.0).loss.backward()
    assert count.largest <= 6 * 100 * 4 < 100 * 100


# --- Bad input ---


def test_unknown_terms_and_bad_weights_are_named():
    with pytest.raises(ValueError, match="unknown term 'vrd_imge', expected some of .*; did you mean 'vrd_image'"):
        CLIPRDLoss(6, weights={"vrd_imge": 1.0})
    for bad in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="weights: xrd must be a finite number of at least 0"):
            CLIPRDLoss(6, weights={"xrd": bad})
    for empty in ({}, {"fd": 0.0}):
        with pytest.raises(ValueError, match="weights: expected one above 0"):
            CLIPRDLoss(6, weights=empty)
    with pytest.raises(ValueError, match="scales 'clamped' is not one of released, exponentiated"):
        CLIPRDLoss(6, scales="clamped")
    with pytest.raises(ValueError, match="at least 1, found 0, None and None"):
        CLIPRDLoss(0)
    with pytest.raises(ValueError, match="at least 1, found 6, None and 0"):
        CLIPRDLoss(6, tile_size=0)


def with_row(value):
    def changed(values):
        values[3] = value
        return values

    return changed


SPOILED = [
    (1, lambda values: values[:-1], "different numbers of rows"),
    (2, lambda values: values[0], "different numbers of rows, or are not matrices"),
    (0, lambda values: values[:, 1:], "not as wide as student_dim"),
    (3, lambda values: values[:, 1:], "not as wide as teacher_dim"),
    (2, lambda values: (10 * values).long(), "not floating-point"),
    (0, with_row(math.nan), "NaN or infinite"),
    (3, with_row(-math.inf), "NaN or infinite"),
    (1, with_row(0.0), "a row of zeros"),
    (2, with_row(0.0), "a row of zeros"),
]


@pytest.mark.parametrize(("place", "spoil", "message"), SPOILED)
def test_bad_embeddings_are_named(place, spoil, message):
    embeddings = [value.detach() for value in make_embeddings(5)]
    embeddings[place] = spoil(embeddings[place])
    with pytest.raises(ValueError, match=message):
        make_loss(6)(*embeddings, 14.0, 20.0)
    with pytest.raises(ValueError, match="the batch is empty"):
        make_loss(6)(*(value.detach()[:0] for value in make_embeddings(5)), 14.0, 20.0)


def test_bad_scales_and_a_teacher_with_a_gradient_are_named():
    loss, embeddings = make_loss(6), make_embeddings(5)
    for scales in ((math.nan, 20.0), (14.0, math.inf)):
        with pytest.raises(ValueError, match="a scale is not one finite number"):
            loss(*embeddings, *scales)
    with pytest.raises(ValueError, match="a scale is not one finite number"):
        loss(*embeddings, torch.ones(2), 20.0)
    # SigLIP's scales have an axis.
    found = loss(*embeddings, torch.tensor([14.0], requires_grad=True), torch.tensor([20.0]))
    assert found.loss.item() == loss(*embeddings, 14.0, 20.0).loss.item()
    embeddings[3].requires_grad_()
    with pytest.raises(ValueError, match="the teacher has a gradient: compute it under torch.no_grad"):
        loss(*embeddings, 14.0, 20.0)


def test_projections_that_are_not_finite_are_refused():
    loss = make_loss(5, 6)
    with torch.no_grad():
        loss.visual_projection.weight[0, 0] = math.nan
    with pytest.raises(ValueError, match="the loss is not finite: NaN or infinite values in the projections"):
        loss(*make_embeddings(5, 5, 6), 14.0, 20.0)


def test_products_are_exact_whatever_the_towers_are_allowed(monkeypatch):
    seen = []
    original = torch.mm
    monkeypatch.setattr(
        torch, "mm", lambda *a, **k: seen.append(torch.get_float32_matmul_precision()) or original(*a, **k)
    )
    torch.set_float32_matmul_precision("medium")
    try:
        make_loss(6, dtype=torch.float32)(*make_embeddings(5, dtype=torch.float32), 14.0, 20.0)
        assert set(seen) == {"highest"} and torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_state_holds_scales_and_projections():
    assert set(CLIPRDLoss(6).state_dict()) == set(SCALES)
    names = {f"{name}.{part}" for name in ("visual_projection", "text_projection") for part in ("weight", "bias")}
    wide = CLIPRDLoss(5, 6)
    assert set(wide.state_dict()) == {*SCALES, *names}
    assert isinstance(wide.visual_projection, nn.Linear) and wide.visual_projection.weight.shape == (6, 5)
    assert CLIPRDLoss(6).visual_projection is None and CLIPRDLoss(6).teacher_dim == 6


# --- The fast precision, whose rounding a CPU shows as an accelerator does ---


def related(num_pairs, width, closeness):
    """Four views of the same directions."""
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(num_pairs, width, generator=generator)
    views = [common + closeness * torch.randn(num_pairs, width, generator=generator) for _ in range(4)]
    return [view.requires_grad_(index < 2) for index, view in enumerate(views)]


def relative_errors(found, expected):
    """Of the gradients of both embeddings together, and of each parameter."""
    pairs = [
        torch.cat([part[f"student_{side}"].double().flatten() for side in ("image", "text")])
        for part in (found, expected)
    ]
    errors = {"embeddings": ((pairs[0] - pairs[1]).norm() / pairs[1].norm()).item()}
    for name in set(expected) - {"student_image", "student_text"}:
        if expected[name].norm() > 1e-6:
            errors[name] = ((found[name].double() - expected[name]).norm() / expected[name].norm()).item()
    return errors


@pytest.mark.parametrize(
    ("weights", "closeness"),
    [(CLIP_RD_WEIGHTS, 1.0), (CLIP_RD_WEIGHTS, 0.1), *(({name: 1.0}, 1.0) for name in TERMS)],
)
def test_fast_gradients_are_within_two_thousandths(weights, closeness):
    embeddings = related(256, 64, closeness)
    wide = [value.detach().double().requires_grad_(value.requires_grad) for value in embeddings]
    expected, expected_gradients = results(CLIPRDLoss(64, weights=weights, dense=True).double(), wide, 50.0, 100.0)
    found, gradients = results(
        CLIPRDLoss(64, weights=weights, precision="fast", tile_size=100), embeddings, 50.0, 100.0
    )
    assert found.loss.item() == pytest.approx(expected.loss.item(), rel=2e-3)
    assert max(relative_errors(gradients, expected_gradients).values()) <= 2e-3
    # Rounded: a CPU is exact unless it is asked for less, and float64 always is.
    exact, _ = results(CLIPRDLoss(64, weights=weights), embeddings, 50.0, 100.0)
    assert weights == {"fd": 1.0} or found.loss != exact.loss
    still_exact, _ = results(CLIPRDLoss(64, weights=weights, precision="fast").double(), wide, 50.0, 100.0)
    assert still_exact.loss.item() == pytest.approx(expected.loss.item(), rel=1e-12)


@pytest.mark.parametrize("scale", [1.0, 1e5])
@pytest.mark.parametrize("weight", [1e-4, 1.0, 1e4])
def test_nothing_overflows_float16(weight, scale, monkeypatch):
    largest = []
    half = torch.Tensor.half
    monkeypatch.setattr(torch.Tensor, "half", lambda values: largest.append(values.abs().max().item()) or half(values))
    loss = CLIPRDLoss(16, weights=dict.fromkeys(TERMS, weight), precision="fast", tile_size=7)
    with torch.no_grad():
        for name in SCALES:
            getattr(loss, name).fill_(scale)
    found, gradients = results(loss, related(40, 16, 1.0), scale, scale)
    assert all(value.isfinite().all() for value in [*found.values(), *gradients.values()])
    # Small probabilities keep their digits, as slopes fill the range.
    assert 1000 < max(largest) <= 2**15


def test_fast_steps_wait_for_nothing():
    loss, embeddings = make_loss(5, 6, dtype=torch.float32, precision="fast", tile_size=3), related(8, 5, 1.0)[:2]
    embeddings += [value.detach() for value in related(8, 6, 1.0)[2:]]
    scale = torch.tensor(14.0, requires_grad=True)
    with Waits() as waits:
        loss(*embeddings, scale, 20.0).loss.backward()
    assert waits.found == []
    with Waits() as waits:
        make_loss(5, 6, dtype=torch.float32)(*embeddings, 14.0, 20.0)
    assert "_local_scalar_dense" in waits.found


class Waits(torch.utils._python_dispatch.TorchDispatchMode):
    """Remembers what would wait for an accelerator: numbers read, sizes that depend on them, tensors made of lists."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in ("_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "lift_fresh", "masked_select"):
            self.found.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("place", "value", "message"), [(0, math.nan, "NaN"), (1, 0.0, "zeros"), (3, math.inf, "inf")]
)
def test_fast_losses_of_bad_rows_are_nan_and_say_why_when_asked(place, value, message):
    loss = CLIPRDLoss(6, precision="fast")
    embeddings = related(5, 6, 1.0)
    loss.check_finite(loss(*embeddings, 14.0, 20.0).loss)
    bad = [part.detach().clone() for part in embeddings]
    bad[place][3] = value
    bad[0].requires_grad_()
    found = loss(*bad, 14.0, 20.0)
    found.loss.backward()
    assert all(term.isnan() for term in found.values()) and bad[0].grad.isnan().any()
    # The weights that such a step leaves would give another cause.
    later = loss(*(part.detach() * math.nan for part in embeddings), math.nan, 20.0)
    with pytest.raises(ValueError, match=f"^CLIPRDLoss: embeddings hold .*{message}"):
        loss.check_finite(later.loss)
    with pytest.raises(ValueError, match="CLIPRDLoss: a scale is not one finite number"):
        loss.check_finite(loss(*embeddings, math.inf, 20.0).loss)
    projected = CLIPRDLoss(5, 6, precision="fast")
    torch.nn.init.constant_(projected.visual_projection.weight, math.nan)
    values = [*related(5, 5, 1.0)[:2], *related(5, 6, 1.0)[2:]]
    with pytest.raises(ValueError, match="the loss is not finite: NaN or infinite values in the projections"):
        projected.check_finite(projected(*values, 14.0, 20.0).loss)


def test_without_kernels_one_line_says_so_and_plain_operations_compute(monkeypatch, caplog):
    device = torch.device("cuda")
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "hf_blemo.clip_rd.kernels_clip_rd", raising=False)
    monkeypatch.setattr(tiles_clip_rd, "_kernels", {})
    monkeypatch.setattr(logging.getLogger("hf_blemo"), "propagate", True)
    with caplog.at_level("WARNING"):
        assert tiles_clip_rd._kernels_for(device) is None and tiles_clip_rd._kernels_for(device) is None
    assert len(caplog.messages) == 1 and "no Triton kernels on cuda, plain operations" in caplog.messages[0]


@pytest.mark.parametrize("precision", ["bf16", "Fast"])
def test_unknown_precisions_are_named(precision):
    with pytest.raises(ValueError, match="is not one of exact, fast"):
        CLIPRDLoss(6, precision=precision)
    with pytest.raises(ValueError, match="dense computes exactly"):
        CLIPRDLoss(6, precision="fast", dense=True)
