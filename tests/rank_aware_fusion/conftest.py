"""A small model, clips and batches of them, shared by the tests of the family."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from hf_blemo import RankAwareFusionConfig, RankAwareFusionModel, blemore

# Every pooling and both transforms, in no alphabetical order, under names that no module could have.
ENCODERS = {
    "wavlm.large": {"feature_size": 5, "modality": "audio", "pooling": "attention"},
    "clip": {"feature_size": 4, "modality": "video", "pooling": "mean"},
    "hicmae/logits": {"feature_size": 6, "modality": "audiovisual", "pooling": "mean", "transform": "log_softmax"},
    "action units": {"feature_size": 3, "modality": "video", "pooling": "statistics"},
}

Sample = dict[str, np.ndarray]


@pytest.fixture
def encoders() -> dict[str, dict[str, Any]]:
    """Four encoders."""
    return copy.deepcopy(ENCODERS)


@pytest.fixture
def make_model(encoders) -> Callable[..., RankAwareFusionModel]:
    """Makes a model without randomness in training, no parameter or statistic of which is at a special value."""

    def make(seed: int = 0, **options: Any) -> RankAwareFusionModel:
        defaults = {"encoders": encoders, "top_n": 2, "hidden_size": 8, "dropout": 0.0, "gate_noise": 0.0}
        torch.manual_seed(seed)
        model = RankAwareFusionModel(RankAwareFusionConfig(**{**defaults, **options}))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                # Experts are kept small and multiplied by 32.
                parameter.add_((0.01 if name.startswith("experts") else 0.3) * torch.randn_like(parameter))
        for name in model.config.encoders:
            size = model.config.pooled_size(name)
            mean, std = 0.3 * torch.randn(size), 0.5 + torch.rand(size)
            relevance = torch.rand(size) if model.config.feature_weighting == "relevance" else None
            model.set_feature_statistics(name, mean, std, relevance)
        if model.config.gate == "static":
            scores = torch.randperm(len(model.config.encoders)).tolist()
            model.set_static_scores(dict(zip(model.config.encoders, scores, strict=True)))
        return model.eval()

    return make


@pytest.fixture
def make_samples(encoders) -> Callable[..., list[Sample]]:
    """Makes clips: encoder name -> (T, D), of 1 to 7 steps."""

    def make(num_samples: int = 5, absent: Mapping[int, Sequence[str]] | None = None) -> list[Sample]:
        generator = np.random.default_rng(0)
        samples = [
            {
                name: generator.standard_normal((generator.integers(1, 8), options["feature_size"])).astype(np.float32)
                for name, options in encoders.items()
            }
            for _ in range(num_samples)
        ]
        for row, names in (absent or {}).items():
            for name in names:
                del samples[row][name]
        return samples

    return make


@pytest.fixture
def collate(encoders) -> Callable[..., dict[str, dict[str, torch.Tensor]]]:
    """Pads clips to a batch, with `fill` at every step that is no clip's."""

    def make(samples: Sequence[Sample], fill: float = 0.0) -> dict[str, dict[str, torch.Tensor]]:
        features, feature_mask = {}, {}
        for name, options in encoders.items():
            num_steps = max(len(sample.get(name, ())) for sample in samples)
            values = torch.full((len(samples), max(num_steps, 1), options["feature_size"]), fill)
            mask = torch.zeros(values.shape[:2], dtype=torch.bool)
            for row, sample in enumerate(samples):
                if name in sample:
                    values[row, : len(sample[name])] = torch.from_numpy(sample[name])
                    mask[row, : len(sample[name])] = True
            features[name], feature_mask[name] = values, mask
        return {"features": features, "feature_mask": feature_mask}

    return make


@pytest.fixture
def make_labels() -> Callable[..., torch.Tensor]:
    """Draws soft labels, (B, 6), with -100 in the rows named."""

    def make(num_samples: int, unlabelled: Sequence[int] = (), seed: int = 0) -> torch.Tensor:
        indices = np.random.default_rng(seed).choice(36, num_samples)
        labels = torch.from_numpy(blemore.LABEL_MATRIX[indices]).float()
        labels[list(unlabelled)] = -100.0
        return labels

    return make
