"""transformers' own pipelines take a student."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import make_student, save_tiny_model
from transformers import pipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("student")
    save_tiny_model("clip_rd", folder)
    return str(folder)


@pytest.fixture
def images():
    generator = np.random.default_rng(1)
    return [Image.fromarray(generator.integers(0, 255, (20, 24, 3), dtype=np.uint8)) for _ in range(3)]


def test_image_features_are_the_embeddings_of_the_images(folder, images):
    model, processor = make_student()
    with torch.no_grad():
        expected = model(**processor.image_processor(images, return_tensors="pt"))
        texts = model(**processor.tokenizer(["a", "bb"], padding=True, return_tensors="pt"))
    assert expected.logits_per_image is None and expected.text_embeds is None and expected.loss is None
    # Texts alone give theirs.
    torch.testing.assert_close(texts.text_embeds.norm(dim=-1), torch.ones(2))
    assert texts.image_embeds is None and texts.loss is None
    embed = pipeline("image-feature-extraction", model=folder)
    for batch_size in (1, 2):
        found = embed(images, batch_size=batch_size, return_tensors=True)
        torch.testing.assert_close(torch.cat(list(found)), expected.image_embeds, rtol=0, atol=1e-6)
    assert np.shape(embed(images[0])) == (1, 12)
    with pytest.raises(ValueError, match="No pooled output"):
        embed(images[0], pool=True)


def test_zero_shot_classification_takes_batches(folder, images):
    classify = pipeline("zero-shot-image-classification", model=folder)
    labels = ["red", "blue", "green"]
    alone = [classify(image, candidate_labels=labels) for image in images]
    together = classify(images, candidate_labels=labels, batch_size=3)
    for one, two in zip(alone, together, strict=True):
        scores = {row["label"]: row["score"] for row in two}
        assert {row["label"]: row["score"] for row in one} == pytest.approx(scores)
