"""The card of a rank-aware fusion: what it needs of a run, what the Hub is told, what its template is given."""

from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult

from .card_values import known
from .encoder_models import encoder_rows

METRIC_NAMES = {"acc_presence": "ACC_presence", "acc_salience": "ACC_salience", "score": "Score"}
REQUIRED_KEYS = ("schema_version", "protocol", "summary", "encoders")
PROTOCOLS = {
    "honest": "honest cross-validation",
    "published_style": "published-style cross-validation",
    "none": "none",
}
PIPELINE_TAG = "video-classification"
TAGS = ["blended-emotion-recognition", "hf_blemo", "rank-aware-fusion", "blemore"]


def check_metrics(metrics: Mapping[str, Any]) -> None:
    """Refuse numbers that the card would tell wrongly.

    Args:
        metrics: content of the run's metrics.json, with all of `REQUIRED_KEYS`.

    Raises:
        ValueError: if the protocol is unknown.

    Source:
        This project's choice.
    """
    if metrics["protocol"] not in PROTOCOLS:
        raise ValueError(f"metrics.json: expected a protocol of {list(PROTOCOLS)}, found {metrics['protocol']!r}")


def metadata(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Turn the numbers of a run into what the family adds to the metadata of its card.

    Args:
        metrics: content of the run's metrics.json, checked.

    Returns:
        Arguments of `ModelCardData`: the mean of each metric with its standard deviation and the protocol; no results
        where nothing was evaluated, and `datasets` only where the data has a Hub id.

    Source:
        The Hub's model card specification; names of the metrics are those of the BlEmoRE challenge.
    """
    data, summary = metrics.get("data") or {}, metrics["summary"] or {}
    results = [
        EvalResult(
            task_type="video-classification",
            task_name="Blended emotion recognition",
            dataset_type=_dataset_type(data),
            dataset_name=dataset_name(data),
            dataset_split="train",
            dataset_args=known(protocol=metrics["protocol"], folds=data.get("folds"), clips=data.get("clips")),
            metric_type=key,
            metric_name=f"{name} ({PROTOCOLS[metrics['protocol']]}, mean over runs)",
            metric_value=summary[key]["mean"],
            metric_args=known(std=summary[key].get("std"), runs=len(metrics.get("folds") or []) or None),
        )
        for key, name in METRIC_NAMES.items()
        if key in summary and metrics["protocol"] != "none"
    ]
    return {
        "pipeline_tag": PIPELINE_TAG,
        "tags": TAGS,
        "datasets": [data["hub_id"]] if data.get("hub_id") else None,
        "metrics": list(METRIC_NAMES) if results else None,
        "eval_results": results or None,
    }


def template_variables(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Collect what the family's template is given besides the metrics.

    Args:
        metrics: content of the run's metrics.json, checked.

    Returns:
        The template's variables by name.

    Source:
        This project's choice.
    """
    data = metrics.get("data") or {}
    return {
        "data": data,
        "dataset_name": dataset_name(data),
        "synthetic": _is_synthetic(data),
        "metric_names": METRIC_NAMES,
        "protocol_name": PROTOCOLS[metrics["protocol"]],
        "encoder_models": encoder_rows(metrics),
    }


def dataset_name(data: Mapping[str, Any]) -> str:
    """Name the data of a run without claiming more than the run recorded.

    Args:
        data: the `data` entry of metrics.json.

    Returns:
        Its `name` where given, else the Hub id, else a description of the source.

    Source:
        This project's choice.
    """
    if data.get("name"):
        return str(data["name"])
    if _is_synthetic(data):
        return "synthetic blended emotions of hf_blemo"
    return data.get("hub_id") or "local data with BlEmoRE labels"


def _is_synthetic(data: Mapping[str, Any]) -> bool:
    return str(data.get("source", "")).split(":")[0] == "synthetic"


def _dataset_type(data: Mapping[str, Any]) -> str:
    return data.get("hub_id") or ("synthetic" if _is_synthetic(data) else "blemore")
