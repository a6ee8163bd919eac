"""Several teachers: the gradients are those of targets averaged as distributions."""

import pytest
import torch
from losses_on_processes import TinyClip, make_batch, make_taught_by_two
from torch.nn import functional

from hf_blemo.clip_rd.distillation_clip_rd import CLIPRDDistiller
from hf_blemo.clip_rd.losses_clip_rd import CLIPRDLoss
from hf_blemo.clip_rd.weights_clip_rd import CLIP_RD_WEIGHTS, TERMS

DIMS, SCALES = [6, 4, 5], [20.0, 7.0, 55.0]
SUBSETS = [
    CLIP_RD_WEIGHTS,
    *({name: 1.7} for name in TERMS),
    {"task": 1.0, "hrd": 1.0},
    {"vrd": 0.5, "vrd_image": 2.0, "xrd": 0.25},
]


def make_case(num_pairs=7, student_dim=5, dims=DIMS, weights=None, **options):
    generator = torch.Generator().manual_seed(4)

    def draw(width):
        return torch.randn(num_pairs, width, generator=generator, dtype=torch.float64)

    torch.manual_seed(0)
    loss = CLIPRDLoss(student_dim, dims, weights, tile_size=3, **options).double()
    with torch.no_grad():
        for value, name in zip((2.0, 3.5, 2.4), ("cross_scale", "image_scale", "text_scale"), strict=True):
            getattr(loss, name).fill_(value)
    student = [draw(student_dim).requires_grad_() for _ in range(2)]
    return loss, student, [draw(dim) for dim in dims], [draw(dim) for dim in dims]


def gradients_of(value, loss, student, scale):
    leaves = [*student, scale, *loss.parameters()]
    return torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)


def averaged(loss, student, images, texts, scale, ids=None):
    """The loss as its definition reads, by N x N matrices: every target is a mean of softmax distributions."""
    own = [functional.normalize(values, dim=1) for values in student]
    images, texts = ([functional.normalize(values, dim=1) for values in side] for side in (images, texts))
    maps = zip(loss.visual_projection, loss.text_projection, strict=True)
    spaces = [
        tuple(functional.normalize(layer(values), dim=1) for layer, values in zip(pair, student, strict=True))
        for pair in maps
    ]
    cross, vision, language = loss.multipliers()
    count = len(images)
    ids = [torch.arange(len(own[0]))] * 2 if ids is None else ids
    same_image, same_text = (one[:, None] == one for one in ids)

    def contrastive(match, *products):
        targets = match.double() / match.sum(1, keepdim=True)
        return sum(functional.cross_entropy(product, targets) for product in products) / len(products)

    def from_mean(targets, found):
        """Mean over the student's sides of the divergence of each from the mean of the targets."""
        mean = torch.stack([target.softmax(1) for target in targets]).mean(0).detach()
        return sum(functional.kl_div(x.log_softmax(1), mean, reduction="batchmean") for x in found) / len(found)

    def both(targets, found):
        sides = [[x.T for x in values] for values in (targets, found)]
        return (from_mean(targets, found) + from_mean(*sides)) / 2

    match = same_image | same_text
    x = scale * own[0] @ own[1].T
    numbers = range(count)
    known = [SCALES[t] * images[t] @ texts[t].T for t in numbers]
    of_images = [vision * spaces[t][0] @ images[t].T for t in numbers]
    of_texts = [language * spaces[t][1] @ texts[t].T for t in numbers]
    to_images = [cross * spaces[t][1] @ images[t].T for t in numbers]
    to_texts = [cross * spaces[t][0] @ texts[t].T for t in numbers]
    return {
        "task": contrastive(match, x, x.T),
        "fd": sum((spaces[t][k] - (images, texts)[k][t]).square().mean() for t in numbers for k in (0, 1)) / count,
        "icl": sum(contrastive(match, to_texts[t], to_images[t]) for t in numbers) / count,
        "hrd": both(known, [x]),
        "vrd": both(of_texts, of_images),
        "vrd_image": sum(contrastive(same_image, y, y.T) for y in of_images) / count,
        "vrd_text": sum(contrastive(same_text, y, y.T) for y in of_texts) / count,
        "xrd": (both(to_texts, to_images) + both(to_images, to_texts)) / 2,
    }


@pytest.mark.parametrize(
    ("dims", "weights", "ids"),
    [
        *((DIMS[:2], weights, None) for weights in SUBSETS),
        (DIMS, CLIP_RD_WEIGHTS, None),
        ([5, 5], CLIP_RD_WEIGHTS, None),
        (DIMS, CLIP_RD_WEIGHTS, [[4, 4, 9, 4, -7, 9, 2], [5, 5, 6, 6, 7, 8, 8]]),
    ],
)
def test_the_gradients_are_those_of_targets_averaged_as_distributions(dims, weights, ids):
    loss, student, images, texts = make_case(dims=dims, weights=weights)
    scale = torch.tensor(14.0, dtype=torch.float64, requires_grad=True)
    given = None if ids is None else [torch.tensor(values) for values in ids]
    matching = {} if given is None else dict(zip(("image_ids", "text_ids"), given, strict=True))
    expected = averaged(loss, student, images, texts, scale, given)
    terms = loss(*student, images, texts, scale, SCALES[: len(dims)], **matching)
    total = sum(loss.weights[name] * value for name, value in expected.items())
    for mine, theirs in zip(
        gradients_of(terms.loss, loss, student, scale), gradients_of(total, loss, student, scale), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)
    assert set(terms) - {"loss"} == set(weights)
    torch.testing.assert_close(terms.loss, sum(loss.weights[name] * terms[name] for name in weights))
    for name in weights:
        if name in ("hrd", "vrd", "xrd"):
            # What the teachers differ among themselves comes on top.
            assert terms[name] > expected[name]
        else:
            torch.testing.assert_close(terms[name], expected[name].detach())


def test_the_same_teacher_twice_is_that_teacher():
    loss, student, images, texts = make_case(dims=[6, 6])
    one = make_case(dims=[6])[0]
    for layers, layer in (
        (loss.visual_projection, one.visual_projection),
        (loss.text_projection, one.text_projection),
    ):
        layers.load_state_dict({f"{n}.{name}": value for n in (0, 1) for name, value in layer.state_dict().items()})
    expected = one(*student, images[0], texts[0], 14.0, 20.0)
    terms = loss(*student, images[:1] * 2, texts[:1] * 2, 14.0, [20.0, 20.0])
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value)


def test_several_teachers_in_the_fast_precision():
    found = []
    for precision in ("exact", "fast"):
        loss, student, images, texts = make_case(40, precision=precision)
        values = [value.float() for value in (*student, *images, *texts)]
        student = [value.detach().requires_grad_() for value in values[:2]]
        terms = loss.float()(*student, values[2:5], values[5:], 14.0, SCALES)
        found.append(torch.cat(torch.autograd.grad(terms.loss, student)))
    assert 0 < (found[0] - found[1]).norm() < 2e-3 * found[0].norm()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda images, texts, scales: images.pop(), "not as many as teacher_dim has widths"),
        (lambda images, texts, scales: scales.pop(), "not as many as teacher_dim has widths"),
        (lambda images, texts, scales: images.reverse(), "teacher embeddings are not as wide as teacher_dim"),
        (lambda images, texts, scales: texts[1].fill_(torch.nan), "embeddings hold NaN"),
        (lambda images, texts, scales: texts.__setitem__(1, None), "there is no teacher, and terms other than task"),
        (lambda images, texts, scales: scales.__setitem__(1, torch.inf), "a scale is not one finite number"),
    ],
)
def test_what_is_wrong_with_one_of_several_teachers_is_named(change, message):
    loss, student, images, texts = make_case(dims=DIMS[:2])
    scales = SCALES[:2]
    change(images, texts, scales)
    with pytest.raises(ValueError, match=message):
        loss(*student, images, texts, 14.0, scales)


def test_settings_of_the_loss_for_several_teachers():
    with pytest.raises(ValueError, match="dense computes for one teacher, found 2"):
        CLIPRDLoss(5, [6, 4], dense=True)
    with pytest.raises(ValueError, match=r"at least 1, found 5, \[6, 0\] and None"):
        CLIPRDLoss(5, [6, 0])
    alone = CLIPRDLoss(5, [6, 4], {"task": 1.0})
    assert set(alone(torch.randn(3, 5), torch.randn(3, 5), [None] * 2, [None] * 2, 9.0, None)) == {"loss", "task"}


# --- The distiller ---


def test_each_teacher_has_its_own_pixels_tokens_and_scale_live_or_stored():
    distiller, batch = make_taught_by_two().eval(), make_batch()
    own = {f"teacher_2_{name}": values + 0.3 for name, values in batch.items()}
    terms = distiller({**batch, **own})
    stored, embeds = {}, ([], [])
    for number, (model, given) in enumerate(zip(distiller._teachers, (batch, own), strict=True)):
        prefix, source = (f"teacher_{number + 1}_" if number else "teacher_", "teacher_2_" if number else "")
        with torch.no_grad():
            image = model.get_image_features(given[f"{source}pixel_values"])
            text = model.get_text_features(given[f"{source}input_ids"])
        stored |= {f"{prefix}image_embeds": image, f"{prefix}text_embeds": text}
        embeds[0].append(image)
        embeds[1].append(text)
    student = distiller.student
    mine = student.get_image_features(batch["pixel_values"]), student.get_text_features(batch["input_ids"])
    scales = [model.logit_scale.detach().exp() for model in distiller._teachers]
    expected = distiller.loss(*mine, *embeds, student.logit_scale.exp(), scales)
    without = CLIPRDDistiller(student, None, distiller.loss, [scale.item() for scale in scales])
    for found in (expected, without({**batch, **stored}), distiller(**batch, **own)):
        for name, value in terms.items():
            torch.testing.assert_close(found[name], value)
    assert distiller(batch).loss.item() != terms.loss.item()
    assert len(distiller(batch, return_loss=False)) == 6
    with pytest.raises(ValueError, match="the batch has teacher_2_image_embeds without teacher_2_text_embeds"):
        without({**batch, **stored, "teacher_2_text_embeds": None})
    with pytest.raises(ValueError, match="unknown input 'teacher_3_input_ids': .*teacher_2_input_ids"):
        distiller({**batch, "teacher_3_input_ids": batch["input_ids"]})
    assert not any("teachers" in name for name in distiller.state_dict())
    distiller.double()
    assert {value.dtype for model in distiller._teachers for value in model.parameters()} == {torch.float64}


def test_scales_that_were_chosen_are_resumed():
    distiller, batch = make_taught_by_two(), make_batch()
    before = distiller(batch).hrd.item()
    distiller.set_teacher_scales([3.0, 40.0])
    again = make_taught_by_two()
    again.load_state_dict(distiller.state_dict())
    assert again.teacher_scales.tolist() == [3.0, 40.0]
    assert again(batch).hrd.item() == distiller(batch).hrd.item() != before


@pytest.mark.parametrize(
    ("teachers", "options", "message"),
    [
        ([TinyClip(1, 6)], {}, "as many teachers and scales as the loss has widths, 2, found 1"),
        (TinyClip(1, 6), {}, "as many teachers and scales as the loss has widths, 2, found 1"),
        (None, {"teacher_logit_scale": [1.0] * 3}, "as many teachers and scales as the loss has widths, 2, found 3"),
        (None, {}, "expected a teacher or, with stored teacher embeddings, its teacher_logit_scale"),
        ([TinyClip(1, 6)] * 2, {"images_alone": True}, "images_alone: expected one teacher, found 2"),
    ],
)
def test_a_distiller_of_other_teachers_than_its_loss_is_refused(teachers, options, message):
    with pytest.raises(ValueError, match=message):
        CLIPRDDistiller(TinyClip(0, 5), teachers, CLIPRDLoss(5, [6, 4]), **options)
