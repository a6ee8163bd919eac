"""The built-in clips: the files hold the drawn clips, and show their labels only where they are planted."""

import csv
import sys
from collections import Counter

import av
import numpy as np
import pytest

from hf_blemo import blemore
from hf_blemo.built_in import COLOURS, make_synthetic_clips, synthetic_clips
from hf_blemo.built_in.synthetic_clips import _SIGNS, _VOICES, CLEAR, SAMPLE_RATE, _actor_of, _draw_clip, _PlannedClip
from hf_blemo.built_in.synthetic_pairs import _held_out_pairs
from hf_blemo.errors import MissingExtraError
from hf_blemo.feature_sets.distribution import METADATA_COLUMNS, read_metadata

# One round of the labels.
NUM_CLIPS = 36
SHORT = {"num_clips": 3, "seconds": (1.0, 1.0), "frames_per_second": 10, "size": 32}


def decoded(path):
    with av.open(path) as container:
        rate = container.streams.video[0].average_rate
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    with av.open(path) as container:
        assert container.streams.audio[0].rate == SAMPLE_RATE and container.streams.audio[0].channels == 1
        samples = np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], axis=1)[0]
    return frames, samples, rate


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def shown_in(frames):
    """(T,) the emotion whose colour most pixels have, and (T,) the share of pixels that do."""
    pixels = frames.astype(float) / np.linalg.norm(frames, axis=-1, keepdims=True).clip(1)
    colours = np.array([COLOURS[_SIGNS[emotion][1]] for emotion in blemore.EMOTIONS], dtype=float)
    near = pixels @ (colours / np.linalg.norm(colours, axis=-1, keepdims=True)).T > 0.985
    shares = near.mean(axis=(1, 2))
    return shares.argmax(1), shares.max(1)


def pitch_of(samples):
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples)), 1 << 16))
    return spectrum.argmax() * SAMPLE_RATE / (1 << 16)


def drawn(label, actor=1, clear="both", seconds=1.5, seed=0):
    """Frames and samples of a clip of 12 frames per second; a label is saliences by emotion."""
    parts = [{"emotion": emotion, "salience": float(salience)} for emotion, salience in label.items()]
    clip = _PlannedClip("", blemore.LABELS.index(parts), actor, 0, clear, seconds)
    return _draw_clip(clip, 12, 64, np.random.default_rng(seed))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder, its clips, and the frames and samples drawn for them."""
    folder = tmp_path_factory.mktemp("clips") / "blemore"
    made = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic_clips, "_draw_clip", lambda *given: made.append(_draw_clip(*given)) or made[-1])
        paths = make_synthetic_clips(folder, NUM_CLIPS, seed=3)
    return folder, paths, made


def test_labels_and_planted_truth_are_even(written):
    clips = synthetic_clips._plan_clips(3 * NUM_CLIPS, 3, 20, 1.0, 2.0)
    # Each label is clear in the picture, in the sound and in both once.
    assert len({(clip.label, clip.clear) for clip in clips}) == len(clips) == 36 * len(CLEAR)
    assert Counter(clip.clear for clip in clips[:36]) == dict.fromkeys(CLEAR, 12)
    folder, paths, _ = written
    assert rows_of(folder / "planted.csv") == [{"clip": clip.name, "clear": clip.clear} for clip in clips[:36]]
    assert paths == [folder / f"{clip.name}.mp4" for clip in clips[:36]]
    assert {*folder.iterdir()} == {*paths, folder / "planted.csv", folder / "train_metadata.csv"}
    assert [blemore.parse_clip_name(path).label_index for path in paths] == [clip.label for clip in clips[:36]]
    assert np.mean([path.stat().st_size for path in paths]) < 12_000


def test_metadata_are_those_of_the_distribution_with_folds_disjoint_in_actors(written):
    folder, paths, _ = written
    for (name, label, _), path in zip(read_metadata(folder / "train_metadata.csv"), paths, strict=True):
        assert name == path.stem
        np.testing.assert_array_equal(label, blemore.soft_label(path))
    rows = rows_of(folder / "train_metadata.csv")
    assert tuple(rows[0]) == METADATA_COLUMNS
    for row in rows:
        named = blemore.parse_clip_name(row["filename"])
        expected = (named.actor, named.version, int(named.is_blend), named.intensity or "", named.situation or "")
        columns = ("video_id", "version", "mix", "intensity_level", "situation")
        assert [row[column] for column in columns] == [str(value) for value in expected]
    assert len({row["video_id"] for row in rows}) == 20
    assert len({(row["video_id"], row["fold"], row["gender"]) for row in rows}) == 20
    assert {row["gender"] for row in rows} == {"f", "m"}
    folds = Counter(row["fold"] for row in rows)
    assert set(folds) == set("01234") and max(folds.values()) <= NUM_CLIPS / 5 + 3


def test_the_same_bytes_every_time_and_other_actors_for_another_seed(written, tmp_path, monkeypatch):
    _, paths, _ = written
    # With other settings of x264, the files depend on what was in memory before.
    rubbish = [np.full(size, 255, dtype=np.uint8) for size in range(100_000, 2_000_000, 300_000)]
    again = make_synthetic_clips(tmp_path / "again", 12, seed=3)
    del rubbish
    assert [(path.name, path.read_bytes()) for path in again] == [
        (path.name, path.read_bytes()) for path in paths[:12]
    ]
    # MPEG-4 where the encoder of H.264 is missing.
    monkeypatch.setattr(av, "codecs_available", av.codecs_available - {"libx264"})
    others = make_synthetic_clips(tmp_path / "other", **SHORT, seed=4)
    with av.open(others[0]) as container:
        assert container.streams.video[0].codec.name == "mpeg4"
    assert decoded(others[0])[0].shape == (10, 32, 32, 3)
    actors = [{blemore.parse_clip_name(path).actor for path in some} for some in (paths, others)]
    assert not actors[0] & actors[1]


def test_files_hold_the_drawn_clips(written):
    folder, paths, made = written
    pitches, errors = [], {True: [], False: []}
    for path, (frames, samples), row in zip(paths, made, rows_of(folder / "planted.csv"), strict=True):
        named = blemore.parse_clip_name(path)
        found_frames, found_samples, rate = decoded(path)
        assert found_frames.shape == frames.shape and rate == 12
        assert 1 <= len(samples) / SAMPLE_RATE <= 2
        assert abs(len(frames) / 12 - len(samples) / SAMPLE_RATE) < 1 / 12
        # Signal to noise; the mosaic's edges lose colour.
        ratio = 10 * np.log10(255**2 / np.mean((found_frames.astype(float) - frames) ** 2))
        assert ratio > (18 if row["clear"] == "sound" else 26)
        # The coder pads to whole blocks of 1,024.
        assert 0 <= len(found_samples) - len(samples) < 2048
        if row["clear"] != "picture":
            assert np.corrcoef(found_samples[: len(samples)], samples)[0, 1] > 0.95
            if named.emotions == ("neu",):
                found = [pitch_of(turn) for turn in np.array_split(found_samples[: len(samples)], 10)]
                pitches.append(np.median(found) / _actor_of(int(named.actor[1:])).pitch)
        emotions, shares = shown_in(found_frames)
        label = np.bincount(emotions, minlength=6) / len(emotions)
        clear = row["clear"] != "sound"
        errors[clear].append(np.abs(label - blemore.soft_label(path)).sum())
        assert shares.min() > 0.08 or not clear
    # Half a frame is what rounding costs each of two emotions.
    assert max(errors[True]) < 0.1 and np.mean(errors[False]) > 1.2
    # The steady voice has the pitch of its actor.
    assert len(pitches) == 1
    np.testing.assert_allclose(pitches, 1, rtol=0.03)


def test_turns_and_frames_show_the_salience():
    for salience in (70, 50, 30):
        _, samples = drawn({"fea": salience, "sad": 100 - salience}, actor=5, seed=salience)
        turns = np.array(np.split(samples, 10))
        pitches = np.array([pitch_of(turn) for turn in turns]) / _actor_of(5).pitch
        for emotion, count in (("fea", salience / 10), ("sad", 10 - salience / 10)):
            assert (np.abs(pitches / _VOICES[emotion].pitch - 1) < 0.2).sum() == count
        np.testing.assert_allclose(np.sqrt((turns**2).mean(1)), _actor_of(5).loudness, rtol=0.05)
    frames, _ = drawn({"ang": 70, "sad": 30}, seconds=2.0, seed=2)
    emotions, _ = shown_in(frames)
    assert (emotions == 0).sum() == 17 and (emotions == 4).sum() == 7
    # In parts of the clip, too.
    for part in (emotions[::2], emotions[1::2], emotions[:12], emotions[12:]):
        assert 7 <= (part == 0).sum() <= 10


def test_a_part_that_is_not_clear_holds_nothing_of_the_label():
    for clear, hidden, shown in (("sound", 0, 1), ("picture", 1, 0)):
        one, other = (drawn(label, 2, clear) for label in ({"hap": 100}, {"ang": 30, "sad": 70}))
        np.testing.assert_array_equal(one[hidden], other[hidden])
        assert not np.array_equal(one[shown], other[shown])


def test_frames_move_and_actors_and_signs_differ():
    (frames, samples), (other, _), (again, _) = (drawn({"hap": 100}, actor=actor) for actor in (1, 2, 1))
    assert frames.dtype == np.uint8 and samples.dtype == np.float32 and frames.shape == (18, 64, 64, 3)
    np.testing.assert_array_equal(again, frames)
    moved = np.abs(np.diff(frames.astype(float), axis=0))
    # By less than another actor changes.
    assert moved.mean(axis=(1, 2, 3)).min() > 3 and moved.mean() < np.abs(frames.astype(float) - other).mean() / 2
    pitches = [_actor_of(number).pitch for number in range(1, 40)]
    assert min(pitches) < 130 and max(pitches) > 220
    assert list(_SIGNS) == list(_VOICES) == list(blemore.EMOTIONS)
    assert len({shape for shape, _ in _SIGNS.values()}) == len({colour for _, colour in _SIGNS.values()}) == 6
    # Training on the built-in pairs shows them.
    assert not set(_SIGNS.values()) & set(_held_out_pairs())


def interrupt(*_):
    raise KeyboardInterrupt


def test_folders_keep_what_is_not_a_synthetic_clip(tmp_path, monkeypatch):
    folder = tmp_path / "clips"
    folder.mkdir()
    first = make_synthetic_clips(folder, **SHORT)
    with pytest.raises(FileExistsError, match="clips: holds A1_.*; pass overwrite=True"):
        make_synthetic_clips(folder, **SHORT)
    (folder / "thesis.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="clips: holds thesis.txt, which is not a synthetic clip"):
        make_synthetic_clips(folder, **SHORT, overwrite=True)
    assert (folder / "thesis.txt").read_text() == "precious" and all(path.is_file() for path in first)
    (folder / "thesis.txt").unlink()
    second = make_synthetic_clips(folder, **SHORT, seed=1, overwrite=True)
    assert {path.name for path in folder.glob("*.mp4")} == {path.name for path in second}
    # An interrupted call leaves the folder as it was.
    before, write = {path.name for path in tmp_path.rglob("*")}, synthetic_clips._write_media
    calls = iter((write, write))
    monkeypatch.setattr(synthetic_clips, "_write_media", lambda *given: next(calls, interrupt)(*given))
    with pytest.raises(KeyboardInterrupt):
        make_synthetic_clips(folder, **SHORT, seed=2, overwrite=True)
    assert next(calls, None) is None and {path.name for path in tmp_path.rglob("*")} == before
    (tmp_path / "file").write_text("precious")
    with pytest.raises(FileExistsError, match="file: found a file, expected a folder"):
        make_synthetic_clips(tmp_path / "file", **SHORT, overwrite=True)


def test_invalid_arguments_are_refused_before_anything_is_written(tmp_path, monkeypatch):
    for options, message in (
        ({"num_clips": 0}, "num_clips: found 0, expected at least 1"),
        ({"seed": -1}, "seed: found -1"),
        ({"num_actors": 4}, "num_actors: found 4, expected 5 to 100"),
        ({"num_actors": 101}, "num_actors: found 101, expected 5 to 100"),
        ({"seconds": (2.0, 1.0)}, "seconds: found 2.0 and 1.0"),
        ({"seconds": (1.0, float("inf"))}, "seconds: found 1.0 and inf"),
        ({"seconds": (float("nan"), 1.0)}, "seconds: found nan and 1.0"),
        ({"seconds": (0.5, 1.0)}, "found 0.5 and 12, expected at least 10 frames"),
        ({"frames_per_second": 0}, "found 1.0 and 0, expected at least 10 frames"),
        ({"size": 30}, "size: found 30, expected an even number of pixels from 32"),
        ({"size": 65}, "size: found 65, expected an even number of pixels from 32"),
    ):
        with pytest.raises(ValueError, match=message):
            make_synthetic_clips(tmp_path / "clips", **options)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtraError, match=r'media needs av: pip install "av>='):
        make_synthetic_clips(tmp_path / "clips", **SHORT)
    assert not list(tmp_path.iterdir())
