"""Prompts are averaged as embeddings of length 1, and accuracy counts what a person would count."""

import pytest
import torch

from hf_blemo.clip_evaluation.zero_shot import class_embeddings, zero_shot_accuracy

VECTORS = {"a cat": [3.0, 0.0], "the cat": [0.0, 0.5], "a dog": [-1.0, 0.0], "the dog": [-5.0, 0.0]}


def test_a_class_is_the_mean_of_its_prompts_directions():
    def embed(texts):
        assert texts == list(VECTORS)
        return torch.tensor([VECTORS[text] for text in texts])

    found = class_embeddings(embed, [["a cat", "the cat"], ["a dog", "the dog"]])
    half = 0.5**0.5
    torch.testing.assert_close(found, torch.tensor([[half, half], [-1.0, 0.0]]))


def test_accuracy_by_hand():
    classes = torch.eye(3)
    images = torch.tensor([[9.0, 1, 0], [1.0, 9, 0], [1.0, 2, 0], [0.0, 0, 0.1]])
    found = zero_shot_accuracy(images, classes, [0, 0, 1, 2], (1, 2, 3, 5))
    assert found == {"top_1": 0.75, "top_2": 1.0, "top_3": 1.0}
    # Half of one class, all of another; the classes without images count for nothing.
    found = zero_shot_accuracy(images, torch.eye(3), [0, 0, 1, 1], (1,), per_class=True)
    assert found == {"top_1": 0.5, "mean_per_class_recall": 0.5}
    found = zero_shot_accuracy(images, torch.eye(3), [0, 1, 1, 1], (1,), per_class=True)
    assert found == {"top_1": 0.75, "mean_per_class_recall": pytest.approx((1 + 2 / 3) / 2)}
    # A model that cannot tell classes apart is right by chance.
    found = zero_shot_accuracy(torch.ones(4, 3), torch.ones(4, 3), [0, 1, 2, 3], (1, 2))
    assert found == {"top_1": 0.25, "top_2": 0.5}


def test_bad_input_is_named():
    for prompts, found in (([], r"\[\]"), ([["a cat"], []], r"\[1, 0\]")):
        with pytest.raises(ValueError, match=f"expected at least one prompt for every class, found {found}"):
            class_embeddings(lambda texts: torch.ones(len(texts), 2), prompts)
    for images, labels, message in (
        (torch.ones(2, 4), [0, 1], r"found \(2, 4\) and \(3, 3\)"),
        (torch.ones(2, 3), [0], "expected labels of 2 images"),
        (torch.ones(2, 3), [0, 3], r"expected labels from 0 to 2, found \[0, 3\]"),
        (torch.full((2, 3), torch.nan), [0, 1], "NaN"),
    ):
        with pytest.raises(ValueError, match=message):
            zero_shot_accuracy(images, torch.eye(3), labels)
