"""The built-in drawn scenes with captions that name everything in them, and what all built-in pairs share."""

import functools
import io
import itertools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerFast

SHAPES = {
    "circle": "circles",
    "square": "squares",
    "triangle": "triangles",
    "diamond": "diamonds",
    "cross": "crosses",
    "ring": "rings",
}
COLOURS = {
    "red": (214, 48, 49),
    "green": (39, 158, 79),
    "blue": (52, 101, 214),
    "yellow": (241, 196, 15),
    "purple": (136, 63, 181),
    "orange": (235, 128, 28),
}
"""The colours of drawn shapes, as red, green and blue from 0 to 255."""
BACKGROUNDS = {"white": (245, 245, 245), "grey": (150, 150, 150), "black": (25, 25, 25), "pink": (244, 194, 205)}
SIZES = {"small": 0.32, "large": 0.55}
TEXTURES = ("plain", "striped")
POSITIONS = {
    "left": (0.25, 0.5),
    "right": (0.75, 0.5),
    "top": (0.5, 0.25),
    "bottom": (0.5, 0.75),
    "centre": (0.5, 0.5),
}
_SPECIAL_TOKENS = ("<pad>", "<unk>", "<start>", "<end>")
_COMBINATIONS = tuple(itertools.product(SHAPES, COLOURS))
_WORDS = ("a", "drawing", "of", "on", "the", "background", *SHAPES.values())
MAX_TOKENS = 16
# Where one, two or three shapes stand, in diameters from the middle of the group.
_GROUPS = {"one": ((0.0, 0.0),), "two": ((-0.6, 0.0), (0.6, 0.0)), "three": ((-0.6, -0.5), (0.6, -0.5), (0.0, 0.6))}
COUNTS = tuple(_GROUPS)
_CHOICES = {
    "size": tuple(SIZES),
    "texture": TEXTURES,
    "position": tuple(POSITIONS),
    "count": COUNTS,
    "background": tuple(BACKGROUNDS),
}


def _held_out_pairs(combinations: int = 0) -> tuple[tuple[str, str], ...]:
    """The pairs of shape and colour that training never draws, one colour of each shape."""
    if combinations not in range(len(COLOURS)):
        raise ValueError(f"combinations {combinations} is not one of 0 to {len(COLOURS) - 1}")
    colours = (*COLOURS, *COLOURS)[combinations : combinations + len(COLOURS)]
    return tuple(zip(SHAPES, colours, strict=True))


def caption_of(shape: str, colour: str, size: str, texture: str, position: str, count: str, background: str) -> str:
    """The caption of a scene; every word of it changes the picture."""
    noun = shape if count == "one" else SHAPES[shape]
    return f"{count} {size} {texture} {colour} {noun} on the {position} of a {background} background"


def draw_scene(
    shape: str,
    colour: str,
    size: str,
    texture: str,
    position: str,
    count: str,
    background: str,
    image_size: int = 32,
    generator: np.random.Generator | None = None,
) -> Image.Image:
    """Draws a scene.

    Args:
        shape, colour, size, texture, position, count, background: names from this module's tables.
        image_size: width and height in pixels.
        generator: makes pictures of one caption differ a little in place, brightness and noise.

    Returns:
        An RGB image.
    """
    jitter = np.zeros(3) if generator is None else generator.uniform(-1, 1, 3)
    scale = 4
    canvas = Image.new("RGB", (scale * image_size,) * 2, BACKGROUNDS[background])
    mask = Image.new("L", canvas.size, 0)
    draw = ImageDraw.Draw(mask)
    radius = SIZES[size] * (1 if count == "one" else 0.65) * canvas.width / 2
    centre = (np.array(POSITIONS[position]) + 0.04 * jitter[:2]) * canvas.width
    for offset in _GROUPS[count]:
        _draw_shape(draw, shape, centre + 2 * radius * np.array(offset), radius)
    canvas.paste(COLOURS[colour], mask=mask)
    if texture == "striped":
        lines = ImageDraw.Draw(mask)
        width = max(1, round(radius / 4))
        for start in range(0, canvas.width, 2 * width):
            lines.rectangle((0, start, canvas.width, start + width - 1), fill=0)
        canvas.paste(tuple(value // 2 for value in COLOURS[colour]), mask=mask)
    pixels = np.asarray(canvas.resize((image_size, image_size), Image.Resampling.BOX), dtype=np.float64)
    if generator is not None:
        pixels = pixels * (1 + 0.1 * jitter[2]) + generator.normal(0, 6, pixels.shape)
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def _draw_shape(draw: ImageDraw.ImageDraw, shape: str, centre: np.ndarray, radius: float) -> None:
    x, y = centre
    box = (x - radius, y - radius, x + radius, y + radius)
    if shape in ("circle", "ring"):
        draw.ellipse(box, fill=255)
        if shape == "ring":
            inner = 0.55 * radius
            draw.ellipse((x - inner, y - inner, x + inner, y + inner), fill=0)
    elif shape == "square":
        draw.rectangle(box, fill=255)
    elif shape == "cross":
        arm = 0.35 * radius
        draw.rectangle((x - radius, y - arm, x + radius, y + arm), fill=255)
        draw.rectangle((x - arm, y - radius, x + arm, y + radius), fill=255)
    else:
        corners = [(0, -1), (1, 0), (0, 1), (-1, 0)] if shape == "diamond" else [(0, -1), (1, 0.9), (-1, 0.9)]
        draw.polygon([(x + radius * across, y + radius * down) for across, down in corners], fill=255)


@functools.lru_cache(maxsize=4)
def make_synthetic_pairs(
    num_pairs: int = 2000, seed: int = 0, image_size: int = 32, held_out: bool = False, combinations: int = 0
) -> "datasets.Dataset":
    """Draws image-caption pairs; called again with the same arguments, returns the same data set.

    Args:
        num_pairs: N.
        seed: of the scenes.
        image_size: width and height in pixels.
        held_out: whether to draw only the pairs of shape and colour that are never drawn otherwise.
        combinations: which of six disjoint choices of held-out pairs, 0 to 5.

    Returns:
        Columns `image` and `caption`.

    Raises:
        ValueError: fewer than 1 pair, images too small to tell the shapes apart, or unknown combinations.
    """
    if num_pairs < 1 or image_size < 16:
        raise ValueError(f"expected num_pairs >= 1 and image_size >= 16, found {num_pairs} and {image_size}")
    generator = np.random.default_rng([seed, int(held_out)])
    kept_back = _held_out_pairs(combinations)
    drawn = [pair for pair in _COMBINATIONS if (pair in kept_back) == held_out]
    images, captions = [], []
    for _ in range(num_pairs):
        shape, colour = drawn[generator.integers(len(drawn))]
        rest = {name: table[generator.integers(len(table))] for name, table in _CHOICES.items()}
        scene: dict[str, Any] = {"shape": shape, "colour": colour, **rest}
        encoded = io.BytesIO()
        draw_scene(**scene, image_size=image_size, generator=generator).save(encoded, "PNG")
        images.append(encoded.getvalue())
        captions.append(caption_of(**scene))
    return pair_data_set(images, captions)


def pair_data_set(images: Sequence[bytes], captions: Sequence[str]) -> "datasets.Dataset":
    """Columns `image`, of encoded pictures, and `caption`."""
    import datasets

    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    columns = {"image": [{"bytes": image, "path": None} for image in images], "caption": list(captions)}
    return datasets.Dataset.from_dict(columns, features=features)


def synthetic_tokenizer() -> "PreTrainedTokenizerFast":
    """Makes a tokenizer of whole words for the captions of [`make_synthetic_pairs`]."""
    tables = (SHAPES, COLOURS, BACKGROUNDS, SIZES, TEXTURES, POSITIONS, _GROUPS, _WORDS)
    return word_tokenizer(itertools.chain(*tables), MAX_TOKENS)


def word_tokenizer(words: Iterable[str], max_tokens: int, lower_case: bool = False) -> "PreTrainedTokenizerFast":
    """Makes a tokenizer that numbers every word, and every run of other signs between words.

    Words are numbered in their order; the longest text has `max_tokens`, `<start>` and `<end>` included.
    """
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.normalizers import Lowercase
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate(dict.fromkeys((*_SPECIAL_TOKENS, *words)))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    if lower_case:
        tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = Whitespace()
    special = [(word, vocabulary[word]) for word in ("<start>", "<end>")]
    tokenizer.post_processor = TemplateProcessing(single="<start> $A <end>", special_tokens=special)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<start>",
        eos_token="<end>",
        model_max_length=max_tokens,
        model_input_names=["input_ids", "attention_mask"],
    )
