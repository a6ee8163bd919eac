"""The built-in benchmark: data in the form of BlEmoRE whose truth is known, because it was planted."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hf_blemo.blemore import BLEND_SHARE, EMOTIONS, LABEL_MATRIX, LABELS
from hf_blemo.blemore.features import Clip, dataset_features, encode_clips

if TYPE_CHECKING:
    import datasets

DOMAINS = ("source", "target")
NUM_INFORMATIVE = 3
NUM_FOLDS = 5
NUM_ACTORS = 47
NUM_CLIPS = 2456


class _Encoder(NamedTuple):
    """What one encoder is like.

    Args:
        feature_size: D.
        modality: "video" or "audio".
        steps_per_second: how many steps it gives for a second of the clip.
        scale: of its numbers.
        dtype: they are stored in.
        informative: whether it ever shows the label.
    """

    feature_size: int
    modality: str
    steps_per_second: float
    scale: float
    dtype: str
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

SIGNAL = 3.0
SHARPNESS = (2.0, 0.5, -1.0)
NOISE_STD = (0.6, 0.8, 1.0)
MARKS = (4.0, 2.5, 1.0, -1.5, -2.5, -3.5)
LEVEL_STD = 2.0
BACKGROUND_STD = 0.3
MARK_STD = 0.3
ACTOR_STD = 0.4
STEP_STD = 0.5
OFFSET = 3.0
GAIN_STD = 0.2
MIN_STEPS, MAX_STEPS = 2, 24

# One stream of random numbers per purpose: what one setting changes leaves all else as it was.
_LABELS, _PRESENCE, _PLACES, _LEVELS, _FEATURES = range(5)


class _Structure(NamedTuple):
    prototypes: np.ndarray
    mark: np.ndarray
    mean: np.ndarray
    offset: np.ndarray
    log_gain: float


def _structure(structure_seed: int, number: int, size: int) -> _Structure:
    rng = np.random.default_rng([structure_seed, number])
    directions = np.linalg.qr(rng.standard_normal((size, len(EMOTIONS) + 1)))[0].T
    offset = rng.standard_normal(size)
    return _Structure(
        prototypes=directions[:-1],
        mark=directions[-1],
        mean=rng.standard_normal(size),
        offset=offset / np.linalg.norm(offset),
        log_gain=float(rng.standard_normal()),
    )


def _draw_labels(rng, num_clips):
    singles = len(EMOTIONS)
    shares = np.full(len(LABELS), BLEND_SHARE / (len(LABELS) - singles))
    shares[:singles] = (1 - BLEND_SHARE) / singles
    return rng.choice(len(LABELS), size=num_clips, p=shares / shares.sum())


def _clip_names(rng, labels, actors, first_actor):
    counts = {}
    names = []
    variants = rng.integers(1, 5, size=len(labels))
    for label, actor, variant in zip(labels, actors, variants):
        parts = LABELS[label]
        if len(parts) == 2:
            stem = "mix_" + "_".join(p["emotion"] for p in parts) + "_" + "_".join(f"{p['salience']:.0f}" for p in parts)
        else:
            emotion = parts[0]["emotion"]
            stem = f"{emotion}_{'sit' if emotion == 'neu' else 'int'}{variant}"
        stem = f"A{first_actor + actor}_{stem}"
        counts[stem] = counts.get(stem, 0) + 1
        names.append(f"{stem}_ver{counts[stem]}")
    return names


def _draw_presence(rng, num_clips, missing):
    present = np.ones((num_clips, len(_ENCODERS)), dtype=bool)
    carriers = np.flatnonzero([e.informative for e in _ENCODERS.values()])
    others = np.flatnonzero([not e.informative for e in _ENCODERS.values()])
    lossy = rng.random(num_clips) < missing
    kept = rng.integers(NUM_INFORMATIVE - 1, len(carriers), size=num_clips)
    order = rng.random((num_clips, len(carriers))).argsort(1).argsort(1)
    present[:, carriers] = ~lossy[:, None] | (order < kept[:, None])
    lost = lossy[:, None] & ((rng.random((num_clips, len(others))) < 0.5) | (kept < NUM_INFORMATIVE)[:, None])
    present[:, others] = ~lost
    return present


TURN = (0., 0., 0.)
SIGN = (1., 1., 1.)
def mix(signal, rank):
    a = np.array(TURN)[rank][:, None]
    return np.array(SIGN)[rank][:, None] * (np.cos(a) * signal + np.sin(a) * signal[:, [1, 2, 3, 4, 0, 5]])


def make_synthetic_blends(num_clips=NUM_CLIPS, seed=0, domain="source", shift=1.0, missing=0.1, structure_seed=0):
    import datasets
    import pyarrow as pa

    def stream(purpose, *more):
        return np.random.default_rng([seed, DOMAINS.index(domain), purpose, *more])

    E = len(_ENCODERS)
    rng = stream(_LABELS)
    labels = _draw_labels(rng, num_clips)
    other_labels = _draw_labels(rng, num_clips)
    actors = np.arange(num_clips) % NUM_ACTORS
    seconds = np.exp(rng.uniform(np.log(1), np.log(30), num_clips))
    names = _clip_names(rng, labels, actors, 101 if domain == "source" else 201)
    present = _draw_presence(stream(_PRESENCE), num_clips, missing)
    rng = stream(_PLACES)
    carriers = np.array([e.informative for e in _ENCODERS.values()])
    draw = rng.random((num_clips, E))
    draw[~(present & carriers)] = np.inf
    order = draw.argsort(1)
    places = order.argsort(1)
    count = (present & carriers).sum(1)
    informative = np.where(np.arange(NUM_INFORMATIVE) < count[:, None], order[:, :NUM_INFORMATIVE], -1)
    level = stream(_LEVELS).standard_normal(num_clips) * LEVEL_STD

    sharp = np.array(SHARPNESS)
    views = np.where(LABEL_MATRIX > 0, np.where(LABEL_MATRIX>0,LABEL_MATRIX,1) ** sharp[:, None, None], 0)
    views /= views.sum(-1, keepdims=True)  # (3, 36, 6)
    columns = {}
    for number, (name, enc) in enumerate(_ENCODERS.items()):
        s = _structure(structure_seed, number, enc.feature_size)
        rng = stream(_FEATURES, number)
        place = places[:, number]
        rank = place % NUM_INFORMATIVE
        if enc.informative:
            shown = np.where(place < NUM_INFORMATIVE, labels, other_labels)
            marks = np.array(MARKS)[np.minimum(place, 5)]
            rng.integers(0, 6, num_clips)
            std = np.array(NOISE_STD)[rank]
            signal = SIGNAL * views[rank, shown]
        else:
            marks = np.array(MARKS)[rng.integers(0, 6, num_clips)]
            std = np.full(num_clips, NOISE_STD[1])
            r = rng.integers(0, 3, num_clips)
            signal = SIGNAL * views[r, _draw_labels(rng, num_clips)]
        noise = ACTOR_STD * rng.standard_normal((NUM_ACTORS, enc.feature_size))[actors]
        noise += BACKGROUND_STD * rng.standard_normal((num_clips, enc.feature_size))
        signal = mix(signal, rank if enc.informative else r)
        signal = signal + std[:, None] * rng.standard_normal((num_clips, 6))
        noise -= (noise @ s.mark)[:, None] * s.mark
        mk = marks + level + MARK_STD * rng.standard_normal(num_clips)
        vec = signal @ s.prototypes + mk[:, None] * s.mark + noise
        if domain == "target":
            pass
        T = np.clip(np.rint(seconds * enc.steps_per_second).astype(int), MIN_STEPS, MAX_STEPS)
        steps = STEP_STD * rng.standard_normal((T.sum(), enc.feature_size), dtype=np.float32)
        steps += np.repeat(vec.astype(np.float32), T, axis=0)
        if domain == "target":
            steps *= np.float32(np.exp(shift * GAIN_STD * s.log_gain))
            steps += (shift * OFFSET * s.offset).astype(np.float32)
        steps = ((steps + s.mean.astype(np.float32)) * np.float32(enc.scale)).astype(enc.dtype)
        parts = np.split(steps, np.cumsum(T)[:-1])
        columns[name] = [p if ok else None for p, ok in zip(parts, present[:, number])]
    feats = dataset_features({n: (e.feature_size, e.dtype) for n, e in _ENCODERS.items()})
    clips = [
        Clip(names[i], {n: columns[n][i] for n in _ENCODERS}, LABEL_MATRIX[labels[i]], int(actors[i]) % NUM_FOLDS)
        for i in range(num_clips)
    ]
    table = pa.Table.from_batches([encode_clips(clips, feats.arrow_schema)])
    ds = datasets.Dataset(table)
    extra = {"informative": datasets.List(datasets.Value("int8"), length=NUM_INFORMATIVE), "domain": datasets.Value("int8")}
    ds = ds.add_column("informative", informative.tolist(), feature=extra["informative"])
    ds = ds.add_column("domain", [DOMAINS.index(domain)] * num_clips, feature=extra["domain"])
    return ds
