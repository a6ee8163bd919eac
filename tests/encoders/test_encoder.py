import logging
import weakref

import numpy as np
import pytest
import torch
from encoder_checks import encoded
from exact_clips import exact_sound, write_exact

from hf_blemo.encoders import load_encoder
from hf_blemo.encoders.encoder import EncodedClip, EncoderMemoryError, EncoderSource, Piece
from hf_blemo.extraction.extraction import encode_clips
from hf_blemo.media import MediaError

# Of each kind of forward: frames, segments, steps of sound, windows of sound.
KINDS = ("vit", "timesformer", "hubert", "whisper")


def limited(encoder, most):
    """Makes an encoder run out of memory for more than some pieces; gives the sizes of its batches."""
    # As on a GPU, where batches are whole.
    encoder.part_size = None
    forward, sizes = encoder.forward, []

    def checked(pieces):
        sizes.append(len(pieces))
        if len(pieces) > most:
            raise torch.OutOfMemoryError("no memory is left")
        return forward(pieces)

    encoder.forward = checked
    return sizes


@pytest.mark.parametrize("name", KINDS)
def test_a_device_without_memory_for_a_batch_gets_halves(name, checkpoint, clips, caplog):
    paths = [clip.path for clip in clips] * 3
    expected = encoded(paths, checkpoint(name), batch_size=8)
    encoder = load_encoder(checkpoint(name), batch_size=8, device="cpu")
    sizes = limited(encoder, 3)
    with caplog.at_level(logging.WARNING):
        found = list(encode_clips(paths, {"encoder": encoder}, num_threads=1))
    for clip, (features, times) in zip(found, expected, strict=True):
        np.testing.assert_allclose(clip.features["encoder"], features, atol=1e-4)
        np.testing.assert_array_equal(clip.times["encoder"], times)
    # Halved for good: 8 and 4 fail once each.
    assert sizes[:3] == [8, 4, 2] and max(sizes[2:]) == 2 and encoder.batch_size == 2
    where = checkpoint(name)
    assert [record.getMessage() for record in caplog.records] == [
        f"{where}: cpu is out of memory for 8 pieces at once, going on with 4",
        f"{where}: cpu is out of memory for 4 pieces at once, going on with 2",
    ]


def test_memory_of_a_failed_batch_is_freed_before_the_halves(checkpoint):
    encoder = load_encoder(checkpoint("vit"), batch_size=2, device="cpu")
    forward, held = encoder.forward, []

    class Activations:
        pass

    def failing(pieces):
        if len(pieces) > 1:
            activations = Activations()
            held.append(weakref.ref(activations))
            raise torch.OutOfMemoryError("no memory is left")
        # The frame of the failed attempt, with all it holds, must be gone.
        assert held[0]() is None
        return forward(pieces)

    encoder.forward = failing
    pixels = encoder.frames.pixels(np.zeros((40, 40, 3), np.uint8))
    rows = encoder.run([Piece(pixels, np.zeros(1)), Piece(pixels, np.zeros(1))])
    assert len(rows) == 2 and len(held) == 1
    limited(encoder, 0)
    for pieces in (1, 2):
        with pytest.raises(EncoderMemoryError, match="/vit: cpu is out of memory for a single piece of a clip"):
            encoder.run([Piece(pixels, np.zeros(1))] * pieces)


def test_encode_gives_one_clip(checkpoint, clips):
    encoder = load_encoder(checkpoint("vit"), device="cpu")
    found = encoder.encode(clips[0].path)
    [(features, times)] = encoded([clips[0].path], checkpoint("vit"))
    assert isinstance(found, EncodedClip)
    np.testing.assert_allclose(found.features, features, atol=1e-6)
    np.testing.assert_array_equal(found.times, times)
    with open(clips[0].path, "rb") as file:
        np.testing.assert_array_equal(encoder.encode(file.read()).features, found.features)


def test_encode_says_what_is_wrong_with_a_clip(checkpoint, tmp_path):
    encoder = load_encoder(checkpoint("vit"), device="cpu")
    with pytest.raises(FileNotFoundError, match="nowhere.mp4"):
        encoder.encode(tmp_path / "nowhere.mp4")
    path = write_exact(tmp_path / "sound.wav", [], exact_sound(0.5))
    with pytest.raises(MediaError, match="sound.wav: found no picture, expected some for .*/vit"):
        encoder.encode(path)


def test_options_of_a_source():
    assert EncoderSource("me/model").options() == {"model_id": "me/model"}
    source = EncoderSource("me/model", "c" * 40, {"layer": 3})
    assert source.options() == {"model_id": "me/model", "revision": "c" * 40, "extraction": {"layer": 3}}
