"""Clips of any kind, decoded once to pictures and mono audio with their times. Needs the extra `media`."""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hf_blemo.errors import check_extra
from hf_blemo.media.audio import Audio
from hf_blemo.media.decoding import Frame, MediaPass, falls_short
from hf_blemo.media.sources import EXPECTED, MediaError, MediaSource, is_address

_VIDEO_SUFFIXES = "3gp asf avi flv gif m2ts m4v mkv mov mp4 mpeg mpg mts mxf ogv ts webm wmv"
_AUDIO_SUFFIXES = "aac aif aiff amr au caf flac m4a mp3 oga ogg opus wav wma"
# Of a thumbnail, by its height.
_WIDEST = 8
# Times as dark where encoders do not look.
_DARKER = 3
MEDIA_SUFFIXES = frozenset(f".{suffix}" for suffix in f"{_VIDEO_SUFFIXES} {_AUDIO_SUFFIXES}".split())
"""Suffixes by which a folder is searched for clips."""


class MediaFile:
    """A clip: a file with a video track, an audio track, or both.

    Of several tracks of a kind, the container's default is taken. Cover art is no video track. Opening reads the
    beginning of the file; each [`read`] then makes one pass through it.

    Args:
        source: path; address that fsspec knows (`https://`, `hf://`, `s3://` ...); bytes; or a file object opened in
            binary mode, which is read from its beginning and stays open.
        name: for messages; by default the path, or the address without its query.
        num_threads: of the video decoder; 0 is one per core.

    Attributes:
        name: for messages.
        duration: in seconds, from the header, where it may be a guess; None if unknown.
        has_video, has_audio: whether there is such a track.

    Raises:
        FileNotFoundError: there is no such file.
        IsADirectoryError: the source is a folder.
        MediaError: the file is empty, holds no media, or has no track that can be decoded.
        MissingExtraError: the extra `media`, or the package for this kind of address, is not installed.
    """

    def __init__(self, source: Any, name: str | None = None, num_threads: int = 0):
        check_extra("media")
        if num_threads < 0:
            raise ValueError(f"num_threads: expected 0 for one per core, or more, found {num_threads}")
        self.duration: float | None = None
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

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file, unless the caller opened it."""
        self._source.close()

    @property
    def notes(self) -> list[str]:
        """Unusual findings so far, one sentence each; reading to the end may add some."""
        return list(self._notes.values())

    def read(self, video: bool = True, audio_rates: Sequence[int] = ()) -> Iterator[Frame | Audio]:
        """Decodes the clip from its beginning in one pass; memory holds little more than a frame at a time.

        Args:
            video: whether to return frames.
            audio_rates: samples per second of the audio to return; empty for no audio.

        Returns:
            Frames and pieces of audio, in the order of the file.

        Raises:
            ValueError: rates that are not positive.
            MediaError: reading the source fails.
        """
        rates = tuple(dict.fromkeys(audio_rates))
        if not all(isinstance(rate, int) and not isinstance(rate, bool) and rate > 0 for rate in rates):
            raise ValueError(f"audio_rates: expected positive whole numbers, found {list(audio_rates)}")
        return self._read(self._video if video else None, self._audio if rates else None, rates)

    def _read(self, video: int | None, audio: int | None, rates: tuple[int, ...]) -> Iterator[Frame | Audio]:
        with closing(MediaPass(self._source, self._hint)) as opened:
            opened.notes = self._notes
            try:
                yield from opened.decode(video, audio, self._origin, rates, self._num_threads)
                self._note_end(opened)
            finally:
                if unstamped := opened.num_unstamped:
                    self._notes["unstamped"] = (
                        f"{unstamped} leading {'frames have' if unstamped > 1 else 'frame has'} no time and "
                        f"{'were' if unstamped > 1 else 'was'} left out"
                    )
                if damaged := opened.num_damaged:
                    self._notes["damage"] = (
                        f"{damaged} damaged {'packets were' if damaged > 1 else 'packet was'} skipped"
                    )

    def _note_end(self, opened: MediaPass) -> None:
        """Notes a file that ends earlier than its header promises."""
        if self.duration is None or falls_short(opened.end, self.duration):
            # What the header claims, or FFmpeg guesses, is no more than a claim.
            self.duration = opened.end or None
        note = opened.missing_end([index for index in (self._video, self._audio) if index is not None])
        if note is not None:
            self._notes["end"] = note

    def _inspect(self) -> None:
        """Chooses among the tracks that hold something."""
        with closing(MediaPass(self._source, self._hint)) as opened:
            container = opened.container
            if container.duration is not None and container.duration > 0:
                self.duration = container.duration / 1e6
            tracks = {"video": opened.videos, "audio": list(container.streams.audio)}
            known = {kind: [s for s in streams if s.codec_context is not None] for kind, streams in tracks.items()}
            present = opened.present([*known["video"], *known["audio"]])
            starts = []
            for kind, streams in tracks.items():
                full = [stream for stream in known[kind] if stream.index in present]
                if not streams:
                    continue
                if not full:
                    lacking = "is empty" if known[kind] else "is of a kind that cannot be decoded"
                    self._notes[kind] = f"the {kind} track {lacking}"
                    continue
                # FFmpeg's choice among all streams of a kind, or else the first that can be read.
                best = container.streams.best(kind)
                chosen = next((stream for stream in full if best is not None and stream.index == best.index), full[0])
                if len(streams) > 1:
                    number = streams.index(chosen) + 1
                    self._notes[kind] = f"{kind} track {number} of {len(streams)} is read"
                if chosen.start_time is not None:
                    starts.append(float(chosen.start_time * chosen.time_base))
                if kind == "audio":
                    self._audio = chosen.index
                else:
                    self._video = chosen.index
        # Decoders drop the samples that an encoder puts before the first, so their time is not part of the clip.
        self._origin = max(0.0, min(starts, default=0.0))
        self.has_video, self.has_audio = self._video is not None, self._audio is not None
        if not self.has_video and not self.has_audio:
            found = "; ".join(self.notes) or "no video and no audio track"
            raise MediaError(f"{self.name}: {found}, {EXPECTED}")


def is_media(path: str | Path) -> bool:
    """Whether the suffix of a path is one of `MEDIA_SUFFIXES`, in upper or lower case."""
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
        self._kept: list[tuple[Image.Image, dict[int, tuple[float, ...]]]] = []
        self._seen, self._every = 0, 1

    def add(self, frame: Frame, squares: Mapping[int, tuple[int, int, int]] | None = None) -> None:
        """Takes the next frame; of every second, fourth ... one, at most twice `count` are kept.

        Args:
            frame: of the clip.
            squares: what encoders see of it, by person: left, top and side in pixels; 0 is the only one.

        Raises:
            MediaError: its pixels cannot be converted.
        """
        if self._seen % self._every == 0:
            picture = Image.fromarray(frame.image)
            # A narrow picture is as wide as it may be instead of as high.
            scale = min(self._height / picture.height, _WIDEST * self._height / picture.width)
            size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
            small = picture.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
            scaled = {who: tuple(scale * number for number in square) for who, square in (squares or {}).items()}
            self._kept.append((small, scaled))
            if len(self._kept) > 2 * self._count:
                self._kept, self._every = self._kept[::2], 2 * self._every
        self._seen += 1

    def chosen(self, person: int = 0) -> list[bytes]:
        """Gives the pictures as JPEG files in the order of time; around the square of a person they are dark.

        Args:
            person: pictures of whom, as `add` got them; of 0 all, and of others those that show them.
        """
        kept = [entry for entry in self._kept if not person or person in entry[1]] or self._kept
        files = []
        for place in np.linspace(0, len(kept) - 1, min(self._count, len(kept))).round().astype(int):
            picture, squares = kept[place]
            if person in squares:
                left, top, side = squares[person]
                corners = tuple(round(number) for number in (left, top, left + side, top + side))
                shown = picture.crop(corners)
                picture = Image.eval(picture, lambda level: level // _DARKER)
                picture.paste(shown, corners[:2])
            buffer = io.BytesIO()
            picture.save(buffer, "JPEG", quality=85)
            files.append(buffer.getvalue())
        return files


def _hint(source: Any) -> str:
    """A file name for decoders that go by the suffix, without a path that could lead them to other files."""
    name = source if isinstance(source, (str, Path)) else getattr(source, "name", "")
    text = str(name) if isinstance(name, (str, Path)) else ""
    suffix = Path(text.split("?")[0] if is_address(text) else text).suffix.lower()
    return f"clip{suffix}" if suffix in MEDIA_SUFFIXES else ""
