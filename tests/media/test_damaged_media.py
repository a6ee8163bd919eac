"""Media that are damaged, come from anywhere, or claim more than they hold."""

import functools
import io
import os
import re
import struct
import threading
import wave
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import av
import numpy as np
import pytest
from clip_files import (
    gray_pictures,
    noise,
    read_clip,
    write_clip,
)
from huggingface_hub import HfApi

from hf_blemo.files import limited
from hf_blemo.media import Audio, Frame, MediaError, MediaFile


def cut(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


CUT = "mkv ffv1 pcm_s16le, webm libvpx libopus, avi mjpeg pcm_s16le, wav - pcm_s16le, flac - flac, mp3 - libmp3lame"


@pytest.mark.parametrize("kind", CUT.split(", "))
def test_a_missing_end(tmp_path, kind):
    suffix, codec, audio = kind.split()
    video = None if codec == "-" else codec
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, (1, 48000)).astype(np.float32)
    path = write_clip(tmp_path / f"clip.{suffix}", video, audio, noise(30) if video else [], sound=sound)
    with MediaFile(cut(path)) as media:
        items = list(media.read(audio_rates=[16000]))
        list(media.read(audio_rates=[16000]))
        (note,) = [note for note in media.notes if "damaged" not in note]
        assert len(media.notes) <= 2
    seconds = sum(len(item.samples) for item in items if isinstance(item, Audio)) / 16000
    assert 1.0 < seconds < 2.0
    assert not video or 10 <= sum(isinstance(item, Frame) for item in items) <= 20
    ended = float(note.removeprefix("the file ends after ").split()[0])
    assert ended == pytest.approx(seconds, abs=0.25) and ", and its header promises " in note


def test_a_missing_end_of_an_mp4(tmp_path):
    with pytest.raises(MediaError, match=r"clip.mp4: an MP4 file without its index \(moov\)"):
        MediaFile(cut(write_clip(tmp_path / "clip.mp4")))
    path = write_clip(tmp_path / "clip.mov", "mjpeg", "pcm_s16le", noise(30))
    # With the index in front, as a server sends it.
    moved = tmp_path / "moved.mov"
    with av.open(str(path)) as source, av.open(str(moved), "w", options={"movflags": "faststart"}) as target:
        streams = {stream.index: target.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.size:
                packet.stream = streams[packet.stream_index]
                target.mux(packet)
    clip = read_clip(cut(moved))
    assert 8 < len(clip.frames) < 20 and any(note.startswith("the file ends after 1.") for note in clip.notes)


def test_a_damaged_packet(tmp_path):
    for codec in ("libx264", "mpeg4"):
        path = write_clip(tmp_path / "clip.mkv", codec, "flac", noise(20), options={"g": "5", "bf": "0"})
        with av.open(str(path)) as container:
            packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
        path.write_bytes(path.read_bytes().replace(packets[10], b"\xff" * len(packets[10])))
        clip = read_clip(path)
        assert (len(clip.frames), len(clip.samples), clip.notes) == (19, 32000, ["1 damaged packet was skipped"])


def test_no_media(tmp_path):
    cases = {
        "empty.mp4": (b"", "an empty file"),
        "text.mp4": (b"Dear reader, this is no video.\n" * 50, "no media that can be read"),
        "colors.txt": (b"\x1b[31mred\x1b[0m\n" * 200, "no media"),
        "list.m3u8": (b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nclip.ts\n#EXT-X-ENDLIST\n", "no media"),
        "titles.srt": (b"1\n00:00:00,000 --> 00:00:02,000\nHello\n\n", "no video and no audio track"),
    }
    write_clip(tmp_path / "clip.ts")
    for name, (content, found) in cases.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(MediaError) as caught:
            MediaFile(path)
        message = str(caught.value)
        assert message.startswith(f"{path}: {found}") and message.endswith("expected a video or audio file")
        assert "\n" not in message


def test_bytes_file_objects_and_pipes(tmp_path):
    path = write_clip(tmp_path / "clip.mp4")
    clip = read_clip(path.read_bytes())
    assert clip.name == "bytes" and len(clip.frames) == 20
    with open(path, "rb") as file:
        file.seek(100)
        clip = read_clip(file)
        assert clip.name == str(path) and len(clip.frames) == 20 and not file.closed
    pipe = io.BytesIO(path.read_bytes())
    pipe.seekable, pipe.seek = lambda: False, lambda *_: pytest.fail("a pipe has no places")
    assert len(read_clip(pipe).frames) == 20


def test_a_source_that_fails(tmp_path):
    content = write_clip(tmp_path / "clip.mkv", "ffv1", None, noise(40, (160, 120))).read_bytes()
    file = io.BytesIO(content)
    read_bytes = file.read

    def fail_in_the_middle(size=-1):
        if file.tell() > len(content) // 2:
            raise ConnectionResetError("the line is dead")
        return read_bytes(size)

    with MediaFile(file, name="far away") as media:
        file.read = fail_in_the_middle
        with pytest.raises(MediaError, match=r"far away: reading failed after \d\.\d s: the line is dead"):
            list(media.read())


class StreamHandler(BaseHTTPRequestHandler):
    """Sends files of a folder as streams of unknown length."""

    def do_GET(self):
        path = self.server.folder / self.path.split("?")[0].strip("/")
        self.send_response(200 if path.is_file() else 404)
        self.end_headers()
        if self.command == "GET" and path.is_file():
            self.wfile.write(path.read_bytes())

    do_HEAD = do_GET

    def log_message(self, *_):
        """Nothing on the terminal."""


def check_address(folder):
    clip = read_clip(f"{folder}/clip.mp4?key=secret")
    assert clip.name == f"{folder}/clip.mp4"
    assert len(clip.frames) == 20 and len(clip.samples) == pytest.approx(32000, abs=1100)
    with pytest.raises(FileNotFoundError, match="/none.mp4: no such file"):
        MediaFile(f"{folder}/none.mp4")


def test_an_address(tmp_path, hub):
    write_clip(tmp_path / "clip.mp4")
    # The Hub has ranges, other servers may not.
    HfApi().create_repo("you/media", repo_type="dataset")
    HfApi().upload_folder(repo_id="you/media", repo_type="dataset", folder_path=tmp_path)
    check_address(f"{hub.endpoint}/datasets/you/media/resolve/main")
    assert len(read_clip("hf://datasets/you/media/clip.mp4").frames) == 20
    with ThreadingHTTPServer(("127.0.0.1", 0), StreamHandler) as server:
        server.folder, address = tmp_path, f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=functools.partial(server.serve_forever, 0.05), daemon=True).start()
        check_address(address)
        server.shutdown()
    with pytest.raises(MediaError, match=f"{address}/clip.mp4: cannot be"):
        MediaFile(f"{address}/clip.mp4")


def gif(width, height):
    """A GIF of one pixel in a picture of any size."""
    picture = "8000000000000000002c00000000010001000002024401003b"
    return b"GIF89a" + struct.pack("<2H", width, height) + bytes.fromhex(picture)


def slow_sound(rate):
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(1)
        file.setframerate(rate)
        file.writeframes(bytes(100_000))
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "found", "changes"),
    [
        (slow_sound(2_000_000), "sound of 2,000,000 samples per second, expected at most 1,000,000 (limits.m", None),
        (gif(640, 2), "a picture of 640 x 2 pixels, expected at most 100 (limits.max_aspect", {"max_aspect": 320}),
        (slow_sound(1), "sound of 1 samples per second, expected at least 1,000 (limits.min_rate", None),
        (slow_sound(500), "sound of 500 samples per second, expected at least", {"min_rate": 500}),
        (slow_sound(1000), None, None),
    ],
    ids=["high rate", "sides", "rate", "low rate", "lowest rate"],
)
def test_bounds_of_what_a_header_claims(content, found, changes):
    if found is not None:
        with pytest.raises(MediaError, match=re.escape(found)):
            read_clip(content)
    if found is None or changes is not None:
        with limited(changes or {}):
            clip = read_clip(content)
        assert clip.frames or len(clip.samples) >= 1_600_000


def test_bounds_of_pictures(tmp_path):
    """Even to open a GIF of this size takes 1 GB, as a picture is decoded for it."""
    clip = read_clip(gif(16000, 16000))
    assert not clip.frames and "no picture of at most 36,000,000 pixels was found (limits.max" in "".join(clip.notes)
    path = write_clip(tmp_path / "clip.mkv", "ffv1", pictures=gray_pictures([90], (300, 200)))
    with limited({"max_pixels": 5e4}):
        clip = read_clip(path)
    assert not clip.frames and len(clip.samples) and "at most 50,000 pixels" in "".join(clip.notes)


def test_bounds_of_what_time_stamps_claim(tmp_path):
    late = write_clip(tmp_path / "late.mkv", times=[*range(19), 9_500_000])
    with pytest.raises(MediaError, match="found something 950,000 s after its start, expected at most 86,400"):
        read_clip(late)
    with limited({"max_seconds": 1e6}):
        assert len(read_clip(late).frames) == 20
    content = write_clip(tmp_path / "clip.mkv").read_bytes()
    # A hundred years, in milliseconds.
    place = content.index(b"\x44\x89\x88") + 3
    clip = read_clip(content[:place] + struct.pack(">d", 100 * 365.25 * 86400e3) + content[place + 8 :])
    assert clip.duration == pytest.approx(2.0, abs=0.1) and "its header promises" in clip.notes[0]


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "endless.mp4").symlink_to("/dev/zero")
    for name, found in (("pipe.mp4", "a named pipe"), ("endless.mp4", "a device")):
        for source in (tmp_path / name, f"file://{tmp_path / name}"):
            with pytest.raises(MediaError, match=f"{name}: found {found}, expected a video or audio file"):
                MediaFile(source)
    endless = SimpleNamespace(read=lambda size=-1: bytes(max(size, 0)), seekable=lambda: False)
    with (
        limited({"max_bytes": 5e6}),
        pytest.raises(MediaError, match="more than 5,242,880 bytes without an"),
    ):
        MediaFile(endless)
