"""The part of the stored picture that a container says to show; FFmpeg's decoders leave that to the player."""

from collections.abc import Iterator
from typing import NamedTuple

from hf_blemo.media.sources import MediaSource

# Elements of one level that are looked at, at most.
_MOST_ELEMENTS = 10_000
_SEGMENT, _TRACKS, _CLUSTER = 0x18538067, 0x1654AE6B, 0x1F43B675
_TRACK, _TRACK_TYPE, _VIDEO = 0xAE, 0x83, 0xE0
_CROPS = {0x54BB: "top", 0x54AA: "bottom", 0x54CC: "left", 0x54DD: "right"}
# Of a description of a video track, before the boxes in it.
_VISUAL_ENTRY_SIZE = 78

Span = tuple[int, int]


class Cropping(NamedTuple):
    """Pixels to leave out at each side of the stored picture."""

    top: int = 0
    bottom: int = 0
    left: int = 0
    right: int = 0


def croppings(source: MediaSource, form: str) -> list[Cropping]:
    """The croppings of all video tracks of a Matroska or MP4, in the order of the file; none of other containers.

    `form` is the name of the container, as FFmpeg gives it.
    """
    whole = (0, source.size)
    if "matroska" in form:
        return list(_matroska(source, whole))
    return list(_mp4(source, whole)) if "mov" in form.split(",") else []


def _matroska(source: MediaSource, whole: Span) -> Iterator[Cropping]:
    for segment in _inside(_elements(source, whole), _SEGMENT):
        for tracks in _inside(_elements(source, segment), _TRACKS):
            for track in _inside(_elements(source, tracks), _TRACK):
                parts = dict(_elements(source, track))
                if _TRACK_TYPE in parts and _number(source, parts[_TRACK_TYPE]) == 1:
                    video = _elements(source, parts.get(_VIDEO, (0, 0)))
                    yield Cropping(**{_CROPS[key]: _number(source, span) for key, span in video if key in _CROPS})
            return


def _mp4(source: MediaSource, whole: Span) -> Iterator[Cropping]:
    for movie in _inside(_boxes(source, whole), b"moov"):
        for track in _inside(_boxes(source, movie), b"trak"):
            media = dict(_boxes(source, dict(_boxes(source, track)).get(b"mdia", (0, 0))))
            if source.read_at(media.get(b"hdlr", whole)[0] + 8, 4) == b"vide":
                table = dict(_boxes(source, dict(_boxes(source, media.get(b"minf", (0, 0)))).get(b"stbl", (0, 0))))
                start, end = table.get(b"stsd", (0, 0))
                entry = next((span for _, span in _boxes(source, (start + 8, end))), (0, 0))
                yield _aperture(source, entry)


def _aperture(source: MediaSource, entry: Span) -> Cropping:
    """The cropping that the clean aperture of a description of a video track means."""
    width, height = (int.from_bytes(source.read_at(entry[0] + place, 2), "big") for place in (24, 26))
    for start, end in _inside(_boxes(source, (entry[0] + _VISUAL_ENTRY_SIZE, entry[1])), b"clap"):
        content = source.read_at(start, end - start)
        # Width, height and offsets of the centre, each a numerator with its denominator.
        numbers = [int.from_bytes(content[place : place + 4], "big", signed=True) for place in range(0, 32, 4)]
        if len(content) >= 32 and min(numbers[1::2]) > 0:
            wide, high, right, down = (a / b for a, b in zip(numbers[::2], numbers[1::2], strict=True))
            left, top = round((width - wide) / 2 + right), round((height - high) / 2 + down)
            return Cropping(top, height - top - round(high), left, width - left - round(wide))
    return Cropping()


def _inside(elements: Iterator[tuple[object, Span]], name: object) -> Iterator[Span]:
    return (span for found, span in elements if found == name)


def _boxes(source: MediaSource, span: Span) -> Iterator[tuple[bytes, Span]]:
    """The boxes of an MP4 file in a part of it: name, and where the content lies."""
    place, end = span
    for _ in range(_MOST_ELEMENTS):
        head = source.read_at(place, 16) if place + 8 <= end else b""
        if len(head) < 8:
            return
        size, start = int.from_bytes(head[:4], "big"), place + 8
        if size == 1:
            size, start = int.from_bytes(head[8:], "big"), place + 16
        after = place + size if size else end
        if not start <= after <= end:
            return
        yield head[4:8], (start, after)
        place = after


def _elements(source: MediaSource, span: Span) -> Iterator[tuple[int, Span]]:
    """The elements of a part of a Matroska file, up to the first of pictures: number, and where the content lies."""
    place, end = span
    for _ in range(_MOST_ELEMENTS):
        head = source.read_at(place, 12) if place < end else b""
        if not head or not head[0]:
            return
        width = 9 - head[0].bit_length()
        number, first = int.from_bytes(head[:width], "big"), head[width : width + 1]
        if number == _CLUSTER or not first or not first[0]:
            return
        length = 9 - first[0].bit_length()
        size = int.from_bytes(head[width : width + length], "big") & ((1 << 7 * length) - 1)
        start = place + width + length
        # All ones: as long as what it is in.
        after = end if size == (1 << 7 * length) - 1 else min(end, start + size)
        yield number, (start, after)
        place = after


def _number(source: MediaSource, span: Span) -> int:
    return int.from_bytes(source.read_at(span[0], min(8, span[1] - span[0])), "big")
