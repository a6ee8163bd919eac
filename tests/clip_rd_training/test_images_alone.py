"""Pictures without captions distil too: a student's images learn from the teacher's, and its texts are those."""

import pytest
import torch
from pair_files import encoded, picture
from tiny_models import make_student
from transformers import AutoModel

from hf_blemo.clip_rd.distillation_clip_rd import CLIPRDDistiller, cached_backward
from hf_blemo.clip_rd.losses_clip_rd import CLIPRDLoss
from hf_blemo.clip_rd_training.run import distill

NO_CAPTIONS = (
    *("--caption_column", "null", "--student_config.text_config", "{}", "--student_config.projection_dim", "12"),
    *("--weights", '{"task": 1, "fd": 250, "hrd": 1, "vrd_image": 1}'),
)


def test_any_folder_of_pictures_distils_a_student_with_the_teachers_texts(clip, settings_for, tmp_path):
    pictures = tmp_path / "pictures" / "of a kind"
    pictures.mkdir(parents=True)
    for number in range(20):
        (pictures / f"{number}.png").write_bytes(encoded(picture(number)))
    settings = settings_for(tmp_path / "out", "--data", pictures.parent, "--teacher", clip, *NO_CAPTIONS)
    metrics = distill(settings)
    assert {name for name in metrics["history"][-1] if name in settings.weights} == {"task", "fd", "hrd", "vrd_image"}
    student, teacher = (AutoModel.from_pretrained(folder) for folder in (tmp_path / "out", clip))
    for name, values in teacher.state_dict().items():
        if name.startswith("text_") or name == "logit_scale":
            assert torch.equal(values, student.state_dict()[name]), name
    card = (tmp_path / "out" / "README.md").read_text()
    assert "pictures alone" in card and "Its text tower started from the teacher's, and was not trained." in card


def distiller_of(**options):
    teacher, student = make_student(1)[0], make_student(0)[0]
    loss = CLIPRDLoss(12, weights={"task": 1.0, "fd": 3.0, "hrd": 0.5, "vrd_image": 2.0}, tile_size=3)
    return CLIPRDDistiller(student, teacher, loss, images_alone=True, **options)


def test_the_terms_are_those_of_the_teachers_images_in_place_of_texts():
    distiller, pixels = distiller_of(), torch.randn(7, 3, 16, 16)
    terms = distiller(pixel_values=pixels)
    with torch.no_grad():
        image, target = (model.get_image_features(pixels) for model in (distiller.student, distiller.teacher))
    scales = distiller.student.logit_scale.exp(), distiller.teacher.logit_scale.exp()
    expected = distiller.loss(image, target, target, target, *scales)
    for name in ("loss", "task", "fd", "hrd", "vrd_image"):
        torch.testing.assert_close(terms[name], expected[name])
    own, theirs = (torch.nn.functional.normalize(values, dim=-1) for values in (image, target))
    torch.testing.assert_close(terms.fd, (own - theirs).square().mean())
    terms.loss.backward()
    assert all(parameter.grad is None for parameter in distiller.student.text_model.parameters())


def test_cached_chunks_give_the_same_gradients():
    found = []
    for chunk in (None, 3):
        pixels = torch.randn(7, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        distiller, batch = distiller_of(), {"pixel_values": pixels}
        if chunk is None:
            distiller(batch).loss.backward()
        else:
            cached_backward(distiller, batch, chunk)
        found.append([p.grad for p in distiller.student.vision_model.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "pictures alone need a teacher that runs; pass --teacher"),
        ("--teacher c --weights.xrd 1", "weights.xrd: needs captions.* expected some of task, fd, hrd"),
        ("--teacher c --text_weights x/y", "with pictures alone, the student's text tower is the teacher's"),
        ("--teacher c --evaluation_share 0.1", "pictures alone have no captions to find"),
        (
            '--teacher c --data null --sources [{"data":"a"},{"data":"b","caption_column":null}]',
            "expected captions in all of them or in none",
        ),
    ],
)
def test_what_needs_captions_is_refused(arguments, message, settings_for, tmp_path):
    given = NO_CAPTIONS[2:] if "--sources" in arguments else NO_CAPTIONS
    with pytest.raises((ValueError, SystemExit), match=message):
        settings_for(tmp_path / "out", *given, *arguments.split())


def test_a_student_of_another_width_is_refused():
    loss = CLIPRDLoss(12, 16, weights={"task": 1.0})
    with pytest.raises(ValueError, match="images_alone: expected a student as wide as its teacher, found 12 and 16"):
        CLIPRDDistiller(make_student(0)[0], make_student(1)[0], loss, images_alone=True)
