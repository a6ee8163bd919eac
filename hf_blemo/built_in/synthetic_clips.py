"""The built-in clips: short films with sound in the form of BlEmoRE, for all work that starts from raw media."""

import csv
import functools
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hf_blemo.blemore import LABELS, parse_clip_name
from hf_blemo.built_in.synthetic_blends import clip_stem
from hf_blemo.built_in.synthetic_pairs import BACKGROUNDS, COLOURS, draw_scene
from hf_blemo.errors import check_extra
from hf_blemo.feature_sets.distribution import METADATA_COLUMNS, METADATA_FILE
from hf_blemo.files import replace_folder

# One or two {"emotion": str, "salience": per cent}, as in `blemore.LABELS`.
_Label = Sequence[Mapping[str, Any]]

CLEAR = ("picture", "sound", "both")
NUM_FOLDS = 5
SAMPLE_RATE = 16000
_PLANTED_COLUMNS = ("clip", "clear")
_PLANTED_FILE = "planted.csv"
# Seeds share no actor, so that clips of one seed can test a model trained on another.
_ACTORS_PER_SEED = 100

# Training on the built-in pairs of images and captions shows these combinations too.
_SIGNS = {
    "ang": ("triangle", "red"),
    "disg": ("diamond", "green"),
    "fea": ("ring", "purple"),
    "hap": ("circle", "yellow"),
    "sad": ("square", "blue"),
    "neu": ("cross", "orange"),
}


class _Voice(NamedTuple):
    """How an emotion sounds."""

    # Of the fundamental, as a multiple of the actor's own.
    pitch: float
    # Natural logarithms: of the pitch at the end of a turn over that at its start, and half the span of the vibrato.
    rise: float
    shake: float
    # How often it swells and fades in a turn; 0 is steady.
    pulses: int
    # Amplitudes of the fundamental and its multiples.
    harmonics: tuple[float, ...]


_VOICES = {
    "ang": _Voice(1.0, -0.15, 0.0, 3, (1.0, 0.9, 0.9, 0.8, 0.8, 0.7, 0.7, 0.6)),
    "disg": _Voice(0.75, -0.3, 0.0, 1, (1.0, 0.0, 0.7, 0.0, 0.9, 0.0, 0.5)),
    "fea": _Voice(3.0, 0.1, 0.08, 4, (1.0, 0.1, 0.4)),
    "hap": _Voice(1.7, 0.35, 0.0, 2, (1.0, 0.3, 0.1, 0.6)),
    "sad": _Voice(1.3, -0.25, 0.03, 1, (1.0,)),
    "neu": _Voice(1.0, 0.0, 0.0, 0, (1.0, 0.5, 0.25)),
}
# Ten turns make all saliences exact.
_TURNS = 10
_VIBRATO_PERIODS = 3
# The part of a turn that a steady voice takes to fade in, and again to fade out.
_FADE = 0.1
_HISS = 0.1
_NOISE_BANDS = 12

_MOSAIC_CELLS = 8
# How far a sign moves to and fro, how far an actor keeps it from the middle, and both, in widths of the picture.
_SWAY, _PLACE = 0.05, 0.15
_MARGIN = _SWAY + _PLACE
_FLICKER_STD = 0.02
_PIXEL_NOISE_STD = 5.0

_GOLDEN = (np.sqrt(5) - 1) / 2
_MIN_FRAMES = 10
_MIN_SIZE, _MIN_ACTORS = 32, NUM_FOLDS

_ACTORS, _PLAN, _DRAWING = range(3)


class _Actor(NamedTuple):
    """What all clips of an actor have in common."""

    # "f" or "m"; says which pitch is likely.
    gender: str
    # In Hz.
    pitch: float
    # Root mean square.
    loudness: float
    background: str
    brightness: float
    # (2,) how far the signs stand from the middle, across and down, in widths of the picture.
    place: np.ndarray


class _PlannedClip(NamedTuple):
    name: str
    label: int
    actor: int
    fold: int
    clear: str
    seconds: float


def _actor_of(number: int) -> _Actor:
    """The actor of a number, as in the clips' names; always the same."""
    generator = np.random.default_rng([_ACTORS, number])
    gender = "fm"[generator.integers(2)]
    low, high = {"f": (170, 250), "m": (110, 160)}[gender]
    return _Actor(
        gender=gender,
        pitch=float(generator.uniform(low, high)),
        loudness=float(generator.uniform(0.06, 0.2)),
        background=tuple(BACKGROUNDS)[generator.integers(len(BACKGROUNDS))],
        brightness=float(generator.uniform(0.75, 1.0)),
        place=generator.uniform(-_PLACE, _PLACE, 2),
    )


def _draw_clip(
    clip: _PlannedClip, frames_per_second: int, size: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Frames (T, H, W, 3) uint8, and samples (n,) float32 between -1 and 1, mono, `SAMPLE_RATE` per second."""
    of_frames, of_sound = generator.spawn(2)
    label, actor = LABELS[clip.label], _actor_of(clip.actor)
    num_frames, num_samples = round(clip.seconds * frames_per_second), round(clip.seconds * SAMPLE_RATE)
    frames = _draw_frames(label, actor, clip.clear != "sound", num_frames, size, of_frames)
    return frames, _draw_sound(label, actor, clip.clear != "picture", num_samples, of_sound)


def _share_out(label: _Label, count: int, generator: np.random.Generator) -> list[str]:
    """The emotion that each of `count` places in time shows; parts of the clip have the shares of the whole."""
    emotions = [part["emotion"] for part in label]
    first = round(count * label[0]["salience"] / 100)
    # Multiples of the golden ratio are spread evenly over any stretch of places, and over every second or third place.
    ranks = ((generator.random() + _GOLDEN * np.arange(count)) % 1).argsort().argsort()
    return [emotions[0] if rank < first else emotions[-1] for rank in ranks]


@functools.lru_cache(maxsize=64)
def _sign(emotion: str, background: str, size: int) -> np.ndarray:
    """(H, W, 3) a sign with a margin to move it in."""
    shape, colour = _SIGNS[emotion]
    scene = draw_scene(shape, colour, "large", "plain", "centre", "one", background, image_size=size)
    margin = _margin(size)
    # The sign does not reach the edge, so the background continues.
    padded = np.pad(np.asarray(scene, dtype=np.float32), ((margin, margin), (margin, margin), (0, 0)), mode="edge")
    padded.flags.writeable = False
    return padded


def _mosaic(size: int, generator: np.random.Generator) -> np.ndarray:
    """(H, W, 3) cells in the colours of the signs, with the margin of a sign."""
    whole = size + 2 * _margin(size)
    cell = -(-size // _MOSAIC_CELLS)
    num_cells = -(-whole // cell)
    colours = np.array(list(COLOURS.values()), dtype=np.float32)
    cells = colours[generator.integers(len(COLOURS), size=(num_cells, num_cells))]
    return cells.repeat(cell, axis=0).repeat(cell, axis=1)[:whole, :whole]


def _margin(size: int) -> int:
    return int(np.ceil(_MARGIN * size))


def _draw_frames(
    label: _Label, actor: _Actor, clear: bool, num_frames: int, size: int, generator: np.random.Generator
) -> np.ndarray:
    shown = _share_out(label, num_frames, generator)
    mosaic = _mosaic(size, generator)
    start, periods = generator.uniform(0, 2 * np.pi), generator.uniform(1, 2)
    angles = start + periods * 2 * np.pi * np.arange(num_frames) / num_frames
    shifts = actor.place + _SWAY * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    corners = np.rint(_margin(size) - size * shifts).astype(int).clip(0, 2 * _margin(size))
    whole = [_sign(emotion, actor.background, size) if clear else mosaic for emotion in shown]
    parts = zip(whole, corners, strict=True)
    pixels = np.stack([picture[down : down + size, across : across + size] for picture, (across, down) in parts])
    light = actor.brightness * (1 + _FLICKER_STD * generator.standard_normal(num_frames, dtype=np.float32))
    pixels = pixels * light[:, None, None, None]
    pixels += _PIXEL_NOISE_STD * generator.standard_normal(pixels.shape, dtype=np.float32)
    return np.rint(pixels).clip(0, 255).astype(np.uint8)


def _draw_sound(
    label: _Label, actor: _Actor, clear: bool, num_samples: int, generator: np.random.Generator
) -> np.ndarray:
    heard = _share_out(label, _TURNS, generator)
    colour = np.exp(generator.standard_normal(_NOISE_BANDS))
    limits = np.linspace(0, num_samples, _TURNS + 1).round().astype(int)
    turns = []
    for emotion, length in zip(heard, np.diff(limits), strict=True):
        if clear:
            pitch = actor.pitch * _VOICES[emotion].pitch * np.exp(0.02 * generator.standard_normal())
            turn = _voice(_VOICES[emotion], pitch, length)
        else:
            turn = _noise(colour, length, generator)
        turns.append(actor.loudness * turn / np.sqrt(np.mean(turn**2)))
    samples = np.concatenate(turns) + _HISS * actor.loudness * generator.standard_normal(num_samples)
    return samples.clip(-1, 1).astype(np.float32)


def _voice(voice: _Voice, pitch: float, length: int) -> np.ndarray:
    time = (np.arange(length) + 0.5) / length
    contour = voice.rise * (time - 0.5) + voice.shake * np.sin(2 * np.pi * _VIBRATO_PERIODS * time)
    phase = 2 * np.pi * np.cumsum(pitch * np.exp(contour)) / SAMPLE_RATE
    wave = sum(amplitude * np.sin(number * phase) for number, amplitude in enumerate(voice.harmonics, start=1))
    fade = np.minimum(1, np.minimum(time, 1 - time) / _FADE)
    return wave * (np.sin(np.pi * voice.pulses * time) ** 2 if voice.pulses else fade)


def _noise(colour: np.ndarray, length: int, generator: np.random.Generator) -> np.ndarray:
    spectrum = np.fft.rfft(generator.standard_normal(length))
    gains = np.interp(np.linspace(0, 1, len(spectrum)), np.linspace(0, 1, len(colour)), colour)
    return np.fft.irfft(spectrum * gains, n=length)


def make_synthetic_clips(
    folder: str | Path,
    num_clips: int = 360,
    seed: int = 0,
    num_actors: int = 20,
    seconds: tuple[float, float] = (1.0, 2.0),
    frames_per_second: int = 12,
    size: int = 64,
    overwrite: bool = False,
) -> list[Path]:
    """Writes clips whose picture and sound show a label, named by the grammar of BlEmoRE.

    The folder looks like a small BlEmoRE of raw clips: `<clip>.mp4` (H.264, or MPEG-4 part 2 where PyAV lacks it; AAC)
    and `train_metadata.csv` with the columns of the distribution. `planted.csv` beside them says whether the label is
    clear in the picture, the sound or both: a third of the clips each, so that picture or sound alone can be right on
    no more than two thirds and chance, and both together on all. The 36 labels are equally frequent, and what is clear
    is evenly distributed within each, as far as the numbers allow; actors take turns, and with them the
    actor-disjoint folds. Intensity and situation are random and cannot be seen or heard.

    A frame shows the sign of one emotion: a large shape of its own colour that sways about the actor's place on the
    actor's background, under a little flicker and noise. The sound is ten turns; each has the pitch, contour, rhythm
    and timbre of one emotion, all equally loud, over a hiss. A blend shares frames and turns by salience: seven turns
    of ten and about 70 per cent of the frames, spread evenly over the clip, so that the mean over time is the
    salience. Where the picture is not clear, every frame shows the same swaying mosaic of the signs' colours; where
    the sound is not clear, every turn is noise of one random colour, as loud as the voices. Neither depends on the
    label.

    The same settings give the same pixels and samples, and on one machine the same bytes; more clips leave the first
    ones as they are. Different seeds share no actor.

    Args:
        folder: made if missing; it may only hold clips of an earlier call.
        num_clips: N.
        seed: of the clips, from 0.
        num_actors: number of actors that share the clips.
        seconds: shortest and longest clip.
        frames_per_second: of the picture.
        size: width and height of the picture in pixels.
        overwrite: replace clips of an earlier call.

    Returns:
        The N files in the order of `train_metadata.csv`.

    Raises:
        MissingExtraError: PyAV is not installed.
        FileExistsError: the folder holds clips and `overwrite` is not given, or it holds other files.
        ValueError: a number is out of its range.
    """
    folder = Path(folder)
    shortest, longest = seconds
    if num_clips < 1:
        raise ValueError(f"num_clips: found {num_clips}, expected at least 1")
    if seed < 0:
        raise ValueError(f"seed: found {seed}, expected a number from 0")
    if not _MIN_ACTORS <= num_actors <= _ACTORS_PER_SEED:
        raise ValueError(f"num_actors: found {num_actors}, expected {_MIN_ACTORS} to {_ACTORS_PER_SEED}")
    if not shortest <= longest < np.inf:
        raise ValueError(f"seconds: found {shortest} and {longest}, expected the shortest and the longest clip")
    if size < _MIN_SIZE or size % 2:
        raise ValueError(f"size: found {size}, expected an even number of pixels from {_MIN_SIZE}")
    # Written so that a NaN counts as too few.
    if frames_per_second < 1 or not _MIN_FRAMES <= shortest * frames_per_second < np.inf:
        raise ValueError(
            f"seconds and frames_per_second: found {shortest} and {frames_per_second}, "
            f"expected at least {_MIN_FRAMES} frames, which a salience of 30 needs to show"
        )
    check_extra("media")
    _check_folder(folder, overwrite)
    clips = _plan_clips(num_clips, seed, num_actors, shortest, longest)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # An interrupted call leaves no folder that looks complete.
    with tempfile.TemporaryDirectory(prefix=f"{folder.name}.", dir=folder.parent) as scratch:
        written = Path(scratch) / "written"
        written.mkdir()
        for number, clip in enumerate(clips):
            generator = np.random.default_rng([_DRAWING, seed, number])
            frames, samples = _draw_clip(clip, frames_per_second, size, generator)
            _write_media(written / f"{clip.name}.mp4", frames, samples, frames_per_second)
        _write_csv(written / METADATA_FILE, METADATA_COLUMNS, map(_metadata_row, clips))
        _write_csv(
            written / _PLANTED_FILE, _PLANTED_COLUMNS, ({"clip": clip.name, "clear": clip.clear} for clip in clips)
        )
        replace_folder(written, folder)
    return [folder / f"{clip.name}.mp4" for clip in clips]


def _plan_clips(num_clips: int, seed: int, num_actors: int, shortest: float, longest: float) -> list[_PlannedClip]:
    # One stream each, so that more clips leave the first ones as they are.
    of_clear, of_labels, of_rest = np.random.default_rng([_PLAN, seed]).spawn(3)
    # A label takes turns in what is clear; as many labels start at each.
    starts = of_clear.permutation(len(LABELS))
    rounds = -(-num_clips // len(LABELS))
    labels = np.concatenate([of_labels.permutation(len(LABELS)) for _ in range(rounds)])[:num_clips]
    versions: Counter[str] = Counter()
    clips = []
    for number, label in enumerate(labels):
        actor = 1 + _ACTORS_PER_SEED * seed + number % num_actors
        stem = clip_stem(actor, label, lambda: int(of_rest.integers(1, 5)))
        versions[stem] += 1
        clips.append(
            _PlannedClip(
                name=f"{stem}_ver{versions[stem]}",
                label=int(label),
                actor=actor,
                fold=number % num_actors % NUM_FOLDS,
                clear=CLEAR[(starts[label] + number // len(LABELS)) % len(CLEAR)],
                seconds=float(of_rest.uniform(shortest, longest)),
            )
        )
    return clips


def _metadata_row(clip: _PlannedClip) -> dict[str, Any]:
    named = parse_clip_name(clip.name)
    row = {"filename": named.name, "video_id": named.actor, "gender": _actor_of(clip.actor).gender, "fold": clip.fold}
    row |= {"mix": int(named.is_blend), "version": named.version}
    row |= {"intensity_level": named.intensity, "situation": named.situation}
    for part, emotion in enumerate(named.emotions, start=1):
        row[f"emotion_{part}"] = emotion
        if named.is_blend:
            row[f"emotion_{part}_salience"] = named.saliences[part - 1]
    return row


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _check_folder(folder: Path, overwrite: bool) -> None:
    """Refuses a folder that holds something other than clips of an earlier call."""
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder}: found a file, expected a folder to make")
    found = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if found and not overwrite:
        raise FileExistsError(f"{folder}: holds {min(found)}; pass overwrite=True to replace synthetic clips")
    ours = set()
    if _PLANTED_FILE in found:
        with (folder / _PLANTED_FILE).open(newline="", encoding="utf-8") as file:
            ours = {f"{row.get('clip')}.mp4" for row in csv.DictReader(file)} | {METADATA_FILE, _PLANTED_FILE}
    if found - ours:
        raise FileExistsError(
            f"{folder}: holds {min(found - ours)}, which is not a synthetic clip, so it is not replaced"
        )


def _write_media(path: Path, frames: np.ndarray, samples: np.ndarray, frames_per_second: int) -> None:
    import av

    with av.open(path, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        # The number of threads must not depend on the machine, and x264's default rate control (mbtree) gave other
        # bytes for the same pictures of 64 pixels within one process.
        if "libx264" in av.codecs_available:
            options = {"preset": "veryfast", "qp": "28", "threads": "1"}
            video = container.add_stream("libx264", rate=frames_per_second, options=options)
        else:
            options = {"qmin": "2", "qmax": "4", "threads": "1"}
            video = container.add_stream("mpeg4", rate=frames_per_second, options=options)
        video.height, video.width = frames.shape[1:3]
        video.pix_fmt = "yuv420p"
        sound = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono", options={"aac_coder": "fast"})
        sound.bit_rate = 24000
        for number, pixels in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            picture.pts = number
            container.mux(video.encode(picture))
        heard = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        heard.sample_rate = SAMPLE_RATE
        heard.pts = 0
        container.mux(sound.encode(heard))
        container.mux(video.encode())
        container.mux(sound.encode())
