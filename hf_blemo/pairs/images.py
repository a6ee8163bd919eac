"""Opens images of any kind, crops them at random, and normalises their pixels."""

import io
import math
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from PIL import Image, UnidentifiedImageError
from PIL.ExifTags import Base
from PIL.JpegImagePlugin import JpegImageFile

# EXIF orientation -> how to turn the stored picture upright, and the same as three steps: whether to swap the axes,
# then left and right, then top and bottom.
_TURNS = {
    2: (Image.Transpose.FLIP_LEFT_RIGHT, (False, True, False)),
    3: (Image.Transpose.ROTATE_180, (False, True, True)),
    4: (Image.Transpose.FLIP_TOP_BOTTOM, (False, False, True)),
    5: (Image.Transpose.TRANSPOSE, (True, False, False)),
    6: (Image.Transpose.ROTATE_270, (True, True, False)),
    7: (Image.Transpose.TRANSVERSE, (True, True, True)),
    8: (Image.Transpose.ROTATE_90, (True, False, True)),
}
_UPRIGHT = (None, (False, False, False))
_TRIES = 10
# Chunks of a PNG that may hold its orientation, possibly after the pixels.
_PNG_MARKS = (b"eXIf", b"XML:com.adobe.xmp", b"Raw profile type exif")


class BrokenImageError(ValueError):
    """Raised for an image that cannot be read; names the image and what was found."""


def open_image(source: Any, where: str = "image") -> Image.Image:
    """Opens an image by its header, without decoding its pixels.

    Args:
        source: the bytes of a file, its path, a dictionary of the two as `datasets` has it (bytes win), or an image of
            Pillow, which is returned as it is.
        where: name of the image in messages; the path of a dictionary is added.

    Raises:
        BrokenImageError: there is no image, the file is missing, or it cannot be opened safely as an image.
    """
    if isinstance(source, dict):
        path = source.get("path")
        where = f"{where} ({path})" if path else where
        source = path if source.get("bytes") is None else source["bytes"]
    elif isinstance(source, (str, Path)):
        where = f"{where} ({source})"
    if isinstance(source, Image.Image):
        if not all(source.size):
            raise BrokenImageError(f"{where}: an image of {_of(source)}, expected at least one pixel")
        return source
    if isinstance(source, (str, Path)):
        try:
            # Pillow would keep the file open until its pixels are decoded.
            source = Path(source).read_bytes()
        except (OSError, ValueError) as error:
            raise BrokenImageError(f"{where}: expected an image file, found none that can be read: {error}") from error
    if not isinstance(source, bytes):
        raise BrokenImageError(f"{where}: expected an image, its bytes or its path, found {type(source).__name__}")
    if not source:
        raise BrokenImageError(f"{where}: expected an image, found zero bytes")
    try:
        image = Image.open(io.BytesIO(source))
    except MemoryError:
        raise
    except UnidentifiedImageError as error:
        raise BrokenImageError(f"{where}: {len(source):,} bytes of no known image format") from error
    # Each of Pillow's readers has errors of its own.
    except Exception as error:
        raise BrokenImageError(f"{where}: {len(source):,} bytes that cannot be opened as an image: {error}") from error
    if image.format == "EPS":
        # Ghostscript runs such a file as a program to get its pixels.
        raise BrokenImageError(f"{where}: expected an image of pixels, found EPS")
    image.info["where"] = where
    return image


def content_id(content: str | Image.Image) -> int:
    """A number that equal captions or pictures share, and different ones do not but by a chance of 2**-64.

    It is a signed integer of 64 bits, alike on every machine. Images are as [`open_image`] returns them; files are
    told apart by their bytes.
    """
    if isinstance(content, str):
        stored = content.encode()
    else:
        file = getattr(content, "fp", None)
        if isinstance(file, io.BytesIO):
            stored = file.getvalue()
        else:
            with _decoding(content):
                stored = f"{content.mode}{content.size}".encode() + content.tobytes()
    return xxhash.xxh3_64_intdigest(stored) - 2**63


def _of(image: Image.Image) -> str:
    return f"{image.width} x {image.height} pixels"


@contextmanager
def _decoding(image: Image.Image) -> Iterator[None]:
    """Names the image in the errors of its decoder; each of Pillow's has errors of its own."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        where, kind = image.info.get("where", "image"), image.format or image.mode
        raise BrokenImageError(f"{where}: {kind} of {_of(image)} that cannot be decoded: {error}") from error


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation not yet applied to the pixels, 1 to 8."""
    if image.format == "TIFF":
        # Pillow applies it on decoding, and its size already includes it.
        return 1
    if image.format == "PNG" and (file := getattr(image, "fp", None)) is not None:
        content, header = (file.getvalue(), file.tell()) if isinstance(file, io.BytesIO) else (None, 0)
        if content is None or any(content.find(mark, header) >= 0 for mark in _PNG_MARKS):
            image.load()
    try:
        # Not the method of PNG images, which decodes the pixels to look behind them.
        found = Image.Image.getexif(image).get(Base.Orientation, 1)
    except (SyntaxError, ValueError, TypeError, LookupError, OSError, struct.error):
        # A torn EXIF block says nothing about the pixels, and viewers show such pictures as they are stored.
        return 1
    return found if found in _TURNS else 1


def _undecoded(image: Image.Image) -> JpegImageFile | None:
    """The same JPEG opened again, since a reduced decode changes the object; None if it is not a JPEG."""
    if not isinstance(image, JpegImageFile) or not image.tile or image.decoderconfig:
        return None
    if image.tell() or not isinstance(image.fp, io.BytesIO):
        return None
    again = Image.open(io.BytesIO(image.fp.getvalue()), formats=("JPEG",))
    return again if isinstance(again, JpegImageFile) else None


def _gray_levels(image: Image.Image) -> Image.Image:
    """Reduces a picture of more than 8 bits to 8."""
    values = np.nan_to_num(np.asarray(image).astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    highest = values.max()
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        white = 65535.0
    else:
        usual = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
        white = next((level for level in usual if highest <= level), highest)
    return Image.fromarray(np.rint(255 * np.clip(values / white, 0, 1)).astype(np.uint8))


def _rgb(image: Image.Image) -> Image.Image:
    """Decodes to RGB without turning; returns the image itself if it is RGB already."""
    image.load()
    if image.mode[0] in "IF":
        image = _gray_levels(image)
    elif image.has_transparency_data:
        if image.mode == "La":
            image = image.convert("LA")
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def to_rgb(image: Image.Image) -> Image.Image:
    """Decodes an image, turns it upright as its EXIF data say, and converts it to RGB.

    Transparent pixels are laid on white. 16-bit gray is scaled to 8 bits, not clipped. 32-bit integers and floats do
    not define white: it is the least of 255, 65535 and (floats only) 1 that no pixel exceeds, or else the brightest
    pixel. An animation gives its current frame, which is the first one after opening. Colour profiles are ignored, as
    in CLIP's preprocessing.
    """
    with _decoding(image):
        own = _undecoded(image) or image
        turn, _ = _TURNS.get(_orientation(own), _UPRIGHT)
        upright = _rgb(own)
        if turn is not None:
            upright = upright.transpose(turn)
        elif upright is image:
            upright = upright.copy()
    # The metadata, above all the orientation, has been applied.
    upright.info = {}
    return upright


def oriented_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of the upright image in pixels. Decodes only a PNG whose EXIF data follow its pixels."""
    with _decoding(image):
        _, (swap, _, _) = _TURNS.get(_orientation(image), _UPRIGHT)
    return (image.height, image.width) if swap else image.size


@dataclass(frozen=True)
class Crop:
    """A part of an upright image, in its pixels at full size, mirrored left to right or not."""

    left: int
    top: int
    width: int
    height: int
    flip: bool = False


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@dataclass(frozen=True)
class Augmentation:
    """Distribution of random crops: area, aspect ratio and mirroring.

    Args:
        scale: least and greatest share of the image's area.
        ratio: least and greatest width divided by height.
        flip: probability of a mirrored crop.

    Source: Szegedy et al., "Going Deeper with Convolutions", section 6; the defaults are those of OpenCLIP's training.
    """

    scale: tuple[float, float] = (0.9, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.0

    def __post_init__(self):
        for name, found, highest in (("scale", self.scale, 1.0), ("ratio", self.ratio, math.inf)):
            if not isinstance(found, (tuple, list)) or len(found) != 2 or not all(map(_is_number, found)):
                raise ValueError(f"{name}: expected the least and the greatest value, found {found!r}")
            if not (0 < found[0] <= found[1] <= highest and math.isfinite(found[1])):
                limit = "" if math.isinf(highest) else f" <= {highest:g}"
                raise ValueError(f"{name}: expected 0 < least <= greatest{limit}, found {found[0]} and {found[1]}")
        if not _is_number(self.flip) or not 0 <= self.flip <= 1:
            raise ValueError(f"flip: expected a probability from 0 to 1, found {self.flip!r}")

    def crop_of(self, size: tuple[int, int], generator: np.random.Generator) -> Crop:
        """Draws a crop: its share of the area uniformly, its ratio uniformly on the logarithmic scale.

        After ten draws that do not fit, the crop is the largest one in the middle with an allowed ratio. A 16:9
        photograph has no crop of nine tenths of its area with a ratio up to 4:3, so with the defaults it always gets
        that crop. `size` is that of the upright image; the generator always gives 23 numbers, used or not.
        """
        width, height = size
        drawn = generator.random(2 * _TRIES + 3).tolist()
        across, down, mirrored = drawn[2 * _TRIES :]
        flip = mirrored < self.flip
        lowest, highest = map(math.log, self.ratio)
        for share, form in zip(drawn[:_TRIES], drawn[_TRIES : 2 * _TRIES], strict=True):
            area = width * height * (self.scale[0] + share * (self.scale[1] - self.scale[0]))
            ratio = math.exp(lowest + form * (highest - lowest))
            wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < wide <= width and 0 < high <= height:
                # The last position is as likely as any other, and rounding must not exceed it.
                left = min(int(across * (width - wide + 1)), width - wide)
                return Crop(left, min(int(down * (height - high + 1)), height - high), wide, high, flip)
        wide = max(1, min(width, round(height * self.ratio[1])))
        high = max(1, min(height, round(width / self.ratio[0])))
        return Crop((width - wide) // 2, (height - high) // 2, wide, high, flip)


def read_crop(
    image: Image.Image,
    crop: Crop,
    size: int | tuple[int, int],
    decode_size: int | None = None,
    resample: Image.Resampling = Image.Resampling.BICUBIC,
) -> np.ndarray:
    """Reads a crop of an image at a given size, (H, W, 3) uint8.

    A JPEG is decoded at the least of the scales 1/8, 1/4, 1/2 and 1 of its cosine transform at which the crop's
    shorter side still has `decode_size` pixels, which avoids most of the work of a full decode. The result depends
    only on the file and the arguments. An image that is already decoded cannot be reduced, and is cropped at full
    size.

    Args:
        image: from [`open_image`]; not changed.
        crop: in the pixels of [`oriented_size`].
        size: width and height of the result in pixels, one number for both.
        decode_size: in pixels; the larger side of `size` by default. A larger one is slower and closer to the full
            decode.
        resample: filter of the resize.
    """
    target = (size, size) if isinstance(size, int) else (size[0], size[1])
    decode_size = max(target) if decode_size is None else decode_size
    with _decoding(image):
        own = _undecoded(image) or image
        turn, (swap, across, down) = _TURNS.get(_orientation(own), _UPRIGHT)
    upright = (own.height, own.width) if swap else own.size
    right, bottom = crop.left + crop.width, crop.top + crop.height
    if min(crop.left, crop.top) < 0 or min(crop.width, crop.height) < 1 or right > upright[0] or bottom > upright[1]:
        raise ValueError(f"expected a part of an image of {upright[0]} x {upright[1]} pixels, found {crop}")
    scale = 1
    if own is not image:
        shorter = min(crop.width, crop.height)
        scale = next((factor for factor in (8, 4, 2) if shorter >= factor * decode_size), 1)
    with _decoding(image):
        if scale > 1:
            own.draft(None, (own.width // scale, own.height // scale))
        picture = _rgb(own) if turn is None else _rgb(own).transpose(turn)
        # A reduced picture may end with a part of a pixel, with which a mirrored one begins.
        left = crop.left / scale + (picture.width - upright[0] / scale if across else 0)
        top = crop.top / scale + (picture.height - upright[1] / scale if down else 0)
        end, foot = left + crop.width / scale, top + crop.height / scale
        # Pixels outside the crop must not leak in at its edge through the filter.
        x, y = math.floor(left), math.floor(top)
        part = picture.crop((x, y, math.ceil(end), math.ceil(foot)))
        part = part.resize(target, resample, (left - x, top - y, end - x, foot - y))
    if crop.flip:
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.array(part)


def normalized(
    pixels: Sequence[np.ndarray], mean: Sequence[float], std: Sequence[float], rescale_factor: float = 1 / 255
) -> torch.Tensor:
    """`(pixels * rescale_factor - mean) / std` of n arrays (H, W, 3) of uint8 and one size, (n, 3, H, W) float32."""
    if len(mean) != 3 or len(std) != 3:
        raise ValueError(f"expected mean and std of three channels, found {mean} and {std}")
    # In double precision until the last step, so that one multiplication and one sum are as exact as the three steps.
    factor = rescale_factor / torch.tensor(std, dtype=torch.float64)
    offset = -torch.tensor(mean, dtype=torch.float64) / torch.tensor(std, dtype=torch.float64)
    factor, offset = (values.float().view(3, 1, 1) for values in (factor, offset))
    result = torch.empty(len(pixels), 3, *pixels[0].shape[:2])
    for values, place in zip(pixels, result, strict=True):
        place.copy_(torch.from_numpy(np.ascontiguousarray(values)).permute(2, 0, 1)).mul_(factor).add_(offset)
    return result
