import io
import struct
import subprocess
import sys
import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from clip_files import (
    add_cover,
    colored_picture,
    gray_pictures,
    noise,
    read_clip,
    set_display_matrix,
    tone,
    write_clip,
    write_tone,
)
from PIL import Image

from hf_blemo.errors import MissingExtraError
from hf_blemo.files import limited
from hf_blemo.media import MEDIA_SUFFIXES, Audio, Frame, MediaError, MediaFile, Thumbnails, decoding, is_media


def times_of(clip):
    return [frame.time for frame in clip.frames]


def levels_of(clip):
    return [frame.image.mean() for frame in clip.frames]


def pitch_and_level(samples):
    """Frequency in Hz and amplitude of a tone at 16 kHz, its ends left out."""
    middle = samples[3200:-3200].astype(np.float64)
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    return spectrum.argmax() * 16000 / len(middle), np.sqrt(2 * np.mean(middle**2))


CONTAINERS = (
    "mp4 libx264 aac, mp4 mpeg4 libmp3lame, mov mpeg4 pcm_s16le, mkv libx264 flac, webm libvpx libopus, "
    "webm libvpx-vp9 libopus, avi mjpeg pcm_s16le, ts libx264 aac"
)


@pytest.mark.parametrize("kind", CONTAINERS.split(", "))
def test_every_container(tmp_path, kind):
    suffix, video, audio = kind.split()
    path = write_clip(tmp_path / f"clip.{suffix}", video, audio, audio_rate=48000)
    clip = read_clip(path)
    assert (clip.has_video, clip.has_audio, clip.notes, clip.name) == (True, True, [], str(path))
    assert clip.duration == pytest.approx(2.0, abs=0.1)
    times = np.array(times_of(clip))
    assert len(times) == 20 and np.abs(times - times[0] - np.arange(20) / 10).max() < 0.0011 and times[0] < 0.1
    assert np.abs(levels_of(clip) - np.arange(10, 210, 10)).max() < 4
    assert all(frame.image.shape == (48, 64, 3) and frame.image.dtype == np.uint8 for frame in clip.frames)
    pitch, level = pitch_and_level(clip.samples)
    assert pitch == pytest.approx(440, abs=1) and level == pytest.approx(0.5, abs=0.03)
    assert len(clip.samples) == pytest.approx(32000, abs=2200)


def test_times_and_levels(tmp_path):
    steady, grays = np.arange(20) / 10, np.arange(10, 210, 10)
    varying = [0, 40, 50, 400, 401, 1200]
    cases = {
        "clip.gif": (
            {"video": "gif", "pictures": gray_pictures([0, 255, 0, 255])},
            [0, 0.1, 0.2, 0.3],
            [0, 255, 0, 255],
        ),
        # The container has no times for frames that are stored out of order.
        "h264.avi": ({"options": {"bf": "3"}}, steady, grays),
        "mpeg4.avi": ({"video": "mpeg4", "options": {"bf": "3"}}, steady, grays),
        "varying.mp4": (
            {"pictures": gray_pictures(grays[:6]), "times": varying, "time_base": Fraction(1, 1000)},
            np.array(varying) / 1000,
            grays[:6],
        ),
    }
    for name, (options, times, levels) in cases.items():
        clip = read_clip(write_clip(tmp_path / name, audio=None, **options))
        assert not clip.has_audio and times_of(clip) == pytest.approx(times, abs=1e-4)
        assert levels_of(clip) == pytest.approx(levels, abs=8)


def test_odd_sizes_and_levels(tmp_path):
    for size in ((65, 47), (47, 65), (17, 1), (2, 2)):
        clip = read_clip(write_clip(tmp_path / "clip.mkv", "ffv1", None, [colored_picture(size)] * 2))
        assert all(np.array_equal(frame.image, colored_picture(size)) for frame in clip.frames)
    # Of subsampled colours, and of colours of the full range.
    for codec, size in (("mpeg4", (65, 47)), ("mjpeg", (64, 48))):
        pictures = gray_pictures((0, 40, 250), size)
        clip = read_clip(write_clip(tmp_path / "clip.mkv", codec, None, pictures))
        for frame, picture in zip(clip.frames, pictures, strict=True):
            assert frame.image.shape == picture.shape and np.abs(frame.image.astype(int) - picture).max() <= 4


# Directions on the screen of the axes x and y of the stored picture.
TURNS = {
    (1, 0, 0, 1): lambda pixels: pixels,
    (0, 1, -1, 0): lambda pixels: np.rot90(pixels, -1),
    (0, -1, 1, 0): lambda pixels: np.rot90(pixels, 1),
    (-1, 0, 0, -1): lambda pixels: np.rot90(pixels, 2),
    (-1, 0, 0, 1): lambda pixels: pixels[:, ::-1],
    (1, 0, 0, -1): lambda pixels: pixels[::-1],
    (0, 1, 1, 0): lambda pixels: pixels.transpose(1, 0, 2),
}


@pytest.mark.parametrize("matrix", TURNS)
def test_upright(tmp_path, matrix):
    path = write_clip(tmp_path / "clip.mp4", pictures=[colored_picture()] * 3, pixel_format="yuv444p")
    expected = TURNS[matrix](colored_picture()).astype(int)
    for frame in read_clip(set_display_matrix(path, matrix)).frames:
        assert frame.image.flags.c_contiguous and frame.image.shape == expected.shape
        assert np.abs(frame.image - expected).mean() < 12


def test_transparency_lies_on_black(tmp_path):
    picture = np.dstack([colored_picture(), np.full((48, 64), 100, np.uint8)])
    clip = read_clip(write_clip(tmp_path / "clip.mov", "png", None, [picture], pixel_format="rgba"))
    assert [np.array_equal(frame.image, (colored_picture() > 0) * 100) for frame in clip.frames] == [True]


TONES = {".wav": "pcm_s16le", ".flac": "flac", ".m4a": "aac", ".mp3": "libmp3lame", ".ogg": "libopus"}


@pytest.mark.parametrize(("suffix", "codec"), TONES.items())
def test_a_tone_survives(tmp_path, suffix, codec):
    reference = tone(1.0, 16000)[0]
    only_fast = codec in ("libmp3lame", "libopus")
    for rate, layout in ((48000, "stereo"), *(() if only_fast else ((8000, "mono"), (44100, "5.1")))):
        clip = read_clip(write_tone(tmp_path / f"clip{suffix}", codec, rate, layout))
        pitch, level = pitch_and_level(clip.samples)
        assert pitch == pytest.approx(440, abs=2) and level == pytest.approx(0.5, abs=0.05)
        assert len(clip.samples) == pytest.approx(16000, abs=10 if suffix in (".wav", ".flac") else 2100)
        # The encoder's delay is no part of the clip.
        assert np.corrcoef(clip.samples[2000:14000], reference[2000:14000])[0, 1] > 0.99


def test_channels_are_averaged_with_and_without_known_places(tmp_path):
    sound = np.concatenate([tone(1.0, 16000, 300, 0.8), tone(1.0, 16000, 1000, 0.4)])
    path = write_clip(tmp_path / "clip.wav", None, "pcm_f32le", [], sound=sound, layout="stereo")
    assert np.abs(read_clip(path).samples - sound.mean(0)).max() < 1e-5
    for channels in (3, 9, 20):
        with wave.open(str(path), "wb") as file:
            file.setnchannels(channels)
            file.setsampwidth(2)
            file.setframerate(16000)
            file.writeframes((tone(1.0, 16000, channels=channels) * 32767).astype("<i2").T.tobytes())
        assert np.abs(read_clip(path).samples - tone(1.0, 16000)[0]).max() < 1e-3


def test_several_rates_in_one_pass(tmp_path):
    path = write_tone(tmp_path / "clip.wav", "pcm_s16le", 44100, "stereo")
    with MediaFile(path) as media:
        items = list(media.read(audio_rates=[16000, 48000, 16000]))
    for rate in (16000, 48000):
        pieces = [item for item in items if item.rate == rate]
        ends = [piece.time + len(piece.samples) / rate for piece in pieces]
        # Pieces of a rate join without a break.
        assert [piece.time for piece in pieces[1:]] == pytest.approx(ends[:-1], abs=1e-9)
        assert sum(len(piece.samples) for piece in pieces) == pytest.approx(rate, abs=2)
    assert {item.rate for item in items} == {16000, 48000}


def test_audio_that_starts_late_or_has_a_gap(tmp_path):
    path = write_clip(tmp_path / "clip.mkv", "libx264", "flac", sound=tone(1.0, 16000), audio_start=0.7)
    clip = read_clip(path)
    assert clip.frames[0].time == 0
    assert np.all(clip.samples[:11190] == 0) and np.abs(clip.samples[11210:11300]).max() > 0.1
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=16000, layout="mono")
        for start in (0, 2.5):
            for part in range(4):
                frame = av.AudioFrame.from_ndarray(np.full((1, 2000), 8000, np.int16), format="s16", layout="mono")
                frame.sample_rate, frame.time_base = 16000, Fraction(1, 16000)
                frame.pts = round(start * 16000) + 2000 * part
                container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    loud = np.abs(read_clip(path).samples) > 0.1
    assert loud[100:7900].all() and not loud[8050:39950].any() and loud[40050:47900].all()


def test_frames_are_converted_only_when_needed(tmp_path, monkeypatch):
    convert, converted = decoding._PixelConverter.__call__, []
    monkeypatch.setattr(decoding._PixelConverter, "__call__", lambda *given: converted.append(1) or convert(*given))
    frames = read_clip(write_clip(tmp_path / "clip.mp4")).frames
    assert len(frames) == 20 and not converted
    assert frames[0].image is frames[0].image and len(converted) == 1


def test_one_pass_decodes_everything_in_the_order_of_the_file(tmp_path):
    content = write_clip(tmp_path / "clip.mkv", "ffv1", "pcm_s16le", noise(60, (160, 120))).read_bytes()
    file, sizes = io.BytesIO(content), []
    read_bytes = file.read
    file.read = lambda size=-1: sizes.append(len(found := read_bytes(size))) or found
    with MediaFile(file, num_threads=1) as media:
        assert sum(sizes) < 0.6 * len(content)
        sizes.clear()
        items = list(media.read(audio_rates=[16000, 8000]))
        assert len(content) * 0.95 < sum(sizes) < len(content) * 1.05
    assert {Frame, Audio} == {type(item) for item in items}
    # Interleaved: neither track runs ahead of the other.
    times = [item.time for item in items]
    assert all(later > earlier - 0.5 for earlier, later in zip(times, times[1:], strict=False))


def test_passes_and_threads_do_not_affect_each_other(tmp_path):
    path = write_clip(tmp_path / "clip.mp4", pictures=[colored_picture((320, 240))] * 30)
    with MediaFile(path, num_threads=1) as one, MediaFile(path, num_threads=4) as four:
        passes = (one.read(), one.read(), four.read())
        # All at once, each at its own place.
        shown = [{(frame.time, frame.image.tobytes()) for frame in frames} for frames in zip(*passes, strict=True)]
        assert [len(different) for different in shown] == [1] * 30


def test_tracks_that_are_missing_empty_or_several(tmp_path):
    silence = np.zeros((1, 0), np.float32)
    cases = {
        "mute.mp4": ({"audio": None}, (True, False), []),
        "blind.m4a": ({"video": None, "pictures": [], "sound": tone(1.0, 16000)}, (False, True), []),
        "video.mkv": ({"pictures": [], "sound": tone(1.0, 16000)}, (False, True), ["the video track is empty"]),
        "audio.mkv": ({"sound": silence}, (True, False), ["the audio track is empty"]),
        "several.mkv": (
            {"video": ["libx264", "mpeg4"], "audio": ["flac", "flac", "flac"]},
            (True, True),
            ["video track 1 of 2 is read", "audio track 1 of 3 is read"],
        ),
    }
    for name, (options, expected, notes) in cases.items():
        clip = read_clip(write_clip(tmp_path / name, **options))
        assert (clip.has_video, clip.has_audio) == expected == (len(clip.frames) == 20, len(clip.samples) > 15000)
        assert clip.notes == notes
    with MediaFile(tmp_path / "blind.m4a") as media:
        assert list(media.read()) == []
    path = write_clip(tmp_path / "both.wav", None, "pcm_s16le", [], sound=silence)
    with pytest.raises(MediaError, match="both.wav: the audio track is empty, expected a video or audio file"):
        MediaFile(path)


def test_cover_art_is_no_video(tmp_path):
    cover = io.BytesIO()
    Image.fromarray(colored_picture()).save(cover, "JPEG")
    path = add_cover(write_tone(tmp_path / "clip.mp3", "libmp3lame", 44100, "stereo"), cover.getvalue())
    with av.open(str(path)) as container:
        assert len(container.streams.video) == 1
    clip = read_clip(path)
    assert not clip.has_video and clip.frames == [] and clip.notes == []
    assert pitch_and_level(clip.samples)[0] == pytest.approx(440, abs=2)


def test_invalid_arguments(tmp_path):
    path = write_clip(tmp_path / "clip.mp4")
    for source, kind, message in (
        (tmp_path / "none.mp4", FileNotFoundError, "none.mp4: no such file, expected a video or audio file"),
        (str(tmp_path), IsADirectoryError, "a folder, expected a video or audio file"),
        (io.StringIO("text"), MediaError, "text mode"),
        (b"", MediaError, "bytes: an empty file"),
        ("nowhere://clip.mp4", MediaError, "nowhere"),
        (3, TypeError, "found int"),
    ):
        with pytest.raises(kind, match=message):
            MediaFile(source)
    with pytest.raises(ValueError, match="num_threads"):
        MediaFile(path, num_threads=-1)
    with MediaFile(path, name="the clip") as media:
        for rates in ([0], [16000, True], [8000.0]):
            with pytest.raises(ValueError, match="audio_rates: expected positive whole numbers, found"):
                media.read(audio_rates=rates)
    # It is closed now.
    with pytest.raises(MediaError, match="the clip"):
        list(media.read())


def thumbnails_of(frames, count=8, height=96):
    thumbnails = Thumbnails(count, height)
    for frame in frames:
        thumbnails.add(frame)
        assert len(thumbnails._kept) <= 2 * count
    return [Image.open(io.BytesIO(content)) for content in thumbnails.chosen()]


def test_thumbnails(tmp_path):
    pictures = thumbnails_of(read_clip(write_clip(tmp_path / "clip.mp4", audio=None)).frames, 5, 24)
    assert [(picture.format, picture.size) for picture in pictures] == [("JPEG", (32, 24))] * 5
    levels = [np.asarray(picture).mean() for picture in pictures]
    assert levels[0] == pytest.approx(10, abs=4) and levels[-1] > 180 and np.diff(levels).min() > 25
    # Few of a long clip are kept, and the chosen ones are spread over it.
    long = [Frame(number / 25, np.full((16, 16, 3), number // 4, np.uint8)) for number in range(1000)]
    levels = [np.asarray(picture).mean() for picture in thumbnails_of(long, 4, 8)]
    assert np.abs(np.diff(levels) - 83).max() < 25 and levels[0] < 3 and levels[-1] > 215
    assert len(thumbnails_of(long[:2])) == 2 and Thumbnails().chosen() == []
    for options in ((0,), (4, 0)):
        with pytest.raises(ValueError, match="count and a height"):
            Thumbnails(*options)


def test_suffixes_and_a_missing_extra(tmp_path, monkeypatch):
    assert is_media("folder/Clip.MP4") and is_media(Path("clip.wav")) and not is_media("clip.txt")
    assert not is_media("mp4") and {".mp4", ".mov", ".webm", ".mkv", ".avi", ".gif", ".mp3", ".flac"} < MEDIA_SUFFIXES
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtraError, match='media needs av: pip install "av>='):
        MediaFile(tmp_path / "clip.mp4")


MEMORY_PROGRAM = """
import gc, resource, sys
from hf_blemo.media import Frame, MediaFile

# Large clips have few pictures for each collection.
gc.disable()

assert not {"av", "torch"} & set(sys.modules)

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

frames = samples = 0
with MediaFile(sys.argv[1]) as media:
    for item in media.read(audio_rates=[16000]):
        if isinstance(item, Frame):
            frames += 1
            pixels = item.image
            if frames == 100:
                early = peak()
        else:
            samples += len(item.samples)
print(frames, samples, peak() - early)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="peak memory is read the way of POSIX")
def test_memory_does_not_grow_with_the_clip(tmp_path):
    # 1,500 frames of 320 x 240 would be 345 MB of RGB.
    pictures = gray_pictures(range(256), (320, 240))
    shown = [pictures[number % 256] for number in range(1500)]
    path = write_clip(tmp_path / "clip.mp4", "mpeg4", "aac", shown, frame_rate=50, sound=tone(30.0, 16000))
    command = [sys.executable, "-c", MEMORY_PROGRAM, str(path)]
    frames, samples, growth = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert int(frames) == 1500 and int(samples) == pytest.approx(480000, abs=3000)
    assert float(growth) < 60


@pytest.mark.parametrize(
    ("ratio", "matrix", "shape"),
    [
        (Fraction(64, 45), None, (48, 91, 3)),
        (Fraction(1, 2), None, (96, 64, 3)),
        (Fraction(2, 1), (0, 1, -1, 0), (128, 48, 3)),
        (Fraction(40, 1), None, (48, 64, 3)),
    ],
    ids=["wide", "high", "turned", "not believed"],
)
def test_pixels_that_are_not_square(tmp_path, ratio, matrix, shape):
    picture = [colored_picture()] * 2
    path = write_clip(tmp_path / "clip.mp4", "mpeg4", None, picture, ratio=ratio)
    if matrix is not None:
        set_display_matrix(path, matrix)
    with limited({"max_aspect": 20}), MediaFile(path) as media:
        frame = next(media.read())
        image = frame.image
    assert image.shape == shape and len(media.notes) == (ratio == 40)
    corners = [image[y, x].argmax() for y, x in ((3, 3), (3, -4), (-4, 3))]
    # Red, green and blue, which a quarter turn moves on.
    assert corners == ([2, 0, 0] if matrix else [0, 1, 2]) or matrix
    thumbnails = Thumbnails(1)
    thumbnails.add(frame)
    width, height = Image.open(io.BytesIO(thumbnails.chosen()[0])).size
    assert width / height == pytest.approx(shape[1] / shape[0], rel=0.03)


def cropped(path, top, left):
    """A Matroska file that crops, in the place of something empty."""
    content = path.read_bytes()
    place, empty = content.index(b"\xe0\x8a\xb0\x81\x40"), bytes.fromhex("ec01000000000000020000")
    assert content[place + 12 : place + 16] == b"\x55\xee\x81\0" and content[place + 16 : place + 27] == empty
    crops = b"\x54\xbb\x81" + bytes([top]) + b"\x54\xcc\x81" + bytes([left])
    video = b"\xe0\x92" + content[place + 2 : place + 12] + crops + content[place + 12 : place + 16] + b"\xec\x81\0"
    path.write_bytes(content[:place] + video + content[place + 27 :])
    return path


def with_aperture(path, *numbers):
    """An MP4 with a clean aperture, in the place of the ratio of its pixels and of the bit rate after it."""
    content = path.read_bytes()
    place = content.index(b"pasp") - 4
    assert content[place + 20 : place + 24] == b"btrt"
    # 16 and 20 bytes, four less than the box of an aperture takes; the description grows by these.
    box = struct.pack(">I4s8i", 40, b"clap", *numbers)
    for name in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"mp4v"):
        start = content.index(name) - 4
        size = struct.pack(">I", int.from_bytes(content[start : start + 4], "big") + 4)
        content = content[:start] + size + content[start + 4 :]
    path.write_bytes(content[:place] + box + content[place + 36 :])
    return path


def test_cropping_rectangles(tmp_path):
    options = {"video": "mpeg4", "audio": None, "pictures": [colored_picture()]}
    found = read_clip(cropped(write_clip(tmp_path / "clip.mkv", **options), 24, 36)).frames[0].image
    assert found.shape == (24, 28, 3) and found.min() > 200
    path = write_clip(tmp_path / "clip.mp4", **options, ratio=Fraction(2, 1))
    found = read_clip(with_aperture(path, 20, 1, 16, 1, -22, 1, 16, 1)).frames[0].image
    assert found.shape == (16, 40, 3) and (found[..., 2] > 200).all() and found[..., :2].max() < 60
    with MediaFile(
        with_aperture(write_clip(path, **options, ratio=Fraction(2, 1)), 20, 1, 16, 1, -40, 1, 0, 1)
    ) as media:
        assert [frame.image.shape for frame in media.read()] == [(48, 128, 3)]
    assert media.notes == ["a cropping by 16, 16, -18, 62 pixels was not believed"]


def test_frames_before_the_first_stamp_are_left_out(tmp_path):
    path = write_clip(
        tmp_path / "clip.mkv",
        times=range(-5, 15),
        options={"bf": "2"},
        container_options={"avoid_negative_ts": "disabled"},
    )
    clip = read_clip(path)
    # The first frame that has a stamp, of the level of its own time.
    levels, times = levels_of(clip), times_of(clip)
    assert len(times) < 20 and times[0] >= -0.001
    assert np.abs(np.array(levels) - [10 * (round(10 * time) + 6) for time in times]).max() < 4
    assert [note for note in clip.notes if "no time and were left out" in note]
