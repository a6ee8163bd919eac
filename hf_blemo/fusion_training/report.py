"""Metrics of a run as a table for the terminal."""

from typing import Any

from hf_blemo.fusion_training.results import METRICS
from hf_blemo.programs.tables import plus_minus, table


def results_table(metrics: dict[str, Any]) -> str:
    """What a run found, for the terminal.

    Args:
        metrics: content of `metrics.json`.

    Returns:
        A table of the cross-validation and, where there was one, of the test set; says so where nothing was scored.
    """
    rows = []
    name = metrics["protocol"].replace("_", " ")
    if metrics["summary"]:
        num_seeds, num_folds = len(metrics["seeds"]), len(metrics["data"]["folds"])
        rows.append([f"{name}, ± over {num_folds} folds x {num_seeds} seeds"])
        rows[-1] += [plus_minus(metrics["summary"][metric]) for metric in METRICS]
        rows.append([f"{name}, mean over folds, ± over {num_seeds} seeds"])
        rows[-1] += [plus_minus(metrics["over_seeds"][metric]) for metric in METRICS]
        if metrics["ensemble"]:
            rows.append([f"{name}, ensemble of the seeds, ± over folds"])
            rows[-1] += [plus_minus(metrics["ensemble"][metric]) for metric in METRICS]
        for decoding, entry in metrics["alternatives"].items():
            if decoding != metrics["decoding"]:
                rows.append([f"{name}, decoded by {decoding}"] + [plus_minus(entry[metric]) for metric in METRICS])
    test = metrics.get("test", {})
    if "score" in test:
        rows.append([f"test data, {test['clips']} clips"] + [f"{test[metric]:.4f}" for metric in METRICS])
    if not rows:
        return "Trained on all clips; nothing was scored."
    return table(["", *METRICS], rows)
