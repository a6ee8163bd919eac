"""The tasks of the built-in data: what is asked, of which pictures, among which classes."""

import numpy as np
from emoji_font import FOUND, needs_font

from hf_blemo.built_in.emoji_pairs import make_emoji_pairs, rows_of_kind
from hf_blemo.built_in.synthetic_pairs import held_out_pairs
from hf_blemo.clip_evaluation.built_in_tasks import emoji_tasks, synthetic_tasks
from hf_blemo.clip_evaluation.tasks import make_tasks


def named(task):
    return [task.class_names[label] for label in task.labels]


def test_synthetic_tasks_ask_for_shape_and_colour():
    tasks = synthetic_tasks(images=20, combinations=2)
    assert set(tasks) == {"zero_shot", "held_out_zero_shot", "retrieval"}
    held_out = {f"{colour} {shape}" for shape, colour in held_out_pairs(2)}
    assert set(named(tasks["held_out_zero_shot"])) <= held_out
    assert not set(named(tasks["zero_shot"])) & held_out
    for label, (caption,) in zip(named(tasks["zero_shot"]), tasks["retrieval"].captions, strict=True):
        assert caption in tasks["zero_shot"].prompts[tasks["zero_shot"].class_names.index(label)]


@needs_font
def test_emoji_tasks_ask_for_what_training_has_not_shown():
    tasks = emoji_tasks(combinations=1)
    assert set(tasks) == {"zero_shot", "held_out_zero_shot", "held_out_faces", "retrieval"}
    train, held_out, everything = (
        make_emoji_pairs(part=part, combinations=1)["caption"] for part in ("train", "held_out", "all")
    )
    for name, kinds in (("held_out_zero_shot", ("role",)), ("held_out_faces", ("face",))):
        task = tasks[name]
        assert named(task) == [held_out[row] for row in rows_of_kind(held_out, kinds)]
        assert list(task.class_names) == [everything[row] for row in rows_of_kind(everything, kinds)]
        assert task.prompts == [[caption] for caption in task.class_names]
        assert len(task.images) == len(task.labels) > 5
    seen = tasks["zero_shot"]
    assert named(seen) == [train[row] for row in rows_of_kind(train, ("flag", "face"))]
    assert set(held_out) & set(seen.class_names)
    retrieval = tasks["retrieval"]
    assert [caption for (caption,) in retrieval.captions] == held_out and len(set(held_out)) == len(held_out)
    assert len(retrieval.images) == len(held_out)


@needs_font
def test_emoji_that_training_shows_are_asked_for_in_other_crops():
    crops, again, others = (emoji_tasks(seed=seed)["zero_shot"] for seed in (7, 7, 8))
    train = make_emoji_pairs()
    pictures = [np.asarray(train[row]["image"], float) for row in rows_of_kind(train["caption"], ("flag", "face"))]
    changed = compared = 0
    rows = zip(pictures, crops.images, again.images, others.images, strict=True)
    for number, (picture, crop, same, other) in enumerate(rows):
        assert crop.size == (64, 64) and np.array_equal(np.asarray(crop), np.asarray(same))
        assert not np.array_equal(np.asarray(crop), np.asarray(other))
        own = np.asarray(crop, float)
        # Larger than it was, and yet nearer to its own picture than to most others.
        assert (own < 250).any(-1).sum() > (picture < 250).any(-1).sum()
        if number % 8 == 0:
            nearer = sum(np.abs(own - another).mean() < np.abs(own - picture).mean() for another in pictures)
            changed += nearer > len(pictures) / 2
            compared += 1
    assert compared > 40 and changed < compared / 20


@needs_font
def test_emoji_tasks_are_made_from_settings():
    options = {"image_size": 32, "combinations": 2, "font": str(FOUND)}
    made = make_tasks({"emoji": {"kind": "emoji", "options": options}})
    expected = make_emoji_pairs(32, "held_out", 2, str(FOUND))["caption"]
    assert [caption for (caption,) in made["retrieval"].captions] == expected
    assert made["held_out_faces"].images[0].size == (32, 32)
