"""Writes pictures and captions."""

import io
import tarfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image


def picture(number: int, mode: str = "RGB", size: tuple[int, int] = (40, 32)) -> Image.Image:
    """A picture like no other."""
    pixels = np.random.default_rng(number).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    """The file of a picture."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def pairs_of(captions: Sequence[str | list[str] | None], images: Sequence[Any] | None = None) -> datasets.Dataset:
    """A table of pairs, whose images are files, rows of the column or None; by default pictures like no other."""
    images = [encoded(picture(number)) for number in range(len(captions))] if images is None else images
    text: Any = datasets.Value("string")
    kind = datasets.List(text) if any(isinstance(caption, list) for caption in captions) else text
    rows = [{"bytes": image, "path": None} if isinstance(image, bytes) else image for image in images]
    features = datasets.Features({"image": datasets.Image(decode=False), "caption": kind})
    return datasets.Dataset.from_dict({"image": rows, "caption": list(captions)}, features=features)


def write_tar(path: Path, files: Mapping[str, bytes]) -> None:
    """An archive of files."""
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def write_shards(folder: Path, captions: Sequence[str], num_shards: int, torn: Collection[int] = ()) -> Path:
    """WebDataset shards of pictures with captions; the files of some pictures end too early."""
    folder.mkdir(parents=True)
    for part in range(num_shards):
        files = {}
        for number in range(part, len(captions), num_shards):
            image = encoded(picture(number), "JPEG")
            files[f"{number:04d}.jpg"] = image[:500] if number in torn else image
            files[f"{number:04d}.txt"] = captions[number].encode()
        write_tar(folder / f"part-{part}.tar", files)
    return folder


def assert_same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    """Whether two batches are the same to the last bit."""
    assert one.keys() == two.keys()
    for name, values in one.items():
        assert torch.equal(values, two[name]), name
