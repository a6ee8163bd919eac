"""Clips of any kind, decoded once: pictures and mono audio with their times. Needs the extra `media`."""

import io
import math
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

from hf_blemo.errors import MissingExtraError
from hf_blemo.media.audio import Audio
from hf_blemo.media.decoding import (
    AudioTrack,
    Frame,
    MediaPass,
    VideoTrack,
    decoded,
    is_cover,
    upright_size,
)
from hf_blemo.media.sources import EXPECTED, MediaError, MediaSource, is_address

__all__ = ["MEDIA_SUFFIXES", "Audio", "Frame", "MediaError", "MediaFile", "Thumbnails", "is_media"]

_VIDEO_SUFFIXES = "3gp asf avi flv gif m2ts m4v mkv mov mp4 mpeg mpg mts mxf ogv ts webm wmv"
_AUDIO_SUFFIXES = "aac aif aiff amr au caf flac m4a mp3 oga ogg opus wav wma"
MEDIA_SUFFIXES = frozenset(f".{suffix}" for suffix in f"{_VIDEO_SUFFIXES} {_AUDIO_SUFFIXES}".split())

# Tracks that the header announces are looked for this far before they are believed to come later.
_SEARCHED_BYTES = 2**26
_SEARCHED_PACKETS = 100


class MediaFile:
    """A clip: a file with a video track, an audio track, or both.

    Of several tracks of a kind, the one that the container marks as its default is taken. Cover art is no video
    track. Opening reads the beginning of the file; [`read`] then passes through it once.

    Args:
        source: path; address (`https://`, `hf://`, `s3://` ... as fsspec knows them); bytes; or a file object, opened
            in binary mode, which is read from its beginning and stays open.
        name: for messages; the path or the address without its query by default.
        num_threads: of the video decoder; 0 is one per core.

    Attributes:
        name: for messages.
        duration: in seconds, as the header has it or guesses it; None where it does not say.
        has_video, has_audio: whether there is such a track.
        frame_rate: average, in frames per second; None without video, or where the file does not say.
        size: width and height in pixels of the first frame when upright; None without video.

    Raises:
        FileNotFoundError: there is no such file.
        IsADirectoryError: a folder.
        MediaError: empty, no media, or no track that can be decoded.
        MissingExtraError: the extra `media`, or the package for this kind of address, is not installed.

    Source: this project's choice.
    """

    def __init__(self, source: Any, name: str | None = None, num_threads: int = 0):
        check_extra()
        if num_threads < 0:
            raise ValueError(f"num_threads: expected 0 for one per core, or more, found {num_threads}")
        self.duration: float | None = None
        self.frame_rate: float | None = None
        self.size: tuple[int, int] | None = None
        self._num_threads = num_threads
        self._video: int | None = None
        self._audio: int | None = None
        self._origin = 0.0
        self._notes: dict[str, str] = {}
        self._hint = _hint(source)
        self._source = MediaSource(source, name)
        self.name = self._source.name
        try:
            self._inspect()
        except BaseException:
            self._source.close()
            raise

    def __enter__(self) -> "MediaFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file, unless it is a file object that was given."""
        self._source.close()

    @property
    def has_video(self) -> bool:
        """Whether there is a video track."""
        return self._video is not None

    @property
    def has_audio(self) -> bool:
        """Whether there is an audio track."""
        return self._audio is not None

    @property
    def notes(self) -> list[str]:
        """What was found to be unusual so far, one sentence each; reading to the end may add to it."""
        return list(self._notes.values())

    def read(
        self, video: bool = True, audio_rates: Sequence[int] = (), frames_per_second: float | None = None
    ) -> Iterator[Frame | Audio]:
        """Decodes the clip from its beginning in one pass; little more than a frame is in memory at a time.

        Args:
            video: whether frames are wanted.
            audio_rates: samples per second that the audio is wanted at; none are no audio.
            frames_per_second: of every k the first frame at or after k / frames_per_second seconds, each frame once;
                None is every frame.

        Returns:
            Frames and pieces of audio, in the order of the file.

        Raises:
            ValueError: rates that are not positive.
            MediaError: the source fails while it is read.
        """
        rates = tuple(dict.fromkeys(audio_rates))
        if not all(isinstance(rate, int) and not isinstance(rate, bool) and rate > 0 for rate in rates):
            raise ValueError(f"audio_rates: expected positive whole numbers, found {list(audio_rates)}")
        if frames_per_second is not None and not 0 < frames_per_second < math.inf:
            raise ValueError(f"frames_per_second: expected a positive number or None, found {frames_per_second}")
        return self._read(video and self.has_video, rates if self.has_audio else (), frames_per_second)

    def _read(self, video: bool, rates: tuple[int, ...], frames_per_second: float | None) -> Iterator[Frame | Audio]:
        with MediaPass(self._source, self._hint) as opened:
            tracks: dict[int, VideoTrack | AudioTrack] = {}
            if video and self._video is not None:
                stream = opened.container.streams[self._video]
                stream.thread_type = "AUTO"
                stream.codec_context.thread_count = self._num_threads
                tracks[self._video] = VideoTrack(stream, self._origin, self.name, frames_per_second)
            if rates and self._audio is not None:
                stream = opened.container.streams[self._audio]
                tracks[self._audio] = AudioTrack(stream, self._origin, self.name, rates)
            try:
                for packet in opened.packets():
                    if (track := tracks.get(packet.stream_index)) is not None:
                        yield from track.decode(packet)
                for track in tracks.values():
                    yield from track.decode(None)
                self._note_end(opened)
            finally:
                damaged = opened.num_failures + sum(track.num_damaged for track in tracks.values())
                if damaged:
                    self._notes["damage"] = (
                        f"{damaged} damaged {'packets were' if damaged > 1 else 'packet was'} skipped"
                    )

    def _note_end(self, opened: MediaPass) -> None:
        """Notes an end that comes before the one that the header promises."""
        if self.duration is None:
            self.duration = opened.end or None
        note = opened.missing_end([index for index in (self._video, self._audio) if index is not None])
        if note is not None:
            self._notes["end"] = note

    def _inspect(self) -> None:
        """Chooses the tracks that hold something, and looks at the first frame, as only it tells which way is up."""
        with MediaPass(self._source, self._hint) as opened:
            container = opened.container
            if container.duration is not None and container.duration > 0:
                self.duration = container.duration / 1e6
            videos = [stream for stream in container.streams.video if not is_cover(stream)]
            tracks = {"video": videos, "audio": list(container.streams.audio)}
            known = {kind: [s for s in streams if s.codec_context is not None] for kind, streams in tracks.items()}
            present, sizes = _searched(opened, known["video"], known["audio"])
            starts = []
            for kind, streams in tracks.items():
                full = [stream for stream in known[kind] if stream.index in present]
                if not streams:
                    continue
                if not full:
                    lacking = "is empty" if known[kind] else "is of a kind that cannot be decoded"
                    self._notes[kind] = f"the {kind} track {lacking}"
                    continue
                chosen = _best(container, kind, full)
                if len(streams) > 1:
                    number = streams.index(chosen) + 1
                    self._notes[kind] = f"{kind} track {number} of {len(streams)} is read"
                if chosen.start_time is not None:
                    starts.append(float(chosen.start_time * chosen.time_base))
                if kind == "audio":
                    self._audio = chosen.index
                    continue
                self._video = chosen.index
                rate = chosen.average_rate or chosen.guessed_rate or chosen.base_rate
                self.frame_rate = float(rate) if rate else None
                self.size = sizes.get(chosen.index, (chosen.codec_context.width, chosen.codec_context.height))
        # The samples that an encoder puts before its first are dropped, so their time is none of the clip's.
        self._origin = max(0.0, min(starts, default=0.0))
        if not self.has_video and not self.has_audio:
            found = "; ".join(self.notes) or "no video and no audio track"
            raise MediaError(f"{self.name}: {found}, {EXPECTED}")


def check_extra() -> None:
    """Refuses to begin without PyAV.

    Raises:
        MissingExtraError: it is missing.
    """
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(f"media need {error.name or 'av'}: pip install hf_blemo[media]") from error


def is_media(path: str | Path) -> bool:
    """Whether the suffix of a path is one of `MEDIA_SUFFIXES`, in capitals or not."""
    return Path(path).suffix.lower() in MEDIA_SUFFIXES


class Thumbnails:
    """Small pictures of a clip, chosen evenly among its frames while it is decoded.

    Args:
        count: of pictures at most; a clip of fewer frames has fewer.
        height: in pixels.

    Raises:
        ValueError: a count or a height below 1.
    """

    def __init__(self, count: int = 8, height: int = 96):
        if count < 1 or height < 1:
            raise ValueError(f"expected a count and a height of at least 1, found {count} and {height}")
        self._count, self._height = count, height
        self._kept: list[Image.Image] = []
        self._seen, self._every = 0, 1

    def add(self, frame: Frame) -> None:
        """Takes the next frame; of every second, fourth ... one, at most twice `count` are kept.

        Raises:
            MediaError: its pixels cannot be converted.
        """
        if self._seen % self._every == 0:
            picture = Image.fromarray(frame.image)
            size = (max(1, round(picture.width * self._height / picture.height)), self._height)
            self._kept.append(picture.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0))
            if len(self._kept) > 2 * self._count:
                self._kept, self._every = self._kept[::2], 2 * self._every
        self._seen += 1

    def chosen(self) -> list[bytes]:
        """Gives the pictures as JPEG files in the order of time."""
        files = []
        for place in np.linspace(0, len(self._kept) - 1, min(self._count, len(self._kept))).round().astype(int):
            buffer = io.BytesIO()
            self._kept[place].save(buffer, "JPEG", quality=85)
            files.append(buffer.getvalue())
        return files


def _hint(source: Any) -> str:
    """A file name for decoders that go by the suffix, without anything that could lead them elsewhere."""
    name = source if isinstance(source, (str, Path)) else getattr(source, "name", "")
    text = str(name) if isinstance(name, (str, Path)) else ""
    suffix = Path(text.split("?")[0] if is_address(text) else text).suffix.lower()
    return f"clip{suffix}" if suffix in MEDIA_SUFFIXES else ""


def _best(container: Any, kind: str, streams: Sequence[Any]) -> Any:
    """FFmpeg's choice among all streams of a kind, or else the first of those that can be read."""
    best = container.streams.best(kind)
    return next((stream for stream in streams if best is not None and stream.index == best.index), streams[0])


def _searched(
    opened: MediaPass, videos: Collection[Any], audios: Collection[Any]
) -> tuple[set[int], dict[int, tuple[int, int]]]:
    """The streams that hold something, and the upright size of the first frame of those of pictures.

    Not every container says beforehand which tracks stay empty; and after `_SEARCHED_BYTES`, a track counts as one
    that begins late.
    """
    sizes: dict[int, tuple[int, int]] = {}
    streams = {stream.index: stream for stream in (*videos, *audios)}
    pictures = {stream.index: 0 for stream in videos}
    present = {index for index, stream in streams.items() if stream.frames > 0}
    for stream in videos:
        stream.codec_context.thread_count = 1
    num_bytes = 0
    missing = set(streams) - present
    if not missing and not pictures:
        return present, sizes
    for packet in opened.packets():
        index = packet.stream_index
        present.add(index)
        missing.discard(index)
        num_bytes += packet.size
        if index in pictures:
            pictures[index] += 1
            found, _ = decoded(streams[index], packet)
            if found:
                sizes[index] = upright_size(found[0])
            if found or pictures[index] >= _SEARCHED_PACKETS:
                del pictures[index]
        if not missing and not pictures:
            return present, sizes
        if num_bytes > _SEARCHED_BYTES:
            return present | missing, sizes
    for index in pictures:
        found, _ = decoded(streams[index], None)
        if found:
            sizes[index] = upright_size(found[0])
    return present, sizes
