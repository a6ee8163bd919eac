"""Interlaced and HDR clips look as a player shows them."""

import threading
from fractions import Fraction

import numpy as np
import pytest

from hf_blemo.media import MediaFile, filters

av = pytest.importorskip("av", reason="the extra media is not installed")
SIZE, COUNT = (64, 96), 6


def bar(place):
    """A bright bar before black, at an even distance from the left."""
    picture = np.full((*SIZE, 3), 30, np.uint8)
    picture[:, place : place + 16] = 220
    return picture


def woven(number):
    """Two fields, between which the bar has moved by 8 pixels."""
    picture = bar(16 * number // 2)
    picture[1::2] = bar(16 * number // 2 + 8)[1::2]
    return picture


def write(path, codec, pixel_format, pictures, options=None, **tags):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options or {})
        stream.height, stream.width, stream.pix_fmt = *SIZE, pixel_format
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
        for number, picture in enumerate(pictures):
            frame = picture if isinstance(picture, av.VideoFrame) else av.VideoFrame.from_ndarray(picture, "rgb24")
            frame = frame.reformat(format=pixel_format)
            frame.pts, frame.time_base = number, Fraction(1, 25)
            for name, value in tags.items():
                setattr(frame, name, value)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def read(path):
    with MediaFile(path) as media:
        return [(frame.time, frame.image) for frame in media.read()], media.notes


def comb(picture):
    """How much more neighbouring rows differ than those of one field."""
    rows = picture.astype(float)
    return np.abs(rows[1:-1] - rows[2:]).mean() - np.abs(rows[:-2] - rows[2:]).mean()


def test_interlaced_pictures_are_made_whole(tmp_path):
    pictures = [woven(number) for number in range(COUNT)]
    options = {"flags": "+ildct+ilme", "b": "8M"}
    interlaced, notes = read(write(tmp_path / "fields.mpg", "mpeg2video", "yuv420p", pictures, options))
    plain, _ = read(write(tmp_path / "frames.mpg", "mpeg2video", "yuv420p", pictures, {"b": "8M"}))
    assert [time for time, _ in interlaced] == pytest.approx([time for time, _ in plain])
    assert len(interlaced) == COUNT and notes == []
    for (_, found), (_, combed) in zip(interlaced, plain, strict=True):
        assert comb(combed) > 20 and comb(found) < 0.2 * comb(combed)


def grey(level):
    """A 10-bit picture of one level of brightness."""
    frame = av.VideoFrame(SIZE[1], SIZE[0], "yuv420p10le")
    for plane, value in zip(frame.planes, (level, 512, 512), strict=True):
        plane.update(np.full(plane.buffer_size // 2, value, np.uint16).tobytes())
    return frame


def hdr_clip(folder, curve):
    tags = {"color_trc": curve, "color_primaries": 9, "colorspace": 9, "color_range": 1}
    return write(
        folder / f"{curve}.mkv", "ffv1", "yuv420p10le", [grey(level) for level in (64, 200, 572, 940)], **tags
    )


def test_hdr_pictures_are_tone_mapped(tmp_path):
    plain, _ = read(hdr_clip(tmp_path, 1))
    levels = [int(image[32, 48, 0]) for _, image in plain]
    for curve in filters.HDR_CURVES:
        found, notes = read(hdr_clip(tmp_path, curve))
        mapped = [int(image[32, 48, 0]) for _, image in found]
        assert len(found) == 4 and notes == [] and mapped == sorted(mapped)
        # Black and white stay; what is between does not.
        assert mapped[0] <= 2 and mapped[-1] >= 235
        assert max(abs(one - two) for one, two in zip(mapped[1:-1], levels[1:-1], strict=True)) >= 8


def test_hdr_that_cannot_be_tone_mapped_has_a_note(tmp_path, monkeypatch):
    monkeypatch.setattr(filters, "_of_thread", threading.local())
    monkeypatch.setattr(filters, "_TONE_MAP", [("zscale_of_tomorrow", "")])
    found, notes = read(hdr_clip(tmp_path, 16))
    plain, _ = read(hdr_clip(tmp_path, 1))
    assert len(notes) == 1 and notes[0].startswith("the picture is HDR (PQ) and shown without tone mapping: ")
    assert all(np.array_equal(one, two) for (_, one), (_, two) in zip(found, plain, strict=True))
