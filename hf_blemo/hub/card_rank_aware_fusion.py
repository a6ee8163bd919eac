"""The card of a rank-aware fusion: what it needs from a run, its metadata and its template's variables."""

from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult

from .encoder_models import encoder_rows

_METRIC_NAMES = {"acc_presence": "ACC_presence", "acc_salience": "ACC_salience", "score": "Score"}
REQUIRED_KEYS = ("schema_version", "protocol", "summary", "encoders")
_PROTOCOLS = {
    "honest": "honest cross-validation",
    "published_style": "published-style cross-validation",
    "none": "none",
}
PIPELINE_TAG = "video-classification"
TAGS = ["blended-emotion-recognition", "hf_blemo", "rank-aware-fusion", "blemore"]


def card_values(metrics: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Turn the numbers of a run into the family's part of a card.

    Args:
        metrics: content of the run's metrics.json, with all of `REQUIRED_KEYS`.

    Returns:
        Arguments of `ModelCardData`, and the template's variables besides the metrics. No results where nothing was
        evaluated, and `datasets` only where the data has a Hub id.

    Raises:
        ValueError: the protocol is unknown.

    Source: the names of the metrics are those of the BlEmoRE challenge.
    """
    protocol = metrics["protocol"]
    if protocol not in _PROTOCOLS:
        raise ValueError(f"metrics.json: expected a protocol of {list(_PROTOCOLS)}, found {protocol!r}")
    data, summary = metrics.get("data") or {}, metrics["summary"] or {}
    synthetic = str(data.get("source", "")).split(":")[0] == "synthetic"
    source = "synthetic blended emotions of hf_blemo" if synthetic else data.get("hub_id")
    name = str(data.get("name") or source or "local data with BlEmoRE labels")
    results = [
        EvalResult(
            task_type=PIPELINE_TAG,
            task_name="Blended emotion recognition",
            dataset_type=data.get("hub_id") or ("synthetic" if synthetic else "blemore"),
            dataset_name=name,
            dataset_split="train",
            dataset_args=_known(protocol=protocol, folds=data.get("folds"), clips=data.get("clips")),
            metric_type=key,
            metric_name=f"{metric} ({_PROTOCOLS[protocol]}, mean over runs)",
            metric_value=summary[key]["mean"],
            metric_args=_known(std=summary[key].get("std"), runs=len(metrics.get("folds") or []) or None),
        )
        for key, metric in _METRIC_NAMES.items()
        if key in summary and protocol != "none"
    ]
    metadata = {
        "tags": TAGS,
        "datasets": [data["hub_id"]] if data.get("hub_id") else None,
        "metrics": list(_METRIC_NAMES) if results else None,
        "eval_results": results or None,
    }
    return metadata, {
        "data": data,
        "dataset_name": name,
        "synthetic": synthetic,
        "metric_names": _METRIC_NAMES,
        "protocol_name": _PROTOCOLS[protocol],
        "encoder_models": encoder_rows(metrics),
    }


def _known(**arguments: Any) -> dict[str, Any] | None:
    """The arguments that a run recorded; None where it recorded none."""
    return {key: value for key, value in arguments.items() if value is not None} or None
