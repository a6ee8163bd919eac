"""The tasks of the built-in data: questions, pictures and classes."""

import numpy as np
from emoji_font import FOUND, few_emoji, needs_font

from hf_blemo.built_in import make_synthetic_pairs
from hf_blemo.built_in.emoji_pairs import make_emoji_pairs, rows_of_kind
from hf_blemo.built_in.synthetic_pairs import _held_out_pairs
from hf_blemo.clip_evaluation.built_in_tasks import _shape_and_colour, emoji_tasks, synthetic_tasks
from hf_blemo.clip_evaluation.tasks import make_tasks

__all__ = ["few_emoji"]

SIZE = 64


def test_synthetic_tasks_ask_for_shape_and_colour():
    tasks = synthetic_tasks(images=20, combinations=2)
    assert set(tasks) == {"zero_shot", "held_out_zero_shot", "retrieval"}
    classes = [{_shape_and_colour(prompt) for prompt in prompts} for prompts in tasks["zero_shot"].prompts]
    assert len(classes) == 36 and {len(named) for named in classes} == {1}
    held_out = make_synthetic_pairs(20, seed=10_000, held_out=True, combinations=2)["caption"]
    drawn = [caption for (caption,) in tasks["retrieval"].captions]
    for name, captions in (("zero_shot", drawn), ("held_out_zero_shot", held_out)):
        for label, caption in zip(tasks[name].labels, captions, strict=True):
            assert caption in tasks[name].prompts[label]
            assert (_shape_and_colour(caption) in _held_out_pairs(2)) == (name == "held_out_zero_shot")
    assert len(set(drawn)) == len(drawn) == 20 and tasks["retrieval"].images is tasks["zero_shot"].images


@needs_font
def test_emoji_tasks_ask_for_what_training_has_not_shown(few_emoji):
    options = {"image_size": SIZE, "combinations": 1, "font": str(FOUND)}
    tasks = make_tasks({"emoji": {"kind": "emoji", "options": options}})
    assert set(tasks) == {"zero_shot", "held_out_zero_shot", "held_out_faces", "retrieval"}
    train, held_out, everything = (
        make_emoji_pairs(SIZE, part, 1, str(FOUND))["caption"] for part in ("train", "held_out", "all")
    )

    def named(task):
        return [task.prompts[label] for label in task.labels]

    for name, kinds in (("held_out_zero_shot", ("role",)), ("held_out_faces", ("face",))):
        task = tasks[name]
        assert named(task) == [[held_out[row]] for row in rows_of_kind(held_out, kinds)]
        assert task.prompts == [[everything[row]] for row in rows_of_kind(everything, kinds)]
        assert len(task.images) == len(task.labels) >= 5 and task.images[0].size == (SIZE, SIZE)
    seen = tasks["zero_shot"]
    assert named(seen) == [[train[row]] for row in rows_of_kind(train, ("flag", "face"))]
    assert set(held_out) & {caption for (caption,) in seen.prompts}
    retrieval = tasks["retrieval"]
    assert [caption for (caption,) in retrieval.captions] == held_out and len(set(held_out)) == len(held_out)
    assert len(retrieval.images) == len(held_out)


@needs_font
def test_emoji_that_training_shows_are_asked_for_in_other_crops(few_emoji):
    crops, again, others = (emoji_tasks(SIZE, seed=seed)["zero_shot"].images for seed in (7, 7, 8))
    train = make_emoji_pairs(SIZE)
    pictures = [np.asarray(train[row]["image"], float) for row in rows_of_kind(train["caption"], ("flag", "face"))]
    changed = compared = 0
    for number, (picture, crop, same, other) in enumerate(zip(pictures, crops, again, others, strict=True)):
        assert crop.size == (SIZE, SIZE) and np.array_equal(np.asarray(crop), np.asarray(same))
        assert not np.array_equal(np.asarray(crop), np.asarray(other))
        own = np.asarray(crop, float)
        # Larger than it was, and yet nearer to its own picture than to most others.
        assert (own < 250).any(-1).sum() > (picture < 250).any(-1).sum()
        if number % 4 == 0:
            nearer = sum(np.abs(own - another).mean() < np.abs(own - picture).mean() for another in pictures)
            changed += nearer > len(pictures) / 2
            compared += 1
    assert compared > 40 and changed < compared / 20
