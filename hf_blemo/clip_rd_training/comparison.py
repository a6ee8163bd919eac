"""Distillation methods on equal terms: one teacher, the same student, data, budget and seeds."""

import itertools
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from hf_blemo.checkpoints import check_same_run
from hf_blemo.clip_rd_training.comparison_settings import METHODS, ComparisonSettings
from hf_blemo.clip_rd_training.pairs import PairProcessor
from hf_blemo.clip_rd_training.run import FREE_IN_RESUME, distill
from hf_blemo.clip_rd_training.settings import DistillationSettings
from hf_blemo.data.synthetic_pairs import (
    BACKGROUNDS,
    COLOURS,
    POSITIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    caption_of,
    make_synthetic_pairs,
)
from hf_blemo.evaluation.retrieval import retrieval_recall
from hf_blemo.evaluation.zero_shot import class_embeddings, zero_shot_accuracy
from hf_blemo.json_files import read_json, write_json
from hf_blemo.text_tables import markdown_head, markdown_row

# Of a seed that training never draws.
EVALUATION_SEED = 10_000
METRICS = ("zero_shot", "held_out_zero_shot", "image_to_text", "text_to_image")


def compare(settings: ComparisonSettings) -> dict[str, Any]:
    """Trains the teacher, then a student of every method and seed, and evaluates all of them alike.

    Args:
        settings: of the run.

    Returns:
        What `comparison.json` holds: `settings`, `teacher` (its metrics) and `students`: method -> metrics per seed.

    Raises:
        ValueError: settings of an earlier run in `output_dir` differ under `resume`.
    """
    output = Path(settings.output_dir)
    result: dict[str, Any] = {"settings": asdict(settings), "students": {name: [] for name in METHODS}}
    earlier: dict[str, list[dict[str, Any]]] = {}
    if settings.resume and (output / "comparison.json").is_file():
        content = read_json(output / "comparison.json")
        check_same_run(asdict(settings), content["settings"], FREE_IN_RESUME, settings.output_dir)
        earlier = content["students"]
    benchmark = Benchmark(settings)
    own = {entry.name: getattr(settings, entry.name) for entry in fields(DistillationSettings)}
    # Resuming is done student by student.
    base = DistillationSettings(**{**own, "resume": False, "weights": {"task": 1.0}, "teacher": None})
    teacher = settings.teacher or str(output / "teacher")
    if settings.teacher is None and not (earlier and (output / "teacher" / "model.safetensors").is_file()):
        wider = _merged(settings.student_config, settings.teacher_config)
        distill(replace(base, output_dir=teacher, student_config=wider, num_steps=settings.teacher_steps))
    result["teacher"] = benchmark.evaluate(teacher)
    for seed, (name, terms) in itertools.product(settings.seeds, METHODS.items()):
        found = next((row for row in earlier.get(name, []) if row["seed"] == seed), None)
        if found is None:
            folder = output / f"{name.replace(' ', '_')}_seed_{seed}"
            weights = {term: settings.weights[term] for term in terms}
            taught = teacher if len(terms) > 1 else None
            changes: dict[str, Any] = {"output_dir": str(folder), "seed": seed, "teacher": taught, "weights": weights}
            distill(replace(base, **changes))
            found = {"seed": seed, **benchmark.evaluate(str(folder))}
        result["students"][name].append(found)
        write_json({output / "comparison.json": result})
    (output / "comparison.md").write_text(markdown(result))
    return result


def _merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Nested entries of the second over the first."""
    merged = dict(one)
    for key, value in other.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


class Benchmark:
    """Scenes that no training has drawn, with what is asked about them.

    Zero-shot classification names shape and colour among all 36 combinations, with captions of every size, texture,
    position and background around them: `zero_shot` on combinations that were drawn in training, `held_out_zero_shot`
    on those that never were. Retrieval finds captions and images of drawn combinations among each other.

    Args:
        settings: of the run.
    """

    def __init__(self, settings: ComparisonSettings):
        image_size = settings.synthetic.get("image_size", 32)
        count = settings.evaluation_pairs
        self.drawn = make_synthetic_pairs(2 * count, EVALUATION_SEED, image_size)
        # Each caption once: of two equal ones neither would be wrong.
        first = {caption: row for row, caption in reversed(list(enumerate(self.drawn["caption"])))}
        self.drawn = self.drawn.select(sorted(first.values())[:count])
        self.held_out = make_synthetic_pairs(count, EVALUATION_SEED, image_size, held_out=True)
        self.classes = list(itertools.product(SHAPES, COLOURS))

    def evaluate(self, folder: str) -> dict[str, float]:
        """Accuracies and recalls of a saved model, between 0 and 1."""
        model = AutoModel.from_pretrained(folder, dtype="float32").eval()
        processor = PairProcessor(
            AutoTokenizer.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder, backend="pil")
        )

        @torch.no_grad()
        def embed_texts(texts: list[str]) -> torch.Tensor:
            return model.get_text_features(**processor.captions(texts))

        @torch.no_grad()
        def embed_images(pairs: Any) -> torch.Tensor:
            return model.get_image_features(processor.images(list(pairs["image"])))

        around = itertools.product(SIZES, TEXTURES, POSITIONS, BACKGROUNDS)
        scenes = [dict(zip(("size", "texture", "position", "background"), values, strict=True)) for values in around]
        templates = [caption_of(shape="{}", colour="", count="one", **scene).replace("  ", " ") for scene in scenes]
        names = [f"{colour} {shape}" for shape, colour in self.classes]
        classes = class_embeddings(embed_texts, names, templates)
        result = {}
        embedded = {name: embed_images(pairs) for name, pairs in (("", self.drawn), ("held_out_", self.held_out))}
        for name, pairs in (("", self.drawn), ("held_out_", self.held_out)):
            labels = [self.classes.index(_shape_and_colour(caption)) for caption in pairs["caption"]]
            result[f"{name}zero_shot"] = zero_shot_accuracy(embedded[name], classes, labels, (1,))["top_1"]
        recall = retrieval_recall(embedded[""], embed_texts(list(self.drawn["caption"])), range(len(self.drawn)), (1,))
        return {**result, **{name.removesuffix("_r@1"): value for name, value in recall.items()}}


def _shape_and_colour(caption: str) -> tuple[str, str]:
    words = caption.split()
    singular = {plural: shape for shape, plural in SHAPES.items()}
    return singular.get(words[4], words[4]), words[3]


def markdown(result: dict[str, Any]) -> str:
    """The comparison as two Markdown tables: mean ± std over seeds, and paired differences to CLIP-KD."""

    def cells(rows: Sequence[dict[str, float]], reference: Sequence[dict[str, float]] | None = None) -> list[str]:
        texts = []
        for name in METRICS:
            values = np.array([row[name] for row in rows])
            if reference is not None:
                values = values - np.array([row[name] for row in reference])
            sign = "+" if reference is not None else ""
            texts.append(f"{values.mean():{sign}.4f} ± {values.std():.4f}")
        return texts

    def table(title: str, rows: list[list[str]]) -> list[str]:
        header = [title, "zero-shot", "zero-shot, held out", "image to text R@1", "text to image R@1"]
        return [*markdown_head(header), *map(markdown_row, rows)]

    students = result["students"]
    teacher = [f"{result['teacher'][name]:.4f}" for name in METRICS]
    lines = table("method", [["teacher", *teacher], *([name, *cells(rows)] for name, rows in students.items())])
    reference = students["CLIP-KD"]
    paired = [[name, *cells(rows, reference)] for name, rows in students.items() if name != "CLIP-KD"]
    lines += ["", *table("difference to CLIP-KD, seed by seed", paired)]
    return "\n".join(lines) + "\n"
