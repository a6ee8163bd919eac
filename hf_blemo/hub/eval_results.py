"""Results in the Hub's own files, `.eval_results/*.yaml`, from which leaderboards of data sets are made."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

from .card import card_metadata

EVAL_RESULTS_FOLDER = ".eval_results"


def eval_result_files(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Turn the numbers of a run into files of results, one for each data set.

    A result needs a data set on the Hub: of data that lies in a folder or is drawn by a program there is none but in
    the card's model index.

    Args:
        metrics: content of the run's metrics.json.

    Returns:
        Path inside the repository -> YAML, empty where nothing was measured on a data set of the Hub.

    Raises:
        ValueError, FileNotFoundError: as in `card_metadata`.

    Source:
        The Hub's specification of evaluation results.
    """
    entries: dict[str, list[EvalResultEntry]] = {}
    for result in card_metadata(metrics).eval_results or []:
        if "/" not in result.dataset_type:
            continue
        arguments = result.dataset_args or {}
        task = " ".join(filter(None, [arguments.get("task"), _short(result.metric_name or result.metric_type)]))
        std = (result.metric_args or {}).get("std")
        spread = "" if std is None else f", standard deviation {std:.4f}"
        entries.setdefault(result.dataset_type, []).append(
            EvalResultEntry(
                dataset_id=result.dataset_type,
                task_id=re.sub(r"\W+", "_", task).strip("_").lower(),
                value=result.metric_value,
                notes=f"{result.metric_name}{spread}; measured by the trainer of hf_blemo",
            )
        )
    return {
        f"{EVAL_RESULTS_FOLDER}/{dataset.replace('/', '--')}.yaml": yaml.safe_dump(
            eval_result_entries_to_yaml(found), sort_keys=False, allow_unicode=True
        )
        for dataset, found in entries.items()
    }


def write_eval_results(folder: Path, metrics: Mapping[str, Any]) -> list[Path]:
    """Write a run's files of results into its folder, in place of those of an earlier run.

    Args:
        folder: the model's folder.
        metrics: content of the run's metrics.json.

    Returns:
        The files.

    Raises:
        ValueError, FileNotFoundError: as in `eval_result_files`.

    Source:
        This project's choice.
    """
    files = eval_result_files(metrics)
    for old in (folder / EVAL_RESULTS_FOLDER).glob("*.yaml"):
        old.unlink()
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8", newline="\n")
    return [folder / name for name in files]


def _short(metric_name: str) -> str:
    """A metric's name without the protocol in brackets, unless it tells two metrics apart."""
    return metric_name if "caption" in metric_name else metric_name.split(" (")[0]
