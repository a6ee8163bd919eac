"""Writes small clips of every kind with PyAV."""

import struct
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter

# What each codec of pictures takes, where it is not the usual one.
_PIXEL_FORMATS = {"gif": "rgb8", "mjpeg": "yuvj420p", "ffv1": "bgr0", "png": "rgb24"}


def gray_pictures(levels: Sequence[int], size: tuple[int, int] = (64, 48)) -> list[np.ndarray]:
    """Pictures (H, W, 3) of one gray level each."""
    return [np.full((size[1], size[0], 3), level, np.uint8) for level in levels]


def colored_picture(size: tuple[int, int] = (64, 48)) -> np.ndarray:
    """A picture (H, W, 3) that shows how it lies: red and green above, blue and white below."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    top, left = size[1] // 2, size[0] // 2
    pixels[:top, :left], pixels[:top, left:] = (255, 0, 0), (0, 255, 0)
    pixels[top:, :left], pixels[top:, left:] = (0, 0, 255), (255, 255, 255)
    return pixels


def tone(seconds: float, rate: int, frequency: float = 440.0, level: float = 0.5, channels: int = 1) -> np.ndarray:
    """A sine (channels, n) float32 that all channels share."""
    times = np.arange(round(seconds * rate)) / rate
    return np.tile((level * np.sin(2 * np.pi * frequency * times)).astype(np.float32), (channels, 1))


def write_clip(
    path: str | Path | Any,
    video: str | Sequence[str] | None = "libx264",
    audio: str | Sequence[str] | None = "aac",
    pictures: Sequence[np.ndarray] | None = None,
    frame_rate: int = 10,
    times: Sequence[int] | None = None,
    time_base: Fraction | None = None,
    pixel_format: str | None = None,
    options: dict[str, str] | None = None,
    sound: np.ndarray | None = None,
    audio_rate: int = 16000,
    layout: str = "mono",
    audio_start: float = 0.0,
    form: str | None = None,
    ratio: Fraction | None = None,
    container_options: dict[str, str] | None = None,
) -> Any:
    """Writes a clip; of several codecs of a kind, each gets a track of the same content.

    Args:
        path: of the file, or a file object with `form`.
        video, audio: codecs; None is no such track.
        pictures: (H, W, 3) uint8; 20 gray ones of 64 x 48 pixels by default. An empty list leaves the track empty.
        frame_rate: frames per second.
        times: of the pictures, in units of `time_base`; one after another by default.
        time_base: in seconds; a frame by default.
        pixel_format: as FFmpeg names it; a usual one of the codec by default.
        options: of the video codecs.
        sound: (channels, n) float32; a tone as long as the video by default. No samples leave the track empty.
        audio_rate: samples per second.
        layout: of the channels.
        audio_start: seconds of nothing before the sound.
        form: container, by default that of the suffix.
        ratio: of the sides of a pixel, width by height.
        container_options: of FFmpeg.

    Returns:
        `path`.
    """
    pictures = gray_pictures(range(10, 210, 10)) if pictures is None else pictures
    times = range(len(pictures)) if times is None else times
    time_base = Fraction(1, frame_rate) if time_base is None else time_base
    with av.open(
        path if hasattr(path, "write") else str(path), "w", format=form, container_options=container_options or {}
    ) as container:
        jobs = []
        for codec in _listed(video):
            stream = container.add_stream(codec, rate=frame_rate, options=options or {})
            stream.height, stream.width = pictures[0].shape[:2] if pictures else (48, 64)
            stream.pix_fmt = pixel_format or _PIXEL_FORMATS.get(codec, "yuv420p")
            stream.codec_context.time_base = time_base
            if ratio is not None:
                stream.codec_context.sample_aspect_ratio = ratio
            jobs.append((stream, _video_frames(pictures, times, time_base, stream.pix_fmt)))
        for codec in _listed(audio):
            stream = container.add_stream(codec, rate=audio_rate, layout=layout)
            channels = len(stream.codec_context.layout.channels)
            samples = tone(len(pictures) / frame_rate, audio_rate, channels=channels) if sound is None else sound
            jobs.append((stream, _audio_frames(samples, audio_rate, layout, audio_start)))
        packets = [packet for stream, frames in jobs for packet in _encoded(stream, frames)]
        # By time, as a recorder would write them.
        for packet in sorted(packets, key=lambda packet: float((packet.dts or 0) * packet.time_base)):
            container.mux(packet)
        if not packets:
            container.start_encoding()
    return path


def write_tone(path: str | Path, codec: str, rate: int, layout: str = "mono", **options: Any) -> Any:
    """A second of a tone without pictures."""
    channels = len(av.AudioLayout(layout).channels)
    sound = tone(1.0, rate, channels=channels)
    return write_clip(path, None, codec, [], sound=sound, audio_rate=rate, layout=layout, **options)


def add_cover(path: Path, picture: bytes) -> Path:
    """Puts a picture into the tags of an MP3, as its cover."""
    content = b"\0image/jpeg\0\3\0" + picture
    frame = b"APIC" + struct.pack(">I", len(content)) + b"\0\0" + content
    size = bytes(len(frame) >> shift & 0x7F for shift in (21, 14, 7, 0))
    sound = path.read_bytes()
    if sound.startswith(b"ID3"):
        # A second tag would not be looked at.
        sound = sound[10 + sum(part << shift for part, shift in zip(sound[6:10], (21, 14, 7, 0), strict=True)) :]
    path.write_bytes(b"ID3\3\0\0" + size + frame + sound)
    return path


def set_display_matrix(path: Path, matrix: tuple[int, int, int, int], track: int = 0) -> Path:
    """Writes into an MP4 where the axes of the stored picture lie on the screen: x to (a, b), y to (c, d)."""
    content = bytearray(path.read_bytes())
    place = -1
    for _ in range(track + 1):
        place = content.index(b"tkhd", place + 1)
    # Version 0 of the box: 4 bytes of version and flags, 36 of times, identity, layer and volume, then the matrix.
    start = place + 4 + 40
    a, b, c, d = (value << 16 for value in matrix)
    content[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


def _listed(codecs: str | Sequence[str] | None) -> list[str]:
    return [] if codecs is None else [codecs] if isinstance(codecs, str) else list(codecs)


def _video_frames(
    pictures: Sequence[np.ndarray], times: Sequence[int], time_base: Fraction, pixel_format: str
) -> Iterator[av.VideoFrame]:
    reformatter = VideoReformatter()
    for time, pixels in zip(times, pictures, strict=True):
        kind = "rgba" if pixels.shape[2] == 4 else "rgb24"
        frame = reformatter.reformat(av.VideoFrame.from_ndarray(pixels, format=kind), format=pixel_format)
        frame.pts, frame.time_base = time, time_base
        yield frame


def _audio_frames(samples: np.ndarray, rate: int, layout: str, start: float) -> Iterator[av.AudioFrame]:
    # A tenth of a second at a time: some codecs make a packet of each frame, however long.
    for place in range(0, samples.shape[1], rate // 10):
        part = np.ascontiguousarray(samples[:, place : place + rate // 10])
        frame = av.AudioFrame.from_ndarray(part, format="fltp", layout=layout)
        frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), round(start * rate) + place
        yield frame


def _encoded(stream: Any, frames: Iterator[Any]) -> Iterator[av.Packet]:
    empty = True
    for frame in frames:
        empty = False
        yield from stream.encode(frame)
    if not empty:
        yield from stream.encode(None)


def noise(count: int, size: tuple[int, int] = (64, 48)) -> list[np.ndarray]:
    """Pictures that no codec makes small."""
    shape = (size[1], size[0], 3)
    return [np.random.default_rng(number).integers(0, 255, shape, np.uint8) for number in range(count)]


def read_clip(source: Any, **options: Any) -> SimpleNamespace:
    """A clip, with its frames, and its sound at 16 kHz on the time axis of the clip: silence where there is none."""
    from hf_blemo.media import Audio, Frame, MediaFile

    with MediaFile(source, **options) as media:
        items = list(media.read(audio_rates=[16000]))
    frames, pieces = ([item for item in items if isinstance(item, kind)] for kind in (Frame, Audio))
    ends = [round(piece.time * 16000) + len(piece.samples) for piece in pieces]
    samples = np.zeros(max(ends, default=0), np.float32)
    for piece in pieces:
        assert piece.rate == 16000 and piece.samples.dtype == np.float32 and piece.samples.ndim == 1
        start = round(piece.time * 16000)
        samples[max(0, start) : start + len(piece.samples)] = piece.samples[max(0, -start) :]
    about = {name: getattr(media, name) for name in ("has_video", "has_audio", "notes", "name", "duration")}
    return SimpleNamespace(**about, frames=frames, samples=samples)
