"""Whatever a clip holds, it is read or refused in one line that names it, in little time and memory.

`make test` draws a few mutants of every kind of clip, `make fuzz` 11,000. A failure names its kind and number, so
`FUZZ=kind:number pytest tests/fuzzing/test_media.py` draws it again.
"""

import contextlib
import io
import os
import random
import re
import struct
import wave
from fractions import Fraction

import numpy as np
import pytest
from clip_files import gray_pictures, tone, write_clip
from mutations import Hang, at_most, torn

from hf_blemo.errors import LONGEST_LINE
from hf_blemo.media import Frame, MediaError, MediaFile, Thumbnails
from hf_blemo.prediction.clips import Windows

KINDS = [
    *("mp4 libx264 aac", "mov mpeg4 pcm_s16le", "mkv libx264 flac", "webm libvpx libopus", "avi mjpeg pcm_s16le"),
    *("ts libx264 aac", "flv flv1 libmp3lame", "wmv wmv2 libmp3lame", "mkv ffv1 pcm_s16le", "mov png ac3"),
    *("gif gif -", "wav - pcm_s16le", "mp3 - libmp3lame", "flac - flac", "ogg - libopus", "m4a - aac"),
]
SHORT, LONG, AT_ONCE = 8, 690, 230
SECONDS, MOST_BYTES = 20, 15 * 10**8


def sound(rate, channels=1, bits=8):
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(bits // 8)
        file.setframerate(rate)
        file.writeframes(bytes(100_000))
    return content.getvalue()


def crafted():
    """Clips of a few bytes that claim much, by name."""
    found = {}
    for width, height in (
        (16000, 16000),
        (65535, 65535),
        (65535, 1),
        (1, 65535),
        (5900, 5900),
        (16384, 2),
        (0, 0),
        (1, 1),
    ):
        size = f"{width} x {height}"
        picture = bytes.fromhex("8000000000000000002c00000000010001000002024401003b")
        found[f"gif {size}"] = b"GIF89a" + struct.pack("<2H", width, height) + picture
        found[f"pnm {size}"] = f"P6 {width} {height} 255\n".encode() + bytes(99)
        found[f"y4m {size}"] = f"YUV4MPEG2 W{width} H{height} F25:1 C420\nFRAME\n".encode() + bytes(99)
        head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
        found[f"bmp {size}"] = b"BM" + struct.pack("<IHHI", 10**6, 0, 0, 54) + head + bytes(999)
        frames = (struct.pack("<IQ", 10, number) + bytes(10) for number in range(3))
        found[f"ivf {size}"] = (
            b"DKIF" + struct.pack("<HH4sHHIIII", 0, 32, b"VP80", width, height, 1, 1, 3, 0) + b"".join(frames)
        )
    for rate in (1, 7, 999, 1000, 3_000_000, 2**31 - 1):
        found[f"wav {rate}"] = sound(rate)
        found[f"au {rate}"] = b".snd" + struct.pack(">5I", 24, 2**32 - 1, 1, rate, 1) + bytes(9999)
    for channels in (3, 64, 255, 65535):
        found[f"wav of {channels} channels"] = sound(16000, channels)
    for text in (
        "ffconcat version 1.0\nfile x.mp4\n",
        "#EXTM3U\n#EXTINF:9,\nx.ts\n",
        "v=0\nm=video 9 RTP/AVP 96\n",
        "1\n" * 9,
    ):
        found[f"text {text[:7]!r}"] = text.encode()
    for name, times in (("late", [0, 1, 9_500_000]), ("hours late", [0, 1, 700_000]), ("back", [0, 1, 2])):
        content = clip("mkv libx264 aac", gray_pictures(range(10, 40, 10)), times=times)
        found[f"mkv {name}"] = content
        place = content.index(b"\x44\x89\x88") + 3
        for years in (1, 100, 1e300):
            claimed = struct.pack(">d", years * 365 * 86400e3)
            found[f"mkv {name}, {years} years"] = content[:place] + claimed + content[place + 8 :]
    for ratio in (Fraction(60, 1), Fraction(1, 60)):
        found[f"pixels of {ratio}"] = clip("mp4 mpeg4 aac", ratio=ratio)
    return found


def clip(kind, pictures=None, **options):
    suffix, video, audio = (None if word == "-" else word for word in kind.split())
    pictures = gray_pictures(range(10, 130, 10)) if pictures is None and video else pictures or []
    content = io.BytesIO()
    form = {"mkv": "matroska", "ts": "mpegts", "wmv": "asf", "m4a": "ipod"}.get(suffix, suffix)
    if video == "png":
        options["pixel_format"] = "rgba"
    rate = 48000 if audio in ("libopus", "ac3") else 44100
    write_clip(content, video, audio, pictures, form=form, sound=tone(1.2, rate), audio_rate=rate, **options)
    return content.getvalue()


def peak():
    """Most bytes that this process has held."""
    with open("/proc/self/status") as file:
        return 1024 * int(re.search(r"VmHWM:\s*(\d+)", file.read())[1])


def fault_of(content):
    """What is wrong with how a clip is read; None where it is read, or refused in a line."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        # The peak begins anew.
        file.write("5")
    before = peak()
    try:
        with at_most(SECONDS), MediaFile(content, "x", 1) as media:
            thumbnails = Thumbnails()
            for item in media.read(audio_rates=[16000]):
                if isinstance(item, Frame):
                    thumbnails.add(item)
                else:
                    assert np.isfinite(item.time)
            thumbnails.chosen()
            Windows().spans(media.duration or 0.0, "x")
            assert all("\n" not in note and len(note) < LONGEST_LINE for note in media.notes)
    except MediaError as error:
        if not str(error).startswith("x: ") or "\n" in str(error) or len(str(error)) > LONGEST_LINE:
            return f"in other than a line that names it: {error}"
    except Hang as hang:
        return str(hang)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    held = peak() - before
    return f"{held:,} bytes" if held > MOST_BYTES else None


def mutant(good, number, kind):
    draw = random.Random(f"{kind}:{number}")
    # Headers say most of what can be wrong.
    head = draw.choice((len(good), len(good), 64, 512, 4096))
    return torn(good[:head], draw) + good[head:]


def draws():
    """Kinds and numbers of the mutants to draw."""
    asked = os.environ.get("FUZZ", "short")
    if ":" in asked:
        kind, number = asked.split(":")
        return [(kind, range(int(number), int(number) + 1))] if kind in KINDS else []
    count = LONG if asked == "long" else SHORT
    return [(kind, range(n, min(n + AT_ONCE, count))) for kind in KINDS for n in range(0, count, AT_ONCE)]


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory is measured as Linux tells it")
@pytest.mark.parametrize(("kind", "numbers"), draws(), ids=lambda value: str(getattr(value, "start", value)))
def test_mutants_are_read_or_refused(kind, numbers):
    good = clip(kind)
    assert fault_of(good) is None
    faults = {f"{kind}:{number}": fault_of(mutant(good, number, kind)) for number in numbers}
    shown = "\n".join(f"{name} {fault}" for name, fault in faults.items() if fault)
    assert not shown, shown


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory is measured as Linux tells it")
def test_crafted_clips_are_read_or_refused():
    shown = "\n".join(f"{name}: {fault}" for name, content in crafted().items() if (fault := fault_of(content)))
    assert not shown, shown
