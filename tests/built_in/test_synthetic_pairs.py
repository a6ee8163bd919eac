"""The drawn pairs: always the same, every word of a caption shows, and what is held out is never drawn."""

import io
import itertools

import numpy as np
import pytest

from hf_blemo.built_in.synthetic_pairs import (
    SHAPES,
    caption_of,
    draw_scene,
    held_out_pairs,
    make_synthetic_pairs,
    synthetic_tokenizer,
)

SCENE = {
    "shape": "square",
    "colour": "red",
    "size": "large",
    "texture": "plain",
    "position": "left",
    "count": "two",
    "background": "white",
}
OTHER = {
    "shape": "ring",
    "colour": "blue",
    "size": "small",
    "texture": "striped",
    "position": "top",
    "count": "three",
    "background": "black",
}


def test_the_same_pairs_every_time_and_others_for_another_seed():
    first, again = make_synthetic_pairs(30, seed=3), make_synthetic_pairs(30, seed=3)
    assert first["caption"] == again["caption"]
    for one, other in zip(first["image"], again["image"], strict=True):
        assert np.array_equal(np.asarray(one), np.asarray(other))
    assert make_synthetic_pairs(30, seed=4)["caption"] != first["caption"]
    assert make_synthetic_pairs(10, seed=3)["caption"] == first["caption"][:10]


def test_images_have_the_size_asked_for_and_are_stored_as_png():
    data = make_synthetic_pairs(2, image_size=40)
    assert data[0]["image"].size == (40, 40) and data[0]["image"].mode == "RGB"
    raw = data.cast_column("image", data.features["image"].__class__(decode=False))[0]["image"]
    assert raw["bytes"].startswith(b"\x89PNG") and io.BytesIO(raw["bytes"])


@pytest.mark.parametrize("name", SCENE)
def test_every_word_of_a_caption_changes_the_picture(name):
    plain, changed = draw_scene(**SCENE), draw_scene(**{**SCENE, name: OTHER[name]})
    difference = np.abs(np.asarray(plain, float) - np.asarray(changed, float)).max(-1)
    assert (difference > 40).sum() > 8
    assert caption_of(**SCENE) != caption_of(**{**SCENE, name: OTHER[name]})


def test_pictures_of_one_caption_differ_a_little():
    one, other = (draw_scene(**SCENE, generator=np.random.default_rng(seed)) for seed in (0, 1))
    assert not np.array_equal(np.asarray(one), np.asarray(other))
    # Less than another colour does.
    distance = np.abs(np.asarray(one, float) - np.asarray(other, float)).mean()
    assert distance < np.abs(np.asarray(one, float) - np.asarray(draw_scene(**OTHER), float)).mean() / 3


def test_held_out_combinations_are_drawn_there_and_nowhere_else():
    words = {True: set(), False: set()}
    for held_out in words:
        for caption in make_synthetic_pairs(400, held_out=held_out)["caption"]:
            tokens = caption.split()
            shape = tokens[4] if tokens[0] == "one" else {plural: name for name, plural in SHAPES.items()}[tokens[4]]
            words[held_out].add((shape, tokens[3]))
    assert words[True] == set(held_out_pairs())
    assert not words[False] & words[True]
    assert {shape for shape, _ in words[False]} == set(SHAPES)
    assert len(words[False]) == 30


def test_the_tokenizer_knows_every_word_and_ends_every_caption():
    tokenizer = synthetic_tokenizer()
    captions = [caption_of(**{**SCENE, **change}) for change in ({}, {"count": "one"}, {"shape": "cross"})]
    encoded = tokenizer(captions, padding=True)
    assert set(encoded) == {"input_ids", "attention_mask"}
    for ids, caption in zip(encoded["input_ids"], captions, strict=True):
        assert tokenizer.unk_token_id not in ids and ids.count(tokenizer.eos_token_id) == 1
        assert tokenizer.decode(ids, skip_special_tokens=True) == caption
    shapes = [[SCENE["shape"]], [OTHER["shape"]]]
    assert len({tuple(tokenizer(" ".join(shape)).input_ids) for shape in itertools.chain(shapes)}) == 2


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="found 0 and 32"):
        make_synthetic_pairs(0)
    with pytest.raises(ValueError, match="image_size >= 16, found 10 and 8"):
        make_synthetic_pairs(10, image_size=8)
