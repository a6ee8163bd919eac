import logging
import weakref

import numpy as np
import pytest
import torch
from direct_features import frame_features, segment_features, spectrogram_features, speech_features
from known_clips import WAYS, assert_same, encoded, exact_sound, write_exact
from tiny_encoders import MODELS

from hf_blemo.encoders import EncodedClip, load_encoder
from hf_blemo.encoders.encoder import EncoderMemoryError, Piece
from hf_blemo.extraction.extraction import encode_clips
from hf_blemo.media import MediaError

# Plain transformers, its options, and seconds of a row.
EXPECTED = {
    **dict.fromkeys(("clip", "student", "siglip", "vit", "resnet", "dinov2", "vit_mae"), (frame_features, (), 0.04)),
    "videomae": (segment_features, (16,), 0.64),
    "timesformer": (segment_features, (4,), 0.16),
    "vivit": (segment_features, (8,), 0.32),
    **dict.fromkeys(("hubert", "hubert_base", "wavlm", "wav2vec2"), (speech_features, (), 0.02)),
    **dict.fromkeys(("data2vec_audio", "wav2vec2_conformer"), (speech_features, (), 0.02)),
    "whisper": (spectrogram_features, (32000, 320), 0.02),
    "ast": (spectrogram_features, (20480,), 1.28),
    "wav2vec2_bert": (spectrogram_features, (160000,), 10.0),
    "clap": (spectrogram_features, (96000,), 2.0),
}


FAMILIES = {
    frame_features: "ImageEncoder",
    segment_features: "VideoEncoder",
    speech_features: "SpeechEncoder",
    spectrogram_features: "SpectrogramEncoder",
}


@pytest.mark.parametrize("name", MODELS)
def test_families_and_widths(name, checkpoint):
    encoder = load_encoder(checkpoint(name), device="cpu")
    family = "ClipEncoder" if name in ("clip", "student", "siglip") else FAMILIES[EXPECTED[name][0]]
    assert type(encoder).__name__ == family
    assert encoder.feature_size == (12 if name in ("clip", "student", "clap") else 16)
    looks = family in ("ClipEncoder", "ImageEncoder", "VideoEncoder")
    rate = None if looks else 48000 if name == "clap" else 16000
    assert (encoder.modality, encoder.audio_rate) == ("video" if looks else "audio", rate)
    assert encoder.source.options() == {"model_id": checkpoint(name)} and not encoder.model.training
    assert (encoder.device, encoder.model.dtype) == (torch.device("cpu"), torch.float32)
    # Only the side that sees or hears is kept.
    kept = [key for key, _ in encoder.model.named_parameters()]
    assert not [key for key in kept if key.startswith(("text_", "decoder"))]


@pytest.mark.parametrize("name", EXPECTED)
def test_rows_are_what_plain_transformers_gives(name, checkpoint, clips, clips_48k, direct):
    function, options, seconds = EXPECTED[name]
    chosen = clips_48k if name == "clap" else clips
    for way in WAYS if name in KINDS else WAYS[1:2]:
        found = encoded([clip.path for clip in chosen], checkpoint(name), *way)
        for clip, (features, times) in zip(chosen, found, strict=True):
            looks = function in (frame_features, segment_features)
            shown = clip.frames if looks else clip.samples
            assert_same(features, direct(function, checkpoint(name), clip.path, shown, *options))
            np.testing.assert_allclose(times, seconds * np.arange(len(features)), atol=1e-9 if looks else 1e-6)


@pytest.mark.parametrize("name", ["clip", "videomae", "hubert"])
def test_bfloat16_comes_close_to_float32(name, checkpoint, clips):
    [(features, _)], [(half, _)] = (
        encoded([clips[2].path], checkpoint(name), dtype=dtype) for dtype in ("float32", "bfloat16")
    )
    assert 0 < np.abs(features - half).max() < 0.2 * np.abs(features).max()
    assert np.corrcoef(features.ravel(), half.ravel())[0, 1] > 0.99


@pytest.mark.parametrize("name", ["hubert", "whisper"])
def test_sound_that_starts_late_has_late_times(name, checkpoint, tmp_path):
    samples = exact_sound(1.0)
    path = write_exact(tmp_path / "late.mkv", np.zeros((40, 16, 16, 3), np.uint8), samples, audio_start=0.5)
    [(features, times)] = encoded([path], checkpoint(name))
    function, options, seconds = EXPECTED[name]
    assert_same(features, function(checkpoint(name), samples, *options))
    np.testing.assert_allclose(times, 0.5 + seconds * np.arange(len(features)), atol=1e-3)


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
        f"{where}: cpu is out of memory for 8 pieces at once, continuing with 4",
        f"{where}: cpu is out of memory for 4 pieces at once, continuing with 2",
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


def test_encode_gives_one_clip_or_says_why_not(checkpoint, clips, tmp_path):
    encoder = load_encoder(checkpoint("vit"), device="cpu")
    found = encoder.encode(clips[0].path)
    [(features, times)] = encoded([clips[0].path], checkpoint("vit"))
    assert isinstance(found, EncodedClip)
    np.testing.assert_allclose(found.features, features, atol=1e-6)
    np.testing.assert_array_equal(found.times, times)
    with open(clips[0].path, "rb") as file:
        np.testing.assert_array_equal(encoder.encode(file.read()).features, found.features)
    with pytest.raises(FileNotFoundError, match="nowhere.mp4"):
        encoder.encode(tmp_path / "nowhere.mp4")
    path = write_exact(tmp_path / "sound.wav", [], exact_sound(0.5))
    with pytest.raises(MediaError, match="sound.wav: found no picture, expected some for .*/vit"):
        encoder.encode(path)
