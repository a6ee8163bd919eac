"""`hf-blemo evaluate --model`: what a CLIP is worth on data sets of images with labels or captions.

Everything heavy is imported where it is needed, so that the command's `--help` answers at once.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_blemo.built_in import PAIRS
from hf_blemo.commands.parsing import positive
from hf_blemo.files import read_json, write_json

# Option -> the kind of task that has a use for it; None for all data.
TASK_OPTIONS = {
    "split": None,
    "data_revision": None,
    "image_column": None,
    "limit": None,
    "streaming": None,
    "caption_column": "retrieval",
    "label_column": "zero_shot",
    "classes": "zero_shot",
    "template": "zero_shot",
}
CLIP_OPTIONS = ("revision", "retrieval", "zero_shot", "benchmark", "batch_size", "card", *TASK_OPTIONS)


def add_clip_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command.

    Args:
        parser: of `hf-blemo evaluate`.
    """
    group = parser.add_argument_group("a CLIP (--model)")
    group.add_argument("--revision", help="branch, tag or commit of the model on the Hub")
    group.add_argument("--retrieval", metavar="DATA", nargs="+", help="images with captions: folder, file or Hub id")
    group.add_argument("--zero-shot", metavar="DATA", nargs="+", help="images with labels: folder, file or Hub id")
    group.add_argument("--benchmark", nargs="+", choices=PAIRS, help="built-in tasks")
    group.add_argument("--split", help="of the data (default: test)")
    group.add_argument("--data-revision", metavar="REVISION", help="branch, tag or commit of the data on the Hub")
    group.add_argument("--image-column", metavar="NAME", help="default: image")
    group.add_argument("--caption-column", metavar="NAME", help="texts, or lists of texts (default: caption)")
    group.add_argument("--label-column", metavar="NAME", help="class numbers or class names (default: label)")
    group.add_argument(
        "--classes",
        metavar="FILE.json|imagenet",
        help="a table of 'classes' and 'templates', or ImageNet's 1,000 names and 80 templates as open_clip has them; "
        "by default the names that the data's labels have",
    )
    group.add_argument("--template", nargs="+", help="prompts with {} where the class name goes")
    group.add_argument("--limit", type=positive, metavar="N", help="take the first N images alone")
    group.add_argument("--streaming", action="store_true", default=None, help="read the first N without all others")
    group.add_argument("--batch-size", type=positive, metavar="N", help="images or texts at once (default: 64)")
    group.add_argument(
        "--card", action="store_true", default=None, help="also put the results into metrics.json and card of MODEL"
    )


def evaluate_clip(arguments: argparse.Namespace, output: Path | None) -> None:
    """Evaluates a CLIP, prints tables, and writes JSON and card as asked.

    Args:
        arguments: of the parser.
        output: JSON file to write.

    Raises:
        ValueError, FileNotFoundError: options, model or data are not usable.
        MissingExtraError: an extra that is asked for is not installed.
    """
    tasks_of = _task_settings(arguments)
    folder = Path(arguments.model)
    metrics = None
    if arguments.card:
        if not (folder / "metrics.json").is_file():
            raise FileNotFoundError(f"--card: {arguments.model} has no metrics.json, expected a folder of a training")
        metrics = read_json(folder / "metrics.json")

    import torch

    from hf_blemo.clip_evaluation.evaluator import BATCH_SIZE, ClipEvaluator
    from hf_blemo.clip_evaluation.tasks import make_tasks
    from hf_blemo.pairs.clip_models import fingerprint, load_clip

    evaluator = ClipEvaluator(make_tasks(tasks_of), arguments.batch_size or BATCH_SIZE)
    clip = load_clip(arguments.model, "--model", arguments.revision)
    result: dict[str, Any] = {
        "model": arguments.model,
        "revision": arguments.revision,
        "fingerprint": fingerprint(clip),
        "parameters": sum(values.numel() for values in clip.model.parameters()),
    }
    model = clip.model.to("cuda" if torch.cuda.is_available() else "cpu")
    tasks = evaluator.evaluate(model, clip.processor, progress=sys.stderr.isatty())
    result["tasks"] = tasks
    if output is not None:
        write_json({output: result})
    if metrics is not None:
        _update_card(folder, metrics, tasks)
    print(tables(tasks))


def _task_settings(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Task -> settings; refuses options that no task has a use for."""
    asked = {kind: getattr(arguments, kind) or [] for kind in ("retrieval", "zero_shot", "benchmark")}
    if not any(asked.values()):
        raise ValueError("--model: expected --retrieval, --zero-shot or --benchmark, what to evaluate it on")
    given = {name: getattr(arguments, name) for name in TASK_OPTIONS if getattr(arguments, name) is not None}
    for name in given:
        kinds = [TASK_OPTIONS[name]] if TASK_OPTIONS[name] else ["retrieval", "zero_shot"]
        if not any(asked[str(kind)] for kind in kinds):
            options = " or ".join(f"--{str(kind).replace('_', '-')}" for kind in kinds)
            raise ValueError(f"--{name.replace('_', '-')} is for {options}, which is not given")
    names = {"data_revision": "revision", "template": "templates"}
    found: dict[str, dict[str, Any]] = {}
    for kind in ("zero_shot", "retrieval"):
        own = {names.get(name, name): value for name, value in given.items() if TASK_OPTIONS[name] in (None, kind)}
        for data in asked[kind]:
            name = f"{Path(data).stem or data}_{kind}"
            if name in found:
                raise ValueError(f"--{kind.replace('_', '-')} {data}: there is a task {name!r} already")
            found[name] = {"kind": kind, "data": data, **own}
    return {**found, **{name: {"kind": name} for name in asked["benchmark"]}}


def _update_card(folder: Path, metrics: dict[str, Any], tasks: Mapping[str, Any]) -> None:
    from hf_blemo.hub import write_card

    earlier = metrics.get("evaluation") or {"step": metrics["num_steps"], "tasks": {}}
    metrics["evaluation"] = {**earlier, "tasks": {**earlier["tasks"], **tasks}}
    write_card(folder, metrics)
    write_json({folder / "metrics.json": metrics})


def tables(tasks: Mapping[str, Mapping[str, Any]]) -> str:
    """The results as tables for the terminal."""
    from hf_blemo.programs.tables import table

    def shown(value: float | None) -> str:
        return "" if value is None else f"{value:.4f}"

    parts = []
    zero_shot = {name: found for name, found in tasks.items() if found["kind"] == "zero_shot"}
    if zero_shot:
        rows = [
            [name, f"{found['images']:,}", f"{found['classes']:,}", shown(found["top_1"]), shown(found.get("top_5"))]
            for name, found in zero_shot.items()
        ]
        parts.append(table(["zero-shot", "images", "classes", "top-1", "top-5"], rows))
    retrieval = {name: found for name, found in tasks.items() if found["kind"] == "retrieval"}
    if retrieval:
        rows = []
        for name, found in retrieval.items():
            for prefix, protocol in (("", "standard"), ("one_caption_", "first caption alone")):
                if prefix and found["captions"] == found["images"]:
                    # With one caption each, both are the same.
                    continue
                recalls = [
                    shown(found.get(f"{prefix}{direction}_r@{k}"))
                    for direction in ("image_to_text", "text_to_image")
                    for k in (1, 5, 10)
                ]
                rows.append([name, f"{found['images']:,}", f"{found['captions']:,}", protocol, *recalls])
        header = ["retrieval", "images", "captions", "protocol", "image to text R@1", "R@5", "R@10"]
        parts.append(table([*header, "text to image R@1", "R@5", "R@10"], rows))
    broken = [
        f"{name}: {found['broken']} images could not be read, for instance {found['broken_examples'][0]}"
        for name, found in tasks.items()
        if "broken" in found
    ]
    return "\n\n".join([*parts, *broken])
