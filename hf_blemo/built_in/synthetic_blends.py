"""The built-in benchmark: data in the form of BlEmoRE with a planted, and so known, truth."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hf_blemo.blemore import BLEND_SHARE, EMOTIONS, LABEL_MATRIX, LABELS
from hf_blemo.feature_sets.layout import Clip, dataset_features, dataset_of

if TYPE_CHECKING:
    import datasets

_DOMAINS = ("source", "target")
_NUM_INFORMATIVE = 3
_NUM_FOLDS = 5
_NUM_ACTORS = 47
_NUM_CLIPS = 2456


class _Encoder(NamedTuple):
    """The features of one encoder."""

    feature_size: int
    modality: str
    steps_per_second: float
    # Factor on all numbers, and the type they are stored in.
    scale: float
    dtype: str
    # Whether it ever shows the label.
    informative: bool


_ENCODERS = {
    "face": _Encoder(48, "video", 0.8, 1.0, "float16", True),
    "gaze": _Encoder(12, "video", 0.8, 30.0, "float32", True),
    "posture": _Encoder(24, "video", 0.4, 0.1, "float32", True),
    "scene": _Encoder(32, "video", 0.1, 1.0, "float16", False),
    "voice": _Encoder(64, "audio", 0.6, 1.0, "float16", True),
    "prosody": _Encoder(16, "audio", 0.3, 5.0, "float32", True),
    "breath": _Encoder(20, "audio", 0.2, 0.3, "float32", True),
    "room": _Encoder(24, "audio", 0.1, 1.0, "float16", False),
}

SYNTHETIC_ENCODERS: dict[str, dict] = {
    name: {"feature_size": encoder.feature_size, "modality": encoder.modality, "pooling": "mean"}
    for name, encoder in _ENCODERS.items()
}
"""The eight encoders of the drawn blends, as a config of the fusion names them."""

# By place in the clip's order of encoders: the planted three first, then those that show another clip's label.
_QUALITY_MARKS = (4.5, 3.0, 1.5, -1.75, -3.0, -4.25)
# The first sees the dominant emotion too strongly, the third the weaker one: order carries meaning.
_SHARPNESS = (2.0, 0.5, -1.0)
_SIGNAL_NOISE_STD = (0.6, 0.8, 1.0)
_SIGNAL_SCALE = 3.0
_CLIP_LEVEL_STD = 2.0
_MARK_STD = 0.3
_ACTOR_STD = 0.25
_BACKGROUND_STD = 0.2
_STEP_STD = 0.5
_SHIFT_OFFSET = 3.0
_SHIFT_LOG_GAIN_STD = 0.2
_MIN_STEPS, _MAX_STEPS = 2, 24

# One stream of random numbers per purpose, so that each setting changes its own part of the data only.
_LABELS, _PRESENCE, _PLACES, _LEVELS, _FEATURES = range(5)


class _Structure(NamedTuple):
    """What is planted in one encoder, the same in both domains."""

    # (6, D) orthonormal directions of the emotions, and (D,) that of the quality mark, orthogonal to them.
    prototypes: np.ndarray
    mark: np.ndarray
    # (D,) of the features.
    mean: np.ndarray
    # The domain shift: (D,) its unit direction, and the logarithm of its gain in standard deviations.
    offset: np.ndarray
    log_gain: float


def _structure(structure_seed: int, number: int, size: int) -> _Structure:
    generator = np.random.default_rng([structure_seed, number])
    directions = np.linalg.qr(generator.standard_normal((size, len(EMOTIONS) + 1)))[0].T
    offset = generator.standard_normal(size)
    return _Structure(
        prototypes=directions[:-1],
        mark=directions[-1],
        mean=generator.standard_normal(size),
        offset=offset / np.linalg.norm(offset),
        log_gain=float(generator.standard_normal()),
    )


def _draw_labels(generator: np.random.Generator, num_clips: int) -> np.ndarray:
    """Label indices with BlEmoRE's share of blends, even within singles and within blends."""
    singles = len(EMOTIONS)
    shares = np.full(len(LABELS), BLEND_SHARE / (len(LABELS) - singles))
    shares[:singles] = (1 - BLEND_SHARE) / singles
    return generator.choice(len(LABELS), size=num_clips, p=shares / shares.sum())


def clip_stem(actor: int, label: int, variant: Callable[[], int]) -> str:
    """A name by the grammar of BlEmoRE without its version; of single emotions, `variant` draws which of them."""
    emotions = [part["emotion"] for part in LABELS[label]]
    if len(emotions) == 2:
        return "_".join([f"A{actor}_mix", *emotions, *(f"{part['salience']:.0f}" for part in LABELS[label])])
    return f"A{actor}_{emotions[0]}_{'sit' if emotions[0] == 'neu' else 'int'}{variant()}"


def _clip_names(generator: np.random.Generator, labels: np.ndarray, actors: np.ndarray, first_actor: int) -> list[str]:
    """Names by the grammar of BlEmoRE, all different through their version."""
    counts: dict[str, int] = {}
    names = []
    variants = generator.integers(1, 5, size=len(labels))
    for label, actor, variant in zip(labels, actors, variants, strict=True):
        stem = clip_stem(first_actor + actor, label, partial(int, variant))
        counts[stem] = counts.get(stem, 0) + 1
        names.append(f"{stem}_ver{counts[stem]}")
    return names


def _draw_presence(generator: np.random.Generator, num_clips: int, missing: float) -> np.ndarray:
    """(N, E) which encoders each clip has: some clips lose some of each kind, but at least two stay."""
    present = np.ones((num_clips, len(_ENCODERS)), dtype=bool)
    carriers = np.flatnonzero([encoder.informative for encoder in _ENCODERS.values()])
    others = np.flatnonzero([not encoder.informative for encoder in _ENCODERS.values()])
    lossy = generator.random(num_clips) < missing
    kept = generator.integers(_NUM_INFORMATIVE - 1, len(carriers), size=num_clips)
    order = generator.random((num_clips, len(carriers))).argsort(1).argsort(1)
    present[:, carriers] = ~lossy[:, None] | (order < kept[:, None])
    # A clip left with two carriers has no noise encoder either: the planted set is all there is to select.
    lost = (generator.random((num_clips, len(others))) < 0.5) | (kept < _NUM_INFORMATIVE)[:, None]
    present[:, others] = ~(lossy[:, None] & lost)
    return present


def make_synthetic_blends(
    num_clips: int = _NUM_CLIPS,
    seed: int = 0,
    domain: str = "source",
    shift: float = 1.0,
    missing: float = 0.1,
    structure_seed: int = 0,
) -> "datasets.Dataset":
    """Draws clips with known informative encoders, in a known order and with a known shift between domains.

    Three of six encoders are informative on each clip, drawn anew for every clip. They show the clip's label, the
    first most sharply and least noisily; the other three show the label of another clip; two more encoders never show
    anything of the clip. A quality mark along one direction of the features tells them apart within a clip: it falls
    from the first place to the last, on a level that varies between clips by more than the marks of neighbours differ.
    The two noise encoders carry the mark of a random place. The target domain moves every encoder by a fixed offset
    and gain. docs/synthetic.md gives the reasons.

    Args:
        num_clips: N.
        seed: of the clips; the same seed gives the same clips in both domains and under any shift.
        domain: `source`, or `target` with the shift applied.
        shift: size of the target's shift; 0 makes the target equal to the source.
        missing: share of the clips that lose encoders.
        structure_seed: of everything that the data sets of one benchmark share.

    Returns:
        Columns `clip`, `features` (encoder -> (T, D), null where missing), `labels`, `fold` (five, disjoint in
        actors), `informative` (three encoder numbers in planted order, -1 where fewer are present) and `domain`
        (0 source, 1 target).

    Raises:
        ValueError: unknown domain, a share outside [0, 1] or fewer than 1 clip.
    """
    if domain not in _DOMAINS:
        raise ValueError(f"domain {domain!r} is not one of {', '.join(_DOMAINS)}")
    if num_clips < 1 or not 0 <= missing <= 1:
        raise ValueError(f"expected num_clips >= 1 and missing in [0, 1], found {num_clips} and {missing}")

    def stream(*purpose: int) -> np.random.Generator:
        return np.random.default_rng([seed, structure_seed, *purpose])

    generator = stream(_LABELS)
    labels = _draw_labels(generator, num_clips)
    other_labels = _draw_labels(generator, num_clips)
    actors = generator.integers(0, _NUM_ACTORS, num_clips)
    seconds = generator.uniform(1, 30, num_clips)
    names = _clip_names(generator, labels, actors, first_actor=1 + _NUM_ACTORS * seed)

    present = _draw_presence(stream(_PRESENCE), num_clips, missing)
    carriers = np.array([encoder.informative for encoder in _ENCODERS.values()])
    draw = stream(_PLACES).random((num_clips, len(_ENCODERS)))
    draw[~(present & carriers)] = np.inf
    order = draw.argsort(1)
    places = order.argsort(1)
    count = (present & carriers).sum(1)
    informative = np.where(np.arange(_NUM_INFORMATIVE) < count[:, None], order[:, :_NUM_INFORMATIVE], -1)
    level = _CLIP_LEVEL_STD * stream(_LEVELS).standard_normal(num_clips)

    sharpened = np.where(LABEL_MATRIX > 0, np.maximum(LABEL_MATRIX, 1e-9) ** np.array(_SHARPNESS)[:, None, None], 0)
    sharpened = _SIGNAL_SCALE * sharpened / sharpened.sum(-1, keepdims=True)

    columns: dict[str, list[np.ndarray | None]] = {}
    for number, (name, encoder) in enumerate(_ENCODERS.items()):
        structure = _structure(structure_seed, number, encoder.feature_size)
        generator = stream(_FEATURES, number)
        if encoder.informative:
            place = np.minimum(places[:, number], len(_QUALITY_MARKS) - 1)
            shown = np.where(place < _NUM_INFORMATIVE, labels, other_labels)
        else:
            place = generator.integers(0, len(_QUALITY_MARKS), num_clips)
            shown = _draw_labels(generator, num_clips)
        rank = place % _NUM_INFORMATIVE
        signal = sharpened[rank, shown]
        signal = signal + np.array(_SIGNAL_NOISE_STD)[rank, None] * generator.standard_normal(signal.shape)
        background = _ACTOR_STD * generator.standard_normal((_NUM_ACTORS, encoder.feature_size))[actors]
        background += _BACKGROUND_STD * generator.standard_normal((num_clips, encoder.feature_size))
        background -= (background @ structure.mark)[:, None] * structure.mark
        mark = np.array(_QUALITY_MARKS)[place] + level + _MARK_STD * generator.standard_normal(num_clips)
        vectors = signal @ structure.prototypes + mark[:, None] * structure.mark + background
        lengths = np.clip(np.rint(seconds * encoder.steps_per_second).astype(int), _MIN_STEPS, _MAX_STEPS)
        steps = _STEP_STD * generator.standard_normal((lengths.sum(), encoder.feature_size), dtype=np.float32)
        steps += np.repeat(vectors.astype(np.float32), lengths, axis=0)
        if domain == "target":
            steps *= np.float32(np.exp(shift * _SHIFT_LOG_GAIN_STD * structure.log_gain))
            steps += (shift * _SHIFT_OFFSET * structure.offset).astype(np.float32)
        steps = ((steps + structure.mean.astype(np.float32)) * np.float32(encoder.scale)).astype(encoder.dtype)
        parts = np.split(steps, np.cumsum(lengths)[:-1])
        columns[name] = [part if here else None for part, here in zip(parts, present[:, number], strict=True)]

    import datasets

    features = dataset_features({name: (encoder.feature_size, encoder.dtype) for name, encoder in _ENCODERS.items()})
    clips = []
    for row, name in enumerate(names):
        found = {encoder: columns[encoder][row] for encoder in _ENCODERS}
        clips.append(Clip(name, found, LABEL_MATRIX[labels[row]], int(actors[row]) % _NUM_FOLDS))
    dataset = dataset_of(clips, features)
    dataset = dataset.add_column(
        "informative", informative.tolist(), feature=datasets.List(datasets.Value("int8"), length=_NUM_INFORMATIVE)
    )
    return dataset.add_column("domain", [_DOMAINS.index(domain)] * num_clips, feature=datasets.Value("int8"))
