"""Distillation methods on equal terms: one teacher, the same student, data, budget and seeds."""

import itertools
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from hf_blemo.clip_evaluation.evaluator import ClipEvaluator
from hf_blemo.clip_evaluation.tasks import make_tasks
from hf_blemo.clip_rd_training.held_out import TASK, hold_out, retrieval_task
from hf_blemo.clip_rd_training.run import FREE_IN_RESUME, distill, pair_inputs
from hf_blemo.clip_rd_training.settings import COMPARISON_FILE, METHODS, ComparisonSettings, DistillationSettings
from hf_blemo.files import held, within, write_json, write_text
from hf_blemo.pairs.clip_models import load_clip
from hf_blemo.pairs.pair_sources import open_source
from hf_blemo.programs.processes import check_shared, of_first, together
from hf_blemo.programs.run_folder import earlier_result
from hf_blemo.programs.tables import mean_and_interval, mean_and_std, plus_minus, table

# What other methods are compared with.
REFERENCES = ("CLIP-KD", "CLIP-RD")
# Columns of the tables: metric of each kind of task, and suffix of its name.
SHOWN = {
    "zero_shot": (("top_1", ""),),
    "retrieval": (("image_to_text_r@1", ", image to text R@1"), ("text_to_image_r@1", ", text to image R@1")),
}


def compare(settings: ComparisonSettings) -> dict[str, Any]:
    """Trains the teacher, then a student of every method and seed, and evaluates all of them alike.

    Returns:
        What `comparison.json` holds: `settings`, `teacher` (its metrics) and `students`: method -> metrics per seed.
        Empty on all processes but the first.
    """
    accelerator = Accelerator(mixed_precision=settings.mixed_precision)
    with together(accelerator, settings) as stack:
        return _compare(accelerator, settings, stack)


def _compare(accelerator: Accelerator, settings: ComparisonSettings, stack: ExitStack) -> dict[str, Any]:
    output = Path(settings.output_dir)
    result: dict[str, Any] = {"settings": asdict(settings)}

    def begin() -> dict[str, list[dict[str, Any]]]:
        result["inputs"] = pair_inputs(sources)
        if settings.teacher is not None:
            given = load_clip(settings.teacher, "teacher", settings.teacher_revision)
            result["inputs"]["the weights of the teacher"] = given.description()["fingerprint"]
        students: dict[str, list[dict[str, Any]]] = {name: [] for name in settings.methods}
        if settings.resume and (output / COMPARISON_FILE).is_file():
            record, own = output / COMPARISON_FILE, asdict(settings)
            students = earlier_result(record, own, FREE_IN_RESUME, result["inputs"])["students"]
        stack.enter_context(held(output))
        # Says whose students these are, before there are any.
        write_json({output / COMPARISON_FILE: {**result, "students": students}})
        return students

    # All checks come before any change to an earlier run.
    of_first(accelerator, settings.check_output)
    sources = [open_source(entry) for entry in settings.pair_sources()]
    split = hold_out(accelerator, settings.evaluation_share, sources)
    held_out = {TASK: retrieval_task(sources, split.pictures)} if split.pictures else {}
    evaluator = ClipEvaluator({**make_tasks(settings.comparison_tasks()), **held_out})
    own = {entry.name: getattr(settings, entry.name) for entry in fields(DistillationSettings)}
    # Resuming is done student by student, evaluation once for all of them.
    without: dict[str, Any] = {"resume": False, "overwrite": True, "teacher": None, "teacher_revision": None}
    without |= {"evaluation": {}, "evaluate_every": 0, "evaluate_teacher": False, "weight_schedule": {}}
    base = DistillationSettings(**{**own, **without, "weights": {"task": 1.0}})
    # Later, what the first process writes may be there.
    result["students"] = of_first(accelerator, begin)
    check_shared(accelerator, output)

    def evaluate(folder: str) -> dict[str, float]:
        if not accelerator.is_main_process:
            return {}
        clip = load_clip(folder)
        return _scores(evaluator.evaluate(clip.model, clip.processor))

    teacher = settings.teacher or str(output / "teacher")
    if settings.teacher is None and not (settings.resume and (output / "teacher" / "model.safetensors").is_file()):
        wider = _merged(settings.student_config, settings.teacher_config)
        distill(replace(base, output_dir=teacher, student_config=wider, num_steps=settings.teacher_steps, epochs=None))
    result["teacher"] = evaluate(teacher)
    for seed, name in itertools.product(settings.seeds, settings.methods):
        students = result["students"][name]
        if not any(row["seed"] == seed for row in students):
            folder = within(output, f"{name.replace(' ', '_')}_seed_{seed}")
            weights = {term: settings.weights[term] for term in METHODS[name]}
            schedule = {term: points for term, points in settings.weight_schedule.items() if term in weights}
            taught = teacher if len(weights) > 1 else None
            changes: dict[str, Any] = {"output_dir": str(folder), "seed": seed, "teacher": taught, "weights": weights}
            distill(replace(base, **changes, weight_schedule=schedule))
            students.append({"seed": seed, **evaluate(str(folder))})
        if accelerator.is_main_process:
            write_json({output / COMPARISON_FILE: result})
    if not accelerator.is_main_process:
        return {}
    write_text(output / "comparison.md", markdown(result))
    return result


def _merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Nested entries of the second over the first."""
    merged = dict(one)
    for key, value in other.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _scores(tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The numbers that are compared: top-1 of zero-shot tasks and R@1 of retrieval, by the names of their columns."""
    return {
        f"{name.replace('_', ' ')}{column}": found[metric]
        for name, found in tasks.items()
        for metric, column in SHOWN[found["kind"]]
    }


def markdown(result: dict[str, Any]) -> str:
    """The comparison as tables: mean ± sample standard deviation over seeds, and paired differences, with their 95 %
    intervals, to CLIP-KD and to CLIP-RD."""
    columns = list(result["teacher"])
    students = {name: rows for name, rows in result["students"].items() if rows}
    teacher = [f"{result['teacher'][name]:.4f}" for name in columns]
    methods = [["teacher", *teacher]]
    for name, rows in students.items():
        methods.append([name, *(plus_minus(mean_and_std([row[column] for row in rows])) for column in columns)])
    tables = [table(["method", *columns], methods, padded=False)]
    for reference in REFERENCES:
        theirs = {row["seed"]: row for row in students.get(reference, [])}
        paired = []
        for name, rows in students.items():
            shared = [(row, theirs[row["seed"]]) for row in rows if row["seed"] in theirs]
            if name != reference and shared:
                differences = ([row[column] - other[column] for row, other in shared] for column in columns)
                paired.append([name, *map(mean_and_interval, differences)])
        if paired:
            head = f"difference to {reference}, seed by seed, with its 95 % interval"
            tables.append(table([head, *columns], paired, padded=False))
    return "\n\n".join(tables) + "\n"
