"""One pass through a clip: its packets, and the frames and sound in them."""

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from fractions import Fraction
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
from PIL import Image

from hf_blemo.errors import one_line
from hf_blemo.files import limits
from hf_blemo.media.audio import Audio, AudioTrack
from hf_blemo.media.cropping import Cropping, croppings
from hf_blemo.media.filters import HDR_CURVES, Deinterlacer, tone_mapped
from hf_blemo.media.sources import EXPECTED, MediaError, MediaSource, check_seconds

_BUFFER_SIZE = 2**16
_MOST_FAILURES = 32
_ROWS_AT_ONCE = 256
# A track that the header announces counts as one that begins late if it has no packet in this many bytes.
_SEARCHED_BYTES = 2**26
# Containers with the length in their header; for others it is a guess, which cannot show that an end is missing.
_MEASURED_FORMATS = {"mov", "matroska", "avi", "wav", "flac"}
_RIFF_FORMATS = {"avi", "wav"}
_UNKNOWN_RIFF_SIZE = 0x7FFF0000
# Containers that leave the packets before their zero without a stamp.
_UNSTAMPED_FORMATS = {"matroska"}
# Demuxers of text, which make a picture of any text.
_TEXT_FORMATS = {"tty"}


class Frame:
    """A picture of the video track.

    Args:
        time: in seconds from the start of the clip.
        image: (H, W, 3) uint8, RGB, or a function that makes it, called once and only when needed.
    """

    def __init__(self, time: float, image: np.ndarray | Callable[[], np.ndarray]):
        self.time = time
        self._image = image

    @property
    def image(self) -> np.ndarray:
        """(H, W, 3) uint8, RGB, as a player shows it: cropped, with square pixels, upright, on black if transparent.

        Raises:
            MediaError: the pixels cannot be converted.
        """
        if callable(self._image):
            self._image = self._image()
        return self._image


class MediaPass:
    """One pass through a file, from its header to its end.

    Args:
        source: the file; it stays open.
        hint: file name that decoders may look at, or an empty text.

    Raises:
        MediaError: the file holds no media that can be read.
    """

    def __init__(self, source: MediaSource, hint: str):
        import av

        self._source, self._name = source, source.name
        self._reader = source.reader(hint)
        # Packets that could not be read or decoded.
        self.num_damaged = 0
        # Leading frames that have no time.
        self.num_unstamped = 0
        self.notes: dict[str, str] = {}
        self._ends: dict[int, float] = {}
        try:
            opening: Any = av.open
            self.container = opening(
                self._reader,
                buffer_size=_BUFFER_SIZE,
                # Tags often have the encoding of an old system.
                metadata_errors="replace",
                # A playlist must not make the decoder open other files.
                container_options={"protocol_whitelist": "none"},
                # Opening decodes a picture of each track.
                options=_decoder_options(),
            )
        except Exception as error:
            raise self._unreadable(error) from error
        if self.container.format.name in _TEXT_FORMATS:
            self.close()
            raise MediaError(f"{self._name}: no media were found in it, {EXPECTED}")
        # PyAV lets FFmpeg invent missing time stamps (genpts), in a wrong order for AVI files.
        self.container.flags &= ~1
        start = self.container.start_time
        self._start = start / 1e6 if start is not None else 0.0
        # Cover art is no video track.
        self._covers = {stream.index for stream in self.container.streams.video if _is_cover(stream)}
        self.videos = [stream for stream in self.container.streams.video if stream.index not in self._covers]
        self._formats = set(self.container.format.name.split(","))

    def close(self) -> None:
        """Closes the container, not the source."""
        self.container.close()

    @property
    def end(self) -> float:
        """Seconds from the start of the clip to the end of the packets read so far."""
        return max(0.0, max(self._ends.values(), default=0.0) - self._start)

    def missing_end(self, indices: Collection[int]) -> str | None:
        """One sentence on the end that the header promises and the file lacks, after all packets were read; None
        without one.

        Only some containers have a length for each of the tracks.
        """
        formats = self._formats
        # The header of a RIFF file has its size, but FFmpeg derives the length from the actual size.
        head = self._source.read_at(0, 8) if formats & _RIFF_FORMATS else b""
        promised = int.from_bytes(head[4:], "little") + 8 if head.startswith(b"RIFF") else 0
        # Programs that do not know the size in advance write 0 or a very large number.
        if self._source.size + 1 < promised < _UNKNOWN_RIFF_SIZE:
            missing = promised - self._source.size
            return f"the file ends after {self.end:.1f} s, and its header promises {missing:,} bytes more"
        lengths = []
        if self.container.duration is not None and self._has_length(formats):
            lengths.append((self.end, self.container.duration / 1e6))
        if "mov" in formats:
            for stream in (self.container.streams[index] for index in indices):
                start = float((stream.start_time or 0) * stream.time_base)
                found = max(0.0, self._ends.get(stream.index, start) - start)
                lengths.append((found, float((stream.duration or 0) * stream.time_base)))
        short = [(found, length) for found, length in lengths if falls_short(found, length)]
        if not short:
            return None
        found, length = min(short)
        return f"the file ends after {found:.1f} s, and its header promises {length:.1f} s"

    def _has_length(self, formats: Collection[str]) -> bool:
        """Whether the length of the file comes from its header and is not a guess."""
        if "mp3" in formats:
            # The tag with the length also has the encoder's delay, which is then the start.
            return any(stream.start_time for stream in self.container.streams.audio)
        return not _MEASURED_FORMATS.isdisjoint(formats)

    def packets(self) -> Iterator[Any]:
        """Reads the packets of all tracks; skips and counts those that the container cannot parse."""
        import av

        failures = 0
        while failures < _MOST_FAILURES:
            try:
                for packet in self.container.demux():
                    # PyAV ends with empty packets, after which decoders refuse to go on.
                    if packet.size and packet.stream_index not in self._covers:
                        failures = 0
                        self._measure(packet)
                        yield packet
            except av.error.FFmpegError:
                failures += 1
                # At the end of a truncated file, the same failure repeats.
                self.num_damaged += failures == 1
            # Every file system has its own errors.
            except Exception as error:
                raise self._failed(error) from error
            else:
                failures = _MOST_FAILURES
            if self._reader.error is not None:
                raise self._failed(self._reader.error) from self._reader.error

    def decode(
        self, video: int | None, audio: int | None, origin: float, rates: Sequence[int], num_threads: int
    ) -> Iterator[Frame | Audio]:
        """Decodes a video and an audio track, or one of them, into frames and pieces of audio in the order of the
        file.

        Args:
            video, audio: indices of the tracks; None leaves one out.
            origin: time stamp at which the clip starts, in seconds.
            rates: samples per second of the audio to return.
            num_threads: of the video decoder; 0 is one per core.
        """
        tracks: dict[int, _VideoTrack | AudioTrack] = {}
        if video is not None:
            stream = self.container.streams[video]
            stream.thread_type = "AUTO"
            stream.codec_context.thread_count = num_threads
            stream.codec_context.options = _decoder_options()
            place = [track.index for track in self.container.streams.video].index(video)
            cropping = next(iter(croppings(self._source, self.container.format.name)[place:]), Cropping())
            tracks[video] = _VideoTrack(stream, origin, self._name, cropping, self.notes)
        if audio is not None:
            tracks[audio] = AudioTrack(self.container.streams[audio], origin, self._name, rates)
        packets = ((packet.stream_index, packet) for packet in self.packets())
        unstamped = set() if self._formats.isdisjoint(_UNSTAMPED_FORMATS) else set(tracks)
        for index, packet in chain(packets, ((index, None) for index in tracks)):
            if (track := tracks.get(index)) is not None:
                found, damaged = _decode(track.stream, packet)
                self.num_damaged += damaged
                if index in unstamped and found:
                    stamped = [frame for frame in found if frame.pts is not None or frame.dts is not None]
                    self.num_unstamped += len(found) - len(stamped)
                    found = stamped
                    unstamped -= {index} if stamped else set()
                yield from track.items(found, is_end=packet is None)

    def present(self, streams: Sequence[Any]) -> set[int]:
        """The indices of the streams that hold something, and of those that may begin late.

        It is looked for in the beginning of the file where the header does not say.
        """
        found = {stream.index for stream in streams if stream.frames > 0}
        missing = {stream.index for stream in streams} - found
        num_bytes = 0
        for packet in self.packets() if missing else ():
            found.add(packet.stream_index)
            missing.discard(packet.stream_index)
            num_bytes += packet.size
            if num_bytes > _SEARCHED_BYTES:
                return found | missing
            if not missing:
                break
        return found

    def _measure(self, packet: Any) -> None:
        stamp = packet.pts if packet.pts is not None else packet.dts
        if stamp is not None and packet.time_base:
            end = float((stamp + (packet.duration or 0)) * packet.time_base)
            self._ends[packet.stream_index] = max(end, self._ends.get(packet.stream_index, end))
            check_seconds(self._name, end - self._start)

    def _failed(self, error: Exception) -> MediaError:
        return MediaError(f"{self._name}: reading failed after {self.end:.1f} s: {one_line(error)}")

    def _unreadable(self, error: Exception) -> Exception:
        if self._reader.error is not None:
            return MediaError(f"{self._name}: cannot be read: {one_line(self._reader.error)}")
        if self._source.read_at(0, 12)[4:8] == b"ftyp":
            return MediaError(
                f"{self._name}: an MP4 file without its index (moov), as one that was cut short, expected a whole one"
            )
        if isinstance(error, MemoryError):
            # FFmpeg says so for sizes that a damaged file invents.
            return MediaError(f"{self._name}: it is damaged, or needs more memory than there is, {EXPECTED}")
        reason = getattr(error, "strerror", None) or one_line(error)
        return MediaError(f"{self._name}: no media that can be read ({reason}), {EXPECTED}")


def falls_short(found: float, promised: float) -> bool:
    """Whether a clip ends earlier, in seconds, than its header promises by more than containers round."""
    return promised - found > 0.2 + 0.01 * promised


class _VideoTrack:
    """Makes frames of the decoded pictures of a track."""

    def __init__(self, stream: Any, origin: float, name: str, cropping: Cropping, notes: dict[str, str]):
        self.stream, self._origin, self._name = stream, origin, name
        self._step = float(1 / (stream.average_rate or stream.guessed_rate or 25))
        self._last: float | None = None
        self._shift = 0.0
        self._pixels, self._notes = _PixelConverter(name, cropping, notes), notes
        self._whole = Deinterlacer()
        # Of each pixel, width by height; the decoder's own only counts where the container says nothing else.
        self._ratio, own = stream.sample_aspect_ratio, stream.codec_context.sample_aspect_ratio
        self._follows = self._ratio is None or self._ratio == own
        _check_size(name, stream.codec_context.width, stream.codec_context.height)

    def items(self, pictures: Sequence[Any], is_end: bool) -> Iterator[Frame]:
        for picture in pictures:
            _check_size(self._name, picture.width, picture.height)
            ratio = self.stream.codec_context.sample_aspect_ratio if self._follows else self._ratio
            time = self._time(picture)
            check_seconds(self._name, time)
            for shown, (moment, form) in self._whole(picture, (time, ratio)):
                yield Frame(moment, partial(self._pixels, shown, form))
        for shown, (moment, form) in self._whole.finish() if is_end else ():
            yield Frame(moment, partial(self._pixels, shown, form))
        if is_end and self._last is None and not self.stream.codec_context.width:
            # Some decoders refuse a picture that is too large before they say how large it is.
            most = f"{limits().max_pixels:,.10g}"
            self._notes["pixels"] = f"no picture of at most {most} pixels was found (limits.max_pixels raises it)"

    def _time(self, picture: Any) -> float:
        """Seconds from the start of the clip."""
        base = self.stream.time_base
        stamps = [float(stamp * base) for stamp in (picture.pts, picture.dts) if stamp is not None]
        if self._last is None:
            start = float(self.stream.start_time * base) if self.stream.start_time is not None else 0.0
            self._last = stamps[0] if stamps else start
            if picture.pts is None:
                # Decoding stamps begin as many frames late as the decoder has to wait for.
                self._shift = start - self._last
        else:
            later = [stamp for stamp in stamps if stamp > self._last]
            self._last = later[0] if later else self._last + self._step
        return self._last + self._shift - self._origin


class _PixelConverter:
    """Converts pictures to RGB as shown, one at a time, so that FFmpeg makes its tables once."""

    def __init__(self, name: str, cropping: Cropping, notes: dict[str, str]):
        from av.video.reformatter import VideoReformatter

        self._name, self._cropping, self._notes = name, cropping, notes
        self._reformatter = VideoReformatter()
        self._lock = threading.Lock()

    def __call__(self, picture: Any, ratio: Fraction | None) -> np.ndarray:
        transparent = _has_alpha(picture.format)
        try:
            with self._lock:
                converted = None if transparent else self._tone_mapped(picture)
                if converted is None:
                    converted = self._reformatter.reformat(picture, format="rgba" if transparent else "rgb24")
            pixels = converted.to_ndarray()
        except Exception as error:
            raise MediaError(
                f"{self._name}: cannot convert pixels of kind {picture.format.name}: {one_line(error)}"
            ) from error
        if transparent:
            # Row by row of blocks, since the numbers in between take twice the memory.
            opaque = np.empty((*pixels.shape[:2], 3), np.uint8)
            for start in range(0, len(pixels), _ROWS_AT_ONCE):
                part = pixels[start : start + _ROWS_AT_ONCE]
                opaque[start : start + _ROWS_AT_ONCE] = (part[..., :3] * part[..., 3:].astype(np.uint16) + 127) // 255
            pixels = opaque
        shown = self._shown(pixels, ratio)
        return np.ascontiguousarray(_upright(shown, _display_matrix(picture)))

    def _tone_mapped(self, picture: Any) -> Any:
        """RGB of a picture of HDR; None of any other, and where this FFmpeg cannot."""
        curve = HDR_CURVES.get(picture.color_trc)
        if curve is None or "tones" in self._notes:
            return None
        try:
            return tone_mapped(picture)
        # A build of FFmpeg without the filter or its options.
        except Exception as error:
            self._notes["tones"] = f"the picture is HDR ({curve}) and shown without tone mapping: {one_line(error)}"
            return None

    def _shown(self, pixels: np.ndarray, ratio: Fraction | None) -> np.ndarray:
        """Cropped, and with square pixels: the shorter side for its pixels grows, as the page's player has it."""
        height, width = pixels.shape[:2]
        top, bottom, left, right = self._cropping
        if any(self._cropping):
            if min(self._cropping) >= 0 and top + bottom < height and left + right < width:
                pixels = pixels[top : height - bottom, left : width - right]
                height, width = pixels.shape[:2]
            else:
                self._notes["cropping"] = (
                    f"a cropping by {', '.join(map(str, self._cropping))} pixels was not believed"
                )
        if not ratio or ratio == 1:
            return pixels
        size = (round(width * ratio), height) if ratio > 1 else (width, round(height / ratio))
        if size == (width, height):
            return pixels
        bounds = limits()
        if size[0] * size[1] > bounds.max_pixels or max(size) > bounds.max_aspect * min(size):
            self._notes["ratio"] = f"pixels of {ratio.numerator}:{ratio.denominator} were not believed"
            return pixels
        return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))


def _decoder_options() -> dict[str, str]:
    return {"max_pixels": str(int(limits().max_pixels))}


def _check_size(name: str, width: int, height: int) -> None:
    bounds, found = limits(), f"a picture of {width:,} x {height:,} pixels"
    if width * height > bounds.max_pixels:
        raise MediaError(bounds.excess(name, found, "max_pixels"))
    if max(width, height) > bounds.max_aspect * min(width, height) > 0:
        raise MediaError(bounds.excess(name, found, "max_aspect"))


def _is_cover(stream: Any) -> bool:
    from av.stream import Disposition

    return bool(stream.disposition & (Disposition.attached_pic | Disposition.timed_thumbnails))


def _decode(stream: Any, packet: Any) -> tuple[list[Any], int]:
    """Decodes a packet, or the end of the track for None; also returns the number of errors."""
    import av

    try:
        frames = stream.codec_context.decode(packet)
    except av.error.EOFError:
        return [], 0
    except (av.error.FFmpegError, ValueError, MemoryError):
        return [], 1
    return frames, sum(bool(frame.is_corrupt) for frame in frames)


def _has_alpha(form: Any) -> bool:
    return bool(form.has_palette) or any(component.is_alpha for component in form.components)


def _display_matrix(picture: Any) -> tuple[int, int, int, int]:
    """Directions on the screen of the axes of the stored picture: (a, b) of x and (c, d) of y."""
    from av.sidedata.sidedata import SideDataContainer

    # The picture's own property makes it and this a circle, so that pictures would wait for garbage collection.
    side_data: Any = SideDataContainer
    for data in side_data(picture):
        if data.type.name == "DISPLAYMATRIX":
            a, b, _, c, d, *_ = np.frombuffer(bytes(data), np.int32).tolist()
            return (a, b, c, d)
    return (1, 0, 0, 1)


def _upright(pixels: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    a, b, c, d = matrix
    # Other angles count as the nearest quarter turn.
    if abs(b) + abs(c) > abs(a) + abs(d):
        pixels = pixels.transpose(1, 0, 2)
        across, down = c, b
    else:
        across, down = a, d
    return pixels[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1]
