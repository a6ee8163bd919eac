import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from direct_features import speech_features
from known_clips import assert_same, encoded, exact_sound, write_exact
from tiny_encoders import CONVOLUTIONS, HIDDEN, speech_extractor

from hf_blemo.encoders import load_encoder, speech_encoder
from hf_blemo.encoders.encoder import Piece


@pytest.mark.parametrize("name", ["hubert", "wavlm", "wav2vec2"])
def test_windows_of_about_one_length_are_run_at_once_without_hearing_the_padding(name, checkpoint):
    encoder = load_encoder(checkpoint(name), device="cpu")
    sounds = [exact_sound(seconds, seed=number) for number, seconds in enumerate((1.0, 1.37, 0.3, 1.49, 2.0, 0.31))]
    pieces = [Piece(samples, np.zeros(1)) for samples in sounds]
    sizes = []
    prepare = encoder._inputs
    encoder._inputs = lambda windows: sizes.append(len(windows)) or prepare(windows)
    # WavLM must not make torch warn of its masks: warnings are errors here.
    filters = list(warnings.filters)
    rows = encoder.forward(pieces)
    assert sizes == [2, 3, 1] and warnings.filters == filters
    for samples, found in zip(sounds, rows, strict=True):
        assert_same(found, speech_features(checkpoint(name), samples))


@pytest.mark.parametrize(("name", "seconds"), [("hubert", 0.001), ("wavlm", 0.09), ("wav2vec2", 0.5)])
def test_first_layers_hear_one_stretch_after_the_other(name, seconds, checkpoint, clips, monkeypatch):
    monkeypatch.setattr(speech_encoder, "_CHUNK_SECONDS", seconds)
    encoder = load_encoder(checkpoint(name), device="cpu")
    chunked = encoder.model.feature_extractor.forward
    lengths, convolutions = [], chunked.convolutions
    chunked.convolutions = lambda values: lengths.append(values.numel()) or convolutions(values)
    # The second and the third are padded, and share a stretch.
    sounds = [clips[0].samples, exact_sound(0.8, seed=1), exact_sound(1.0, seed=2)]
    rows = encoder.forward([Piece(samples, np.zeros(1)) for samples in sounds])
    for samples, found in zip(sounds, rows, strict=True):
        assert_same(found, speech_features(checkpoint(name), samples))
    assert len(lengths) >= 6 and max(lengths) <= max(3 * encoder.reach, 3 * encoder.reach + 16000 * seconds)


@pytest.mark.parametrize(("batch_size", "expected"), [(None, [3, 1, 2]), (2, [2, 2, 2])])
def test_no_more_than_a_window_of_sound_is_run_at_once_unless_asked_for(batch_size, expected, checkpoint):
    encoder = load_encoder(checkpoint("hubert"), device="cpu", batch_size=batch_size)
    sizes = []
    encoder.forward = lambda pieces: sizes.append(len(pieces)) or [np.zeros((1, 16))] * len(pieces)
    seconds = (10, 10, 10, 29, 15, 14)
    encoder.run([Piece(np.zeros(16000 * length, np.float32), np.zeros(1)) for length in seconds])
    assert sizes == expected


@pytest.mark.parametrize("name", ["hubert_base", "data2vec_audio", "wav2vec2_conformer", "hubert"])
def test_models_that_would_hear_the_padding_run_windows_of_one_length(name, checkpoint, tmp_path):
    folder = Path(shutil.copytree(checkpoint(name), tmp_path / name))
    if name == "hubert":
        # A processor without masks means no padding.
        path = folder / "preprocessor_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "return_attention_mask": False}))
    encoder = load_encoder(str(folder), device="cpu")
    # The first layers of the others hear all at once.
    assert not encoder.pads and ("forward" in vars(encoder.model.feature_extractor)) == (name == "hubert")
    samples = exact_sound(1.2)
    short, long, same = encoder.forward([Piece(part, np.zeros(1)) for part in (samples[:16000], samples, samples)])
    np.testing.assert_allclose(long, same, atol=1e-4)
    assert_same(short, speech_features(checkpoint(name), samples[:16000]))
    assert_same(long, speech_features(checkpoint(name), samples))


def test_layers_are_the_hidden_states_and_a_click_has_one_row(checkpoint, clips, tmp_path):
    for layer in (0, 1, 2):
        [(features, _)] = encoded([clips[0].path], checkpoint("wavlm"), extraction={"layer": layer})
        assert_same(features, speech_features(checkpoint("wavlm"), clips[0].samples, layer))
    # Sound shorter than a step has one row.
    path = write_exact(tmp_path / "click.wav", [], exact_sound(0.01))
    [(features, times)] = encoded([path], checkpoint("hubert"))
    assert features.shape == (1, 16) and times.tolist() == [0.0]


@pytest.fixture(scope="module")
def local_hubert(tmp_path_factory):
    """A HuBERT whose first hidden states hear a quarter of a second at most: no attention, nothing of the whole."""
    folder = tmp_path_factory.mktemp("local") / "hubert"
    torch.manual_seed(0)
    config = hf.HubertConfig(
        **HIDDEN, **CONVOLUTIONS, feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True
    )
    hf.HubertModel(config).save_pretrained(folder)
    extractor = speech_extractor(True)
    extractor.do_normalize = False
    extractor.save_pretrained(folder)
    return str(folder)


def check_steps(folder, seconds, tmp_path):
    samples = exact_sound(seconds)
    path = write_exact(tmp_path / "long.wav", [], samples)
    [(features, times)] = encoded([path], folder, extraction={"layer": 0})
    assert_same(features, speech_features(folder, samples, 0))
    np.testing.assert_allclose(times, 0.02 * np.arange(len(features)), atol=1e-9)


def test_steps_of_neighbouring_windows_join(local_hubert, tmp_path, monkeypatch):
    check_steps(local_hubert, 64.3, tmp_path)
    # Windows of 3 seconds, so that tests need not hear for minutes.
    monkeypatch.setattr(speech_encoder, "_WINDOW_SECONDS", 3.0)
    monkeypatch.setattr(speech_encoder, "_CONTEXT_SECONDS", 0.5)
    for seconds in (2.9, 3.0, 3.0001, 3.01, 3.5, 4.99, 5.0, 5.001, 11.111):
        check_steps(local_hubert, seconds, tmp_path)


def test_attention_over_windows_gives_the_number_of_the_whole(checkpoint, monkeypatch, tmp_path):
    monkeypatch.setattr(speech_encoder, "_WINDOW_SECONDS", 3.0)
    monkeypatch.setattr(speech_encoder, "_CONTEXT_SECONDS", 0.5)
    samples = exact_sound(8.0)
    path = write_exact(tmp_path / "long.wav", [], samples)
    [(features, times)] = encoded([path], checkpoint("wavlm"))
    assert len(features) == len(speech_features(checkpoint("wavlm"), samples))
    np.testing.assert_allclose(np.diff(times), 0.02, atol=1e-9)
    # The first window ends with the context of 0.5 s; what is its own is as the window by itself gives it.
    first = speech_features(checkpoint("wavlm"), samples[: 3 * 16000])
    np.testing.assert_allclose(features[:125], first[:125], atol=1e-4)


def test_a_model_without_a_row_per_step_is_refused(tmp_path):
    config = hf.Wav2Vec2Config(**HIDDEN, **CONVOLUTIONS, add_adapter=True, num_adapter_layers=1)
    hf.Wav2Vec2Model(config).save_pretrained(tmp_path)
    speech_extractor(False).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="gives 2 rows for 3 steps of sound, expected one each"):
        load_encoder(str(tmp_path), device="cpu")
    # The layers before the adapter have one each.
    assert load_encoder(str(tmp_path), extraction={"layer": 2}, device="cpu").feature_size == 16
