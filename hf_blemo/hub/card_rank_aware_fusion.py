"""The card of a rank-aware fusion: what it needs from a run, its metadata and its template's variables."""

from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult
from markupsafe import Markup

from hf_blemo.programs.markdown import code
from hf_blemo.rank_aware_fusion.label_space_rank_aware_fusion import BLEMORE_SPACE, LabelSpace, space_of

from .encoder_models import encoder_rows

_METRIC_NAMES = {"acc_presence": "ACC_presence", "acc_salience": "ACC_salience", "score": "Score"}
# Measure -> its name and what it is, for labels other than BlEmoRE's.
_MEASURES = {
    "accuracy": ("Accuracy", "share of clips whose class with the largest share is predicted"),
    "uar": ("UAR", "unweighted average recall, the mean over classes of the share of their clips that is found"),
    "macro_f1": ("Macro-F1", "mean over classes of the harmonic mean of precision and recall"),
    "acc_presence": ("Presence accuracy", "share of clips whose set of classes is predicted exactly"),
    "acc_salience": ("Salience accuracy", "share of blends whose classes and shares are predicted exactly"),
    "score": ("Score", "mean of presence and salience accuracy"),
    "nll": ("NLL", "negative log-likelihood of the label under the joint distribution, in nats; lower is better"),
    "kl": ("KL", "divergence of the probabilities from the label, in nats; lower is better"),
    "js_distance": ("JS distance", "Jensen-Shannon distance of the shares; lower is better"),
    "mae": ("MAE", "mean absolute error of a share; lower is better"),
}
REQUIRED_KEYS = ("schema_version", "protocol", "summary", "encoders")
_PROTOCOLS = {
    "honest": "honest cross-validation",
    "published_style": "published-style cross-validation",
    "none": "none",
}
PIPELINE_TAG = "video-classification"
TAGS = ["blended-emotion-recognition", "hf_blemo", "rank-aware-fusion", "blemore"]


def identity(config: Mapping[str, Any] | None) -> tuple[str, list[str]]:
    """The pipeline tag and the tags of a model by its config.json, which say nothing of the data that it was
    trained on; without a config those of BlEmoRE's labels."""
    if _is_blemore(*_labels(config)):
        return PIPELINE_TAG, TAGS[:-1]
    modalities = {str(entry.get("modality")) for entry in (config or {}).get("encoders", {}).values()}
    pictures = modalities & {"video", "audiovisual"}
    tag = "video" if pictures else modalities.pop() if modalities in ({"audio"}, {"text"}) else "tabular"
    return f"{tag}-classification", [*TAGS[1:-1], *(["label-distribution"] if _labels(config)[1] == "soft" else [])]


def card_values(
    metrics: Mapping[str, Any], config: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of `ModelCardData`, and the template's variables besides the metrics of a run, which have all
    `REQUIRED_KEYS`.

    Without the model's config.json its labels are BlEmoRE's. No results where nothing was evaluated, and `datasets`
    only where the data has a Hub id.

    Source: the names of the metrics on BlEmoRE are those of its challenge.
    """
    protocol = metrics["protocol"]
    if protocol not in _PROTOCOLS:
        raise ValueError(f"metrics.json: expected a protocol of {list(_PROTOCOLS)}, found {protocol!r}")
    space, kind = _labels(config)
    blemore = _is_blemore(space, kind)
    data, summary = metrics.get("data") or {}, metrics["summary"] or {}
    synthetic = str(data.get("source", "")).split(":")[0] == "synthetic"
    on_blemore = blemore and not synthetic and data.get("is_blemore", True)
    made = "synthetic blended emotions of hf_blemo" if blemore else "invented data of hf_blemo"
    source = made if synthetic else data.get("hub_id")
    name = str(data.get("name") or source or ("local data with BlEmoRE labels" if on_blemore else "local data"))
    local = "blemore" if on_blemore else "local"
    metric_names = _METRIC_NAMES if blemore else _measured(summary)
    pipeline_tag, tags = identity(config)
    tags = [*tags, *TAGS[-1:]] if on_blemore else tags
    results = [
        EvalResult(
            task_type=pipeline_tag,
            task_name="Blended emotion recognition" if blemore else "Classification",
            dataset_type=data.get("hub_id") or ("synthetic" if synthetic else local),
            dataset_name=name,
            dataset_split="train",
            dataset_args=_known(protocol=protocol, folds=data.get("folds"), clips=data.get("clips")),
            metric_type=key,
            metric_name=f"{metric} ({_PROTOCOLS[protocol]}, mean over runs)",
            metric_value=summary[key]["mean"],
            metric_args=_known(std=summary[key].get("std"), runs=len(metrics.get("folds") or []) or None),
        )
        for key, metric in metric_names.items()
        if key in summary and protocol != "none"
    ]
    metadata = {
        "pipeline_tag": pipeline_tag,
        "tags": tags,
        "datasets": [data["hub_id"]] if data.get("hub_id") else None,
        "metrics": list(metric_names) if results else None,
        "eval_results": results or None,
    }
    return metadata, {
        "data": data,
        "dataset_name": name,
        "synthetic": synthetic,
        "metric_names": metric_names,
        "first_measure": "score" if blemore else next(iter(metric_names), None),
        "measure_lines": [
            Markup(f"**{_MEASURES[key][0]}**: {_MEASURES[key][1]}.") for key in metric_names if key in _MEASURES
        ],
        "thresholds": blemore or any("alpha" in run for run in metrics.get("folds") or []),
        "test_measures": test if (test := metrics.get("test") or {}).keys() & metric_names.keys() else None,
        "protocol_name": _PROTOCOLS[protocol],
        "encoder_models": encoder_rows(metrics),
        "blemore": blemore,
        "on_blemore": on_blemore,
        "names": space.names,
        "splits": space.blend_percents,
        "num_labels": len(space),
        **_said(space, kind, metrics.get("decoding")),
    }


def _labels(config: Mapping[str, Any] | None) -> tuple[LabelSpace, str]:
    """The labels that a config.json describes."""
    config = config or {}
    return space_of(config), config.get("label_kind") or "valid"


def _is_blemore(space: LabelSpace, kind: str) -> bool:
    return space == BLEMORE_SPACE and kind == "valid"


def _measured(summary: Mapping[str, Any]) -> dict[str, str]:
    """The measures of a run by their names, in the order of the table above."""
    known = [key for key in _MEASURES if key in summary]
    return {key: _MEASURES[key][0] if key in _MEASURES else key for key in dict.fromkeys([*known, *summary])}


def _said(space: LabelSpace, kind: str, decoding: str | None) -> dict[str, str]:
    """What the card says of labels and predictions."""
    ratios = ", ".join("/".join(map(str, split)) for split in space.blend_percents)
    alone = f" {', '.join(map(code, space.unblended))} never blends." if space.unblended and ratios else ""
    sizes = " or ".join({2: "two", 3: "three"}.get(size, str(size)) for size in space.num_sets)
    if kind == "soft":
        says = f"how a clip shares among {len(space.names)} classes"
        is_a = "A label is a distribution over them, and so is a prediction."
        if ratios:
            is_a = (
                f"A label is a distribution over them. Decoded predictions are single classes or blends in {ratios}."
            )
    elif ratios:
        says = f"which of {len(space.names)} classes, or which blend of {sizes} of them, a clip shows"
        is_a = (
            f"A label is a single class or a blend of {sizes} of them with the shares {ratios}: {len(space)} valid "
            f"labels.{alone}"
        )
    else:
        says = f"which of {len(space.names)} classes a clip shows"
        is_a = "A label is one of them, and so is a prediction."
    if decoding == "soft":
        does = "Predictions are the distributions themselves; nothing is decoded."
    elif not ratios:
        does = "The prediction is the most probable class."
    elif decoding == "thresholds":
        does = (
            f"Predictions keep the classes that reach the threshold α and take the nearest of the shares {ratios}; "
            "classes that differ by at most β share evenly."
        )
    else:
        does = (
            f"Of the {len(space)} valid labels, the one with the highest expected score under the model's joint "
            "distribution is predicted: half for the right set of classes in any clip, half for the right blend."
        )
    return {"what_it_says": says, "what_a_prediction_is": Markup(is_a), "what_the_decoding_does": does}


def _known(**arguments: Any) -> dict[str, Any] | None:
    """The arguments that a run recorded; None where it recorded none."""
    return {key: value for key, value in arguments.items() if value is not None} or None
