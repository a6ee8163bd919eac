"""The emoji: all of them, each captioned by what it shows, and held out so that training has every word."""

import io
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from emoji_font import FOUND, needs_font
from matplotlib import font_manager
from PIL import Image, features

from hf_blemo.built_in import emoji_pairs
from hf_blemo.built_in.emoji_pairs import (
    KINDS,
    NUM_COMBINATIONS,
    emoji_table,
    emoji_tokenizer,
    find_emoji_font,
    held_out_emoji,
    make_emoji_pairs,
    rows_of_kind,
)
from hf_blemo.built_in.word_tokenizer import split_words
from hf_blemo.errors import MissingExtraError


def words_of(captions):
    return {word for caption in captions for word in split_words(caption.lower())}


def caption_of(sequence):
    return {emoji.sequence: emoji.caption for emoji in emoji_table()}[sequence]


def pixels_of(data):
    return {row["caption"]: np.asarray(row["image"], dtype=float) for row in data}


def test_names_become_phrases():
    woman, man, firefighter, medium, dark = "\U0001f469", "\U0001f468", "\u200d\U0001f692", "\U0001f3fd", "\U0001f3ff"
    assert caption_of(woman + medium + firefighter) == "woman firefighter with medium skin tone"
    assert caption_of(man + "\u200d\U0001f9b2") == "bald man"
    assert caption_of(man + dark + "\u200d\U0001f9b0") == "man with red hair and dark skin tone"
    assert caption_of(f"{woman}{medium}\u200d\u2764\ufe0f\u200d\U0001f48b\u200d{man}{dark}") == (
        "kiss of woman and man with medium skin tone and dark skin tone"
    )
    assert caption_of("\U0001f468\u200d\U0001f469\u200d\U0001f467") == "family of man, woman and girl"
    assert caption_of("\U0001f1f8\U0001f1ea") == "flag of Sweden"
    assert caption_of("\U0001f1fa\U0001f1f8") == "flag of the United States"
    assert caption_of("\U0001f1f9\U0001f1f9") == "flag of Trinidad and Tobago"
    assert caption_of("\U0001f604") == "grinning face with smiling eyes"
    captions = [emoji.caption for emoji in emoji_table()]
    assert not [caption for caption in captions if "_" in caption or "&" in caption or caption != caption.strip()]
    assert len({caption.lower() for caption in captions}) == len(captions)


def test_a_role_is_a_person_a_man_and_a_woman_in_every_skin_tone():
    roles = [emoji for emoji in emoji_table() if emoji.kind == "role"]
    counts = Counter(emoji.role for emoji in roles)
    assert len(counts) > 60 and set(counts.values()) <= {18, 33}
    one = {(emoji.person, emoji.tone): emoji.caption for emoji in roles if "firefighter" in emoji.caption}
    assert len(one) == 18
    assert one[0, -1] == "firefighter" and one[1, 0] == "man firefighter with light skin tone"
    assert one[2, 4] == "woman firefighter with dark skin tone"
    captions = {emoji.caption for emoji in roles}
    assert "man running with medium skin tone" in captions
    # They are in the sequences of roles, or are no role in all three persons.
    assert not captions & {"fire engine", "artist palette", "man", "prince", "waving hand"}
    kinds = Counter(emoji.kind for emoji in emoji_table())
    assert kinds["flag"] > 250 and kinds["face"] > 100


def test_every_choice_holds_out_three_combinations_of_each_role_and_no_two_choices_the_same():
    table = emoji_table()
    chosen = [held_out_emoji(table, combinations) for combinations in range(NUM_COMBINATIONS)]
    for held_out in chosen:
        counts = Counter(emoji.role for emoji in held_out if emoji.kind == "role" and emoji.tone >= 0)
        assert set(counts.values()) == {3}
        assert set(counts) == {emoji.role for emoji in table if emoji.kind == "role"}
        assert {emoji.person for emoji in held_out if emoji.kind == "role"} == {0, 1, 2}
        assert {emoji.tone for emoji in held_out if emoji.kind == "role"} == {0, 1, 2, 3, 4}
        train = set(table) - set(held_out)
        for name in ("person", "tone"):
            everywhere = {(emoji.role, getattr(emoji, name)) for emoji in table if emoji.kind == "role"}
            assert {(emoji.role, getattr(emoji, name)) for emoji in train if emoji.kind == "role"} == everywhere
        kinds = Counter(emoji.kind for emoji in held_out)
        assert kinds["face"] >= 8 and kinds["flag"] >= 5 and kinds["other"] == 0
        known = [emoji for emoji in held_out if emoji.kind != "flag"]
        assert words_of(emoji.caption for emoji in known) <= words_of(emoji.caption for emoji in train)
    assert sum(map(len, chosen)) == len(set().union(*chosen))
    with pytest.raises(ValueError, match=f"combinations {NUM_COMBINATIONS} is not one of 0 to"):
        held_out_emoji(table, NUM_COMBINATIONS)


@needs_font
def test_every_emoji_is_in_training_or_held_out_and_training_has_every_word():
    everything = make_emoji_pairs(part="all")["caption"]
    assert len(everything) > 3000 and len(set(everything)) == len(everything)
    for combinations in range(NUM_COMBINATIONS):
        parts = {part: make_emoji_pairs(part=part, combinations=combinations)["caption"] for part in emoji_pairs.PARTS}
        assert parts["all"] == everything
        assert not set(parts["train"]) & set(parts["held_out"])
        assert sorted((*parts["train"], *parts["held_out"])) == sorted(everything)
        known = [parts["held_out"][row] for row in rows_of_kind(parts["held_out"], ("role", "face"))]
        assert len(known) > 180 and words_of(known) <= words_of(parts["train"])


@needs_font
def test_pictures_are_small_on_white_and_the_same_every_time(monkeypatch):
    first = make_emoji_pairs(part="held_out")
    stored = first.cast_column("image", first.features["image"].__class__(decode=False))["image"]
    assert all(image["bytes"].startswith(b"\x89PNG") for image in stored)
    # Every eighth is drawn once more, past what is kept.
    kept = {emoji: encoded for emoji, encoded in emoji_pairs._drawn_pictures(64, FOUND)}
    some = list(kept)[::8]
    monkeypatch.setattr(emoji_pairs, "emoji_table", lambda: some)
    again = dict(emoji_pairs._drawn_pictures.__wrapped__(64, FOUND))
    assert len(again) == len(some) > 400 and again == {emoji: kept[emoji] for emoji in some}
    for image in first["image"]:
        assert image.size == (64, 64) and image.mode == "RGB"
        pixels = np.asarray(image)
        # Nothing is cut off, and there is something in the middle.
        assert (np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]) > 235).all()
        assert pixels[16:48, 16:48].min() < 200


@needs_font
def test_one_name_is_one_picture():
    pictures = pixels_of(make_emoji_pairs(part="all"))
    assert len({pixels.tobytes() for pixels in pictures.values()}) == len(pictures)
    # They are drawn alike: only the shorter name is there.
    assert "flag of Norway" in pictures and "flag of Bouvet Island" not in pictures
    roles: dict = {}
    for emoji in emoji_table():
        if emoji.kind == "role" and emoji.tone >= 0 and emoji.caption in pictures:
            roles.setdefault((emoji.role, emoji.person), []).append(pictures[emoji.caption])
    assert len(roles) > 180
    for shown in roles.values():
        assert len(shown) == 5
        for tone, pixels in enumerate(shown):
            assert all(np.abs(pixels - other).max() > 25 for other in shown[:tone])


@needs_font
def test_what_the_font_lacks_or_draws_in_pieces_is_left_out():
    font = emoji_pairs._EmojiFont(FOUND)
    face, cat = "\U0001f600", "\U0001f408"
    assert font.draw(face) is not None and font.draw(cat) is not None
    pieces = (face + cat, f"{face}\u200d{cat}", f"{cat}\U0001f3fd")
    # Of country codes that nobody has, and of characters that are none.
    unknown = ("\U0001f1fd\U0001f1fd", "\U0001f1fd\U0001f1f7", "\U0001fbff", "\ue000")
    for lacking in (*pieces, *unknown):
        assert font.draw(lacking) is None
    drawn = set(make_emoji_pairs(part="all")["caption"])
    lengths = {font.font.getlength(emoji.sequence) for emoji in emoji_table() if emoji.caption in drawn}
    assert max(lengths) - min(lengths) <= 2


def test_the_tokenizer_knows_every_word_without_a_font(monkeypatch):
    monkeypatch.setattr(emoji_pairs, "find_emoji_font", lambda: pytest.fail("looked for a font"))
    tokenizer = emoji_tokenizer()
    captions = [emoji.caption for emoji in emoji_table()]
    encoded = tokenizer(captions)
    assert set(encoded) == {"input_ids", "attention_mask"}
    assert max(map(len, encoded["input_ids"])) <= tokenizer.model_max_length
    assert not any(tokenizer.unk_token_id in ids for ids in encoded["input_ids"])
    assert len({tuple(ids) for ids in encoded["input_ids"]}) == len(captions)
    ids = tokenizer("Woman Firefighter with medium-light skin tone").input_ids
    assert tokenizer.decode(ids) == "<start> woman firefighter with medium - light skin tone <end>"
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id) == (0, 1)


def test_settings_that_make_no_pairs_are_refused():
    with pytest.raises(ValueError, match="part 'test' is not one of train, held_out, all"):
        make_emoji_pairs(part="test")
    with pytest.raises(ValueError, match="image_size >= 16, found 8"):
        make_emoji_pairs(8)
    with pytest.raises(ValueError, match=f"kind 'animal' is not one of {', '.join(KINDS)}"):
        rows_of_kind([], ("animal",))


def test_what_is_missing_is_named(monkeypatch, tmp_path):
    # A package that is not there, whether it is or not.
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "emoji", None)
        emoji_table.cache_clear()
        with pytest.raises(MissingExtraError, match=r"pip install hf_blemo\[emoji\]"):
            emoji_tokenizer()
    with monkeypatch.context() as patched:
        patched.setattr(emoji_pairs, "FONT_FOLDERS", (str(tmp_path),))
        patched.setattr(emoji_pairs.shutil, "which", lambda program: None)
        with pytest.raises(FileNotFoundError, match="apt install fonts-noto-color-emoji, or set the option font"):
            find_emoji_font()
        (tmp_path / "NotoColorEmoji.ttf").touch()
        assert find_emoji_font() == tmp_path / "NotoColorEmoji.ttf"
    for feature, package in (("raqm", "libraqm0"), ("fribidi", "libfribidi0")):
        with monkeypatch.context() as patched:
            patched.setattr(features, "check", lambda asked, missing=feature: asked != missing)
            with pytest.raises(MissingExtraError, match=f"without {feature}; apt install {package}"):
                make_emoji_pairs(17, font=str(tmp_path / "NotoColorEmoji.ttf"))


@needs_font
def test_other_fonts_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no file"):
        make_emoji_pairs(font=str(tmp_path / "none.ttf"))
    (tmp_path / "empty.ttf").touch()
    with pytest.raises(ValueError, match="expected coloured bitmaps of 109 pixels"):
        make_emoji_pairs(font=str(tmp_path / "empty.ttf"))
    outlines = Path(font_manager.findfont("DejaVu Sans"))
    with pytest.raises(ValueError, match="expected coloured bitmaps of 109 pixels.*found none of a face"):
        make_emoji_pairs(font=str(outlines))


@needs_font
def test_the_default_font_can_be_named():
    named, found = make_emoji_pairs(part="held_out", font=str(FOUND)), make_emoji_pairs(part="held_out")
    assert named["caption"] == found["caption"]
    raw = found.cast_column("image", found.features["image"].__class__(decode=False))[0]["image"]["bytes"]
    assert Image.open(io.BytesIO(raw)).size == (64, 64)
