"""Students whose towers start from trained weights, frozen, released later or trained at a rate of their own."""

import pytest
import torch
from pair_files import picture
from tiny_models import make_student
from transformers import AutoModel, TimmWrapperConfig, TimmWrapperModel, ViTConfig

from hf_blemo.clip_rd.distillation_clip_rd import features_of
from hf_blemo.clip_rd_training.run import _Training, distill
from hf_blemo.clip_rd_training.students import make_student as new_student
from hf_blemo.clip_rd_training.teachers import open_teacher
from hf_blemo.pairs.clip_models import load_clip

PRESET = ("--student", "vit-t-16", "--student_config", "{}", "--synthetic.image_size", "20")


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """The folder of a vision tower alone."""
    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    config = ViTConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=20)
    AutoModel.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture
def towers_of(settings_for, tmp_path):
    def make(*arguments):
        return settings_for(tmp_path / "out", *map(str, arguments))

    return make


def same(one, two) -> bool:
    return all(torch.equal(value, two.state_dict()[name]) for name, value in one.state_dict().items())


@pytest.mark.parametrize("source", ["teacher", "folder"])
def test_a_frozen_text_tower_stays_what_it_was(source, clip, towers_of):
    text = "teacher" if source == "teacher" else clip
    own = ("--student_config.text_config", "{}", "--student_config.projection_dim", 12)
    settings = towers_of("--teacher", clip, "--text_weights", text, "--freeze", "text", *own)
    distill(settings)
    student, teacher = (AutoModel.from_pretrained(folder) for folder in (settings.output_dir, clip))
    assert same(student.text_model, teacher.text_model) and same(student.text_projection, teacher.text_projection)
    assert student.config.projection_dim == teacher.config.projection_dim


def test_a_single_tower_gets_a_new_projection_that_is_trained_although_it_is_frozen(vit, towers_of):
    settings = towers_of("--vision_weights", vit, "--freeze", "vision", "--student_config.vision_config", "{}")
    start, processor, _ = new_student(settings)
    assert processor.image_size == (20, 20)
    distill(settings)
    student = AutoModel.from_pretrained(settings.output_dir)
    assert same(student.vision_model, AutoModel.from_pretrained(vit))
    assert not torch.equal(student.visual_projection.weight, start.visual_projection.weight)


def test_a_released_tower_is_trained_from_its_step_on(clip, towers_of, monkeypatch):
    settings = towers_of(
        *("--vision_weights", clip, "--student_config.vision_config", "{}", "--warmup_steps", 2),
        *("--freeze", "vision", "--release.vision", 3, "--learning_rates.vision", 1e-4),
    )
    found = []

    def watched(training, *arguments):
        train(training, *arguments)
        tower = training.distiller.student.vision_model
        rates = {group["part"]: group["lr"] for group in training.optimizer.param_groups}
        found.append((torch.cat([value.detach().flatten().clone() for value in tower.parameters()]), rates))

    train = _Training._train
    monkeypatch.setattr(_Training, "_train", watched)
    distill(settings)
    weights = [values for values, _ in found]
    assert all(torch.equal(weights[0], values) for values in weights[:3])
    assert not any(torch.equal(weights[0], values) for values in weights[3:])
    assert [rates["vision"] > 0 for _, rates in found] == [False] * 3 + [True] * 3
    # After both warm-ups the rates fall along one cosine.
    assert found[4][1]["vision"] / found[4][1][None] == pytest.approx(1e-4 / settings.learning_rate)
    original = AutoModel.from_pretrained(clip).vision_model
    assert torch.equal(weights[0], torch.cat([value.flatten() for value in original.parameters()]))


def test_the_projections_of_an_image_text_model_come_along_where_they_fit(clip, towers_of):
    arguments = ("--vision_weights", clip, "--student_config.vision_config", "{}")
    given = make_student(5)[0]
    student = new_student(towers_of(*arguments, "--student_config.projection_dim", 12))[0]
    assert torch.equal(student.visual_projection.weight, given.visual_projection.weight)
    assert new_student(towers_of(*arguments, "--student_config.projection_dim", 10))[0].config.projection_dim == 10


# Architecture, its arguments, pixels that its images have, and whether timm writes the folder, as on the Hub.
TIMM = {
    "a transformer": (
        "vit_tiny_patch16_224",
        {"img_size": 32, "patch_size": 8, "num_heads": 2, "embed_dim": 16, "depth": 1},
        32,
        0,
    ),
    "a network of convolutions": ("test_efficientnet", {}, 160, 1),
    "a head that widens": ("mobilenetv3_small_050", {}, 224, 0),
}


@pytest.mark.parametrize(("architecture", "arguments", "size", "by_timm"), TIMM.values(), ids=TIMM.keys())
@pytest.mark.parametrize("frozen", [False, True])
def test_a_tower_of_timm_is_trained_or_frozen(architecture, arguments, size, by_timm, frozen, towers_of, tmp_path):
    timm = pytest.importorskip("timm", reason="needs the extra timm, and torchvision", exc_type=ImportError)
    torch.manual_seed(0)
    config = TimmWrapperConfig(architecture=architecture, model_args={**arguments}, num_labels=0)
    tower = TimmWrapperModel(config)
    if by_timm:
        whole = timm.create_model(architecture)
        timm.models.save_for_hf(whole, tmp_path / "timm", safe_serialization=True)
        tower.timm_model.load_state_dict(whole.state_dict(), strict=False)
    else:
        tower.save_pretrained(tmp_path / "timm")
    settings = towers_of(
        *("--vision_weights", tmp_path / "timm", "--student_config.vision_config", "{}", "--num_steps", 3),
        *(("--freeze", "vision") if frozen else ()),
    )
    start, processor, _ = new_student(settings)
    assert processor.image_size == (size, size) and same(start.vision_model, tower)
    distill(settings)
    student = AutoModel.from_pretrained(settings.output_dir)
    learned = dict(student.vision_model.named_parameters())
    moved = [not torch.equal(value, learned[name]) for name, value in tower.named_parameters()]
    assert same(student.vision_model, tower) if frozen else all(moved)
    assert not torch.equal(student.visual_projection.weight, start.visual_projection.weight)
    clip = load_clip(settings.output_dir)
    features = clip.model.get_image_features(clip.processor.images([picture(0)]))
    assert features_of(features).shape == (1, student.config.projection_dim)
    assert clip.processor.image_size == (size, size)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--vision_weights", "CLIP"), "student_config.vision_config: vision_weights brings the config of its tower"),
        (("--vision_weights", "teacher", *PRESET), "expected a teacher of transformers with a vision_model, found no"),
        (("--text_weights", "VIT", *PRESET), "expected a text tower, found ViTModel"),
        (("--vision_weights", "missing", *PRESET), "vision_weights 'missing': not a file, folder or Hub id"),
        (("--vision_weights", "CLIP", "--image_size", "32", *PRESET), "image_size 32: the tower .* takes 16"),
        (
            ("--vision_weights", "CLIP", "--student", "CLIP", "--student_config", "{}"),
            "the student .* has its own vision tower",
        ),
        (
            ("--text_weights", "CLIP", "--tokenizer", "WORDS", "--freeze", "text", *PRESET),
            "the frozen text tower .* knows the tokens of its own tokenizer alone; leave `tokenizer` out",
        ),
        (("--release.vision", "3"), "release.vision: expected a step .* and 'vision' in freeze, found 3 and"),
        (("--learning_rates.text", "-1"), "learning_rates.text: expected a number from 0, found -1"),
        (("--learning_rates.image", "1"), "unknown setting 'image', expected vision or text"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_run(arguments, message, clip, vit, towers_of, teacher):
    known = {"CLIP": clip, "VIT": vit, "WORDS": teacher}
    with pytest.raises((ValueError, SystemExit, FileNotFoundError), match=message):
        new_student(settings := towers_of(*(known.get(value, value) for value in arguments)), open_teacher(settings))
