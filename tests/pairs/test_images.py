"""Pixels of every kind of image, crops within their bounds, and reduced decodes that come close to full ones."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from pair_files import encoded
from PIL import Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile
from transformers import CLIPImageProcessorPil

from hf_blemo.pairs.images import (
    Augmentation,
    BrokenImageError,
    Crop,
    normalized,
    open_image,
    oriented_size,
    read_crop,
    to_rgb,
)
from hf_blemo.pairs.pair_processor import PairProcessor

BICUBIC = Image.Resampling.BICUBIC


def smooth(width=96, height=64):
    """A smooth RGB picture without any symmetry."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    channels = 255 * x * (1 - 0.4 * y), 255 * y**2, 120 + 90 * np.sin(5 * x + 3 * y)
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def rgb(image, kind="PNG", **options):
    """Pixels of an image that went through a file."""
    return np.asarray(to_rgb(open_image(encoded(image, kind, **options)))).astype(int)


def oriented(image, orientation, kind, **options):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, kind, exif=exif, **options)


def png_chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def distance(one, other):
    return np.abs(np.asarray(one).astype(float) - np.asarray(other).astype(float)).mean()


def test_every_source_opens_the_same_image_without_decoding_it(tmp_path):
    data = encoded(smooth(), "JPEG")
    path = tmp_path / "image.jpg"
    path.write_bytes(data)
    for source in (data, path, str(path), {"bytes": data, "path": "absent.jpg"}, {"bytes": None, "path": str(path)}):
        image = open_image(source)
        assert image.tile and oriented_size(image) == (96, 64) and image.tile
        assert np.array_equal(np.asarray(to_rgb(image)), np.asarray(Image.open(io.BytesIO(data))))
    decoded = smooth()
    assert open_image(decoded) is decoded


def test_what_is_no_image_says_so_and_where(tmp_path):
    bomb = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    bomb += png_chunk(b"IDAT", b"")
    torn = encoded(smooth(), "JPEG")[:15]
    for source, message in (
        (None, "row 7: .*found NoneType"),
        ({"bytes": None, "path": None}, "row 7: .*found NoneType"),
        (5, "row 7: .*found int"),
        (b"", "row 7: .*zero bytes"),
        (b"no image at all", "row 7: 15 bytes of no known image format"),
        ({"bytes": b"text", "path": "a.jpg"}, r"row 7 \(a.jpg\): 4 bytes of no known"),
        (torn, "row 7: 15 bytes that cannot be opened as an image: Truncated"),
        (bomb, "row 7: .*decompression bomb"),
        (tmp_path / "absent.jpg", r"row 7 \(.*absent.jpg\): .*No such file"),
        (tmp_path, "row 7 .*Is a directory"),
        ("null\0byte.jpg", "row 7"),
        (Image.new("RGB", (0, 5)), "row 7: an image of 0 x 5 pixels"),
        (encoded(smooth(), "EPS"), "row 7: expected an image of pixels, found EPS"),
    ):
        with pytest.raises(BrokenImageError, match=message) as raised:
            open_image(source, where="row 7")
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("kind", "orientation"), [("JPEG", 1), ("JPEG", 6), ("PNG", 1)])
def test_truncated_pixels_are_broken_wherever_they_are_read(kind, orientation):
    data = oriented(smooth(400, 300), orientation, kind)
    image = open_image(data[: len(data) * 2 // 3], where="row 7")
    with pytest.raises(BrokenImageError, match=f"row 7: {kind} of 400 x 300 pixels that cannot be decoded: .*truncat"):
        to_rgb(image)
    for size in (8, 200):
        image = open_image(data[: len(data) * 2 // 3], where="row 7")
        with pytest.raises(BrokenImageError, match="row 7: .*cannot be decoded"):
            read_crop(image, Crop(0, 0, 300, 300), size)


def test_gray_and_one_bit_images():
    gray = smooth().convert("L")
    for image in (gray, gray.convert("1")):
        assert np.array_equal(rgb(image), np.asarray(image.convert("L"))[..., None].repeat(3, -1))


def test_what_is_transparent_lies_on_white():
    colours = np.zeros((1, 3, 4), dtype=np.uint8)
    colours[0] = [[200, 100, 0, 0], [200, 100, 0, 255], [200, 100, 0, 128]]
    expected = [[255, 255, 255], [200, 100, 0], [227, 177, 127]]
    assert np.abs(rgb(Image.fromarray(colours))[0] - expected).max() <= 1
    assert np.abs(np.asarray(to_rgb(Image.fromarray(colours).convert("RGBa"))).astype(int)[0] - expected).max() <= 2
    gray = Image.fromarray(np.array([[[80, 0], [80, 255], [80, 128]]], dtype=np.uint8))
    assert gray.mode == "LA"
    for image in (gray, gray.convert("La")):
        assert np.abs(np.asarray(to_rgb(image)).astype(int)[0, :, 0] - [255, 80, 167]).max() <= 2
    assert np.abs(rgb(gray)[0, :, 2] - [255, 80, 167]).max() <= 1
    palette = Image.frombytes("PA", (3, 1), bytes([1, 0, 1, 255, 0, 128]))
    palette.putpalette([200, 100, 0, 40, 50, 60])
    assert palette.mode == "PA"
    found = np.asarray(to_rgb(palette)).astype(int)[0]
    assert np.abs(found - [[255, 255, 255], [40, 50, 60], [227, 177, 127]]).max() <= 1


def test_palettes_and_transparent_colours():
    image = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8)).convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    plain = [[10, 20, 30], [40, 50, 60], [70, 80, 90]]
    assert rgb(image)[0].tolist() == plain and rgb(image, "GIF")[0].tolist() == plain
    assert rgb(image, transparency=1)[0].tolist() == [plain[0], [255, 255, 255], plain[2]]
    assert rgb(image, "GIF", transparency=1)[0].tolist() == [plain[0], [255, 255, 255], plain[2]]
    half = rgb(image, transparency=bytes([255, 0, 128]))[0]
    assert half[:2].tolist() == [plain[0], [255, 255, 255]] and np.abs(half[2] - [162, 167, 172]).max() <= 1
    keyed = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], dtype=np.uint8))
    assert rgb(keyed, transparency=(1, 2, 3))[0].tolist() == [[255, 255, 255], [4, 5, 6]]


def test_sixteen_bits_keep_their_range():
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16)[None]
    for image in (Image.fromarray(ramp), Image.frombytes("I;16B", (256, 1), ramp.astype(">u2").tobytes())):
        assert image.mode.startswith("I;16")
        assert np.array_equal(np.asarray(to_rgb(image))[0, :, 1], np.arange(256))
    assert np.array_equal(rgb(Image.fromarray(ramp))[0, :, 0], np.arange(256))
    assert np.array_equal(rgb(Image.fromarray(ramp), "TIFF")[0, :, 0], np.arange(256))
    wide = Image.fromarray(ramp.astype(np.int32))
    assert wide.mode == "I" and np.array_equal(np.asarray(to_rgb(wide))[0, :, 2], np.arange(256))
    # The file says 16 bits, however dark the picture.
    assert rgb(Image.fromarray(np.array([[0, 250, 257]], dtype=np.uint16)))[0, :, 0].tolist() == [0, 1, 1]
    dark = b"P5 2 1 65535\n" + np.array([0, 250], dtype=">u2").tobytes()
    assert np.asarray(to_rgb(open_image(dark)))[0, :, 0].tolist() == [0, 1]
    floats = b"Pf\n2 1\n-1.0\n" + np.array([0.2, 1], dtype="<f4").tobytes()
    assert np.asarray(to_rgb(open_image(floats)))[0, :, 0].tolist() == [51, 255]


@pytest.mark.parametrize(
    ("values", "kind", "levels"),
    [
        ([0, 100, 255], np.int32, [0, 100, 255]),
        ([-5, 0, 2**20], np.int32, [0, 0, 255]),
        ([0, 0.5, 1], np.float32, [0, 128, 255]),
        ([-1, 100.4, 255], np.float32, [0, 100, 255]),
        ([0, 257, 65535], np.float32, [0, 1, 255]),
        ([0, np.nan, 0.2], np.float32, [0, 0, 51]),
        ([0, 0, 0], np.float32, [0, 0, 0]),
    ],
)
def test_integers_of_32_bits_and_floats_are_scaled_by_the_white_they_need(values, kind, levels):
    image = Image.fromarray(np.array([values], dtype=kind))
    assert image.mode in "IF"
    assert np.asarray(to_rgb(image))[0, :, 0].tolist() == levels
    assert rgb(image, "TIFF")[0, :, 0].tolist() == levels


def test_other_colour_spaces_come_close_to_their_rgb_original():
    original = smooth()
    assert distance(rgb(original.convert("CMYK"), "JPEG", quality=95), original) < 1.5
    assert distance(rgb(original.convert("CMYK"), "TIFF"), original) < 1
    assert distance(to_rgb(original.convert("YCbCr")), original) < 2
    assert distance(to_rgb(original.convert("HSV")), original) < 3
    # L* 0 and 100 without colour, and a strong red.
    lab = Image.frombytes("LAB", (3, 1), bytes([0, 0, 0, 255, 0, 0, 136, 81, 70]))
    black, white, red = np.asarray(to_rgb(lab)).astype(int)[0]
    assert black.max() < 5 and white.min() > 250 and red[0] > 230 and red[1:].max() < 40


def test_a_ycck_jpeg_is_read_as_the_colours_it_was_made_of():
    cyan, magenta, yellow = smooth().split()
    black = Image.new("L", cyan.size, 40)
    # The file stores what is left of the light: the first three as YCbCr, which the marker of Adobe tells by a 2.
    stored = [
        ImageOps.invert(channel) for channel in Image.merge("RGB", (cyan, magenta, yellow)).convert("YCbCr").split()
    ]
    data = encoded(Image.merge("CMYK", (*stored, black)), "JPEG", quality=98)
    place = data.index(b"Adobe") + 11
    assert data[place] == 0
    found = open_image(data[:place] + b"\x02" + data[place + 1 :])
    expected = Image.merge("CMYK", (cyan, magenta, yellow, black)).convert("RGB")
    assert found.mode == "CMYK" and distance(to_rgb(found), expected) < 1.5
    assert distance(to_rgb(open_image(data)), expected) > 20


def test_an_animation_shows_its_first_frame():
    red, blue = (Image.new("RGB", (4, 4), colour) for colour in ("red", "blue"))
    for kind, options in (("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True})):
        assert (rgb(red, kind, save_all=True, append_images=[blue], **options) == [255, 0, 0]).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(kind, orientation):
    options = {"lossless": True} if kind == "WEBP" else {}
    data = oriented(smooth(31, 18), orientation, kind, **options)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert expected.size == ((31, 18) if orientation < 5 else (18, 31))
    image = open_image(data)
    # Pillow lists no parts of a WebP that are still to be decoded.
    assert oriented_size(image) == expected.size and (image.tile or kind == "WEBP")
    upright = to_rgb(image)
    assert np.array_equal(np.asarray(upright), np.asarray(expected))
    # Nobody may turn it once more.
    assert np.array_equal(np.asarray(ImageOps.exif_transpose(upright)), np.asarray(upright))
    crop = Crop(2, 3, 12, 9, flip=orientation % 2 == 0)
    pixels = read_crop(open_image(data), crop, (20, 16))
    plain = expected.crop((2, 3, 14, 12)).resize((20, 16), BICUBIC)
    assert np.array_equal(pixels, np.asarray(ImageOps.mirror(plain) if crop.flip else plain))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_reduced_decode_is_turned_upright_without_a_shift(orientation):
    # Sizes that no scale divides, so that the reduced picture has a part of a pixel too many on one side.
    data = oriented(smooth(403, 301), orientation, "JPEG", quality=95)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    width, height = expected.size
    for crop in (Crop(0, 0, width, height), Crop(width - 205, height - 207, 205, 207), Crop(3, 5, 203, 211)):
        box = (crop.left, crop.top, crop.left + crop.width, crop.top + crop.height)
        plain = np.asarray(expected.crop(box).resize((24, 24), BICUBIC)).astype(float)
        assert np.abs(read_crop(open_image(data), crop, 24) - plain).max() <= 4


def test_exif_data_behind_the_pixels_of_a_png_count_in_its_size_too():
    data = oriented(smooth(31, 18), 6, "PNG")
    start = data.index(b"eXIf") - 4
    end = start + 12 + struct.unpack(">I", data[start : start + 4])[0]
    last = data.index(b"IEND") - 4
    moved = data[:start] + data[end:last] + data[start:end] + data[last:]
    assert oriented_size(open_image(moved)) == (18, 31)
    assert np.array_equal(np.asarray(to_rgb(open_image(moved))), np.asarray(to_rgb(open_image(data))))


def test_torn_exif_data_leave_the_picture_as_it_is_stored():
    for exif in (b"Exif\0\0no TIFF header", b"Exif\0\0II*\0", b"Exif\0\0"):
        image = open_image(encoded(smooth(), "JPEG", exif=exif))
        assert oriented_size(image) == (96, 64) and to_rgb(image).size == (96, 64)


def test_crops_keep_to_their_shares_and_ratios_and_go_everywhere():
    augmentation = Augmentation(scale=(0.2, 0.6), ratio=(0.5, 1.5), flip=0.25)
    generator = np.random.default_rng(0)
    crops = [augmentation.crop_of((640, 480), generator) for _ in range(2000)]
    shares = np.array([crop.width * crop.height / (640 * 480) for crop in crops])
    ratios = np.array([crop.width / crop.height for crop in crops])
    assert 0.2 - 0.005 < shares.min() < 0.21 and 0.55 < shares.max() < 0.6 + 0.005
    assert 0.5 - 0.005 < ratios.min() < 0.52 and 1.47 < ratios.max() < 1.5 + 0.005
    assert min(crop.left for crop in crops) == 0 and max(crop.left + crop.width for crop in crops) == 640
    assert min(crop.top for crop in crops) == 0 and max(crop.top + crop.height for crop in crops) == 480
    free = [crop for crop in crops if crop.width < 600]
    assert abs(np.mean([crop.left / (640 - crop.width) for crop in free]) - 0.5) < 0.03
    assert abs(np.mean([crop.flip for crop in crops]) - 0.25) < 0.03


def test_shares_are_uniform_and_ratios_log_uniform_where_every_draw_fits():
    augmentation, generator = Augmentation(scale=(0.1, 0.3), ratio=(0.5, 2)), np.random.default_rng(1)
    crops = [augmentation.crop_of((1000, 1000), generator) for _ in range(4000)]
    shares = np.sort([crop.width * crop.height / 1e6 for crop in crops])
    forms = np.sort([np.log2(crop.width / crop.height) for crop in crops])
    steps = (np.arange(4000) + 0.5) / 4000
    assert np.abs((shares - 0.1) / 0.2 - steps).max() < 0.03
    assert np.abs((forms + 1) / 2 - steps).max() < 0.03


def test_crops_depend_on_the_generator_alone_and_take_the_same_share_of_it():
    def crops(seed):
        generator = np.random.default_rng(seed)
        return [Augmentation(flip=0.5).crop_of((400, 300), generator) for _ in range(20)]

    assert crops(0) == crops(0) != crops(1)
    generators = [np.random.default_rng(0) for _ in range(3)]
    for generator, size in zip(generators, ((400, 300), (1, 1), (3000, 10)), strict=True):
        Augmentation().crop_of(size, generator)
    assert len({generator.random() for generator in generators}) == 1


def test_images_that_no_draw_fits_give_their_middle():
    for size, expected in (
        ((1600, 900), Crop(200, 0, 1200, 900)),
        ((900, 1600), Crop(0, 200, 900, 1200)),
        ((1, 1), Crop(0, 0, 1, 1)),
        ((1, 50), Crop(0, 24, 1, 1)),
        ((3000, 3), Crop(1498, 0, 4, 3)),
    ):
        assert {Augmentation().crop_of(size, np.random.default_rng(seed)) for seed in range(5)} == {expected}
    # A crop of the whole area fits at the ratio of the image only, which is never drawn exactly.
    whole = Augmentation(scale=(1, 1), ratio=(0.5, 2)).crop_of((6400, 4801), np.random.default_rng(0))
    assert whole == Crop(0, 0, 6400, 4801)


def test_a_rule_that_resizes_without_cropping_says_what_to_do():
    given = PairProcessor(None, CLIPImageProcessorPil(size={"shortest_edge": 8}, do_center_crop=False))
    square, wide = Image.new("RGB", (9, 9)), Image.new("RGB", (9, 20))
    assert given.images([square, square]).shape == (2, 3, 8, 8)
    with pytest.raises(ValueError, match="resizes without cropping, which leaves 2 sizes in a batch; pass crops"):
        given.images([square, wide])


def test_impossible_augmentations_are_refused():
    for options, message in (
        ({"scale": (0, 1)}, "scale: .*found 0 and 1"),
        ({"scale": (0.9, 0.5)}, "scale: .*found 0.9 and 0.5"),
        ({"scale": (0.5, 1.1)}, "scale: .*<= 1, found 0.5 and 1.1"),
        ({"scale": 0.9}, "scale: .*found 0.9"),
        ({"ratio": (0.5, float("inf"))}, "ratio: .*inf"),
        ({"ratio": (float("nan"), 1)}, "ratio: .*nan"),
        ({"ratio": ("1", "2")}, "ratio: "),
        ({"flip": 1.5}, "flip: .*found 1.5"),
        ({"flip": "often"}, "flip: .*found 'often'"),
    ):
        with pytest.raises(ValueError, match=message):
            Augmentation(**options)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK"])
def test_a_crop_of_what_cannot_be_reduced_is_exactly_a_crop_and_a_resize(mode):
    original = smooth().convert(mode)
    kind = "TIFF" if mode == "CMYK" else "PNG"
    image = open_image(encoded(original, kind))
    for crop, size in ((Crop(5, 7, 60, 50), (32, 24)), (Crop(0, 0, 96, 64), 16), (Crop(95, 63, 1, 1), 4)):
        box = (crop.left, crop.top, crop.left + crop.width, crop.top + crop.height)
        target = (size, size) if isinstance(size, int) else size
        expected = np.asarray(to_rgb(original).crop(box).resize(target, BICUBIC))
        found = read_crop(image, crop, size)
        assert found.shape == (target[1], target[0], 3) and found.dtype == np.uint8 and found.flags.c_contiguous
        assert np.array_equal(found, expected)
        mirrored = read_crop(image, Crop(crop.left, crop.top, crop.width, crop.height, flip=True), size)
        assert np.array_equal(mirrored, expected[:, ::-1])
        assert np.array_equal(read_crop(original, crop, size), expected)


def test_one_pixel():
    for kind in ("PNG", "JPEG"):
        image = open_image(encoded(Image.new("RGB", (1, 1), (40, 80, 120)), kind))
        crop = Augmentation().crop_of(oriented_size(image), np.random.default_rng(0))
        assert np.abs(read_crop(image, crop, 8).astype(int) - [40, 80, 120]).max() <= 2
        assert read_crop(image, crop, 1, decode_size=1).shape == (1, 1, 3)


@pytest.fixture
def decoded_sizes(monkeypatch):
    """Sizes at which JPEGs are decoded."""
    sizes, load = [], JpegImageFile.load_prepare

    def recorded(image):
        sizes.append(image.size)
        return load(image)

    monkeypatch.setattr(JpegImageFile, "load_prepare", recorded)
    return sizes


@pytest.mark.parametrize(
    ("shorter", "decode_size", "decoded"),
    [
        (300, None, (401, 301)),
        (256, 128, (201, 151)),
        (255, 128, (401, 301)),
        (300, 64, (101, 76)),
        (300, 37, (51, 38)),
        (300, 5, (51, 38)),
    ],
)
def test_jpegs_are_decoded_at_the_least_scale_that_leaves_enough(shorter, decode_size, decoded, decoded_sizes):
    for progressive in (False, True):
        data = encoded(smooth(401, 301), "JPEG", quality=95, progressive=progressive)
        found = read_crop(open_image(data), Crop(1, 1, 300, shorter), (224, 160), decode_size=decode_size)
        assert decoded_sizes == [decoded]
        full = Image.open(io.BytesIO(data)).crop((1, 1, 301, 1 + shorter)).resize((224, 160), BICUBIC)
        assert distance(found, full) < 1 and (decoded != (401, 301) or np.array_equal(found, np.asarray(full)))
        decoded_sizes.clear()


def test_gray_and_cmyk_jpegs_are_reduced_too(decoded_sizes):
    for mode in ("L", "CMYK"):
        original = smooth(400, 300).convert(mode)
        found = read_crop(open_image(encoded(original, "JPEG", quality=95)), Crop(0, 0, 400, 300), (64, 48))
        assert decoded_sizes.pop() == (100, 75)
        assert distance(found, original.convert("RGB").resize((64, 48), BICUBIC)) < 2


def test_reading_changes_nothing_and_gives_the_same_every_time(decoded_sizes):
    data = encoded(smooth(400, 300), "JPEG")
    image = open_image(data)
    crop = Crop(10, 10, 380, 280)
    first = read_crop(image, crop, 32)
    other = read_crop(image, crop, 64)
    assert to_rgb(image).size == image.size == (400, 300) and image.tile
    assert np.array_equal(read_crop(image, crop, 32), first)
    assert np.array_equal(read_crop(open_image(data), crop, 64), other)
    assert decoded_sizes == [(50, 38), (100, 75), (400, 300), (50, 38), (100, 75)]


def test_an_image_that_the_caller_decoded_is_read_in_full_and_kept(tmp_path):
    path = tmp_path / "image.jpg"
    path.write_bytes(encoded(smooth(400, 300), "JPEG"))
    crop = Crop(10, 10, 380, 280)
    with Image.open(path) as reference:
        expected = np.asarray(reference.crop((10, 10, 390, 290)).resize((32, 32), BICUBIC))
    # Decoded, drafted by the caller, and lazily opened on a file of the caller's.
    with Image.open(path) as loaded:
        loaded.load()
        before = loaded.tobytes()
        assert np.array_equal(read_crop(open_image(loaded), crop, 32), expected)
        assert loaded.size == (400, 300) and loaded.tobytes() == before
    with Image.open(path) as lazy:
        assert np.array_equal(read_crop(open_image(lazy), crop, 32), expected) and lazy.size == (400, 300)
    with Image.open(path) as drafted:
        drafted.draft(None, (200, 150))
        assert read_crop(drafted, Crop(0, 0, 200, 150), 32).shape == (32, 32, 3) and drafted.size == (200, 150)
    plain = smooth()
    turned = to_rgb(plain)
    turned.putpixel((0, 0), (1, 2, 3))
    assert plain.getpixel((0, 0)) != (1, 2, 3)


def test_impossible_crops_are_refused():
    for crop in (Crop(-1, 0, 5, 5), Crop(90, 0, 7, 5), Crop(0, 60, 5, 5), Crop(0, 0, 0, 5)):
        with pytest.raises(ValueError, match="expected a part of an image of 96 x 64") as raised:
            read_crop(smooth(), crop, 8)
        assert not isinstance(raised.value, BrokenImageError)


@pytest.mark.parametrize("rescale_factor", [1 / 255, 1 / 127.5])
def test_pixels_are_normalised_as_by_the_processor_of_clip(rescale_factor):
    processor = CLIPImageProcessorPil(do_resize=False, do_center_crop=False, rescale_factor=rescale_factor)
    levels = np.arange(3 * 16 * 16).reshape(16, 16, 3) % 256
    pixels = [levels.astype(np.uint8), levels[::-1].astype(np.uint8), 255 - levels.astype(np.uint8)]
    found = normalized(pixels, processor.image_mean, processor.image_std, rescale_factor)
    expected = processor(images=pixels, return_tensors="pt")["pixel_values"]
    assert found.shape == (3, 3, 16, 16) and found.dtype == torch.float32 and found.is_contiguous()
    assert (found - expected).abs().max() < 1e-6


def test_pixels_of_any_layout_have_three_channels():
    mean = std = (0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match="three channels"):
        normalized([np.array(smooth())], (0.5,), std)
    # An array that numpy may not write to, as Pillow gives it, and one that lies backwards in memory.
    assert torch.equal(
        normalized([np.asarray(smooth())[:, ::-1]], mean, std), normalized([np.array(smooth())[:, ::-1]], mean, std)
    )
