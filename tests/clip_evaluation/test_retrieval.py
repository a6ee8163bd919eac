"""Recall equals a count by hand, in both directions and protocols, whatever the blocks."""

import pytest
import torch

from hf_blemo.clip_evaluation import retrieval
from hf_blemo.clip_evaluation.retrieval import one_caption_recall, retrieval_recall


def by_hand(images, texts, owners, cutoffs=(1, 5, 10)):
    """Sorts everything; equal scores by number."""
    images = torch.nn.functional.normalize(images, dim=-1)
    texts = torch.nn.functional.normalize(texts, dim=-1)
    scores = (images @ texts.T).tolist()
    found = {}
    for cutoff in cutoffs:
        hits = 0
        for row in scores:
            first = sorted(range(len(row)), key=lambda place, row=row: (-row[place], place))[:cutoff]
            hits += any(owners[place] == scores.index(row) for place in first)
        found[f"image_to_text_r@{cutoff}"] = hits / len(images)
        hits = 0
        for place, owner in enumerate(owners):
            column = [row[place] for row in scores]
            first = sorted(range(len(column)), key=lambda image, column=column: (-column[image], image))[:cutoff]
            hits += owner in first
        found[f"text_to_image_r@{cutoff}"] = hits / len(texts)
    return found


@pytest.fixture
def case():
    """30 images with 1 to 5 captions each, in shuffled order."""
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(1, 6, (30,), generator=generator)
    owners = torch.arange(30).repeat_interleave(counts)
    owners = owners[torch.randperm(len(owners), generator=generator)]
    images = torch.randn(30, 8, generator=generator)
    texts = images[owners] + 1.5 * torch.randn(len(owners), 8, generator=generator)
    return images, texts, owners.tolist()


@pytest.mark.parametrize("scores_at_once", [1, 100, 10**6])
def test_recall_is_what_sorting_gives(case, scores_at_once, monkeypatch):
    monkeypatch.setattr(retrieval, "SCORES_AT_ONCE", scores_at_once)
    found, expected = retrieval_recall(*case), by_hand(*case)
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-6), name
    assert 0.1 < found["image_to_text_r@1"] < found["image_to_text_r@5"] < 1
    assert found["image_to_text_r@1"] != found["text_to_image_r@1"]


def test_one_caption_counts_the_first_of_each_image_alone(case):
    images, texts, owners = case
    chosen = [owners.index(image) for image in range(30)]
    expected = by_hand(images, texts[chosen], list(range(30)))
    found = one_caption_recall(*case)
    assert {name.removeprefix("one_caption_"): pytest.approx(value) for name, value in found.items()} == expected
    standard = retrieval_recall(*case)
    assert any(found[f"one_caption_{name}"] != value for name, value in standard.items())


def test_any_of_five_captions_is_enough():
    images = torch.eye(2)
    texts = torch.tensor([[0.1, 1.0], [1.0, 0.0], [0.5, 1.0]])
    # The second caption is the first image's best; its first one fits the other image better, and so does not count.
    assert retrieval_recall(images, texts, [0, 0, 1], (1,)) == {
        "image_to_text_r@1": 0.5,
        "text_to_image_r@1": pytest.approx(2 / 3),
    }
    assert one_caption_recall(images, texts, [0, 0, 1], (1,)) == {
        "one_caption_image_to_text_r@1": 0.0,
        "one_caption_text_to_image_r@1": 0.5,
    }


def test_equal_scores_are_no_hit_for_all_of_them():
    """A model that gives every image one embedding finds one of n, not all."""
    found = retrieval_recall(torch.ones(10, 4), torch.ones(10, 4), range(10), cutoffs=(1, 5))
    assert [round(value, 6) for value in found.values()] == [0.1, 0.5, 0.1, 0.5]


def test_bad_input_is_named():
    for changes, message in (
        ({"texts": torch.ones(3, 5)}, r"expected image_embeds \(I, d\) .* found \(3, 4\) and \(3, 5\)"),
        ({"owners": [0, 1]}, "image_of_text of 3 captions, found"),
        ({"owners": [0, 1, 3]}, "image_of_text: found 3, expected 0 to 2"),
        ({"owners": [0, 1, 1]}, "image 2 has no caption"),
        ({"images": torch.full((3, 4), torch.nan)}, "image_embeds: found NaN"),
    ):
        case = {"images": torch.ones(3, 4), "texts": torch.ones(3, 4), "owners": [0, 1, 2], **changes}
        for function in (retrieval_recall, one_caption_recall):
            with pytest.raises(ValueError, match=message):
                function(case["images"], case["texts"], case["owners"])
