"""One pass through a clip: its packets, and the frames and sound in them."""

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any

import numpy as np

from hf_blemo.errors import one_line
from hf_blemo.media.audio import Audio, AudioTrack
from hf_blemo.media.sources import EXPECTED, MediaError, MediaSource

_BUFFER_SIZE = 2**16
_MOST_FAILURES = 32
# A track that the header announces counts as one that begins late if it has no packet in this many bytes.
_SEARCHED_BYTES = 2**26
# Containers with the length in their header; for others it is a guess, which cannot show that an end is missing.
_MEASURED_FORMATS = {"mov", "matroska", "avi", "wav", "flac"}
_RIFF_FORMATS = {"avi", "wav"}
_UNKNOWN_RIFF_SIZE = 0x7FFF0000
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
        """(H, W, 3) uint8, RGB, upright, on black where it is transparent.

        Raises:
            MediaError: the kind of pixels cannot be converted.
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
            )
        except MemoryError:
            raise MemoryError(f"{self._name}: no memory is left to open it") from None
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

    def close(self) -> None:
        """Closes the container, not the source."""
        self.container.close()

    @property
    def end(self) -> float:
        """Seconds from the start of the clip to the end of the packets read so far."""
        return max(0.0, max(self._ends.values(), default=0.0) - self._start)

    def missing_end(self, indices: Collection[int]) -> str | None:
        """Describes the end that the header promises and the file lacks, after all packets were read.

        Args:
            indices: of the tracks to check; only some containers have a length for each.

        Returns:
            One sentence; None if nothing is missing.
        """
        formats = set(self.container.format.name.split(","))
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
        short = [(found, length) for found, length in lengths if length - found > 0.2 + 0.01 * length]
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
            except MemoryError:
                raise
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
        """Decodes a video and an audio track.

        Args:
            video, audio: indices of the tracks; None leaves one out.
            origin: time stamp at which the clip starts, in seconds.
            rates: samples per second of the audio to return.
            num_threads: of the video decoder; 0 is one per core.

        Returns:
            Frames and pieces of audio, in the order of the file.
        """
        tracks: dict[int, _VideoTrack | AudioTrack] = {}
        if video is not None:
            stream = self.container.streams[video]
            stream.thread_type = "AUTO"
            stream.codec_context.thread_count = num_threads
            tracks[video] = _VideoTrack(stream, origin, self._name)
        if audio is not None:
            tracks[audio] = AudioTrack(self.container.streams[audio], origin, self._name, rates)
        packets = ((packet.stream_index, packet) for packet in self.packets())
        for index, packet in chain(packets, ((index, None) for index in tracks)):
            if (track := tracks.get(index)) is not None:
                found, damaged = _decode(track.stream, packet)
                self.num_damaged += damaged
                yield from track.items(found, is_end=packet is None)

    def present(self, streams: Sequence[Any]) -> set[int]:
        """Finds the streams that hold something, in the beginning of the file where the header does not say.

        Args:
            streams: to look for.

        Returns:
            Their indices, with those of streams that may begin late.
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

    def _failed(self, error: Exception) -> MediaError:
        return MediaError(f"{self._name}: reading failed after {self.end:.1f} s: {one_line(error)}")

    def _unreadable(self, error: Exception) -> Exception:
        if self._reader.error is not None:
            return MediaError(f"{self._name}: cannot be read: {one_line(self._reader.error)}")
        if self._source.read_at(0, 12)[4:8] == b"ftyp":
            return MediaError(
                f"{self._name}: an MP4 file without its index (moov), as one that was cut short, expected a whole one"
            )
        reason = getattr(error, "strerror", None) or one_line(error)
        return MediaError(f"{self._name}: no media that can be read ({reason}), {EXPECTED}")


class _VideoTrack:
    """Makes frames of the decoded pictures of a track."""

    def __init__(self, stream: Any, origin: float, name: str):
        self.stream, self._origin = stream, origin
        self._step = float(1 / (stream.average_rate or stream.guessed_rate or 25))
        self._last: float | None = None
        self._shift = 0.0
        self._pixels = _PixelConverter(name)

    def items(self, pictures: Sequence[Any], is_end: bool) -> Iterator[Frame]:
        for picture in pictures:
            yield Frame(self._time(picture), partial(self._pixels, picture))

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
    """Converts pictures to RGB, one at a time, so that FFmpeg makes its tables once."""

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
                f"{self._name}: cannot convert pixels of kind {picture.format.name}: {one_line(error)}"
            ) from error
        if transparent:
            alpha = pixels[..., 3:].astype(np.uint16)
            pixels = ((pixels[..., :3] * alpha + 127) // 255).astype(np.uint8)
        return np.ascontiguousarray(_upright(pixels, _display_matrix(picture)))


def _is_cover(stream: Any) -> bool:
    from av.stream import Disposition

    return bool(int(stream.disposition) & int(Disposition.attached_pic | Disposition.timed_thumbnails))


def _decode(stream: Any, packet: Any) -> tuple[list[Any], int]:
    """Decodes a packet, or the end of the track for None; also returns the number of errors."""
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
    """Directions on the screen of the axes of the stored picture: (a, b) of x and (c, d) of y."""
    for data in picture.side_data:
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
