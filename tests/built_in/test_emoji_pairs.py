"""The emoji: each captioned by what it shows, and held out so that training has every word."""

import sys
from collections import Counter

import datasets
import numpy as np
import pytest
from emoji_font import FOUND, few_emoji, needs_font
from matplotlib import font_manager
from PIL import features
from tokenizers.pre_tokenizers import Whitespace

from hf_blemo.built_in import emoji_pairs, emoji_tokenizer, make_emoji_pairs
from hf_blemo.errors import MissingExtraError

__all__ = ["few_emoji"]


def words_of(captions):
    return {word for caption in captions for word, _ in Whitespace().pre_tokenize_str(caption.lower())}


def test_names_become_phrases():
    table = emoji_pairs._emoji_table()
    woman, man, firefighter, medium, dark = "\U0001f469", "\U0001f468", "\u200d\U0001f692", "\U0001f3fd", "\U0001f3ff"
    expected = {
        woman + medium + firefighter: "woman firefighter with medium skin tone",
        man + "\u200d\U0001f9b2": "bald man",
        man + dark + "\u200d\U0001f9b0": "man with red hair and dark skin tone",
        f"{woman}{medium}\u200d\u2764\ufe0f\u200d\U0001f48b\u200d{man}{dark}": (
            "kiss of woman and man with medium skin tone and dark skin tone"
        ),
        "\U0001f468\u200d\U0001f469\u200d\U0001f467": "family of man, woman and girl",
        "\U0001f1f8\U0001f1ea": "flag of Sweden",
        "\U0001f1fa\U0001f1f8": "flag of the United States",
        "\U0001f1f9\U0001f1f9": "flag of Trinidad and Tobago",
        "\U0001f604": "grinning face with smiling eyes",
    }
    captions = {emoji.sequence: emoji.caption for emoji in table}
    assert {sequence: captions[sequence] for sequence in expected} == expected
    assert not [text for text in captions.values() if "_" in text or "&" in text or text != text.strip()]
    assert len({caption.lower() for caption in captions.values()}) == len(captions)


def test_a_role_is_a_person_a_man_and_a_woman_in_every_skin_tone():
    roles = [emoji for emoji in emoji_pairs._emoji_table() if emoji.kind == "role"]
    counts = Counter(emoji.role for emoji in roles)
    assert len(counts) > 60 and set(counts.values()) <= {18, 33}
    one = {(emoji.person, emoji.tone): emoji.caption for emoji in roles if "firefighter" in emoji.caption}
    assert len(one) == 18 and one[0, -1] == "firefighter"
    assert one[1, 0] == "man firefighter with light skin tone" and one[2, 4] == "woman firefighter with dark skin tone"
    captions = {emoji.caption for emoji in roles}
    # Some are in the sequences of roles, or are no role in all three persons.
    others = {"fire engine", "artist palette", "man", "prince", "waving hand"}
    assert "man running with medium skin tone" in captions and not captions & others
    kinds = Counter(emoji.kind for emoji in emoji_pairs._emoji_table())
    assert kinds["flag"] > 250 and kinds["face"] > 100


def test_every_choice_holds_out_three_combinations_of_each_role_and_no_two_choices_the_same():
    table = emoji_pairs._emoji_table()
    chosen = [emoji_pairs._held_out_emoji(table, combinations) for combinations in range(4)]
    for held_out in chosen:
        roles = [emoji for emoji in held_out if emoji.kind == "role"]
        counts = Counter(emoji.role for emoji in roles if emoji.tone >= 0)
        assert set(counts.values()) == {3} and set(counts) == {emoji.role for emoji in table if emoji.kind == "role"}
        assert {emoji.person for emoji in roles} == {0, 1, 2} and {emoji.tone for emoji in roles} == {0, 1, 2, 3, 4}
        train = set(table) - set(held_out)
        for name in ("person", "tone"):
            everywhere, seen = (
                {(emoji.role, getattr(emoji, name)) for emoji in some if emoji.kind == "role"}
                for some in (table, train)
            )
            assert seen == everywhere
        kinds = Counter(emoji.kind for emoji in held_out)
        assert kinds["face"] >= 8 and kinds["flag"] >= 5 and kinds["other"] == 0
        known = [emoji for emoji in held_out if emoji.kind != "flag"]
        assert words_of(emoji.caption for emoji in known) <= words_of(emoji.caption for emoji in train)
    assert sum(map(len, chosen)) == len(set().union(*chosen))
    with pytest.raises(ValueError, match="combinations 4 is not one of 0 to 3"):
        emoji_pairs._held_out_emoji(table, 4)


def test_the_tokenizer_knows_every_word_without_a_font(monkeypatch):
    monkeypatch.setattr(emoji_pairs, "_find_font", lambda: pytest.fail("looked for a font"))
    tokenizer = emoji_tokenizer()
    captions = [emoji.caption for emoji in emoji_pairs._emoji_table()]
    encoded = tokenizer(captions)
    assert set(encoded) == {"input_ids", "attention_mask"}
    assert max(map(len, encoded["input_ids"])) <= tokenizer.model_max_length
    assert not any(tokenizer.unk_token_id in ids for ids in encoded["input_ids"])
    assert len({tuple(ids) for ids in encoded["input_ids"]}) == len(captions)
    ids = tokenizer("Woman Firefighter with medium-light skin tone").input_ids
    assert tokenizer.decode(ids) == "<start> woman firefighter with medium - light skin tone <end>"
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id) == (0, 1)


def test_errors_name_what_is_missing_or_invalid(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="part 'test' is not one of train, held_out, all"):
        make_emoji_pairs(part="test")
    with pytest.raises(ValueError, match="image_size >= 16, found 8"):
        make_emoji_pairs(8)
    # As if the package was not there, whether it is or not.
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "emoji", None)
        emoji_pairs._emoji_table.cache_clear()
        with pytest.raises(MissingExtraError, match="data 'emoji' needs emoji: pip install \"emoji>="):
            emoji_tokenizer()
    path = tmp_path / "NotoColorEmoji.ttf"
    with monkeypatch.context() as patched:
        patched.setattr(emoji_pairs, "_FONT_FOLDERS", (str(tmp_path),))
        patched.setattr(emoji_pairs.shutil, "which", lambda program: None)
        with pytest.raises(FileNotFoundError, match="apt install fonts-noto-color-emoji, or set the option font"):
            emoji_pairs._find_font()
        path.touch()
        assert emoji_pairs._find_font() == path
    for feature, package in (("raqm", "libraqm0"), ("fribidi", "libfribidi0")):
        with monkeypatch.context() as patched:
            patched.setattr(features, "check", lambda asked, missing=feature: asked != missing)
            with pytest.raises(MissingExtraError, match=f"without {feature}; apt install {package}"):
                make_emoji_pairs(17, font=str(path))


# From here on, `few_emoji` shortens the tables.


@needs_font
def test_every_emoji_is_in_training_or_held_out(few_emoji):
    everything = make_emoji_pairs(part="all")["caption"]
    assert len(few_emoji) > len(everything) > 0.95 * len(few_emoji) > 350
    assert sorted(everything) == sorted(set(everything))
    # They are drawn alike: only the shorter name is there.
    assert "flag of Norway" in everything and "flag of Bouvet Island" not in everything
    kinds = {emoji.caption: emoji.kind for emoji in few_emoji}
    for combinations in range(4):
        train, held_out = (make_emoji_pairs(64, part, combinations)["caption"] for part in ("train", "held_out"))
        assert not set(train) & set(held_out) and sorted((*train, *held_out)) == sorted(everything)
        known = [held_out[row] for row in emoji_pairs.rows_of_kind(held_out, ("role", "face"))]
        assert {kinds[caption] for caption in known} == {"role", "face"} and words_of(known) <= words_of(train)


@needs_font
def test_pictures_are_small_on_white_the_same_every_time_and_differ(few_emoji):
    first = make_emoji_pairs(part="held_out")
    stored = first.cast_column("image", datasets.Image(decode=False))["image"]
    assert all(image["bytes"].startswith(b"\x89PNG") for image in stored)
    drawn = emoji_pairs._drawn_pictures(64, FOUND)
    assert emoji_pairs._drawn_pictures.__wrapped__(64, FOUND) == drawn
    assert make_emoji_pairs(part="held_out", font=str(FOUND))["caption"] == first["caption"]
    for image in first["image"]:
        assert image.size == (64, 64) and image.mode == "RGB"
        pixels = np.asarray(image)
        # Nothing is cut off, and there is something in the middle.
        assert (np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]) > 235).all()
        assert pixels[16:48, 16:48].min() < 200
    pictures = {row["caption"]: np.asarray(row["image"], dtype=float) for row in make_emoji_pairs(part="all")}
    assert len({pixels.tobytes() for pixels in pictures.values()}) == len(pictures)
    roles: dict = {}
    for emoji in few_emoji:
        if emoji.kind == "role" and emoji.tone >= 0 and emoji.caption in pictures:
            roles.setdefault((emoji.role, emoji.person), []).append(pictures[emoji.caption])
    assert len(roles) >= 27
    for shown in roles.values():
        # The five skin tones differ.
        assert len(shown) == 5
        for tone, pixels in enumerate(shown):
            assert all(np.abs(pixels - other).max() > 25 for other in shown[:tone])


@needs_font
def test_an_emoji_that_the_font_lacks_or_draws_in_pieces_is_left_out():
    font = emoji_pairs._EmojiFont(FOUND)
    face, cat = "\U0001f600", "\U0001f408"
    assert font.draw(face) is not None and font.draw(cat) is not None
    pieces = (face + cat, f"{face}\u200d{cat}", f"{cat}\U0001f3fd")
    # Country codes that nobody has, and characters that do not exist.
    unknown = ("\U0001f1fd\U0001f1fd", "\U0001f1fd\U0001f1f7", "\U0001fbff", "\ue000")
    for lacking in (*pieces, *unknown):
        assert font.draw(lacking) is None


@needs_font
def test_other_fonts_are_refused(tmp_path):
    (tmp_path / "empty.ttf").touch()
    wanted = "expected coloured bitmaps of 109 pixels"
    for font, kind, message in (
        (tmp_path / "none.ttf", FileNotFoundError, "is no file"),
        (tmp_path / "empty.ttf", ValueError, wanted),
        (font_manager.findfont("DejaVu Sans"), ValueError, f"{wanted}.*found none of a face"),
    ):
        with pytest.raises(kind, match=message):
            make_emoji_pairs(font=str(font))
