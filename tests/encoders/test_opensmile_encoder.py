"""Functionals and low-level descriptors; what needs openSMILE itself runs where it is installed."""

import logging
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from known_clips import encoded, exact_sound, write_exact

from hf_blemo.encoders import load_encoder, opensmile_encoder
from hf_blemo.encoders.encoder import EncoderSource
from hf_blemo.encoders.encoder_options import OPENSMILE_SETS, check_encoders
from hf_blemo.encoders.opensmile_encoder import OpenSmileEncoder
from hf_blemo.errors import MissingExtraError
from hf_blemo.media import Audio
from hf_blemo.programs.fingerprints import weights_fingerprint

NAME = "opensmile:eGeMAPSv02"
STEP = 160


def stand_in(samples):
    """A row per 10 ms that has 60 ms of sound, of the two samples at its ends."""
    starts = np.arange(0, len(samples) - 959, STEP)
    return np.stack([samples[starts], samples[starts + 959]], -1), starts / 16000


def rows_of(encoder, samples, start=0.0):
    """Features and times of sound that comes in uneven parts."""
    session, pieces = encoder.session(), []
    for first in range(0, len(samples), 7001):
        pieces += session.push(Audio(start + first / 16000, 16000, samples[first : first + 7001]))
    pieces += session.finish()
    for piece, rows in zip(pieces, encoder.run(pieces), strict=True):
        assert rows is not None and len(rows) == len(piece.times)
    return np.concatenate(encoder.run(pieces)), np.concatenate([piece.times for piece in pieces])


def counted(**extraction):
    return OpenSmileEncoder(stand_in, None, EncoderSource(NAME, None, extraction))


@pytest.mark.parametrize("seconds", [0.001, 0.05, 0.1, 0.2, 29.999, 30.0, 30.001, 34.0, 57.3, 90.02])
def test_descriptors_of_windows_are_those_of_the_whole(seconds):
    samples = exact_sound(seconds)
    found, times = rows_of(counted(level="lld"), samples, start=0.4)
    # Silence fills up what is shorter than a row.
    whole, starts = stand_in(np.pad(samples, (0, max(0, 1600 - len(samples)))))
    kept = starts < seconds
    np.testing.assert_array_equal(found, whole[kept])
    np.testing.assert_allclose(times, 0.4 + starts[kept], atol=1e-9)


@pytest.mark.parametrize(
    ("window", "hop", "seconds", "starts"),
    [
        (None, None, 0.001, [0]),
        (None, None, 2.0, [0]),
        (None, None, 2.01, [0, 1]),
        (None, None, 5.5, [0, 1, 2, 3, 4]),
        (1.5, 0.5, 3.0, [0, 0.5, 1, 1.5]),
        # What is left is too short to be a window.
        (1.5, 1.5, 3.05, [0, 1.5]),
        (1, 1, 3.2, [0, 1, 2, 3]),
    ],
)
def test_windows_of_functionals(window, hop, seconds, starts, monkeypatch):
    encoder = counted(window_seconds=window, hop_seconds=hop)
    heard = []
    encoder.model = lambda samples: heard.append(len(samples)) or (np.ones((1, 3), np.float32), np.zeros(1))
    found, times = rows_of(encoder, exact_sound(seconds), start=0.25)
    np.testing.assert_allclose(times, 0.25 + np.array(starts), atol=1e-9)
    assert found.shape == (len(starts), 3)
    assert heard == [max(1600, min(round((window or 2) * 16000), round((seconds - s) * 16000))) for s in starts]


@pytest.mark.parametrize(
    ("extraction", "message"),
    [
        ({"level": "llds"}, "level: found 'llds', expected functionals or lld; did you mean 'lld'?"),
        ({"level": "lld", "hop_seconds": 1}, "hop_seconds belongs to level functionals, found level lld"),
        *(
            ({"window_seconds": value}, "window_seconds must be a number from 0.1 on")
            for value in (0, True, "2", 0.01)
        ),
        ({"window_seconds": float("inf")}, "window_seconds must be a number from 0.1 on, found inf"),
        ({"hop_seconds": 2.5}, "hop_seconds must be a number from 0.01 to window_seconds, 2.0, found 2.5"),
        ({"hop_seconds": 0}, "hop_seconds must be a number from 0.01 to window_seconds, 2.0, found 0"),
        ({"layer": 1}, "openSMILE has no option 'layer' of extraction, it has: level, window_seconds, hop_seconds"),
    ],
)
def test_invalid_options_are_refused(extraction, message):
    with pytest.raises(ValueError) as caught:
        load_encoder(NAME, extraction=extraction)
    assert str(caught.value).startswith(f"{NAME}: {message}")


def test_what_cannot_be_had_is_said_before_anything_is_loaded(monkeypatch):
    with pytest.raises(
        ValueError, match="^encoder 'voice': feature set of openSMILE: found 'eGeMAPS', expected .*02'"
    ):
        check_encoders({"voice": {"model_id": "opensmile:eGeMAPS"}})
    monkeypatch.setattr("hf_blemo.errors.find_spec", lambda name: None)
    with pytest.raises(
        MissingExtraError, match=f"^encoder 'a': {NAME} .licensed for research only. needs opensmile: "
    ):
        check_encoders({"a": {"model_id": NAME}})
    with pytest.raises(MissingExtraError, match=f"^{NAME} .licensed for research only. needs opensmile: pip install"):
        load_encoder(NAME)


def test_numbers_that_are_not_finite_end_the_clip():
    encoder = counted(level="lld")
    samples = exact_sound(1.0)
    samples[8000] = np.nan
    with pytest.raises(ValueError, match=f"^{NAME} gives numbers that are not finite for its sound from 0.0 s on$"):
        rows_of(encoder, samples)


# --- With the package itself ---


@pytest.fixture(scope="module")
def opensmile():
    return pytest.importorskip("opensmile")


@pytest.mark.parametrize("level", ["functionals", "lld"])
@pytest.mark.parametrize("name", OPENSMILE_SETS)
def test_every_set_gives_finite_rows_of_any_sound(opensmile, name, level):
    encoder = load_encoder(f"opensmile:{name}", extraction={"level": level})
    seconds = np.arange(16000) / 16000
    tone = np.sin(2 * np.pi * 200 * seconds).astype(np.float32)
    for samples in (tone, 0 * tone, np.sign(tone), 1e-5 * tone, exact_sound(0.01), exact_sound(1.07)):
        found, times = rows_of(encoder, samples)
        assert found.dtype == np.float32 and found.shape == (len(times), encoder.feature_size)
        assert np.isfinite(found).all() and (np.diff(times) >= 0).all() and times[0] == 0
    other = load_encoder(f"opensmile:{name}", extraction={"level": "lld" if level == "functionals" else "functionals"})
    assert weights_fingerprint(encoder.model) != weights_fingerprint(other.model)


def test_rows_are_those_of_the_package_at_their_times(opensmile, tmp_path, monkeypatch):
    samples = exact_sound(6.4)
    path = write_exact(tmp_path / "late.mkv", np.zeros((200, 16, 16, 3), np.uint8), samples, audio_start=0.5)
    levels = opensmile.FeatureLevel
    for extraction, level in (({}, levels.Functionals), ({"level": "lld"}, levels.LowLevelDescriptors)):
        smile = opensmile.Smile(opensmile.FeatureSet.eGeMAPSv02, level)
        [(features, times)] = encoded([path], NAME, num_threads=2, extraction=extraction)
        for row, time in list(zip(features, times, strict=True))[:5]:
            first = round((time - 0.5) * 16000)
            end = first + 32000 if not extraction else None
            expected = smile.process_signal(samples[first:end] if not extraction else samples, 16000).to_numpy()
            np.testing.assert_allclose(row, expected[0 if not extraction else first // STEP], atol=1e-4)
    # Windows of long sound give the same; so do threads side by side.
    monkeypatch.setattr(opensmile_encoder, "_DESCRIPTOR_SECONDS", 5.0)
    encoder = load_encoder(NAME, extraction={"level": "lld"})
    samples = exact_sound(11.0)
    with ThreadPoolExecutor(3) as pool:
        for found, _ in pool.map(lambda _: rows_of(encoder, samples), range(3)):
            np.testing.assert_allclose(found, encoder.model(samples)[0], atol=1e-4)


def test_the_loudest_sound_is_not_turned_over(opensmile):
    """openSMILE reads 16 bits, in which 1.0 would become -1.0."""
    encoder = load_encoder(NAME)
    tone = np.sin(2 * np.pi * 200 * np.arange(16000) / 16000).astype(np.float32)
    tone /= np.abs(tone).max()
    almost = np.clip(tone, -1, 1 - 2**-15)
    np.testing.assert_array_equal(rows_of(encoder, tone)[0], rows_of(encoder, almost)[0])
    np.testing.assert_array_equal(
        rows_of(encoder, 2 * tone)[0], rows_of(encoder, np.clip(2 * tone, -1, 1 - 2**-15))[0]
    )


def test_the_source_names_the_version_and_another_one_gets_a_warning(opensmile, caplog):
    encoder = load_encoder(NAME, extraction={"hop_seconds": 0.5})
    version = opensmile.__version__
    assert encoder.source.options() == {"model_id": NAME, "revision": version, "extraction": {"hop_seconds": 0.5}}
    with caplog.at_level(logging.WARNING):
        load_encoder(NAME, revision=version)
        assert not caplog.records
        load_encoder(NAME, revision="1.0")
    [record] = caplog.records
    assert record.getMessage().startswith(
        f"{NAME}: opensmile {version} is installed, expected 1.0, which may give other"
    )
