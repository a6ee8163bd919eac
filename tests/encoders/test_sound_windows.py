import numpy as np
import pytest

from hf_blemo.encoders.sound_windows import SoundBuffer, windows
from hf_blemo.encoders.spectrogram_encoder import WindowSession
from hf_blemo.encoders.speech_encoder import StepSession
from hf_blemo.media.media import Audio

RATE = 1000


def numbers(count, first=0):
    return np.arange(first, first + count, dtype=np.float32)


def cut(total, window, context, part=37):
    """The windows of a track that comes in small parts, each with what it hears."""
    buffer, found = SoundBuffer(RATE), []

    def take(ended):
        for start, end, own_start, own_end in windows(buffer, window, context, ended):
            found.append((start, end, own_start, own_end))
            np.testing.assert_array_equal(buffer.read(start, end), numbers(end - start, start))

    for start in range(0, total, part):
        buffer.append(start / RATE, numbers(min(part, total - start), start))
        take(False)
        # Whatever the length of the track, little of it is kept.
        assert buffer.end - buffer.first <= window + part
    take(True)
    return found


@pytest.mark.parametrize("total", [1, 99, 100, 101, 139, 140, 141, 260, 1000])
@pytest.mark.parametrize("context", [0, 20])
def test_what_windows_own_is_all_of_the_track_once(total, context):
    found = cut(total, 100, context)
    owned = [number for _, _, own_start, own_end in found for number in range(own_start, own_end)]
    assert owned == list(range(total))
    for start, end, own_start, own_end in found:
        assert end - start <= 100
        assert own_start - start == (context if start else 0)
        assert end - own_end == (0 if end == total else context)


def test_a_track_without_sound_has_no_window():
    assert cut(0, 100, 20) == []


def test_a_track_of_a_window_is_one():
    assert cut(100, 100, 20) == [(0, 100, 0, 100)]


def test_times_are_counted_from_the_first_sample():
    buffer = SoundBuffer(RATE)
    buffer.append(2.5, numbers(100))
    assert buffer.seconds(0) == 2.5 and buffer.seconds(250) == 2.75
    np.testing.assert_allclose(buffer.seconds(np.array([0, 100])), [2.5, 2.6])


def test_a_gap_is_silence_and_rounded_stamps_are_none():
    buffer = SoundBuffer(RATE)
    buffer.append(1.0, numbers(100) + 1)
    buffer.append(1.13, numbers(10) + 1)
    assert buffer.end == 110
    buffer.append(1.41, numbers(5) + 1)
    np.testing.assert_array_equal(buffer.read(105, 415), [6, 7, 8, 9, 10, *np.zeros(300), 1, 2, 3, 4, 5])
    # Sound that says it was earlier follows all the same.
    buffer.append(0.2, numbers(5) + 1)
    assert buffer.end == 420


def items(*parts):
    return [Audio(time, RATE, numbers(count)) for time, count in parts]


def pieces_of(session, *parts):
    found = [piece for item in items(*parts) for piece in session.push(item)]
    return found + list(session.finish())


def test_after_a_long_gap_the_sound_begins_anew():
    session = WindowSession(RATE, window=100, step=100)
    found = pieces_of(session, (0.5, 150), (400.0, 30))
    assert [piece.times.tolist() for piece in found] == [[0.5], [0.6], [400.0]]
    assert [len(piece.values) for piece in found] == [100, 50, 40]

    session = StepSession(RATE, stride=10, reach=15)
    found = pieces_of(session, (0.5, 150), (400.0, 30))
    assert [len(piece.values) for piece in found] == [150, 30]
    np.testing.assert_allclose(found[0].times, 0.5 + 0.01 * np.arange(14))
    np.testing.assert_allclose(found[1].times, 400 + 0.01 * np.arange(2))


def test_a_gap_keeps_the_times_of_what_follows():
    session = StepSession(RATE, stride=10, reach=15)
    [piece] = pieces_of(session, (0.0, 100), (0.5, 100))
    assert len(piece.values) == 600 and not piece.values[100:500].any()
    np.testing.assert_allclose(piece.times, 0.01 * np.arange(59))


def test_pieces_do_not_hold_on_to_the_sound_of_others():
    session = StepSession(RATE, stride=10, reach=15)
    session.window, session.context = 100, 20
    found = pieces_of(session, *((start / RATE, 50) for start in range(0, 1000, 50)))
    assert len(found) > 10 and all(piece.values.base is None for piece in found)
