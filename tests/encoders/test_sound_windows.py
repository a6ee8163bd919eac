import itertools

import numpy as np

from hf_blemo.encoders.sound_windows import _SoundBuffer
from hf_blemo.encoders.spectrogram_encoder import _WindowSession
from hf_blemo.encoders.speech_encoder import _StepSession
from hf_blemo.media import Audio

RATE = 1000


def numbers(count, first=0):
    return np.arange(first, first + count, dtype=np.float32)


def cut(total, window, context, part=37):
    """The windows of a track that comes in small parts; checks what each hears."""
    buffer, found = _SoundBuffer(RATE), []

    def take(ended):
        for start, end, own_start, own_end in buffer.windows(window, context, ended):
            found.append((start, end, own_start, own_end))
            np.testing.assert_array_equal(buffer.read(start, end), numbers(end - start, start))

    for start in range(0, total, part):
        buffer.append(start / RATE, numbers(min(part, total - start), start))
        take(False)
        # However long the track, little of it is kept.
        assert buffer.end - buffer.first <= window + part
    take(True)
    return found


def test_each_sample_belongs_to_one_window():
    totals = (0, 1, 99, 100, 101, 139, 140, 141, 260, 1000)
    for total, context in itertools.product(totals, (0, 20)):
        found = cut(total, 100, context)
        owned = [number for _, _, own_start, own_end in found for number in range(own_start, own_end)]
        assert owned == list(range(total)) and (total > 100 or len(found) == (total > 0))
        for start, end, own_start, own_end in found:
            assert end - start <= 100
            assert own_start - start == (context if start else 0)
            assert end - own_end == (0 if end == total else context)


def test_a_gap_is_silence_and_rounded_stamps_are_none():
    buffer = _SoundBuffer(RATE)
    buffer.append(1.0, numbers(100) + 1)
    np.testing.assert_allclose(buffer.seconds(np.array([0, 250])), [1.0, 1.25])
    buffer.append(1.13, numbers(10) + 1)
    assert buffer.end == 110
    buffer.append(1.41, numbers(5) + 1)
    np.testing.assert_array_equal(buffer.read(105, 415), [6, 7, 8, 9, 10, *np.zeros(300), 1, 2, 3, 4, 5])
    # Sound whose stamp is too early follows all the same.
    buffer.append(0.2, numbers(5) + 1)
    assert buffer.end == 420


def pieces_of(session, *parts):
    found = [piece for time, count in parts for piece in session.push(Audio(time, RATE, numbers(count)))]
    return found + list(session.finish())


def test_a_gap_keeps_the_times_after_it_and_after_a_long_one_the_sound_begins_anew():
    [piece] = pieces_of(_StepSession(RATE, stride=10, reach=15), (0.0, 100), (0.5, 100))
    assert len(piece.values) == 600 and not piece.values[100:500].any()
    np.testing.assert_allclose(piece.times, 0.01 * np.arange(59))
    found = pieces_of(_WindowSession(RATE, window=100, step=100), (0.5, 150), (400.0, 30))
    assert [piece.times.tolist() for piece in found] == [[0.5], [0.6], [400.0]]
    assert [len(piece.values) for piece in found] == [100, 50, 40]
    found = pieces_of(_StepSession(RATE, stride=10, reach=15), (0.5, 150), (400.0, 30))
    assert [len(piece.values) for piece in found] == [150, 30]
    np.testing.assert_allclose(found[0].times, 0.5 + 0.01 * np.arange(14))
    np.testing.assert_allclose(found[1].times, 400 + 0.01 * np.arange(2))


def test_pieces_do_not_keep_other_sound_in_memory():
    session = _StepSession(RATE, stride=10, reach=15)
    session.window, session.context = 100, 20
    found = pieces_of(session, *((start / RATE, 50) for start in range(0, 1000, 50)))
    assert len(found) > 10 and all(piece.values.base is None for piece in found)
