"""The drawn pairs: always the same, every word of a caption shows, and what is held out is never drawn."""

import itertools

import datasets
import numpy as np
import pytest

from hf_blemo.built_in import caption_of, draw_scene, make_synthetic_pairs, synthetic_tokenizer
from hf_blemo.built_in.synthetic_pairs import COLOURS, SHAPES, _held_out_pairs
from hf_blemo.clip_evaluation.built_in_tasks import _shape_and_colour

NAMES = ("shape", "colour", "size", "texture", "position", "count", "background")
SCENE = dict(zip(NAMES, ("square", "red", "large", "plain", "left", "two", "white"), strict=True))
OTHER = dict(zip(NAMES, ("ring", "blue", "small", "striped", "top", "three", "black"), strict=True))


def test_the_same_pairs_every_time_and_others_for_another_seed():
    first, again = make_synthetic_pairs(30, seed=3), make_synthetic_pairs(30, seed=3)
    assert first["caption"] == again["caption"]
    for one, other in zip(first["image"], again["image"], strict=True):
        assert np.array_equal(np.asarray(one), np.asarray(other))
    stored = make_synthetic_pairs(2, image_size=40).cast_column("image", datasets.Image(decode=False))
    assert first[0]["image"].size == (32, 32) and stored[0]["image"]["bytes"].startswith(b"\x89PNG")
    assert make_synthetic_pairs(2, image_size=40)[0]["image"].size == (40, 40)
    assert make_synthetic_pairs(30, seed=4)["caption"] != first["caption"]
    assert make_synthetic_pairs(10, seed=3)["caption"] == first["caption"][:10]


def test_every_word_of_a_caption_changes_the_picture_and_pictures_of_one_differ_a_little():
    for name in SCENE:
        plain, changed = draw_scene(**SCENE), draw_scene(**{**SCENE, name: OTHER[name]})
        difference = np.abs(np.asarray(plain, float) - np.asarray(changed, float)).max(-1)
        assert (difference > 40).sum() > 8
        assert caption_of(**SCENE) != caption_of(**{**SCENE, name: OTHER[name]})
    one, other = (draw_scene(**SCENE, generator=np.random.default_rng(seed)) for seed in (0, 1))
    assert not np.array_equal(np.asarray(one), np.asarray(other))
    # Less than another colour does.
    distance = np.abs(np.asarray(one, float) - np.asarray(other, float)).mean()
    assert distance < np.abs(np.asarray(one, float) - np.asarray(draw_scene(**OTHER), float)).mean() / 3


def test_held_out_combinations_are_drawn_there_and_nowhere_else():
    drawn, kept_back = (
        {_shape_and_colour(caption) for caption in make_synthetic_pairs(400, held_out=held_out)["caption"]}
        for held_out in (False, True)
    )
    assert kept_back == set(_held_out_pairs()) and len(kept_back) == 6
    assert drawn == set(itertools.product(SHAPES, COLOURS)) - kept_back
    # No choice shares a pair with another.
    assert len({pair for number in range(6) for pair in _held_out_pairs(number)}) == 36
    with pytest.raises(ValueError, match="combinations 6 is not one of 0 to 5"):
        _held_out_pairs(6)


def test_the_tokenizer_knows_every_word_and_ends_every_caption():
    tokenizer = synthetic_tokenizer()
    captions = [caption_of(**{**SCENE, **change}) for change in ({}, {"count": "one"}, {"shape": "cross"})]
    encoded = tokenizer(captions, padding=True)
    assert set(encoded) == {"input_ids", "attention_mask"}
    for ids, caption in zip(encoded["input_ids"], captions, strict=True):
        assert tokenizer.unk_token_id not in ids and ids.count(tokenizer.eos_token_id) == 1
        assert tokenizer.decode(ids, skip_special_tokens=True) == caption
    assert tokenizer("square").input_ids != tokenizer("ring").input_ids


def test_invalid_sizes_are_refused():
    with pytest.raises(ValueError, match="found 0 and 32"):
        make_synthetic_pairs(0)
    with pytest.raises(ValueError, match="image_size >= 16, found 10 and 8"):
        make_synthetic_pairs(10, image_size=8)
