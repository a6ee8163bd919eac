"""Image-caption pairs as the towers take them."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image

from hf_blemo.clip_rd_training.settings import DistillationSettings
from hf_blemo.data.synthetic_pairs import make_synthetic_pairs


def load_pairs(settings: DistillationSettings) -> datasets.Dataset:
    """Loads a data set with the columns `image` and `caption`.

    Raises:
        FileNotFoundError: the source is neither a folder nor the id of a Hub data set that can be loaded.
        ValueError: it lacks one of the two columns.
    """
    source = settings.data
    if source == "synthetic":
        return make_synthetic_pairs(**settings.synthetic)
    path = Path(source)
    if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
        data = datasets.load_from_disk(source)
        if isinstance(data, datasets.DatasetDict):
            if "train" not in data:
                raise ValueError(f"data {source!r}: expected a split 'train', found {', '.join(data)}")
            data = data["train"]
    elif path.exists() or (source.count("/") == 1 and not source.startswith((".", "/"))):
        try:
            data = datasets.load_dataset(source, split="train")
        except (ConnectionError, datasets.exceptions.DatasetNotFoundError) as error:
            raise FileNotFoundError(f"data {source!r}: no such path here, and from the Hub: {error}") from error
    else:
        raise FileNotFoundError(f"data {source!r}: no such folder, and no id of a Hub data set (owner/name)")
    for name in (settings.image_column, settings.caption_column):
        if name not in data.column_names:
            raise ValueError(f"data {source!r}: no column {name!r}, found {', '.join(data.column_names)}")
    data = data.select_columns([settings.image_column, settings.caption_column])
    data = data.rename_columns({settings.image_column: "image", settings.caption_column: "caption"})
    return data.cast_column("image", datasets.Image())


class PairProcessor:
    """What a model's own tokenizer and image processor make of pairs.

    Args:
        tokenizer: of the model.
        image_processor: of the model.
    """

    def __init__(self, tokenizer: Any, image_processor: Any):
        self.tokenizer = tokenizer
        self.image_processor = image_processor

    def images(self, images: list[Image.Image]) -> torch.Tensor:
        """(n, 3, H, W)."""
        converted = [image.convert("RGB") for image in images]
        return self.image_processor(images=converted, return_tensors="pt")["pixel_values"]

    def captions(self, captions: list[str]) -> dict[str, torch.Tensor]:
        """`input_ids` and, where the tokenizer makes one, `attention_mask`, (n, L), padded to the longest caption.

        That is exact for causal towers, and on short captions less than half of the work of padding to full length.

        Raises:
            ValueError: a caption that is no text.
        """
        for caption in captions:
            if not isinstance(caption, str):
                raise ValueError(f"expected a caption, found {caption!r}")
        encoded = self.tokenizer(captions, padding=True, truncation=True, return_tensors="pt")
        return {name: encoded[name] for name in ("input_ids", "attention_mask") if name in encoded}


class PairBatches(torch.utils.data.Dataset):
    """This process's share of the batch of every step; it depends on seed and step alone, so any number of processes
    sees the same global batches.

    Args:
        pairs: columns `image` and `caption`.
        student: processes pairs for the student.
        teacher: processes them for the teacher; None where there is none.
        settings: of the run.
        rank, world: of this process, and their number.

    Raises:
        ValueError: fewer pairs than a batch, or a batch that the processes cannot share evenly.
    """

    def __init__(
        self,
        pairs: datasets.Dataset,
        student: PairProcessor,
        teacher: PairProcessor | None,
        settings: DistillationSettings,
        rank: int,
        world: int,
    ):
        size = settings.batch_size
        if size > len(pairs):
            raise ValueError(f"batch_size {size} is larger than the data, {len(pairs)} pairs")
        if size % world:
            raise ValueError(f"batch_size {size} is not a multiple of the {world} processes")
        self.pairs, self.student, self.teacher, self.settings = pairs, student, teacher, settings
        self.share = slice(rank * size // world, (rank + 1) * size // world)
        # The order of the pass under way: shuffling millions of numbers takes longer than a step.
        self.order: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))

    def __len__(self) -> int:
        return self.settings.num_steps

    def rows(self, step: int) -> np.ndarray:
        """Row numbers of the global batch of a step; a pass over the data leaves its incomplete last batch out."""
        size = self.settings.batch_size
        per_pass = len(self.pairs) // size
        number = step // per_pass
        if self.order[0] != number:
            self.order = number, np.random.default_rng([self.settings.seed, number]).permutation(len(self.pairs))
        return self.order[1][step % per_pass * size :][:size]

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        rows = self.pairs[self.rows(step)[self.share].tolist()]
        batch = {"pixel_values": self.student.images(rows["image"]), **self.student.captions(rows["caption"])}
        if self.teacher is not None:
            batch["teacher_pixel_values"] = self.teacher.images(rows["image"])
            captions = self.teacher.captions(rows["caption"])
            batch |= {f"teacher_{name}": values for name, values in captions.items()}
        return batch
