"""Tasks to evaluate CLIP-like models on: any labelled images, any image-caption pairs, and the built-in ones."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
from transformers.utils import logging

from hf_blemo.built_in import EMOJI, SYNTHETIC
from hf_blemo.clip_evaluation.built_in_tasks import emoji_tasks, synthetic_tasks
from hf_blemo.clip_evaluation.evaluator import RetrievalTask, Task, ZeroShotTask
from hf_blemo.clip_evaluation.settings import TaskSettings, check_tasks
from hf_blemo.clip_evaluation.standard_sets import NamedClasses, classes_of_data, standard_name
from hf_blemo.files import read_json
from hf_blemo.pairs.pair_sources import PairStream, PairTable, open_source
from hf_blemo.pairs.settings import PairSourceSettings

logger = logging.get_logger(__name__)

# Fit any class names that name something visible.
TEMPLATES = (
    "a photo of a {}.",
    "a picture of a {}.",
    "an image that shows a {}.",
    "a small photo of a {}.",
    "a close view of a {}.",
    "a drawing of a {}.",
    "the {}.",
)


def make_tasks(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, Task]:
    """Makes tasks of entries of `TaskSettings`, name -> task; a built-in kind makes several under other names."""
    tasks: dict[str, Task] = {}
    for name, task_settings in check_tasks(settings).items():
        made = _make(name, task_settings)
        for task in made:
            if task in tasks:
                raise ValueError(f"evaluation.{name}: there is a task {task!r} already")
        tasks |= made
    return tasks


def tasks_of_training_data(tasks: Mapping[str, Mapping[str, Any]], sources: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the tasks that read what a model was trained on: sources with `data` and perhaps `split`."""

    def place(data: Any, split: str) -> tuple[str, str]:
        path = Path(str(data))
        # A file has one split, under whichever name.
        return (str(path.resolve()), "" if path.is_file() else split) if path.exists() else (str(data), split)

    trained = {place(source["data"], source.get("split") or "train") for source in sources}
    return [
        name
        for name, task in tasks.items()
        if task.get("data") and place(task["data"], task.get("split", "test")) in trained
    ]


def _make(name: str, settings: TaskSettings) -> dict[str, Task]:
    if settings.kind == SYNTHETIC:
        return synthetic_tasks(**settings.options)
    if settings.kind == EMOJI:
        return emoji_tasks(**settings.options)
    source = settings.source()
    if settings.kind == "retrieval":
        return {name: _retrieval_task(name, settings, source)}
    return {name: _zero_shot_task(name, settings, source)}


class StoredImages(Sequence):
    """Images of tables, read on access.

    Args:
        places: table and row of each.
    """

    def __init__(self, places: Sequence[tuple[PairTable, int]]):
        self.places = places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: Any) -> Any:
        """Returns an image as it is stored."""
        table, row = self.places[index]
        return table.pairs([row])[0]["image"]


def _opened(data: PairTable | PairStream, settings: TaskSettings) -> tuple[Sequence[Any], list[Any]]:
    """Opens the images, and the caption or label of each."""
    if isinstance(data, PairStream):
        pairs = data.first(settings.limit)
        return [pair["image"] for pair in pairs], [pair["caption"] for pair in pairs]
    count = min(len(data), settings.limit or len(data))
    return StoredImages([(data, row) for row in range(count)]), data.data["caption"][:count]


def _retrieval_task(name: str, settings: TaskSettings, source: PairSourceSettings) -> RetrievalTask:
    images, column = _opened(open_source(source), settings)
    captions = [found if isinstance(found, list) else [found] for found in column]
    for row, found in enumerate(captions):
        if not found or not all(isinstance(caption, str) for caption in found):
            raise ValueError(
                f"evaluation.{name}: {settings.data} row {row}: found the captions {found!r}, expected text"
            )
    return RetrievalTask(images, captions, settings.data)


def _zero_shot_task(name: str, settings: TaskSettings, source: PairSourceSettings) -> ZeroShotTask:
    data = open_source(source)
    images, found = _opened(data, settings)
    feature = (data.data.features or {}).get("caption")
    named = list(feature.names) if isinstance(feature, datasets.ClassLabel) else None
    standard = standard_name(settings.classes)
    if standard is not None:
        # A table's labels are all looked at, since the first of them may be of few classes.
        column = found if isinstance(data, PairStream) else data.data["caption"]
        where = f"evaluation.{name}: {settings.data} column {settings.label_column!r}"
        classes = classes_of_data(standard, named, column, where)
        if len(used := set(classes.numbers.values())) < len(classes.names):
            logger.warning(f"{where}: holds {len(used)} of the {len(classes.names)} classes of {standard!r}")
    else:
        if settings.classes:
            names, templates = _load_class_table(settings.classes)
        elif named:
            names, templates = [label.replace("_", " ") for label in named], list(TEMPLATES)
        elif found and isinstance(found[0], str):
            names, templates = sorted(set(found)), list(TEMPLATES)
        else:
            raise ValueError(
                f"evaluation.{name}: {settings.data} column {settings.label_column!r} holds no class names; "
                "expected classes, a table of them or the name of a standard set"
            )
        numbers = {key: number for number, label in enumerate(names) for key in (label, number)}
        classes = NamedClasses(names, templates, numbers)
    labels = []
    for row, label in enumerate(found):
        number = classes.numbers.get(label) if isinstance(label, str | int) else None
        if number is None:
            raise ValueError(
                f"evaluation.{name}: {settings.data} row {row}: label {label!r} is not one of {len(classes.names)} "
                "classes"
            )
        labels.append(number)
    chosen = settings.templates or classes.templates
    for template in chosen:
        if template.count("{}") != 1:
            raise ValueError(f"evaluation.{name}: template {template!r}: expected one {{}} for the class name")
    prompts = [[template.replace("{}", label) for template in chosen] for label in classes.names]
    return ZeroShotTask(images, labels, prompts, settings.data, classes.per_class)


def _load_class_table(source: str) -> tuple[list[str], list[str]]:
    """Reads class names, and templates where there are any, from a JSON file."""
    path = Path(source)
    content = read_json(path)
    for key, needed in (("classes", True), ("templates", False)):
        entries = content.get(key)
        if (needed or entries is not None) and not (
            isinstance(entries, list) and entries and all(isinstance(entry, str) for entry in entries)
        ):
            raise ValueError(f"{path}: expected {key!r}, a list of texts, found {entries!r}")
    return content["classes"], content.get("templates") or list(TEMPLATES)
