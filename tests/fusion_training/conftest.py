"""Small data sets with a planted signal, and runs on them that take fractions of a second."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

import datasets
import numpy as np
import pytest
from accelerate import Accelerator

from hf_blemo import RankAwareFusionConfig, feature_sets
from hf_blemo.feature_sets.layout import Clip, dataset_features, dataset_of
from hf_blemo.fusion_training.data import model_config
from hf_blemo.fusion_training.feature_store import FeatureStore
from hf_blemo.fusion_training.settings import FusionSettings
from hf_blemo.rank_aware_fusion.label_space_rank_aware_fusion import BLEMORE_SPACE, LabelSpace

# In no alphabetical order; the last one shows nothing of the label.
WIDTHS = {"voice": 4, "face": 3, "noise": 2}
MODEL = {"hidden_size": 8, "top_n": 2, "dropout": 0.0, "gate_noise": 0.0}


@pytest.fixture(autouse=True)
def start_fresh(fresh_accelerate_state) -> None:
    """Every test here starts without state of Accelerate."""


@pytest.fixture
def accelerator() -> Accelerator:
    """One process, full precision."""
    return Accelerator()


@pytest.fixture(scope="session")
def make_data() -> Callable[..., datasets.Dataset]:
    """Makes clips of one to three steps whose features show the label in all encoders but `noise`."""

    def make(
        num_rows: int = 60,
        num_folds: int = 5,
        seed: int = 0,
        missing: Collection[tuple[int, str]] = (),
        noise_std: float = 0.3,
        widths: Mapping[str, int] = WIDTHS,
        num_labels: int | None = None,
        space: LabelSpace = BLEMORE_SPACE,
        kind: str = "valid",
    ) -> datasets.Dataset:
        generator = np.random.default_rng(seed)
        labels = space.percent[generator.integers(0, num_labels or len(space), num_rows)] / 100
        if kind == "soft":
            labels = generator.dirichlet(np.full(len(space.names), 0.3), num_rows)
        # The signal is the same for every seed, so that data of other seeds are further clips of one benchmark.
        maps = {
            name: np.random.default_rng(width).standard_normal((len(space.names), width))
            for name, width in widths.items()
        }
        clips = []
        for row in range(num_rows):
            arrays = {}
            for name, width in widths.items():
                signal = np.zeros(width) if name == "noise" else labels[row] @ maps[name]
                steps = signal + noise_std * generator.standard_normal((generator.integers(1, 4), width))
                if (row, name) not in missing:
                    arrays[name] = steps.astype(np.float32)
            clips.append(Clip(f"clip_{row:03d}", arrays, labels[row], row % num_folds))
        types = {name: (width, "float32") for name, width in widths.items()}
        data = dataset_of(clips, dataset_features(types, len(space.names)))
        return feature_sets.with_label_space(data, space, kind)

    return make


@pytest.fixture(scope="session")
def with_column() -> Callable[..., datasets.Dataset]:
    """Replaces a column of a data set."""

    def replaced(data: datasets.Dataset, name: str, values: Any) -> datasets.Dataset:
        kept = data.remove_columns(name)
        return kept.add_column(name, np.asarray(values).tolist(), feature=data.features[name])

    return replaced


@pytest.fixture(scope="session")
def with_features() -> Callable[..., datasets.Dataset]:
    """Replaces features by what a function of row, encoder and (T, D) steps returns."""

    def replaced(data: datasets.Dataset, change: Callable[[int, str, np.ndarray], np.ndarray]) -> datasets.Dataset:
        clips = [
            Clip(clip, {name: change(row, name, steps) for name, steps in sample.items()}, np.asarray(labels), fold)
            for row, (clip, sample, labels, fold) in enumerate(
                zip(data["clip"], feature_sets.read_features(data), data["labels"], data["fold"], strict=True)
            )
        ]
        return dataset_of(clips, data.features)

    return replaced


@pytest.fixture(scope="session")
def make_settings() -> Callable[..., FusionSettings]:
    """Settings of a short run without randomness in training; `model` entries are added to those of the tiny model."""

    def make(**changes: Any) -> FusionSettings:
        defaults: dict[str, Any] = {
            "seeds": [0],
            "num_epochs": 3,
            "patience": 0,
            "batch_size": 16,
            "evaluation_batch_size": 32,
            "learning_rate": 1e-2,
        }
        model = {**MODEL, **changes.pop("model", {})}
        return replace(FusionSettings(data="synthetic"), **{**defaults, **changes}, model=model)

    return make


@pytest.fixture(scope="session")
def make_store() -> Callable[..., FeatureStore]:
    """The store of a data set under some settings."""

    def make(data: datasets.Dataset, settings: FusionSettings) -> FeatureStore:
        return FeatureStore(data, model_config(data, settings), settings.align_folds, progress=False)

    return make


@pytest.fixture
def build() -> Callable[..., FeatureStore]:
    """Makes the store of a data set for a config of given entries."""

    def make(data, align_folds=False, model=None, **options):
        # `options` are entries of all encoders, or of the one they are named after.
        own = {name: options.pop(name, {}) for name in ("voice", "face", "noise")}
        encoders = {
            name: {"feature_size": width, **options, **own.get(name, {})}
            for name, width in feature_sets.encoder_widths(data).items()
        }
        config = RankAwareFusionConfig(encoders=encoders, hidden_size=8, top_n=2, **(model or {}))
        return FeatureStore(data, config, align_folds, progress=False)

    return make
