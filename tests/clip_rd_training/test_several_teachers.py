"""Several teachers in one run: live or stored, each with its own pixels, tokens and scale."""

import json

import pytest
import torch
from tiny_models import save_tiny_model
from torch.nn import functional

from hf_blemo.clip_rd_training.embedding import embed
from hf_blemo.clip_rd_training.run import distill
from hf_blemo.clip_rd_training.settings import ComparisonSettings, EmbeddingSettings
from hf_blemo.clip_rd_training.teachers import tuned_scale
from hf_blemo.programs.run_folder import CHECKPOINTS

CROPS = {"scale": [0.5, 1.0], "variants": 2, "seed": 3}
DATA = ("--synthetic.num_pairs", 40, "--augmentation", json.dumps(CROPS), "--dtype", "float64")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The folder of a teacher of 16 pixels, with a tokenizer of its own."""
    folder = tmp_path_factory.mktemp("small")
    save_tiny_model("clip_rd", folder, 7)
    return folder


@pytest.fixture(scope="module")
def store(once, teacher, small):
    """A store of both, under the names `large` and `small`."""
    settings = {"data": "synthetic", "synthetic": {"num_pairs": 40}, "augmentation": CROPS, "batch_size": 20}
    settings["teachers"] = {"large": str(teacher), "small": str(small)}
    return once("store_of_two", lambda folder: embed(EmbeddingSettings(output_dir=str(folder), **settings)))


def listed(*teachers):
    return json.dumps([teacher if isinstance(teacher, dict) else str(teacher) for teacher in teachers])


def test_a_store_of_two_teaches_as_both_do_without_it(teacher, small, store, tmp_path, settings_for):
    live = distill(settings_for(tmp_path / "live", *DATA, "--teachers", listed(teacher, small)))
    chosen = ("--teacher_store", store, "--teachers", listed("large", {"teacher": "small"}), "--tokenizer", teacher)
    stored = distill(settings_for(tmp_path / "stored", *DATA, *chosen))
    assert len(live["history"]) == len(stored["history"]) == 3
    for mine, theirs in zip(live["history"], stored["history"], strict=True):
        for name, value in mine.items():
            # The stored ones are rounded, and scales are tuned on them.
            assert theirs[name] == pytest.approx(value, rel=2e-3), name
    for one, other, source in zip(live["teachers"], stored["teachers"], (teacher, small), strict=True):
        assert other["scale"] == pytest.approx(one["scale"], rel=5e-3)
        assert {**other, "stored": False, "scale": one["scale"]} == one and one["source"] == str(source)
        assert 1 <= one["scale"] <= one["logit_scale"] * 1.001 and one["scale_is"] == "tuned"
    later = ("--num_steps", 2, "--weights", '{"task": 1}', "--weight_schedule", '{"hrd": [[1, 0], [2, 1]]}')
    found = distill(settings_for(tmp_path / "later", *DATA, "--teachers", listed(teacher, small), *later))
    assert found["teachers"] == live["teachers"]
    # The second one's relations are not the first's alone.
    alone = distill(settings_for(tmp_path / "alone", *DATA, "--teacher", teacher))
    assert abs(alone["history"][0]["hrd"] - live["history"][0]["hrd"]) > 0.01
    card = (tmp_path / "live" / "README.md").read_text()
    assert "parameters of the teacher 2" in card and "means of the teachers' softmax distributions" in card
    assert f"a local model (`{teacher.name}`) and a local model (`{small.name}`)" in card
    assert alone["teacher"] == alone["teachers"][0] and live["teacher"] is None


def test_scales_may_be_given_and_a_resumed_run_ends_alike(teacher, small, tmp_path, settings_for, stopped):
    options = (*DATA, "--checkpoint_every", 2, "--chunk_size", 5)
    options += ("--teachers", listed({"teacher": str(teacher), "scale": "own"}, {"teacher": str(small), "scale": 4}))
    whole = distill(settings_for(tmp_path / "whole", *options))
    assert [(one["scale"], one["scale_is"]) for one in whole["teachers"]] == [
        (pytest.approx(whole["teachers"][0]["logit_scale"], abs=1e-4), "own"),
        (4.0, "given"),
    ]
    card = (tmp_path / "whole" / "README.md").read_text()
    assert "here 4.00 (as the settings say)" in card and "chosen on" not in card
    stopped(settings_for(tmp_path / "killed", *options), 4)
    resumed = distill(settings_for(tmp_path / "killed", *options, "--resume", "true"))
    assert resumed["history"] == whole["history"] and resumed["teachers"] == whole["teachers"]
    assert (tmp_path / "killed" / CHECKPOINTS).is_dir()
    save_tiny_model("clip_rd", small, 8)
    try:
        with pytest.raises(ValueError, match=f"resume: the weights of the teacher '{small}' changed since the run"):
            distill(settings_for(tmp_path / "killed", *options, "--resume", "true"))
    finally:
        save_tiny_model("clip_rd", small, 7)


def test_a_tuned_scale_is_the_likeliest_and_no_sharper_than_its_own():
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(60, 16, generator=generator)
    text = image + 1.2 * torch.randn(60, 16, generator=generator)
    halves = [(image[:30], text[:30], {}), (image[30:], text[30:], {})]

    def loss(scale):
        found = []
        for one, other, _ in halves:
            x = scale * functional.normalize(one.double()) @ functional.normalize(other.double()).T
            rows = torch.arange(len(x))
            found += [functional.cross_entropy(x, rows), functional.cross_entropy(x.T, rows)]
        return sum(found).item()

    best = min((1.01**number for number in range(463)), key=loss)
    assert tuned_scale(halves, 100.0) == pytest.approx(best, rel=0.02)
    assert tuned_scale(halves, best / 2) == best / 2
    # Duplicates share their targets, which blunts it.
    ids = {"text_ids": torch.arange(30) // 10}
    assert tuned_scale([(*pair[:2], ids) for pair in halves], 100.0) < 0.8 * best


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--teachers", '["a"]'), "teachers: expected at least two, found 'a' alone; one is named by --teacher"),
        (("--teachers", '["a", "a"]'), "teachers: found 'a' twice"),
        (("--teachers", '["a", "b"]', "--teacher", "c"), "teacher 'c': found 2 teachers as well"),
        (("--teachers", '["a", "b"]', "--teacher_store", "s", "--teacher_name", "a"), "teacher_name 'a': found 2"),
        (("--teachers", '["a", {"teacher": "b", "scale": 0}]'), "scale of teacher 'b': expected a number above 0"),
        (
            ("--teachers", '["a", {"teacher": "b", "scales": 3}]'),
            "teachers: unknown setting 'scales'; the nearest known one is 'scale'",
        ),
        (("--teachers", '["a", {"revision": "b"}]'), "teachers: setting 'teacher' has no default"),
        (("--teachers", '["a", 3]'), "teachers.*3"),
        (("--teachers", '["a", "b"]', "--evaluate_teacher", "true"), "evaluate_teacher is for one teacher"),
        (("--teachers", '["a", "b"]', "--caption_column", "null"), "pictures alone have one teacher"),
    ],
)
def test_settings_that_name_no_several_teachers_are_refused(arguments, message, tmp_path, settings_for):
    with pytest.raises(ValueError, match=message):
        settings_for(tmp_path / "student", *arguments)


def test_teachers_that_are_not_there_are_named(store, teacher, tmp_path, settings_for):
    def run(*arguments):
        distill(settings_for(tmp_path / "student", *DATA, *arguments))

    with pytest.raises(ValueError, match="no teacher 'huge', found large, small"):
        run("--teacher_store", store, "--teachers", '["large", "huge"]')
    revised = '["large", {"teacher": "small", "revision": "v2"}]'
    with pytest.raises(ValueError, match="made with revision None of the teacher, the run names 'v2'"):
        run("--teacher_store", store, "--teachers", revised)
    with pytest.raises(FileNotFoundError, match="teacher 'somewhere"):
        settings_for(tmp_path / "student", *DATA, "--teachers", listed(teacher, "somewhere/else/it/is")).check_places()
    with pytest.raises(ValueError, match="teachers: all methods are compared with one; pass --teacher"):
        ComparisonSettings(data="synthetic", teachers=["a", "b"])
    assert not (tmp_path / "student").exists()
