"""The built-in real pictures: every emoji of Noto Color Emoji, each with its Unicode name as the caption."""

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

import datasets
from PIL import Image, ImageDraw, ImageFont, features
from transformers import PreTrainedTokenizerFast

from hf_blemo.built_in.word_tokenizer import split_words, word_tokenizer
from hf_blemo.errors import MissingExtraError

PARTS = ("train", "held_out", "all")
KINDS = ("role", "face", "flag", "other")
# Disjoint choices of what is held out: 0 is for results, the others are for tuning.
NUM_COMBINATIONS = 4
# Combinations of person and skin tone, of 15, that one choice holds out of every role.
HELD_OUT_PER_ROLE = 3
# One flag in so many is held out.
FLAG_SHARE = 16
MAX_TOKENS = 32
FONT_NAME = "NotoColorEmoji.ttf"
FONT_FOLDERS = (
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
# The one size that Noto Color Emoji has bitmaps of, and a square that holds them with a little white around.
_FONT_SIZE = 109
_CANVAS = 144
_REFERENCE = "\N{GRINNING FACE}"
# No character, and the flag of no country (XX), now or later: what a font draws for them, it draws for all that it
# lacks.
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
class Emoji:
    """An emoji of the Unicode tables.

    Args:
        sequence: its code points.
        caption: its name as a phrase.
        kind: `role` (a profession or activity that comes as person, man and woman in every skin tone), `face`, `flag`
            (of a country, region or organisation) or `other`.
        role: what is the same in all pictures of a role, and empty for others.
        person: of a role: 0 for a person, 1 for a man, 2 for a woman.
        tone: of a role's skin: 0 to 4 from light to dark, -1 for none.
    """

    sequence: str
    caption: str
    kind: str
    role: str = ""
    person: int = 0
    tone: int = -1


def find_emoji_font() -> Path:
    """Finds Noto Color Emoji in the usual folders, or by fontconfig.

    Raises:
        FileNotFoundError: it is not installed.
    """
    for folder in FONT_FOLDERS:
        path = Path(folder).expanduser() / FONT_NAME
        if path.is_file():
            return path
    program = shutil.which("fc-match")
    if program is not None:
        asked = [program, "--format=%{file}", "Noto Color Emoji"]
        found = Path(subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip())
        # Without the font, fontconfig names another that is near.
        if found.name == FONT_NAME and found.is_file():
            return found
    raise FileNotFoundError(
        f"data 'emoji': found no {FONT_NAME} in {', '.join(FONT_FOLDERS)} nor by fc-match; "
        "apt install fonts-noto-color-emoji, or set the option font to the path of such a file"
    )


@functools.lru_cache(maxsize=1)
def emoji_table() -> tuple[Emoji, ...]:
    """All emoji of the Unicode tables, whether a font has them or not, by code points; of two that have one name only
    the first.

    Raises:
        MissingExtraError: the package `emoji`, which has the names, is not installed.

    Source: the names are the English ones of Unicode CLDR; the phrases made of them are this project's choice.
    """
    try:
        from emoji import EMOJI_DATA, STATUS
    except ImportError as error:
        raise MissingExtraError("data 'emoji': needs the package emoji: pip install hf_blemo[emoji]") from error
    names = {
        sequence: found["en"].strip(":").replace("_", " ")
        for sequence, found in sorted(EMOJI_DATA.items())
        if found["status"] == STATUS["fully_qualified"]
    }
    parsed = {sequence: _parsed_role(sequence) for sequence in names}
    tones_of = Counter((role, person) for role, person, tone in parsed.values() if role and tone >= 0)
    table: dict[str, Emoji] = {}
    for sequence, name in names.items():
        role, person, tone = parsed[sequence]
        caption = _caption(sequence, name)
        if role and all(tones_of[role, other] == len(_TONES) for other in range(len(_PERSONS))):
            emoji = Emoji(sequence, caption, "role", role, person, tone)
        elif _is_flag(sequence):
            emoji = Emoji(sequence, caption, "flag")
        else:
            emoji = Emoji(sequence, caption, "face" if "face" in name.split() else "other")
        table.setdefault(caption.lower(), emoji)
    return tuple(table.values())


def _is_flag(sequence: str) -> bool:
    """Whether it is spelled by the letters of a country's or a region's code."""
    return "\U0001f1e6" <= sequence[0] <= "\U0001f1ff" or "\U000e007f" in sequence


def _parsed_role(sequence: str) -> tuple[str, int, int]:
    """Role, person and tone that a sequence would say; the role is empty where it cannot be one."""
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
    """Draws emoji, or says that the font has none.

    Args:
        path: of the font.

    Raises:
        MissingExtraError: Pillow was installed without what joins characters.
        FileNotFoundError: there is no such file.
        ValueError: it is no font of coloured bitmaps of Noto's size.
    """

    def __init__(self, path: Path):
        for feature, package in (("raqm", "libraqm0"), ("fribidi", "libfribidi0")):
            # The wheels of Pillow have raqm inside, and look for fribidi when they need it.
            if not features.check(feature):
                raise MissingExtraError(
                    f"data 'emoji': Pillow cannot join characters to one picture without {feature}; "
                    f"apt install {package}"
                )
        if not path.is_file():
            raise FileNotFoundError(f"data 'emoji': font {str(path)!r} is no file")
        expected = f"expected coloured bitmaps of {_FONT_SIZE} pixels, as in Debian's {FONT_NAME}"
        try:
            self.font = ImageFont.truetype(str(path), _FONT_SIZE, layout_engine=ImageFont.Layout.RAQM)
        except OSError as error:
            raise ValueError(f"data 'emoji': font {path}: {expected}, found: {error}") from error
        left, top, right, bottom = self.font.getbbox(_REFERENCE)
        self.place = (_CANVAS - left - right) / 2, (_CANVAS - top - bottom) / 2
        reference = self._drawn(_REFERENCE)
        red, green, blue = (band.tobytes() for band in reference.split())
        if red == green == blue:
            raise ValueError(f"data 'emoji': font {path}: {expected}, found none of a face")
        self.width = self.font.getlength(_REFERENCE)
        self.lacking = {self._drawn(sequence).tobytes() for sequence in _LACKING}

    def draw(self, sequence: str) -> Image.Image | None:
        """The picture on white, or None where the font lacks it, or has it in pieces only."""
        if abs(self.font.getlength(sequence) - self.width) > 1:
            return None
        picture = self._drawn(sequence)
        return None if picture.tobytes() in self.lacking else picture

    def _drawn(self, sequence: str) -> Image.Image:
        canvas = Image.new("RGB", (_CANVAS, _CANVAS), "white")
        ImageDraw.Draw(canvas).text(self.place, sequence, font=self.font, embedded_color=True)
        return canvas


@functools.lru_cache(maxsize=2)
def _drawn_pictures(image_size: int, path: Path) -> tuple[tuple[Emoji, bytes], ...]:
    """Every emoji that the font draws, with its PNG file; of several with one picture, that of the shortest caption:
    nobody could tell a picture of them apart."""
    font = _EmojiFont(path)
    pictures: dict[bytes, tuple[Emoji, Image.Image]] = {}
    for emoji in emoji_table():
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
    """A number that looks random, and stays the same when Unicode or the font get more emoji."""
    return zlib.crc32(text.encode())


def held_out_emoji(emoji: Sequence[Emoji], combinations: int = 0) -> tuple[Emoji, ...]:
    """What training never shows.

    Of every role three combinations of person and skin tone are held out, so that its role is seen with every person
    and every tone, and its person and tone with other roles. Of the faces, some whose every word is in captions that
    training shows. Of the flags, one in sixteen: nobody can know a country's flag by other flags, so they serve
    retrieval only.

    Args:
        emoji: those that can be drawn.
        combinations: which of four disjoint choices, 0 to 3.

    Raises:
        ValueError: there is no such choice.

    Source: this project's choice.
    """
    if combinations not in range(NUM_COMBINATIONS):
        raise ValueError(f"combinations {combinations} is not one of 0 to {NUM_COMBINATIONS - 1}")
    held_out = {entry for entry in emoji if entry.kind == "role" and _is_held_out(entry, combinations)}
    held_out |= {
        entry for entry in emoji if entry.kind == "flag" and _mixed(entry.caption) % FLAG_SHARE == combinations
    }
    words = Counter(word for entry in emoji if entry not in held_out for word in _words(entry.caption))
    faces = [entry for entry in emoji if entry.kind == "face"]
    for entry in sorted(faces, key=lambda face: _mixed(face.caption)):
        own = _words(entry.caption)
        if _mixed(entry.caption) % NUM_COMBINATIONS == combinations and all(words[word] > 1 for word in own):
            held_out.add(entry)
            words.subtract(own)
    return tuple(entry for entry in emoji if entry in held_out)


def _is_held_out(emoji: Emoji, combinations: int) -> bool:
    persons, tones = len(_PERSONS), len(_TONES)
    start = _mixed(emoji.role) + HELD_OUT_PER_ROLE * combinations
    # Neighbours differ in person and tone, and all 15 are different, as 3 and 5 have no common factor.
    chosen = [number % (persons * tones) for number in range(start, start + HELD_OUT_PER_ROLE)]
    return (emoji.person, emoji.tone) in [(number % persons, number % tones) for number in chosen]


def _words(caption: str) -> set[str]:
    return set(split_words(caption.lower()))


@functools.lru_cache(maxsize=8)
def make_emoji_pairs(
    image_size: int = 64, part: str = "train", combinations: int = 0, font: str | None = None
) -> datasets.Dataset:
    """Draws every emoji once, and captions it with its name; asked for the same again, it returns the same data set.

    An emoji that the font lacks, or draws as several side by side, is left out.

    Args:
        image_size: width and height in pixels.
        part: `train`, `held_out` or `all`.
        combinations: which emoji are held out, see [`held_out_emoji`].
        font: path of a NotoColorEmoji.ttf; where it usually lies by default.

    Returns:
        Columns `image`, on white, and `caption`.

    Raises:
        ValueError: no such part or combinations, images too small to tell emoji apart, or a font without coloured
            bitmaps of Noto's size.
        FileNotFoundError: there is no such font.
        MissingExtraError: the package `emoji` is not installed, or Pillow without what joins characters.

    Source: this project's choice.
    """
    if part not in PARTS:
        raise ValueError(f"part {part!r} is not one of {', '.join(PARTS)}")
    if image_size < 16:
        raise ValueError(f"expected image_size >= 16, found {image_size}")
    pictures = _drawn_pictures(image_size, find_emoji_font() if font is None else Path(font))
    held_out = set(held_out_emoji([emoji for emoji, _ in pictures], combinations))
    chosen = [
        (emoji, encoded) for emoji, encoded in pictures if part == "all" or (emoji in held_out) == (part == "held_out")
    ]
    columns = {
        "image": [{"bytes": encoded, "path": None} for _, encoded in chosen],
        "caption": [emoji.caption for emoji, _ in chosen],
    }
    expected = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    return datasets.Dataset.from_dict(columns, features=expected)


@functools.lru_cache(maxsize=1)
def _kind_of_caption() -> dict[str, str]:
    return {emoji.caption: emoji.kind for emoji in emoji_table()}


def rows_of_kind(captions: Sequence[str], kinds: Collection[str]) -> list[int]:
    """Where the captions of some kinds are, as for the classes of zero-shot classification.

    Args:
        captions: of [`make_emoji_pairs`].
        kinds: some of `role`, `face`, `flag` and `other`, see [`Emoji`].

    Returns:
        Row numbers.

    Raises:
        ValueError: there is no such kind.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(f"kind {kind!r} is not one of {', '.join(KINDS)}")
    return [row for row, caption in enumerate(captions) if _kind_of_caption()[caption] in kinds]


def emoji_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of whole lower-case words for the captions of this module; it needs no font.

    Raises:
        MissingExtraError: the package `emoji` is not installed.
    """
    words = sorted({word for emoji in emoji_table() for word in _words(emoji.caption)})
    return word_tokenizer(words, MAX_TOKENS, lower_case=True)
