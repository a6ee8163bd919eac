"""One passage through a clip: packets, and what they decode to."""

import math
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from types import TracebackType
from typing import Any

import numpy as np

from hf_blemo.media.audio import Audio, AudioMixer
from hf_blemo.media.sources import EXPECTED, MediaError, MediaSource, described

_BUFFER_SIZE = 2**16
_MOST_FAILURES = 32
# Containers whose header tells the length; that of others is a guess, and says nothing about a missing end.
_MEASURED_FORMATS = {"mov", "matroska", "avi", "wav", "flac"}
_RIFF_FORMATS = {"avi", "wav"}
_UNKNOWN_RIFF_SIZE = 0x7FFF0000
# Demuxers of text, which would make a picture of any.
_TEXT_FORMATS = {"tty"}


class Frame:
    """A picture of the video track.

    Args:
        time: in seconds from the start of the clip.
        image: (H, W, 3) uint8, RGB, or a function that makes it, which is called once and only when needed.
    """

    def __init__(self, time: float, image: np.ndarray | Callable[[], np.ndarray]):
        self.time = time
        self._image = image

    @property
    def image(self) -> np.ndarray:
        """(H, W, 3) uint8, RGB, upright; what is transparent lies on black.

        Raises:
            MediaError: pixels of a kind that cannot be converted.
        """
        if callable(self._image):
            self._image = self._image()
        return self._image


class MediaPass:
    """One passage through a file, from its header to its end.

    Args:
        source: what is read; it stays open.
        hint: file name that decoders may look at, or an empty text.

    Raises:
        MediaError: no media that can be read.
    """

    def __init__(self, source: MediaSource, hint: str):
        import av

        self._source, self._name = source, source.name
        self._reader = source.reader(hint)
        self.num_failures = 0
        self._ends: dict[int, float] = {}
        try:
            opening: Any = av.open
            self.container = opening(
                self._reader,
                buffer_size=_BUFFER_SIZE,
                # Tags are often in the encoding of some old system.
                metadata_errors="replace",
                # A playlist must not make the decoder open files of its own choice.
                container_options={"protocol_whitelist": "none"},
            )
        except MemoryError:
            raise MemoryError(f"{self._name}: no memory is left to open it") from None
        except Exception as error:
            raise self._unreadable(error) from error
        if self.container.format.name in _TEXT_FORMATS:
            self.close()
            raise MediaError(f"{self._name}: no media were found in it, {EXPECTED}")
        # PyAV has time stamps invented where there are none; those of AVI files come out in a wrong order.
        self.container.flags &= ~1
        start = self.container.start_time
        self._start = start / 1e6 if start is not None else 0.0
        self._covers = {stream.index for stream in self.container.streams.video if is_cover(stream)}

    def __enter__(self) -> "MediaPass":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the container, not the source."""
        self.container.close()

    @property
    def end(self) -> float:
        """Seconds from the start to the end of what was read so far."""
        return max(0.0, max(self._ends.values(), default=0.0) - self._start)

    def missing_end(self, indices: Collection[int]) -> str | None:
        """What the header promises beyond what was read to the end; None where nothing is missing.

        Args:
            indices: of the tracks that matter; only some containers have a length of each.
        """
        formats = set(self.container.format.name.split(","))
        # The size of a RIFF file is in its header, and FFmpeg takes the length of one from its actual size.
        head = self._source.read_at(0, 8) if formats & _RIFF_FORMATS else b""
        promised = int.from_bytes(head[4:], "little") + 8 if head.startswith(b"RIFF") else 0
        # Programs that do not know the size in advance write 0 or one of the largest numbers.
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
        short = [(found, length) for found, length in lengths if length - found > 0.2 + 0.01 * length]
        if not short:
            return None
        found, length = min(short)
        return f"the file ends after {found:.1f} s, and its header promises {length:.1f} s"

    def _has_length(self, formats: Collection[str]) -> bool:
        """Whether the length of the file comes from its header, and is not guessed."""
        if "mp3" in formats:
            # The tag that tells the length also tells the encoder's delay, which is then the start.
            return any(stream.start_time for stream in self.container.streams.audio)
        return not _MEASURED_FORMATS.isdisjoint(formats)

    def packets(self) -> Iterator[Any]:
        """The packets of all tracks; what the container cannot make sense of is passed over and counted."""
        import av

        failures = 0
        while failures < _MOST_FAILURES:
            try:
                for packet in self.container.demux():
                    # PyAV closes with empty packets, after which nothing can be decoded any more.
                    if packet.size and packet.stream_index not in self._covers:
                        failures = 0
                        self._measure(packet)
                        yield packet
            except av.error.FFmpegError:
                failures += 1
                # At the end of a file that was cut short, the same failure comes again and again.
                self.num_failures += failures == 1
            except MemoryError:
                raise
            # Every kind of file system has errors of its own.
            except Exception as error:
                raise self._failed(error) from error
            else:
                failures = _MOST_FAILURES
            if self._reader.error is not None:
                raise self._failed(self._reader.error) from self._reader.error

    def _measure(self, packet: Any) -> None:
        stamp = packet.pts if packet.pts is not None else packet.dts
        if stamp is not None and packet.time_base:
            end = float((stamp + (packet.duration or 0)) * packet.time_base)
            self._ends[packet.stream_index] = max(end, self._ends.get(packet.stream_index, end))

    def _failed(self, error: Exception) -> MediaError:
        return MediaError(f"{self._name}: reading failed after {self.end:.1f} s: {described(error)}")

    def _unreadable(self, error: Exception) -> Exception:
        if self._reader.error is not None:
            return MediaError(f"{self._name}: cannot be read: {described(self._reader.error)}")
        if self._source.read_at(0, 12)[4:8] == b"ftyp":
            return MediaError(
                f"{self._name}: an MP4 file without its index (moov), as one that was cut short, expected a whole one"
            )
        reason = getattr(error, "strerror", None) or described(error)
        return MediaError(f"{self._name}: no media that can be read ({reason}), {EXPECTED}")


class VideoTrack:
    """Decodes the packets of a video track, and picks frames by their times."""

    def __init__(self, stream: Any, origin: float, name: str, frames_per_second: float | None):
        self.num_damaged = 0
        self._stream, self._origin = stream, origin
        self._step = float(1 / (stream.average_rate or stream.guessed_rate or 25))
        self._first: float | None = None
        self._last: float | None = None
        self._shift = 0.0
        self._frames_per_second = frames_per_second
        self._next = 0
        # Half a tick: the 1/30 of a container that counts milliseconds is 0.033.
        self._tolerance = min(float(stream.time_base or 0) / 2, 0.0005) + 1e-9
        self._pixels = PixelConverter(name)

    def decode(self, packet: Any) -> Iterator[Frame]:
        pictures, damaged = decoded(self._stream, packet)
        self.num_damaged += damaged
        for picture in pictures:
            time = self._time(picture)
            if self._frames_per_second is not None:
                # A frame counts for every k up to its time.
                passed = math.floor((time + self._tolerance) * self._frames_per_second) + 1
                if passed <= self._next:
                    continue
                self._next = passed
            yield Frame(time, _Lazy(self._pixels, picture))

    def _time(self, picture: Any) -> float:
        """Seconds from the start of the clip."""
        base = self._stream.time_base
        stamps = [float(stamp * base) for stamp in (picture.pts, picture.dts) if stamp is not None]
        if self._last is None:
            start = float(self._stream.start_time * base) if self._stream.start_time is not None else 0.0
            self._last = stamps[0] if stamps else start
            if picture.pts is None:
                # Stamps of decoding begin as many frames late as the decoder has to wait for.
                self._shift = start - self._last
        else:
            later = [stamp for stamp in stamps if stamp > self._last]
            self._last = later[0] if later else self._last + self._step
        return self._last + self._shift - self._origin


class AudioTrack:
    """Decodes the packets of an audio track."""

    def __init__(self, stream: Any, origin: float, name: str, rates: Sequence[int]):
        self.num_damaged = 0
        self._stream, self._origin, self._name = stream, origin, name
        self._mixer = AudioMixer(rates)

    def decode(self, packet: Any) -> Iterator[Audio]:
        import av

        frames, damaged = decoded(self._stream, packet)
        self.num_damaged += damaged
        try:
            for frame in frames:
                time = None if frame.pts is None else float(frame.pts * self._stream.time_base) - self._origin
                yield from self._mixer.push(frame, time)
            if packet is None:
                yield from self._mixer.flush()
        except av.error.FFmpegError as error:
            raise MediaError(
                f"{self._name}: audio that cannot be mixed to mono at {list(self._mixer.rates)}: {described(error)}"
            ) from error


class PixelConverter:
    """Converts pictures to RGB, one after another, so that the tables for it are made once."""

    def __init__(self, name: str):
        from av.video.reformatter import VideoReformatter

        self._name = name
        self._reformatter = VideoReformatter()
        self._lock = threading.Lock()

    def __call__(self, picture: Any) -> np.ndarray:
        transparent = _has_alpha(picture.format)
        try:
            with self._lock:
                converted = self._reformatter.reformat(picture, format="rgba" if transparent else "rgb24")
            pixels = converted.to_ndarray()
        except Exception as error:
            raise MediaError(
                f"{self._name}: pixels of kind {picture.format.name} that cannot be converted: {described(error)}"
            ) from error
        if transparent:
            alpha = pixels[..., 3:].astype(np.uint16)
            pixels = ((pixels[..., :3] * alpha + 127) // 255).astype(np.uint8)
        return np.ascontiguousarray(_upright(pixels, _display_matrix(picture)))


class _Lazy:
    """The image of a decoded picture, once it is asked for."""

    def __init__(self, pixels: PixelConverter, picture: Any):
        self._pixels, self._picture = pixels, picture

    def __call__(self) -> np.ndarray:
        return self._pixels(self._picture)


def is_cover(stream: Any) -> bool:
    from av.stream import Disposition

    return bool(int(stream.disposition) & int(Disposition.attached_pic | Disposition.timed_thumbnails))


def decoded(stream: Any, packet: Any) -> tuple[list[Any], int]:
    """What a packet gives, or the end of the track for None, and how many errors were met."""
    import av

    try:
        frames = stream.codec_context.decode(packet)
    except av.error.EOFError:
        return [], 0
    except (av.error.FFmpegError, ValueError):
        return [], 1
    return frames, sum(bool(frame.is_corrupt) for frame in frames)


def _has_alpha(form: Any) -> bool:
    return bool(form.has_palette) or any(component.is_alpha for component in form.components)


def _display_matrix(picture: Any) -> tuple[int, int, int, int]:
    """Where the axes of the stored picture lie on the screen: x to (a, b), y to (c, d)."""
    for data in picture.side_data:
        if data.type.name == "DISPLAYMATRIX":
            a, b, _, c, d, *_ = np.frombuffer(bytes(data), np.int32).tolist()
            return (a, b, c, d)
    return (1, 0, 0, 1)


def _is_turned(matrix: tuple[int, int, int, int]) -> bool:
    """Whether width and height change places; what is no quarter turn counts as the nearest one."""
    a, b, c, d = matrix
    return abs(b) + abs(c) > abs(a) + abs(d)


def _upright(pixels: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    a, b, c, d = matrix
    if _is_turned(matrix):
        pixels = pixels.transpose(1, 0, 2)
        across, down = c, b
    else:
        across, down = a, d
    return pixels[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1]


def upright_size(picture: Any) -> tuple[int, int]:
    size = (picture.width, picture.height)
    return size[::-1] if _is_turned(_display_matrix(picture)) else size
