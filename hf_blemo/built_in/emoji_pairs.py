"""The built-in pictures of real things: every emoji of Noto Color Emoji, captioned with its Unicode name."""

import functools
import io
import re
import shutil
import subprocess
import zlib
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont, features
from tokenizers.pre_tokenizers import Whitespace

from hf_blemo.built_in.synthetic_pairs import pair_data_set, word_tokenizer
from hf_blemo.errors import MissingExtraError, check_extra

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerFast

_PARTS = ("train", "held_out", "all")
# Disjoint choices of held-out emoji: 0 is for results, the others are for tuning.
_NUM_COMBINATIONS = 4
# Each choice holds out this many of the 15 combinations of person and skin tone of every role.
_HELD_OUT_PER_ROLE = 3
# One in this many flags is held out.
_FLAG_SHARE = 16
_MAX_TOKENS = 32
_FONT_NAME = "NotoColorEmoji.ttf"
_FONT_FOLDERS = (
    "/usr/share/fonts/truetype/noto",  # Debian, Ubuntu
    "/usr/share/fonts/google-noto-emoji",  # Fedora
    "/usr/share/fonts/google-noto-emoji-fonts",
    "/usr/share/fonts/noto",  # Arch
    "/usr/share/fonts/noto-emoji",
    "/usr/share/fonts/truetype",  # openSUSE
    "/usr/local/share/fonts",
    "~/.local/share/fonts",
    "~/.fonts",
    "~/Library/Fonts",  # Homebrew
    "/Library/Fonts",
)
# The only size of bitmaps in Noto Color Emoji, and a square that holds them with a little white around.
_FONT_SIZE = 109
_CANVAS = 144
_REFERENCE = "\N{GRINNING FACE}"
# No character, and the flag of no country (XX), now or later: a font draws all that it lacks like these.
_LACKING = ("\U0010ffff", 2 * "\N{REGIONAL INDICATOR SYMBOL LETTER X}")
_JOINER, _VARIATION = "\u200d", "\ufe0f"
_TONES = tuple(chr(code) for code in range(0x1F3FB, 0x1F400))
_PERSONS = ("\N{ADULT}", "\N{MAN}", "\N{WOMAN}")
_SIGNS = ("\N{MALE SIGN}", "\N{FEMALE SIGN}")
_TONE = re.compile(r" ((?:medium-)?(?:light|dark)|medium) skin tone")
_HAIR = re.compile(r"(man|woman|person) (beard|(?:blond|curly|red|white) hair)")
_GROUP = re.compile(r"(kiss|couple with heart|family)((?: (?:man|woman|person|adult|child|boy|girl))+)")
_ARTICLE = re.compile(
    r".*(Islands|Lands|Republic|Territory|Territories|Union|Nations|States|Kingdom|Emirates)|Isle of Man|Bahamas|"
    r"Comoros|Gambia|Maldives|Netherlands|Caribbean Netherlands|Philippines|Seychelles"
)


@dataclass(frozen=True)
class _Emoji:
    """An emoji of the Unicode tables: its code points, its name as a phrase, and its kind (see `rows_of_kind`)."""

    sequence: str
    caption: str
    kind: str
    # Of kind `role`: the code points that all its pictures share; person, man or woman; skin from light to dark.
    role: str = ""
    person: int = 0
    tone: int = -1


def _find_font() -> Path:
    """Finds Noto Color Emoji in the usual folders, or by fontconfig."""
    for folder in _FONT_FOLDERS:
        path = Path(folder).expanduser() / _FONT_NAME
        if path.is_file():
            return path
    program = shutil.which("fc-match")
    if program is not None:
        asked = [program, "--format=%{file}", "Noto Color Emoji"]
        found = Path(subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip())
        # Without the font, fontconfig names a similar one.
        if found.name == _FONT_NAME and found.is_file():
            return found
    raise FileNotFoundError(
        f"data 'emoji': found no {_FONT_NAME} in {', '.join(_FONT_FOLDERS)} nor by fc-match; "
        "apt install fonts-noto-color-emoji, or set the option font to the path of such a file"
    )


@functools.lru_cache(maxsize=1)
def _emoji_table() -> tuple[_Emoji, ...]:
    """All emoji of the Unicode tables by code points, with the English names of Unicode CLDR as phrases; of two with
    one name only the first."""
    check_extra("emoji")
    from emoji import EMOJI_DATA, STATUS

    names = {
        sequence: found["en"].strip(":").replace("_", " ")
        for sequence, found in sorted(EMOJI_DATA.items())
        if found["status"] == STATUS["fully_qualified"]
    }
    parsed = {sequence: _parsed_role(sequence) for sequence in names}
    tones_of = Counter((role, person) for role, person, tone in parsed.values() if role and tone >= 0)
    table: dict[str, _Emoji] = {}
    for sequence, name in names.items():
        role, person, tone = parsed[sequence]
        caption = _caption(sequence, name)
        if role and all(tones_of[role, other] == len(_TONES) for other in range(len(_PERSONS))):
            emoji = _Emoji(sequence, caption, "role", role, person, tone)
        elif _is_flag(sequence):
            emoji = _Emoji(sequence, caption, "flag")
        else:
            emoji = _Emoji(sequence, caption, "face" if "face" in name.split() else "other")
        table.setdefault(caption.lower(), emoji)
    return tuple(table.values())


def _is_flag(sequence: str) -> bool:
    """Whether the letters of the code of a country or region spell it."""
    return "\U0001f1e6" <= sequence[0] <= "\U0001f1ff" or "\U000e007f" in sequence


def _parsed_role(sequence: str) -> tuple[str, int, int]:
    """Role, person and tone of a sequence; the role is empty where it cannot be one."""
    found = [_TONES.index(sign) for sign in sequence if sign in _TONES]
    tone = found[0] if found else -1
    bare = "".join(sign for sign in sequence if sign not in _TONES and sign != _VARIATION)
    first, *rest = bare.split(_JOINER)
    if len(found) > 1 or any(person in part for person in _PERSONS for part in rest):
        return "", 0, tone
    if first in _PERSONS:
        # A firefighter is a person joined to a fire engine, which alone is no role: hence the joiner before it.
        return "".join(_JOINER + part for part in rest), _PERSONS.index(first), tone
    # Somebody who runs is one character, which a sign makes a man or a woman.
    person = 1 + _SIGNS.index(rest[0]) if rest and rest[0] in _SIGNS else 0
    return _JOINER.join([first, *rest[1:]] if person else [first, *rest]), person, tone


def _caption(sequence: str, name: str) -> str:
    """The name as a phrase: skin tones last, flags as flags, and lists with "and"."""
    tones = _TONE.findall(name)
    phrase = _TONE.sub("", name).replace(" & ", " and ")
    if _is_flag(sequence):
        article = "the " if _ARTICLE.fullmatch(phrase) and " and " not in phrase else ""
        return f"flag of {article}{phrase}"
    joint = "with"
    if phrase in ("man bald", "woman bald", "person bald"):
        phrase = f"bald {phrase.removesuffix(' bald')}"
    elif hair := _HAIR.fullmatch(phrase):
        phrase, joint = f"{hair[1]} with {hair[2]}", "and"
    elif group := _GROUP.fullmatch(phrase):
        *others, last = group[2].split()
        people = f"{', '.join(others)} and {last}"
        phrase = f"{people} as {group[1]}" if group[1] == "couple with heart" else f"{group[1]} of {people}"
    if not tones:
        return phrase
    return f"{phrase} {joint} {' and '.join(f'{tone} skin tone' for tone in tones)}"


class _EmojiFont:
    """Draws the emoji that a font has."""

    def __init__(self, path: Path):
        for feature, package in (("raqm", "libraqm0"), ("fribidi", "libfribidi0")):
            # Pillow's wheels contain raqm, which loads fribidi when it needs it.
            if not features.check(feature):
                raise MissingExtraError(
                    f"data 'emoji': Pillow cannot join characters to one picture without {feature}; "
                    f"apt install {package}"
                )
        if not path.is_file():
            raise FileNotFoundError(f"data 'emoji': font {str(path)!r} is no file")
        wanted = f"expected coloured bitmaps of {_FONT_SIZE} pixels, as in Debian's {_FONT_NAME}"
        try:
            self.font = ImageFont.truetype(str(path), _FONT_SIZE, layout_engine=ImageFont.Layout.RAQM)
        except OSError as error:
            raise ValueError(f"data 'emoji': font {path}: {wanted}, found: {error}") from error
        left, top, right, bottom = self.font.getbbox(_REFERENCE)
        self.place = (_CANVAS - left - right) / 2, (_CANVAS - top - bottom) / 2
        reference = self._drawn(_REFERENCE)
        red, green, blue = (band.tobytes() for band in reference.split())
        if red == green == blue:
            raise ValueError(f"data 'emoji': font {path}: {wanted}, found none of a face")
        self.width = self.font.getlength(_REFERENCE)
        self.lacking = {self._drawn(sequence).tobytes() for sequence in _LACKING}

    def draw(self, sequence: str) -> Image.Image | None:
        """The picture on white, or None if the font lacks it or draws it as several."""
        if abs(self.font.getlength(sequence) - self.width) > 1:
            return None
        picture = self._drawn(sequence)
        return None if picture.tobytes() in self.lacking else picture

    def _drawn(self, sequence: str) -> Image.Image:
        canvas = Image.new("RGB", (_CANVAS, _CANVAS), "white")
        ImageDraw.Draw(canvas).text(self.place, sequence, font=self.font, embedded_color=True)
        return canvas


@functools.lru_cache(maxsize=2)
def _drawn_pictures(image_size: int, path: Path) -> tuple[tuple[_Emoji, bytes], ...]:
    """Every emoji that the font draws, with its PNG file; of several with one picture, the one with the shortest
    caption, since they look the same."""
    font = _EmojiFont(path)
    pictures: dict[bytes, tuple[_Emoji, Image.Image]] = {}
    for emoji in _emoji_table():
        picture = font.draw(emoji.sequence)
        if picture is None:
            continue
        pixels = picture.tobytes()
        if pixels not in pictures or len(emoji.caption) < len(pictures[pixels][0].caption):
            pictures[pixels] = emoji, picture
    found = []
    for emoji, picture in sorted(pictures.values(), key=lambda entry: entry[0].sequence):
        encoded = io.BytesIO()
        picture.resize((image_size, image_size), Image.Resampling.LANCZOS).save(encoded, "PNG")
        found.append((emoji, encoded.getvalue()))
    return tuple(found)


def _mixed(text: str) -> int:
    """A number that looks random, and that stays the same when Unicode or the font get more emoji."""
    return zlib.crc32(text.encode())


def _held_out_emoji(emoji: Sequence[_Emoji], combinations: int = 0) -> tuple[_Emoji, ...]:
    """The emoji, of some, that training never shows; `make_emoji_pairs` says which."""
    if combinations not in range(_NUM_COMBINATIONS):
        raise ValueError(f"combinations {combinations} is not one of 0 to {_NUM_COMBINATIONS - 1}")
    held_out = {entry for entry in emoji if entry.kind == "role" and _is_held_out(entry, combinations)}
    held_out |= {
        entry for entry in emoji if entry.kind == "flag" and _mixed(entry.caption) % _FLAG_SHARE == combinations
    }
    words = Counter(word for entry in emoji if entry not in held_out for word in _words(entry.caption))
    faces = [entry for entry in emoji if entry.kind == "face"]
    for entry in sorted(faces, key=lambda face: _mixed(face.caption)):
        own = _words(entry.caption)
        if _mixed(entry.caption) % _NUM_COMBINATIONS == combinations and all(words[word] > 1 for word in own):
            held_out.add(entry)
            words.subtract(own)
    return tuple(entry for entry in emoji if entry in held_out)


def _is_held_out(emoji: _Emoji, combinations: int) -> bool:
    persons, tones = len(_PERSONS), len(_TONES)
    start = _mixed(emoji.role) + _HELD_OUT_PER_ROLE * combinations
    # Neighbours differ in person and tone, and all 15 are different, as 3 and 5 have no common factor.
    chosen = [number % (persons * tones) for number in range(start, start + _HELD_OUT_PER_ROLE)]
    return (emoji.person, emoji.tone) in [(number % persons, number % tones) for number in chosen]


def _words(caption: str) -> set[str]:
    """As the tokenizer splits a caption."""
    return {word for word, _ in Whitespace().pre_tokenize_str(caption.lower())}


@functools.lru_cache(maxsize=8)
def make_emoji_pairs(
    image_size: int = 64, part: str = "train", combinations: int = 0, font: str | None = None
) -> "datasets.Dataset":
    """Draws every emoji once, captioned with its name.

    Called again with the same arguments, it returns the same data set. An emoji that the font lacks, or draws as
    several side by side, is left out. Training never shows the held-out ones: of every role three combinations of
    person and skin tone, so that training shows the role with every person and every tone, and the combination with
    other roles; of the faces, some whose every word is in other captions of training; and one flag in sixteen, for
    retrieval only, as no country's flag can be known by other flags.

    Args:
        image_size: width and height in pixels.
        part: `train`, `held_out` or `all`.
        combinations: which of four disjoint choices of held-out emoji, 0 to 3.
        font: path of a NotoColorEmoji.ttf; by default the installed one.

    Returns:
        Columns `image`, on white, and `caption`.

    Raises:
        ValueError: unknown part or combinations, images too small to tell emoji apart, or a font without coloured
            bitmaps of Noto's size.
        FileNotFoundError: there is no such font.
        MissingExtraError: the package `emoji` is not installed, or Pillow cannot join characters.
    """
    if part not in _PARTS:
        raise ValueError(f"part {part!r} is not one of {', '.join(_PARTS)}")
    if image_size < 16:
        raise ValueError(f"expected image_size >= 16, found {image_size}")
    pictures = _drawn_pictures(image_size, _find_font() if font is None else Path(font))
    held_out = set(_held_out_emoji([emoji for emoji, _ in pictures], combinations))
    chosen = [
        (emoji, encoded) for emoji, encoded in pictures if part == "all" or (emoji in held_out) == (part == "held_out")
    ]
    return pair_data_set([encoded for _, encoded in chosen], [emoji.caption for emoji, _ in chosen])


def rows_of_kind(captions: Sequence[str], kinds: Collection[str]) -> list[int]:
    """Row numbers of the captions of [`make_emoji_pairs`] of some kinds of emoji: `role` (a profession or activity
    that comes as person, man and woman in every skin tone), `face`, `flag` (of a country, region or organisation)
    and `other`."""
    kind_of = {emoji.caption: emoji.kind for emoji in _emoji_table()}
    return [row for row, caption in enumerate(captions) if kind_of[caption] in kinds]


def emoji_tokenizer() -> "PreTrainedTokenizerFast":
    """Makes a tokenizer of whole lower-case words for the captions of [`make_emoji_pairs`]; it needs no font.

    Raises:
        MissingExtraError: the package `emoji` is not installed.
    """
    words = sorted({word for emoji in _emoji_table() for word in _words(emoji.caption)})
    return word_tokenizer(words, _MAX_TOKENS, lower_case=True)
