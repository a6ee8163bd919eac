import io
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from clip_files import gray_pictures, write_clip
from known_clips import exact_sound, write_exact
from tiny_encoders import frames

from hf_blemo.encoders import load_encoder
from hf_blemo.extraction import decoding, extraction
from hf_blemo.extraction.clip_sources import MediaClip
from hf_blemo.extraction.decoding import CLIPS_AHEAD, THREAD_NAME
from hf_blemo.extraction.extraction import encode_clips
from hf_blemo.media import MediaError

NAMES = ("vit", "timesformer", "hubert", "whisper")


@pytest.fixture
def encoders(checkpoint):
    return {name: load_encoder(checkpoint(name), device="cpu") for name in NAMES}


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Little clips of 3 frames each, more than may be decoded ahead."""
    folder = tmp_path_factory.mktemp("many")
    numbers = range(CLIPS_AHEAD + 16)
    return [write_exact(folder / f"clip_{number:03d}.mkv", frames(3, 16, 16, seed=number), None) for number in numbers]


def one_by_one(paths, encoders):
    return [next(encode_clips([path], encoders, num_threads=1)) for path in paths]


def assert_alike(found, expected):
    for clip, other in zip(found, expected, strict=True):
        assert clip.name == other.name and list(clip.features) == list(other.features)
        for name, values in other.features.items():
            np.testing.assert_allclose(clip.features[name], values, atol=1e-4)
            np.testing.assert_array_equal(clip.times[name], other.times[name])


def decoding_threads():
    """Those of `encode_clips`; progress bars of transformers have threads of their own."""
    return [thread for thread in threading.enumerate() if thread.name.startswith(THREAD_NAME)]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert decoding_threads() == []


@pytest.mark.parametrize("num_threads", [1, 3])
def test_many_clips_come_in_their_order(num_threads, many, checkpoint):
    encoder = load_encoder(checkpoint("vit"), batch_size=500, device="cpu")
    found = list(encode_clips(iter(many), {"vit": encoder}, num_threads))
    assert [clip.name for clip in found] == [Path(path).stem for path in many]
    assert_alike(found[::9], one_by_one(many[::9], {"vit": encoder}))


@pytest.mark.parametrize("num_threads", [1, 3])
def test_bad_clips_leave_good_ones_as_they_are(num_threads, clips, encoders, tmp_path):
    (tmp_path / "text.mp4").write_text("this is no clip\n" * 50)
    (tmp_path / "empty.mov").write_bytes(b"")
    (tmp_path / "folder.mp4").mkdir()

    def broken():
        raise OSError("the disk is gone")

    good = [clip.path for clip in clips]
    given = [
        tmp_path / "text.mp4", good[0], tmp_path / "empty.mov", MediaClip("broken", broken), good[1],
        tmp_path / "nowhere.mp4", tmp_path / "folder.mp4", good[2],
    ]  # fmt: skip
    found = list(encode_clips(given, encoders, num_threads))
    assert [clip.name for clip in found] == [
        "text", "clip_0_16000", "empty", "broken", "clip_1_16000", "nowhere", "folder", "clip_2_16000"
    ]  # fmt: skip
    errors = [clip.error for clip in found if clip.error is not None]
    assert [type(error) for error in errors] == [MediaError, MediaError, OSError, FileNotFoundError, IsADirectoryError]
    assert all("\n" not in str(error) for error in errors)
    found = [clip for clip in found if clip.error is None]
    for clip in found:
        assert list(clip.features) == list(NAMES) and clip.notes == []
        seconds = max(len(clip.times["vit"]) / 25, len(clip.times["hubert"]) / 50)
        assert clip.duration == pytest.approx(seconds, abs=0.1)
    assert_alike(found, one_by_one(good, encoders))


def test_a_clip_may_be_many_things_and_lack_a_modality(clips, encoders, tmp_path):
    clip = clips[0]
    silent = write_exact(tmp_path / "silent.mkv", clip.frames, None)
    dark = write_exact(tmp_path / "dark.wav", [], clip.samples)
    content = Path(clip.path).read_bytes()
    given = [content, io.BytesIO(content), MediaClip("mine", Path(clip.path)), MediaClip("late", lambda: content)]
    given.append(MediaClip("split", lambda: (silent, Path(dark).read_bytes())))
    whole, *same, no_sound, no_picture = encode_clips([clip.path, *given, silent, dark], encoders)
    assert [one.name for one in same] == ["clip 1", "clip 2", "mine", "late", "split"]
    for one in same:
        one.name = whole.name
    assert_alike(same, [whole] * 5)
    for one, names in ((no_sound, ["vit", "timesformer"]), (no_picture, ["hubert", "whisper"])):
        assert one.problem is None and list(one.features) == list(one.times) == names
        for name, values in one.features.items():
            np.testing.assert_allclose(values, whole.features[name], atol=1e-4)
    [none] = encode_clips([silent], {"hubert": encoders["hubert"], "whisper": encoders["whisper"]})
    assert none.features == {} and isinstance(none.error, MediaError)
    assert none.problem == "silent: found no sound, expected some for hubert, whisper"


def test_results_come_before_all_clips_are_taken(many, checkpoint):
    given, encoder = iter(many), load_encoder(checkpoint("vit"), batch_size=1, device="cpu")
    found = encode_clips(given, {"vit": encoder}, num_threads=1)
    assert next(found).name == "clip_000"
    time.sleep(0.2)
    assert len(list(given)) >= len(many) - 20
    found.close()


@pytest.mark.parametrize("culprit", ["consumer", "encoder", "list of clips"])
def test_an_end_that_comes_early_and_an_error_of_others_end_the_threads(culprit, many, checkpoint):
    encoder = load_encoder(checkpoint("vit"), batch_size=4, device="cpu")

    def fail(*_):
        raise LookupError(culprit)

    def given():
        yield many[0]
        fail()

    if culprit == "encoder":
        encoder.forward = fail
    found = encode_clips(given() if culprit == "list of clips" else many, {"vit": encoder}, num_threads=3)
    if culprit == "consumer":
        next(found)
        assert decoding_threads() != []
        found.close()
    else:
        with pytest.raises(LookupError, match=culprit):
            list(found)
    assert decoding_threads() == []


def test_nothing_is_made_of_nothing(encoders, clips):
    assert list(encode_clips([], encoders)) == []
    for given, number, message in (
        ({}, 1, "found no encoder, expected at least one"),
        (encoders, 0, "num_threads must be at least 1, found 0"),
        (encoders, -2, "num_threads must be at least 1, found -2"),
    ):
        with pytest.raises(ValueError, match=message):
            next(encode_clips([clips[0].path], given, number))


def test_a_clip_by_itself_is_decoded_by_all_cores(many, checkpoint, monkeypatch):
    opened, media_file = [], decoding.MediaFile
    monkeypatch.setattr(decoding, "MediaFile", lambda *given: opened.append(given[2]) or media_file(*given))
    monkeypatch.setattr(extraction.os, "cpu_count", lambda: 8)
    encoder = load_encoder(checkpoint("vit"), device="cpu")
    for count, decoder_threads in ((1, 0), (2, 1), (9, 1)):
        opened.clear()
        assert len(list(encode_clips(many[:count], {"vit": encoder}))) == count
        assert opened == [decoder_threads] * count


@pytest.mark.parametrize(("frames_of_memory", "waiting"), [(1000, 32), (5, 5)])
def test_a_slow_encoder_holds_up_the_decoder(frames_of_memory, waiting, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "_BYTES_AHEAD", frames_of_memory * 3 * 32 * 32)
    path = write_exact(tmp_path / "long.mkv", frames(50, 16, 16).repeat(2, 0), None)
    encoder = load_encoder(checkpoint("vit"), batch_size=1, device="cpu")
    done, cut, most = [], [], []
    forward, pixels = encoder.forward, encoder.frames.pixels

    def slow(pieces):
        if len(done) < 20:
            time.sleep(0.02)
        most.append(len(cut) - len(done))
        done.extend(pieces)
        return forward(pieces)

    encoder.forward = slow
    encoder.frames.pixels = lambda image: cut.append(1) or pixels(image)
    [found] = encode_clips([path], {"vit": encoder}, num_threads=1)
    assert len(found.times["vit"]) == len(done) == 100
    # Beside what waits in the queue, there is one on its way into it, and one or two out of it.
    assert waiting - 2 <= max(most) <= waiting + 4


def test_memory_does_not_grow_with_the_length_of_a_clip(checkpoint, tmp_path):
    pictures, sound = gray_pictures((40, 90, 140, 190), size=(640, 360)) * 60, exact_sound(240 / 25)[None]
    path = write_clip(tmp_path / "long.mp4", "mpeg4", "aac", pictures, frame_rate=25, sound=sound)
    encoders = {name: load_encoder(checkpoint(name), device="cpu") for name in ("vit", "hubert")}
    forward, memory = encoders["vit"].forward, []
    encoders["vit"].forward = lambda pieces: memory.append(psutil.Process().memory_info().rss) or forward(pieces)
    [found] = encode_clips([path], encoders, num_threads=1, num_thumbnails=8)
    assert len(found.times["vit"]) == 240 and 475 <= len(found.times["hubert"]) <= 490 and len(found.thumbnails) == 8
    # 240 frames are 166 MB.
    assert max(memory) - memory[2] < 50 * 2**20


@pytest.mark.parametrize("largest", [1, 100, 2**26])
def test_rows_come_out_as_they_went_in(largest, monkeypatch):
    monkeypatch.setattr(extraction, "_LARGEST_BLOCK", largest)
    for sizes in ([1], [3, 1, 4, 1, 5, 9, 2, 6], [0, 7, 0], [50, 1, 1], [1] * 40):
        parts = [np.random.default_rng(size).standard_normal((size, 5), np.float32) for size in sizes]
        buffer = extraction._RowBuffer()
        for number, part in enumerate(parts):
            given = part.copy()
            buffer.append(given)
            # What rows are a view of is not kept.
            given[:] = 7
            assert len(buffer) == sum(sizes[: number + 1])
        found = buffer.take()
        assert found.dtype == np.float32 and len(buffer) == 0
        np.testing.assert_array_equal(found, np.concatenate(parts))


def test_no_block_is_larger_than_the_largest_and_they_are_few():
    buffer = extraction._RowBuffer()
    for _ in range(2000):
        buffer.append(np.zeros((16, 1024), np.float32))
    sizes = [block.nbytes for block in buffer._blocks]
    assert max(sizes) == extraction._LARGEST_BLOCK and len(sizes) <= 13
