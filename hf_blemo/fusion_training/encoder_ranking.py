"""A ranking of the encoders without a sample in sight: the naive rival of the gate."""

import numpy as np
import torch

from hf_blemo.fusion_training.feature_store import FeatureStore

RIDGE = 10.0


def probe_scores(store: FeatureStore, rows: np.ndarray) -> dict[str, float]:
    """Validation score of every encoder alone, measured inside the given rows.

    For each fold among the rows a ridge regression from the standardised pooled features to the soft labels is fitted
    on the other rows and judged by its explained variance on the fold: nothing outside the rows is looked at.

    Args:
        store: the features; encoders with attention pooling are probed by their mean over time.
        rows: (R,) training rows of one model.

    Returns:
        Encoder name -> mean explained variance over the folds; at most 1.
    """
    folds = store.folds[rows]
    labels = store.labels[rows]
    scores = {}
    for name in store.config.encoders:
        values = store.vectors(name)[rows]
        present = store.present[name][rows]
        explained = []
        for fold in np.unique(folds):
            held_out = torch.from_numpy(folds == fold)
            train, test = ~held_out & present, held_out & present
            if train.sum() < 2 or test.sum() < 2:
                continue
            mean, std = values[train].mean(0), values[train].std(0).clamp_min(1e-6)
            inputs, others = (values[train] - mean) / std, (values[test] - mean) / std
            centre = labels[train].mean(0)
            # The dual form: wide features cost the number of rows, not the width.
            kernel = inputs @ inputs.T + RIDGE * torch.eye(len(inputs))
            predicted = others @ (inputs.T @ torch.linalg.solve(kernel, labels[train] - centre)) + centre
            residual = (labels[test] - predicted).square().sum()
            explained.append(float(1 - residual / (labels[test] - centre).square().sum().clamp_min(1e-12)))
        scores[name] = float(np.mean(explained)) if explained else -1.0
    return scores
