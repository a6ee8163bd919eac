"""A CLIP is worth what a direct computation says, whatever images and captions it is asked about."""

import json

import pytest
import torch
from pair_files import encoded, picture
from tiny_models import make_student
from transformers import CLIPModel

from hf_blemo.clip_evaluation.evaluator import ClipEvaluator, RetrievalTask, ZeroShotTask
from hf_blemo.clip_evaluation.retrieval import one_caption_recall, retrieval_recall
from hf_blemo.clip_evaluation.zero_shot import class_embeddings, zero_shot_accuracy
from hf_blemo.pairs.pair_processor import PairProcessor

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")
PROMPTS = [[f"a drawing of {name}", f"{name} on the left"] for name in COLOURS]


@pytest.fixture(scope="module")
def clip():
    student, given = make_student(0)
    return student.to_clip(), PairProcessor(given.tokenizer, given.image_processor, student.config.text_config)


@torch.no_grad()
def images_of(clip, images):
    """Each by itself."""
    model, processor = clip
    pixels = [processor.image_processor(image.convert("RGB"), return_tensors="pt")["pixel_values"] for image in images]
    return torch.cat([model.get_image_features(pixel_values=one).pooler_output for one in pixels])


@torch.no_grad()
def texts_of(clip, texts):
    model, processor = clip
    tokens = [processor.tokenizer([text], return_tensors="pt") for text in texts]
    return torch.cat([model.get_text_features(**one).pooler_output for one in tokens])


@pytest.mark.parametrize("batch_size", [4, 64])
def test_zero_shot_is_the_nearest_mean_of_prompts(clip, batch_size):
    images, labels = [picture(number) for number in range(30)], [number % 6 for number in range(30)]
    task = ZeroShotTask(images, labels, PROMPTS, "pictures")
    found = ClipEvaluator({"a": task}, batch_size).evaluate(*clip)["a"]
    classes = class_embeddings(lambda texts: texts_of(clip, texts), PROMPTS)
    expected = zero_shot_accuracy(images_of(clip, images), classes, labels)
    assert {key: found[key] for key in expected} == pytest.approx(expected, abs=1e-6)
    assert [found[key] for key in ("kind", "data", "images", "classes")] == ["zero_shot", "pictures", 30, 6]


def test_retrieval_counts_any_caption_or_the_first_alone(clip):
    words = [*COLOURS, "ring", "circle", "left", "right"]
    captions = [[f"{words[i]} {words[j]} {k}" for k in ("one", "two", "three")] for i in range(4) for j in range(10)]
    captions[3] = captions[3][:1]
    images = [picture(number) for number in range(40)]
    found = ClipEvaluator({"a": RetrievalTask(images, captions, "pictures")}, 7).evaluate(*clip)["a"]
    flat = [caption for own in captions for caption in own]
    owners = [number for number, own in enumerate(captions) for _ in own]
    embeds = images_of(clip, images), texts_of(clip, flat)
    expected = retrieval_recall(*embeds, owners) | one_caption_recall(*embeds, owners)
    assert {key: found[key] for key in expected} == pytest.approx(expected, abs=1e-6)
    assert (found["images"], found["captions"]) == (40, len(flat))
    shares = {f"a/{key}" for key, value in found.items() if isinstance(value, float)}
    assert set(ClipEvaluator.flat({"a": found})) == shares
    json.dumps(found)


def test_tasks_share_the_embeddings_of_images_and_prompts(clip, monkeypatch):
    seen = {"image": [], "text": []}

    def count(side, original):
        def counted(self, **inputs):
            seen[side].append(len(next(iter(inputs.values()))))
            return original(self, **inputs)

        monkeypatch.setattr(CLIPModel, f"get_{side}_features", counted)

    count("image", CLIPModel.get_image_features)
    count("text", CLIPModel.get_text_features)
    images = [picture(number) for number in range(10)]
    tasks = {
        "a": ZeroShotTask(images, [0] * 10, PROMPTS),
        "b": ZeroShotTask(list(images), [0] * 10, PROMPTS),
        "c": ZeroShotTask(images, [0] * 10, list(PROMPTS)),
    }
    found = ClipEvaluator(tasks, 8).evaluate(*clip)
    assert seen == {"image": [8, 2, 8, 2], "text": [8, 4, 8, 4]} and found["a"] == found["b"] == found["c"]


def test_broken_images_are_left_out_and_counted(clip):
    images = [encoded(picture(number)) for number in range(8)]
    broken = [*images[:3], b"no picture", *images[3:], images[0][:60]]
    words = [*COLOURS, "ring", "circle"]
    labels = [0, 1, 2, 5, 3, 4, 5, 0, 1, 5]
    task = {
        "a": ZeroShotTask(broken, labels, PROMPTS),
        "b": RetrievalTask(broken, [[word] for word in (*words[:3], "plain", *words[3:], "striped")]),
    }
    sound = {
        "a": ZeroShotTask(images, [0, 1, 2, 3, 4, 5, 0, 1], PROMPTS),
        "b": RetrievalTask(images, [[word] for word in words]),
    }
    found, expected = (ClipEvaluator(tasks).evaluate(*clip) for tasks in (task, sound))
    for name in task:
        assert found[name].pop("broken") == 2
        examples = found[name].pop("broken_examples")
        assert examples[0].startswith("image 3: ") and examples[1].startswith("image 9: ")
        assert found[name] == expected[name] and found[name]["images"] == 8
    with pytest.raises(ValueError, match="task 'x': none of 2 images can be read"):
        ClipEvaluator({"x": ZeroShotTask([b"", b"no"], [0, 1], PROMPTS)}).evaluate(*clip)


def test_a_model_comes_back_in_the_mode_it_came_in(clip):
    model, processor = clip
    try:
        for training in (True, False):
            model.train(training)
            ClipEvaluator({"a": ZeroShotTask([picture(0)], [0], PROMPTS)}).evaluate(model, processor)
            assert model.training == training
            with pytest.raises(ValueError, match="expected labels from 0 to 5, found"):
                ClipEvaluator({"a": ZeroShotTask([picture(0)], [6], PROMPTS)}).evaluate(model, processor)
            assert model.training == training
    finally:
        model.eval()
