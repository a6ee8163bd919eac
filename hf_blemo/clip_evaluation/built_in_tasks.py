"""The tasks of the built-in data: drawn scenes and emoji that training has not seen."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from hf_blemo.built_in import EMOJI, SYNTHETIC
from hf_blemo.built_in.emoji_pairs import make_emoji_pairs, rows_of_kind
from hf_blemo.built_in.synthetic_pairs import (
    BACKGROUNDS,
    COLOURS,
    COUNTS,
    POSITIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    caption_of,
    make_synthetic_pairs,
)
from hf_blemo.clip_evaluation.evaluator import RetrievalTask, Task, ZeroShotTask
from hf_blemo.pairs.images import Augmentation, read_crop

# Training never draws with this seed.
EVALUATION_SEED = 10_000
# Smaller than training's default crops, so that training has seen none of these pictures.
EMOJI_CROPS = Augmentation(scale=(0.7, 0.9), ratio=(0.9, 1.1))


def synthetic_tasks(
    images: int = 500, seed: int = EVALUATION_SEED, image_size: int = 32, combinations: int = 0
) -> dict[str, Task]:
    """Makes tasks on drawn scenes that no training has seen.

    `zero_shot` names shape and colour among all 36 combinations, by captions of every count, size, texture, position
    and background, for combinations that training draws; `held_out_zero_shot` for those that it never draws.
    `retrieval` finds scenes of drawn combinations by caption, each caption once.

    Args:
        images: of each task.
        seed: of the scenes; not one that training uses.
        image_size, combinations: as of the training data.
    """
    scenes: dict[str, Any] = {"seed": seed, "image_size": image_size, "combinations": combinations}
    drawn = make_synthetic_pairs(2 * images, **scenes)
    # Each caption once: with two equal ones, both images would be right.
    first = {caption: row for row, caption in reversed(list(enumerate(drawn["caption"])))}
    drawn = drawn.select(sorted(first.values())[:images])
    held_out = make_synthetic_pairs(images, held_out=True, **scenes)
    classes = list(itertools.product(SHAPES, COLOURS))
    prompts = [
        [
            caption_of(shape, colour, size, texture, position, count, background)
            for count, size, texture, position, background in itertools.product(
                COUNTS, SIZES, TEXTURES, POSITIONS, BACKGROUNDS
            )
        ]
        for shape, colour in classes
    ]
    tasks: dict[str, Task] = {}
    for name, pairs in (("zero_shot", drawn), ("held_out_zero_shot", held_out)):
        labels = [classes.index(_shape_and_colour(caption)) for caption in pairs["caption"]]
        tasks[name] = ZeroShotTask(list(pairs["image"]), labels, prompts, SYNTHETIC)
    tasks["retrieval"] = RetrievalTask(
        tasks["zero_shot"].images, [[caption] for caption in drawn["caption"]], SYNTHETIC
    )
    return tasks


def emoji_tasks(
    image_size: int = 64, combinations: int = 0, seed: int = EVALUATION_SEED, font: str | None = None
) -> dict[str, Task]:
    """Makes tasks on emoji that training does not show, or shows in other crops.

    `held_out_zero_shot` names held-out combinations of person, skin tone and role among the captions of all of them,
    and `held_out_faces` held-out faces among the names of all faces; training's captions contain every word of both.
    `zero_shot` names crops of flags and faces that training shows, among all flags and faces. `retrieval` finds every
    held-out emoji, flags included, by caption.

    Args:
        image_size, combinations, font: as of the training data, see [`make_emoji_pairs`].
        seed: of the crops.
    """
    everything = make_emoji_pairs(image_size, "all", combinations, font)["caption"]
    train, held_out = (make_emoji_pairs(image_size, part, combinations, font) for part in ("train", "held_out"))

    def task(pairs: Any, kinds: Sequence[str], crops: bool = False) -> ZeroShotTask:
        names = [everything[row] for row in rows_of_kind(everything, kinds)]
        pairs = pairs.select(rows_of_kind(pairs["caption"], kinds))
        images = [_cropped(image, [seed, row]) if crops else image for row, image in enumerate(pairs["image"])]
        labels = [names.index(caption) for caption in pairs["caption"]]
        return ZeroShotTask(images, labels, [[name] for name in names], EMOJI)

    return {
        "zero_shot": task(train, ("flag", "face"), crops=True),
        "held_out_zero_shot": task(held_out, ("role",)),
        "held_out_faces": task(held_out, ("face",)),
        "retrieval": RetrievalTask(list(held_out["image"]), [[caption] for caption in held_out["caption"]], EMOJI),
    }


def _cropped(image: Image.Image, seed: Sequence[int]) -> Image.Image:
    crop = EMOJI_CROPS.crop_of(image.size, np.random.default_rng(seed))
    return Image.fromarray(read_crop(image, crop, image.size))


def _shape_and_colour(caption: str) -> tuple[str, str]:
    """Reads the shape and the colour out of a caption."""
    words = caption.split()
    singular = {plural: shape for shape, plural in SHAPES.items()}
    return singular.get(words[4], words[4]), words[3]
