"""Speed of the fusion as ratios against a fair baseline of the same run: medians of interleaved repetitions.

Rows: threshold search against the loop of the official code; fifteen models trained in lockstep against one after the
other through the same class; building batches from the memory-mapped data set against the `datasets` numpy format.
"""

import itertools
from collections.abc import Callable

import numpy as np
import torch
from accelerate import Accelerator
from measuring import interleaved

from hf_blemo import blemore, feature_sets
from hf_blemo.built_in import SYNTHETIC_ENCODERS, make_synthetic_blends
from hf_blemo.fusion_training.feature_store import FeatureStore
from hf_blemo.fusion_training.lockstep import Lockstep, Member
from hf_blemo.fusion_training.settings import FusionSettings
from hf_blemo.programs.progress import Progress
from hf_blemo.rank_aware_fusion.configuration_rank_aware_fusion import RankAwareFusionConfig

NUM_CLIPS = 2456


def report(name: str, rounds: int, **sides: Callable[[], object]) -> None:
    ours, baseline = interleaved(sides, rounds)[0].values()
    print(f"{name:<66} {ours * 1000:9.1f} ms {baseline * 1000:9.1f} ms   ratio {ours / baseline:.4f}", flush=True)


def loop_search(clips: list[str], probabilities: np.ndarray, labels: dict[str, dict[str, float]]) -> tuple:
    """The search of the official code: Python decodes and scores all clips, one grid cell after another."""
    top = np.zeros_like(probabilities)
    order = np.argsort(-probabilities, axis=1)[:, :2]
    np.put_along_axis(top, order, np.take_along_axis(probabilities, order, 1), 1)
    best: tuple = (-1.0,)
    for alpha, beta in itertools.product(np.linspace(0.05, 0.95, 20).tolist(), repeat=2):
        present, salient = [], []
        for clip, row in zip(clips, top.copy(), strict=True):
            highest = int(row.argmax())
            left = np.flatnonzero((row >= alpha) & (row > 0))
            if row[highest] < alpha or len(left) == 1:
                prediction = {highest: 100.0}
            elif 5 in left:
                prediction = {int(left[0]) if row[left[0]] >= row[5] else 5: 100.0}
            else:
                first, second = row[left[0]], row[left[1]]
                share = 50.0 if abs(first - second) <= beta else (70.0 if first > second else 30.0)
                prediction = {int(left[0]): share, int(left[1]): 100.0 - share}
            label = labels[clip]
            present.append(set(prediction) == set(label))
            if len(label) == 2:
                salient.append(prediction == label)
        score = 0.5 * np.mean(present) + 0.5 * np.mean(salient)
        if score > best[0]:
            best = (score, alpha, beta)
    return best


def bench_search() -> None:
    generator = np.random.default_rng(0)
    rows = blemore.LABEL_MATRIX[generator.integers(0, 36, NUM_CLIPS)]
    probabilities = 0.6 * rows + 0.4 * generator.dirichlet(np.ones(6), NUM_CLIPS)
    clips = [str(index) for index in range(NUM_CLIPS)]
    labels = {
        clip: {int(index): 100 * row[index] for index in np.flatnonzero(row)}
        for clip, row in zip(clips, rows, strict=True)
    }
    found = blemore.fit_thresholds(probabilities, rows)
    assert loop_search(clips, probabilities, labels)[1:] == (found.alpha, found.beta), "the two searches disagree"
    report(
        f"threshold search, {NUM_CLIPS} clips (vs official loop)",
        3,
        ours=lambda: blemore.fit_thresholds(probabilities, rows),
        baseline=lambda: loop_search(clips, probabilities, labels),
    )


def bench_lockstep() -> None:
    data = make_synthetic_blends(num_clips=1000, seed=0)
    settings = FusionSettings("synthetic", batch_size=64)
    config = RankAwareFusionConfig(encoders=SYNTHETIC_ENCODERS)
    store = FeatureStore(data, config, progress=False)
    members = [Member(seed, (fold,)) for seed in range(3) for fold in range(5)]
    accelerator = Accelerator()

    def train(group: list[Member]) -> None:
        Lockstep(accelerator, group, store, settings).train_epoch(Progress("benchmark", "step", shown=False))
        accelerator.free_memory()

    report(
        "training, 15 models, one epoch (vs one model after the other)",
        3,
        ours=lambda: train(members),
        baseline=lambda: [train([member]) for member in members],
    )


def bench_reading() -> None:
    data = make_synthetic_blends(num_clips=1000, seed=0)
    arrays = data.with_format("numpy")
    rows = np.random.default_rng(0).permutation(1000)
    report(
        "reading 1,000 shuffled clips in batches of 50 (vs numpy format)",
        5,
        ours=lambda: [feature_sets.read_features(data, part.tolist()) for part in rows.reshape(-1, 50)],
        baseline=lambda: [arrays[part.tolist()]["features"] for part in rows.reshape(-1, 50)],
    )


if __name__ == "__main__":
    print(f"{torch.get_num_threads()} threads; medians; time, baseline's time, ratio (below 1 is faster)")
    bench_search()
    bench_lockstep()
    bench_reading()
