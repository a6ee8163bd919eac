"""Evaluation of CLIP-like models: zero-shot classification and retrieval, as named tasks over any images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from hf_blemo.clip_evaluation.retrieval import one_caption_recall, retrieval_recall
from hf_blemo.clip_evaluation.zero_shot import class_embeddings, zero_shot_accuracy
from hf_blemo.clip_rd.distillation_clip_rd import features_of
from hf_blemo.pairs.images import BrokenImageError
from hf_blemo.pairs.pair_processor import PairProcessor
from hf_blemo.programs.progress import Progress

BATCH_SIZE = 64
SHOWN = 3


@dataclass
class ZeroShotTask:
    """Images to be classified by text.

    Args:
        images: each anything that [`open_image`] opens.
        labels: class number of each.
        prompts: of every class.
        data: name of the data set.
        per_class: whether to tell the mean recall of the classes as well.
    """

    images: Sequence[Any]
    labels: Sequence[int]
    prompts: Sequence[Sequence[str]]
    data: str = ""
    per_class: bool = False


@dataclass
class RetrievalTask:
    """Images and captions to be found by each other.

    Args:
        images: each anything that [`open_image`] opens.
        captions: of each image, one or several.
        data: name of the data set.
    """

    images: Sequence[Any]
    captions: Sequence[Sequence[str]]
    data: str = ""


Task = ZeroShotTask | RetrievalTask


class ClipEvaluator:
    """Evaluates models on tasks; images and prompts that several tasks share are embedded once, `batch_size` at a
    time."""

    def __init__(self, tasks: Mapping[str, Task], batch_size: int = BATCH_SIZE):
        self.tasks, self.batch_size = dict(tasks), batch_size

    @staticmethod
    def flat(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
        """Returns the metrics of an evaluation alone, as `task/metric`, for trackers and tables."""
        return {
            f"{name}/{metric}": value
            for name, found in results.items()
            for metric, value in found.items()
            if isinstance(value, float)
        }

    @torch.no_grad()
    def evaluate(
        self, model: Any, processor: PairProcessor, device: Any = None, progress: bool = False
    ) -> dict[str, dict[str, Any]]:
        """Evaluates a model in evaluation mode, then restores its mode.

        Returns:
            Task -> `kind`, `data`, `images` (how many were read), `broken` (how many could not be, if any), `classes`
            or `captions`, and the metrics of [`zero_shot_accuracy`], or of [`retrieval_recall`] and
            [`one_caption_recall`].

        Raises:
            ValueError: no image of a task can be read.
        """
        device = device or next(model.parameters()).device
        training = model.training
        model.eval()
        bar = Progress("evaluation", "input", shown=progress)

        def embed_texts(texts: Sequence[str]) -> torch.Tensor:
            parts = []
            for start in range(0, len(texts), self.batch_size):
                batch = list(texts[start : start + self.batch_size])
                bar.update(len(batch))
                tokens = processor.captions(batch)
                features = model.get_text_features(**{name: values.to(device) for name, values in tokens.items()})
                parts.append(features_of(features).float().cpu())
            return torch.cat(parts)

        embedded: dict[int, tuple[torch.Tensor, list[int], list[str]]] = {}
        classes: dict[int, torch.Tensor] = {}
        results: dict[str, dict[str, Any]] = {}
        try:
            for name, task in self.tasks.items():
                if id(task.images) not in embedded:
                    embedded[id(task.images)] = self._embed_images(model, processor, task.images, device, bar)
                images, rows, problems = embedded[id(task.images)]
                if not rows:
                    raise ValueError(f"task {name!r}: none of {len(task.images)} images can be read: {problems[:1]}")
                if isinstance(task, ZeroShotTask):
                    if id(task.prompts) not in classes:
                        classes[id(task.prompts)] = class_embeddings(embed_texts, task.prompts)
                    results[name] = _zero_shot(task, images, rows, classes[id(task.prompts)])
                else:
                    results[name] = _retrieval(task, images, rows, embed_texts)
                if problems:
                    results[name] |= {"broken": len(problems), "broken_examples": problems[:SHOWN]}
            return results
        finally:
            bar.close()
            model.train(training)

    def _embed_images(
        self, model: Any, processor: PairProcessor, images: Sequence[Any], device: Any, bar: Any
    ) -> tuple[torch.Tensor, list[int], list[str]]:
        """Embeds the readable images; also returns their numbers and the problems of the others."""
        rows: list[int] = []
        problems: list[str] = []
        parts: list[torch.Tensor] = []
        for start in range(0, len(images), self.batch_size):
            numbers = range(start, min(start + self.batch_size, len(images)))
            bar.update(len(numbers))
            batch = []
            for row in numbers:
                try:
                    batch.append(processor.images([images[row]])[0])
                    rows.append(row)
                except BrokenImageError as error:
                    problems.append(f"image {row}: {error}")
            if batch:
                features = features_of(model.get_image_features(pixel_values=torch.stack(batch).to(device)))
                parts.append(features.float().cpu())
        return torch.cat(parts) if parts else torch.empty(0), rows, problems


def _zero_shot(task: ZeroShotTask, images: torch.Tensor, rows: Sequence[int], classes: torch.Tensor) -> dict[str, Any]:
    described = {"kind": "zero_shot", "data": task.data, "images": len(rows), "classes": len(classes)}
    labels = [task.labels[row] for row in rows]
    return {**described, **zero_shot_accuracy(images, classes, labels, per_class=task.per_class)}


def _retrieval(
    task: RetrievalTask,
    images: torch.Tensor,
    rows: Sequence[int],
    embed_texts: Callable[[Sequence[str]], torch.Tensor],
) -> dict[str, Any]:
    captions = [caption for row in rows for caption in task.captions[row]]
    owners = [number for number, row in enumerate(rows) for _ in task.captions[row]]
    texts = functional.normalize(embed_texts(captions), dim=-1)
    described = {"kind": "retrieval", "data": task.data, "images": len(rows), "captions": len(captions)}
    recall = retrieval_recall(images, texts, owners)
    return {**described, **recall, **one_caption_recall(images, texts, owners)}
