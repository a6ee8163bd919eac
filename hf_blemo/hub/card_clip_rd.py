"""The card of a CLIP-RD student: what it needs from a run, its metadata and its template's variables."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult
from markupsafe import Markup

from hf_blemo.clip_rd.weights_clip_rd import CLIP_RD_WEIGHTS
from hf_blemo.loading import is_hub_id
from hf_blemo.programs.markdown import code

REQUIRED_KEYS = ("schema_version", "student", "data", "num_parameters", "num_steps", "batch_size", "config")
PIPELINE_TAG = "zero-shot-image-classification"
TAGS = ["clip", "distillation", "clip-rd", "hf_blemo"]
_TASK_TYPES = {"zero_shot": "zero-shot-image-classification", "retrieval": "image-text-retrieval"}
_TASK_NAMES = {"zero_shot": "Zero-shot image classification", "retrieval": "Image-text retrieval"}
# Data that a program of this package makes: it says nothing about photographs.
_BUILT_IN_DATA = {"synthetic": "synthetic drawn scenes of hf_blemo", "emoji": "emoji pairs of hf_blemo"}
_TERMS = {
    "task": "the student's images against its own texts: the contrastive loss of CLIP",
    "fd": "squared distance between the student's and the teacher's embeddings",
    "icl": "the student's embeddings of one modality against the teacher's of the other, contrastive",
    "hrd": "the student's image-text similarities against the teacher's",
    "vrd": "student-teacher similarities of images against those of texts",
    "vrd_image": "the student's images against the teacher's images, contrastive",
    "vrd_text": "the student's texts against the teacher's texts, contrastive",
    "xrd": "similarities of student texts to teacher images against those of student images to teacher texts",
}
_METHODS = {
    frozenset(_TERMS): "the terms of CLIP-RD",
    frozenset({"task", "fd", "icl", "hrd"}): "the terms of CLIP-KD",
    frozenset({"task", "hrd"}): "the contrastive loss and affinity mimicking",
    frozenset({"task"}): "the contrastive loss alone",
}

_DIRECTIONS = ("image_to_text", "text_to_image")
_ACCURACY = re.compile(r"top_(\d+)")
_RECALL = re.compile(rf"(one_caption_)?({'|'.join(_DIRECTIONS)})_r@(\d+)")


def identity(config: Mapping[str, Any] | None) -> tuple[str, list[str]]:
    """The pipeline tag and the tags of a model; those of students do not depend on their config."""
    return PIPELINE_TAG, TAGS


def card_values(
    metrics: Mapping[str, Any], config: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of `ModelCardData`, and the template's variables besides the metrics of a run, which have all
    `REQUIRED_KEYS`.

    The metadata holds every number of the last evaluation; data sets and `base_model` (the teacher, or without one the
    model that training started from) only where they have a Hub id. The Hub knows four relations to a base model;
    distillation is none of them, so the card names no relation.
    """
    teachers = metrics.get("teachers", [])
    sources = metrics["data"]["sources"]
    total = sum(source.get("weight", 1.0) for source in sources) or 1.0
    tasks, teacher_tasks = _tasks(metrics, "evaluation"), _tasks(metrics, "teacher_evaluation")
    built_in = {source["data"] for source in sources if source["data"] in _BUILT_IN_DATA}
    origins = [teacher["source"] for teacher in teachers] or [metrics["student"]]
    known = [origin for origin in origins if _is_hub_id(origin, metrics)]
    datasets = [source["data"] for source in sources if _is_hub_id(source["data"], metrics)]
    settings = metrics["config"].get("evaluation") or {}
    results = [
        EvalResult(
            task_type=_TASK_TYPES[task["kind"]],
            task_name=_TASK_NAMES[task["kind"]],
            dataset_type=_dataset_type(task.get("data"), metrics),
            dataset_name=_data_name(task.get("data")),
            # The Hub's library groups by type, config, split and revision, of which two tasks may have the same.
            dataset_config=name,
            **{f"dataset_{key}": (settings.get(name) or {}).get(key) for key in ("split", "revision")},
            # The Hub's library omits None.
            dataset_args={"task": name, **{key: task.get(key) for key in ("images", "captions", "classes")}},
            metric_type="accuracy" if task["kind"] == "zero_shot" else "recall",
            metric_name=metric_name,
            metric_value=value,
        )
        for name, task in tasks.items()
        for metric_name, value in _measured(task).items()
    ]
    metadata = {
        "base_model": known[0] if len(known) == 1 else known or None,
        "pipeline_tag": PIPELINE_TAG,
        "tags": [tag for tag in TAGS if teachers or tag != "distillation"],
        "datasets": list(dict.fromkeys(datasets)) or None,
        "metrics": list(dict.fromkeys(result.metric_type for result in results)) or None,
        "eval_results": results or None,
    }
    return metadata, {
        "teachers": [{**teacher, "name": _model_name(teacher["source"], metrics)} for teacher in teachers],
        "start": _model_name(metrics["student"], metrics) if _is_model(metrics["student"]) else None,
        "inherited": metrics.get("inherited") or {},
        "towers": [
            {
                "side": side,
                "name": "the teacher's" if source == "teacher" else _model_name(source, metrics),
                "frozen": side in metrics["config"].get("freeze", []),
                "released": metrics["config"].get("release", {}).get(side),
            }
            for side in ("vision", "text")
            if (source := metrics["config"].get(f"{side}_weights")) is not None
        ],
        "sources": [
            {
                "name": _data_name(source["data"]),
                "hub_id": _is_hub_id(source["data"], metrics),
                "share": source.get("weight", 1.0) / total,
                "pairs": source.get("pairs"),
            }
            for source in sources
        ],
        "built_in": sorted(_BUILT_IN_DATA[name] for name in built_in),
        "only_built_in": len(built_in) == len({source["data"] for source in sources}),
        "evaluated": bool(tasks),
        "zero_shot": _rows(tasks, teacher_tasks, "zero_shot"),
        "retrieval": _rows(tasks, teacher_tasks, "retrieval"),
        "one_caption": any(
            f"one_caption_{direction}_r@1" in task for direction in _DIRECTIONS for task in tasks.values()
        ),
        "course": _course(metrics),
        "method": _method(metrics["config"]),
        "terms": _terms(metrics),
    }


def _is_hub_id(source: Any, metrics: Mapping[str, Any]) -> bool:
    """Tells a repository of the Hub from a folder; metrics.json writes them alike.

    `out/teacher` beside the run's own output `out/student` is a folder, even where it no longer exists.
    """
    if not isinstance(source, str) or not is_hub_id(source):
        return False
    output = Path(str(metrics["config"].get("output_dir", "")))
    return Path(source).parts[0] not in output.parts[:-1][:1]


def _tasks(metrics: Mapping[str, Any], key: str) -> dict[str, dict[str, Any]]:
    return (metrics.get(key) or {}).get("tasks") or {}


def _measured(task: Mapping[str, Any]) -> dict[str, float]:
    """The accuracies or recalls of a task, under names that say the protocol."""
    found = {}
    for key, value in task.items():
        if value is None:
            continue
        if match := _ACCURACY.fullmatch(key):
            found[f"top-{match[1]} accuracy"] = value
        elif match := _RECALL.fullmatch(key):
            protocol = "first caption of each image only" if match[1] else "standard protocol"
            found[f"{match[2].replace('_', ' ')} R@{match[3]} ({protocol})"] = value
    return found


def _dataset_type(data: Any, metrics: Mapping[str, Any]) -> str:
    return str(data) if data in _BUILT_IN_DATA or _is_hub_id(data, metrics) else "local"


def _data_name(data: Any) -> str:
    """Names data by its Hub id or the last part of its folder."""
    if data in _BUILT_IN_DATA:
        return _BUILT_IN_DATA[data]
    text = str(data or "local data")
    return text if is_hub_id(text) else text.rstrip("/").split("/")[-1]


def _is_model(student: str) -> bool:
    """Tells a checkpoint that a student started from by its slash; presets and `custom` have none."""
    return "/" in student or Path(student).is_dir()


def _model_name(source: str, metrics: Mapping[str, Any]) -> Markup:
    if _is_hub_id(source, metrics):
        return Markup(f"[{source}](https://huggingface.co/{source})")
    return Markup(f"a local model ({code(Path(source).name)})")


def _rows(
    tasks: Mapping[str, Mapping[str, Any]], teacher_tasks: Mapping[str, Mapping[str, Any]], kind: str
) -> list[dict[str, Any]]:
    """Pairs every evaluated task of a kind with the teacher's numbers, where known."""
    return [
        {**task, "task": name, "data": _data_name(task.get("data")), "teacher": teacher_tasks.get(name)}
        for name, task in tasks.items()
        if task["kind"] == kind
    ]


def _course(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The evaluations during training as a table of a few numbers, empty where there was only one."""
    evaluations = metrics.get("evaluations") or []
    if len(evaluations) < 2:
        return {"columns": [], "rows": []}
    wanted = ("top_1", "image_to_text_r@1", "text_to_image_r@1")
    columns = [(name, key) for name, task in _tasks(metrics, "evaluation").items() for key in wanted if key in task]
    rows = [
        [evaluation["step"], *((evaluation["tasks"].get(name) or {}).get(key) for name, key in columns)]
        for evaluation in evaluations
    ]
    return {"columns": [f"{name} {key.replace('_', ' ')}" for name, key in columns], "rows": rows}


def _weight(config: Mapping[str, Any], term: str) -> list[tuple[int, float]]:
    """A term's weight as a schedule of steps and weights, with one entry where it stays the same."""
    schedule = (config.get("weight_schedule") or {}).get(term)
    return schedule or [(0, (config.get("weights") or {}).get(term, 0.0))]


def _method(config: Mapping[str, Any]) -> str:
    used = frozenset(term for term in _TERMS if any(value for _, value in _weight(config, term)))
    return _METHODS.get(used, "a choice of CLIP-RD's terms")


def _digits(value: float | None) -> str:
    """Writes a loss with four digits: some are near 5, some near 0.001."""
    return "–" if value is None else f"{value:.4g}"


def _terms(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Describes each term: its weight, the published one, and its unweighted value at both ends of training."""
    history = metrics.get("history") or [{}]
    rows = []
    for term, meaning in _TERMS.items():
        weight = _weight(metrics["config"], term)
        rows.append(
            {
                "name": term,
                "meaning": meaning,
                "weight": ", ".join(
                    f"{value:g}" if len(weight) == 1 else f"{value:g} at step {step}" for step, value in weight
                ),
                "published": f"{CLIP_RD_WEIGHTS[term]:g}",
                "first": _digits(history[0].get(term)),
                "last": _digits(history[-1].get(term)),
            }
        )
    return rows
