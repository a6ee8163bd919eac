"""The distiller: what it trains, keeps and leaves out, and every way a loop runs it."""

import math

import pytest
import torch
from losses_on_processes import WIDTHS, TinyClip, make_batch, make_distiller
from tiny_models import make_student

from hf_blemo.clip_rd.distillation_clip_rd import CLIPRDDistiller, cached_backward
from hf_blemo.clip_rd.losses_clip_rd import TERMS, CLIPRDLoss


def make_clip(seed):
    return make_student(seed)[0].to_clip()


def make_distilled():
    return CLIPRDDistiller(make_clip(0), make_clip(1), CLIPRDLoss(12)).train()


def make_images(num_pairs=6):
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(1, 500, (num_pairs, 6), generator=generator)
    ids[:, -1] = 513
    pixels = torch.randn(num_pairs, 3, 16, 16, generator=generator)
    return {"pixel_values": pixels, "input_ids": ids, "attention_mask": torch.ones_like(ids)}


def gradients_of(module):
    return {name: parameter.grad.clone() for name, parameter in module.named_parameters()}


def test_forward_gives_every_term_of_the_loss():
    distiller, batch = make_distiller(), make_batch()
    terms = distiller(batch)
    student, teacher = distiller.student, distiller.teacher
    expected = distiller.loss(
        student.get_image_features(batch["pixel_values"]),
        student.get_text_features(batch["input_ids"]),
        teacher.get_image_features(batch["pixel_values"]),
        teacher.get_text_features(batch["input_ids"]),
        student.logit_scale.exp(),
        teacher.logit_scale.exp(),
    )
    assert list(terms) == ["loss", *TERMS]
    for name in terms:
        torch.testing.assert_close(terms[name], expected[name])
    torch.testing.assert_close(distiller(**batch).loss, terms.loss)
    terms.loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in distiller.parameters())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in teacher.parameters())


def test_the_teacher_is_moved_but_never_saved_trained_or_switched_to_training():
    distiller = make_distiller()
    assert not any("teacher" in name for name in distiller.state_dict())
    count = sum(parameter.numel() for parameter in distiller.parameters())
    own = [*distiller.student.parameters(), *distiller.loss.parameters()]
    assert count == sum(parameter.numel() for parameter in own)
    trained = {"student.logit_scale", "loss.cross_scale", "loss.visual_projection.bias", "step"}
    assert set(distiller.state_dict()) > trained
    distiller.train()
    assert distiller.student.training and not distiller.teacher.training
    distiller.double()
    assert {parameter.dtype for parameter in distiller.teacher.parameters()} == {torch.float64}
    distiller.to("meta")
    assert {parameter.device.type for parameter in distiller.teacher.parameters()} == {"meta"}


def test_a_teacher_may_have_its_own_images_tokens_and_mask():
    student, teacher = make_clip(0), make_clip(1)
    distiller = CLIPRDDistiller(student, teacher, CLIPRDLoss(12)).eval()
    own, other = make_images(), {name: value.flip(0) for name, value in make_images().items()}
    other["attention_mask"][0, :2] = 0
    terms = distiller({**own, **{f"teacher_{name}": value for name, value in other.items()}})
    with torch.no_grad():
        image = teacher.get_image_features(pixel_values=other["pixel_values"]).pooler_output
        tokens = {name: other[name] for name in ("input_ids", "attention_mask")}
        text = teacher.get_text_features(**tokens).pooler_output
    stored = distiller({**own, "teacher_image_embeds": image, "teacher_text_embeds": text})
    for name in terms:
        assert stored[name].item() == terms[name].item()
    assert terms.loss.item() != distiller(own).loss.item()


EXACT = {"use_reentrant": False}


def test_stored_embeddings_need_no_teacher():
    distiller, batch = make_distiller(), make_batch()
    teacher = distiller.teacher
    with torch.no_grad():
        image = teacher.get_image_features(batch["pixel_values"])
        text = teacher.get_text_features(batch["input_ids"])
    stored = {**batch, "teacher_image_embeds": image, "teacher_text_embeds": text}
    scale = teacher.logit_scale.exp().item()
    without = CLIPRDDistiller(distiller.student, None, distiller.loss, teacher_logit_scale=scale)
    assert without(stored).loss.item() == distiller(batch).loss.item()
    with pytest.raises(ValueError, match="no teacher: the batch needs teacher_image_embeds"):
        without(batch)
    with pytest.raises(ValueError, match="expected a teacher or, with stored teacher embeddings, its teacher_logit"):
        CLIPRDDistiller(distiller.student, None, distiller.loss)
    # A schedule that comes to need a teacher needs one at once.
    loss = CLIPRDLoss(*WIDTHS, weights={"task": 1.0})
    with pytest.raises(ValueError, match="expected a teacher"):
        CLIPRDDistiller(TinyClip(0, 5), None, loss, weight_schedule={"xrd": [(0, 0.0), (10, 1.0)]})
    with pytest.raises(ValueError, match="teacher and student share parameters"):
        CLIPRDDistiller(teacher, teacher, CLIPRDLoss(6))


def test_without_distillation_the_contrastive_loss_needs_no_teacher():
    student, batch = make_distiller().student, make_batch()
    alone = CLIPRDDistiller(student, None, CLIPRDLoss(*WIDTHS, weights={"task": 2.0}))
    expected = make_distiller()(batch).task
    for terms in (alone(batch), cached_backward(alone, batch, 5)):
        assert set(terms) == {"loss", "task"}
        torch.testing.assert_close(terms.task, expected)
        torch.testing.assert_close(terms.loss.detach(), 2 * expected)
    alone.loss.set_weights({"task": 1.0, "xrd": 1.0})
    with pytest.raises(ValueError, match="no teacher: the batch needs"):
        alone(batch)
    with pytest.raises(ValueError, match="there is no teacher, and terms other than task have a weight"):
        alone.loss(torch.ones(3, 5), torch.ones(3, 5), None, None, 1.0, None)


def test_missing_and_unknown_inputs_are_named():
    distiller, batch = make_distiller(), make_batch()
    with pytest.raises(ValueError, match="the batch has no input_ids"):
        distiller({"pixel_values": batch["pixel_values"]})
    stored = CLIPRDDistiller(TinyClip(0, 6), None, CLIPRDLoss(6), teacher_logit_scale=1.0)
    for name, other, one in (("text_embeds", "image_embeds", stored), ("attention_mask", "input_ids", distiller)):
        with pytest.raises(ValueError, match=f"the batch has teacher_{name} without teacher_{other}"):
            one({**batch, f"teacher_{name}": torch.ones(12, 6)})
    with pytest.raises(ValueError, match="unknown input 'images': expected some of pixel_values"):
        distiller({**batch, "images": batch["pixel_values"]})
    with pytest.raises(ValueError, match="not as wide as teacher_dim"):
        CLIPRDDistiller(TinyClip(0, 6), TinyClip(1, 5), CLIPRDLoss(6))(batch)


# --- Scales and schedule ---


def test_the_students_scale_is_clamped_before_a_training_step_alone():
    distiller = make_distiller()
    with torch.no_grad():
        distiller.student.logit_scale.fill_(7.0)
    distiller.eval()(make_batch())
    assert distiller.student.logit_scale.item() == 7.0
    distiller.train()(make_batch())
    assert distiller.student.logit_scale.item() == pytest.approx(math.log(100))


def test_weights_follow_their_schedule_and_the_step_is_resumed():
    schedule = {"xrd": [(10, 0.0), (20, 1.0)], "fd": [(0, 100.0), (10, 200.0), (30, 0.0)]}
    distiller = make_distiller(weight_schedule=schedule)
    found = []
    for step in (0, 5, 10, 15, 20, 25, 40):
        distiller.set_step(step)
        weights = distiller.loss.weights
        found.append((weights["xrd"], weights["fd"], weights["hrd"]))
    assert found == [(0, 100, 1), (0, 150, 1), (0, 200, 1), (0.5, 150, 1), (1, 100, 1), (1, 50, 1), (1, 0, 1)]
    assert distiller(make_batch()).fd is None
    distiller.set_step(15)
    resumed = make_distiller(weight_schedule=schedule)
    resumed.load_state_dict(distiller.state_dict())
    assert int(resumed.step) == 15 and resumed.loss.weights["xrd"] == 0.5
    assert resumed(make_batch()).loss.item() == distiller(make_batch()).loss.item()
    # Other weights, set by hand, are kept.
    resumed.loss.set_weights({"task": 1.0})
    resumed.set_step(15)
    weights = resumed.loss.weights
    assert (weights["task"], weights["xrd"], weights["fd"], sum(weights.values())) == (1, 0.5, 150, 151.5)


def test_it_can_be_sent_to_another_process():
    """By the means that spawned processes are; nothing else reads pickles here."""
    import pickle

    distiller = make_distilled()
    again = pickle.loads(pickle.dumps(distiller))
    assert again(make_images()).loss.item() == distiller(make_images()).loss.item()


def test_bad_schedules_are_named():
    for schedule, message in (
        ({"xdr": [(0, 1.0)]}, "unknown term 'xdr'"),
        ({"xrd": []}, "xrd needs points of rising steps"),
        ({"xrd": [(5, 1.0), (5, 0.0)]}, "xrd needs points of rising steps"),
        ({"xrd": [(5, -1.0)]}, "xrd must be a finite number of at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            make_distiller(weight_schedule=schedule)


# --- Ways of running ---


def test_cached_gradients_repeat_the_dropout_of_the_first_pass():
    """A model whose chunks are the whole batch is the plain step: with the same random state, bit for bit the same."""
    plain, cached = make_distiller(dropout=0.5), make_distiller(dropout=0.5)
    torch.manual_seed(9)
    plain(make_batch()).loss.backward()
    torch.manual_seed(9)
    state = torch.get_rng_state()
    cached_backward(cached, make_batch(), 12)
    assert not torch.equal(torch.get_rng_state(), state)
    for name, expected in gradients_of(plain).items():
        torch.testing.assert_close(cached.get_parameter(name).grad, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk_size", [1, 5, 12, 100])
def test_cached_terms_and_gradients_for_any_chunk(chunk_size):
    plain, cached = make_distiller(), make_distiller()
    expected = plain(make_batch())
    expected.loss.backward()
    scaled = []

    def backward(value):
        scaled.append(value)
        (2 * value).backward()

    terms = cached_backward(cached, make_batch(), chunk_size, backward)
    assert len(scaled) == math.ceil(12 / chunk_size)
    for name in expected:
        torch.testing.assert_close(terms[name], expected[name].detach())
    for name, gradient in gradients_of(plain).items():
        torch.testing.assert_close(cached.get_parameter(name).grad, 2 * gradient, rtol=1e-5, atol=1e-4)


def test_cached_chunks_repeat_each_its_own_dropout():
    """The surrogate's towers see in every chunk what the first pass saw there."""
    distiller, seen = make_distiller(dropout=0.5), []
    distiller.student.dropout.register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
    cached_backward(distiller, make_batch(), 5)
    assert len(seen) == 6
    for first, second in zip(seen[:3], seen[3:], strict=True):
        assert torch.equal(first, second)
    assert not torch.equal(seen[0] == 0, seen[1] == 0)


def test_cached_gradients_leave_frozen_parameters_alone():
    plain, cached = make_distiller(), make_distiller()
    for distiller in (plain, cached):
        for part in (distiller.student.logit_scale, distiller.loss.cross_scale, distiller.student.image):
            part.requires_grad_(False)
    plain(make_batch()).loss.backward()
    cached_backward(cached, make_batch(), 5)
    for name, parameter in plain.named_parameters():
        found = cached.get_parameter(name).grad
        assert (found is None) == (parameter.grad is None) == (not parameter.requires_grad)
        if found is not None:
            torch.testing.assert_close(found, parameter.grad, rtol=1e-5, atol=1e-5)


def test_cached_gradients_of_bad_input_are_refused():
    with pytest.raises(ValueError, match="chunk_size of at least 1 and inputs of one length"):
        cached_backward(make_distiller(), make_batch(), 0)
    batch = make_batch()
    with pytest.raises(ValueError, match="'pixel_values': 11, 'input_ids': 12"):
        cached_backward(make_distiller(), {**batch, "pixel_values": batch["pixel_values"][1:]}, 4)
    with pytest.raises(ValueError, match="expected a CLIPRDDistiller, found Linear"):
        cached_backward(torch.nn.Linear(2, 2), batch, 4)


def test_towers_run_in_bf16_under_autocast_and_the_loss_does_not():
    distiller = make_distilled()
    seen = []
    distiller.loss.register_forward_pre_hook(lambda module, inputs: seen.append([value.dtype for value in inputs[:4]]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = distiller(make_images())
    assert seen == [[torch.bfloat16] * 4]
    assert {value.dtype for value in terms.values()} == {torch.float32}
    terms.loss.backward()
    half = CLIPRDDistiller(make_clip(0), make_clip(1).bfloat16(), CLIPRDLoss(12))
    batch = make_images()
    terms = half({**batch, "teacher_pixel_values": batch["pixel_values"].bfloat16()})
    assert terms.loss.dtype == torch.float32 and terms.loss.isfinite()


def test_activation_checkpointing_gives_the_same_gradients():
    plain, *saving = (make_distilled() for _ in range(3))
    plain(make_images()).loss.backward()
    # By its new name and by its old one.
    saving[0].activation_checkpointing_enable(activation_checkpointing_kwargs=EXACT)
    saving[1].gradient_checkpointing_enable(EXACT)
    for distiller in saving:
        assert distiller.student.is_activation_checkpointing
        distiller(make_images()).loss.backward()
        for name, expected in gradients_of(plain).items():
            torch.testing.assert_close(distiller.get_parameter(name).grad, expected)


@pytest.mark.parametrize("works", [True, False])
def test_compiled_towers_give_the_same_and_a_failing_compiler_is_said_once(works, caplog):
    batch, found = make_images(), []

    def broken(*_):
        raise RuntimeError("no compiler here")

    for compiled in (False, True):
        distiller = make_distilled()
        if compiled:
            distiller.compile_towers(backend="aot_eager" if works else broken)
        for _ in range(2):
            distiller(batch).loss.backward()
        assert not any("compiled" in name or "_orig_mod" in name for name in distiller.state_dict())
        found.append(gradients_of(distiller))
    for name, expected in found[0].items():
        torch.testing.assert_close(found[1][name], expected)
    lines = [record.message for record in caplog.records if "uncompiled" in record.message]
    assert len(lines) == (not works) and all("no compiler here" in line for line in lines)
