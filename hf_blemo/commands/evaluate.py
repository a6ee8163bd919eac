"""`hf-blemo evaluate`: scores of predictions, and of CLIPs."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_blemo.built_in import PAIRS
from hf_blemo.clip_evaluation.standard_sets import PER_CLASS, STANDARD_SETS
from hf_blemo.commands.parsing import add_command, output_path, positive, refuse_options
from hf_blemo.errors import check_once, say
from hf_blemo.files import read_json, write_json
from hf_blemo.programs.start import importing

if TYPE_CHECKING:
    from hf_blemo.commands.prediction_files import Predictions
    from hf_blemo.rank_aware_fusion.label_space_rank_aware_fusion import LabelSpace

_NUM_SHOWN = 3
_OFFICIAL = {"acc_presence": "ACC_presence", "acc_salience": "ACC_salience", "score": "Score"}
# Option for images -> the kind of task it is for; None for all.
_IMAGE_OPTIONS = {
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
_MODEL_OPTIONS = ("revision", "retrieval", "zero_shot", "benchmark", "batch_size", "card", *_IMAGE_OPTIONS)


def add_evaluate(commands: Any) -> None:
    """Adds `hf-blemo evaluate` to the subcommands that `add_subparsers` made."""
    parser = add_command(
        commands,
        "evaluate",
        _evaluate,
        "score predictions against labels, or a CLIP by zero-shot classification and retrieval",
        """\
Reads predictions (.json or .zip) and labels: a built data set, a table, or train_metadata.csv; by default the labels
in the clips' names. Predictions and labels must cover the same clips and have the same names. For BlEmoRE it prints
ACC_presence, ACC_salience and Score, from 0 to 1; for other labels accuracy, UAR, macro-F1, presence accuracy, with
blends salience accuracy, the divergence of the probabilities and, for soft labels, distances of the shares. --output
gets the same.

With --model it reads any CLIP-like model of transformers, or open_clip:NAME/PRETRAINED, and images with labels
(zero-shot: top-1 and top-5) or captions (retrieval: R@1, R@5 and R@10). In the standard protocol any caption of an
image counts; where images have several, results for the first caption alone are shown too.

Examples:
  hf-blemo evaluate --predictions out/fusion/predictions.json --labels out/blemore
  hf-blemo evaluate --model out/student --benchmark synthetic --card
  hf-blemo evaluate --model out/student --zero-shot ethz/food101 --split validation --classes food101
  hf-blemo evaluate --model out/student --retrieval out/flickr30k --caption-column captions --output flickr.json""",
    )
    evaluated = parser.add_mutually_exclusive_group(required=True)
    evaluated.add_argument("--predictions", metavar="FILE", help="predictions (.json or .zip)")
    evaluated.add_argument("--model", metavar="MODEL", help="folder, Hub id (owner/name) or open_clip:NAME/PRETRAINED")
    parser.add_argument("--output", metavar="FILE.json", help="also write the metrics")
    parser.add_argument("--labels", metavar="PATH", help="data set, table or train_metadata.csv; with --predictions")
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
        metavar="SET|FILE.json",
        help=f"a standard set ({', '.join(STANDARD_SETS)}), or a table of 'classes' and 'templates' (default: the "
        "names of the data's labels)",
    )
    group.add_argument("--template", nargs="+", help="prompts with {} in place of the class name")
    group.add_argument("--limit", type=positive, metavar="N", help="take only the first N images")
    group.add_argument("--streaming", action="store_true", default=None, help="read the first N without all others")
    group.add_argument("--batch-size", type=positive, metavar="N", help="images or texts at once (default: 64)")
    group.add_argument(
        "--card", action="store_true", default=None, help="also put the results into metrics.json and card of MODEL"
    )


def _evaluate(arguments: argparse.Namespace) -> None:
    output = None if arguments.output is None else output_path(arguments.output, "--output", ".json")
    if arguments.predictions is None:
        refuse_options(arguments, ["labels"], "is for --predictions, which is not given")
    else:
        refuse_options(arguments, _MODEL_OPTIONS, "is for --model, which is not given")
    result, lines = (_score_blends if arguments.model is None else _evaluate_clip)(arguments)
    if output is not None:
        write_json({output: result})
    if arguments.card:
        # The last, since it refuses a card that people have broken.
        _update_card(Path(arguments.model), result["tasks"])
    say(*lines.split("\n"))


def _score_blends(arguments: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """The measures of predictions, and the lines to print."""
    from hf_blemo import blemore
    from hf_blemo.commands.prediction_files import read_prediction_file
    from hf_blemo.feature_sets import check_features
    from hf_blemo.rank_aware_fusion.label_space_rank_aware_fusion import BLEMORE_SPACE, same_space

    if arguments.labels is not None:
        check_features(arguments.labels)
    found = read_prediction_file(arguments.predictions)
    if not found.blends:
        raise ValueError(f"{arguments.predictions}: found no predictions, expected at least one clip to score")
    if arguments.labels is not None:
        labels, space, kind = _read_labels(Path(arguments.labels))
        same_space(found.space, space, arguments.predictions, arguments.labels)
        _check_same_clips(found.blends, labels, arguments.predictions, arguments.labels)
    elif found.space == BLEMORE_SPACE:
        labels, kind = {clip: blemore.soft_label(clip) for clip in found.blends}, "valid"
    else:
        raise ValueError(f"--labels is needed: names of clips hold labels of BlEmoRE alone, found {found.space}")
    return _measured(found, [labels[clip] for clip in found.blends], kind)


def _measured(found: "Predictions", rows: list[Any], kind: str) -> tuple[dict[str, Any], str]:
    """The measures of predictions against the labels of their clips, for BlEmoRE its own, and the lines to print."""
    import numpy as np

    from hf_blemo.metrics.measures import LOWER_IS_BETTER, measure, nearest

    space, blends, labels = found.space, list(found.blends.values()), np.array(rows)
    probabilities = found.probabilities and np.array([found.probabilities[clip] for clip in found.blends])
    metrics: dict[str, Any] = measure(
        space, labels, blends, probabilities, kind=kind, presence_share=found.presence_share
    )
    shown, counts = dict(zip(metrics, metrics, strict=True)), {"clips": len(rows)}
    if found.official and kind == "valid":
        shown, counts["blends"] = _OFFICIAL, int(space.is_blend[nearest(space, labels)].sum())
    width = max(map(len, shown.values()))
    blends_said = f", {counts['blends']} of them blends" if "blends" in counts else ""
    lines = [f"{'clips':<{width}}  {len(rows)}{blends_said}"]
    for name, said in shown.items():
        lines.append(f"{said:<{width}}  {metrics[name]:.4f}{' (lower is better)' if name in LOWER_IS_BETTER else ''}")
    return {**{name: metrics[name] for name in shown}, **counts}, "\n".join(lines)


def _read_labels(path: Path) -> tuple[dict[str, Any], "LabelSpace", str]:
    """Clip name -> soft label, of the labelled clips alone; and the space and kind of the labels."""
    import numpy as np

    from hf_blemo import blemore, feature_sets
    from hf_blemo.feature_sets.distribution import METADATA_FILE, METADATA_LABELS, read_metadata
    from hf_blemo.feature_sets.feature_files import read_csv
    from hf_blemo.rank_aware_fusion.label_space_rank_aware_fusion import BLEMORE_SPACE

    is_metadata = path.is_file() and path.suffix == ".csv"
    if is_metadata and path.name != METADATA_FILE:
        is_metadata = {"filename", *METADATA_LABELS} <= set(read_csv(path)[0])
    if is_metadata:
        return {clip: label for clip, label, _ in read_metadata(path)}, BLEMORE_SPACE, "valid"
    dataset = feature_sets.load_features(path)
    if "labels" not in dataset.column_names:
        raise ValueError(f"{path}: found the columns {', '.join(dataset.column_names)}, expected 'labels' among them")
    space, kind = feature_sets.label_space(dataset)
    rows = np.array(dataset["labels"][:], dtype=np.float64)
    names = [blemore.clip_name(clip) for clip in dataset["clip"]]
    check_once(f"{path}: clip", names)
    labels = {name: row for name, row in zip(names, rows, strict=True) if row[0] != blemore.UNLABELLED}
    return labels, space, kind


def _check_same_clips(predictions: Mapping, labels: Mapping, predictions_path: str, labels_path: str) -> None:
    for found, expected, lacking, having, what in (
        (labels, predictions, labels_path, predictions_path, "label"),
        (predictions, labels, predictions_path, labels_path, "prediction"),
    ):
        absent = [clip for clip in expected if clip not in found]
        if absent:
            more = f" and {len(absent) - _NUM_SHOWN} more" if len(absent) > _NUM_SHOWN else ""
            raise ValueError(
                f"{lacking}: found no {what} of {', '.join(map(repr, absent[:_NUM_SHOWN]))}{more}, expected one for "
                f"each of the {len(expected)} clips in {having}"
            )


def _evaluate_clip(arguments: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """The results of a CLIP, and the tables to print."""
    tasks_of = _task_settings(arguments)
    if arguments.card and not Path(arguments.model, "metrics.json").is_file():
        raise FileNotFoundError(f"--card: {arguments.model} has no metrics.json, expected a folder of a training")

    from hf_blemo.clip_evaluation.settings import check_tasks
    from hf_blemo.pairs.settings import check_clip

    check_tasks(tasks_of)
    check_clip(arguments.model, "--model", arguments.revision)
    with importing():
        import torch

        from hf_blemo.clip_evaluation.evaluator import BATCH_SIZE, ClipEvaluator
        from hf_blemo.clip_evaluation.tasks import make_tasks, tasks_of_training_data
        from hf_blemo.pairs.clip_models import load_clip

    evaluator = ClipEvaluator(make_tasks(tasks_of), arguments.batch_size or BATCH_SIZE)
    clip = load_clip(arguments.model, "--model", arguments.revision)
    record = Path(arguments.model, "metrics.json")
    trained = (read_json(record).get("config") or {}) if record.is_file() else {}
    for name in tasks_of_training_data(tasks_of, trained.get("sources") or ([trained] if trained.get("data") else [])):
        say(f"{name}: reads data that the model was trained on; its numbers say nothing of other images", error=True)
    described = {name: value for name, value in clip.description().items() if name != "logit_scale"}
    result: dict[str, Any] = {"model": arguments.model, "revision": arguments.revision, **described}
    model = clip.model.to("cuda" if torch.cuda.is_available() else "cpu")
    tasks = evaluator.evaluate(model, clip.processor, progress=True)
    result["tasks"] = tasks
    return result, _tables(tasks)


def _task_settings(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Task -> settings; refuses options that no task takes."""
    asked = {kind: getattr(arguments, kind) or [] for kind in ("retrieval", "zero_shot", "benchmark")}
    if not any(asked.values()):
        raise ValueError("--model: expected tasks to evaluate it on: --retrieval, --zero-shot or --benchmark")
    given = {name: getattr(arguments, name) for name in _IMAGE_OPTIONS if getattr(arguments, name) is not None}
    for name in given:
        kinds = [_IMAGE_OPTIONS[name]] if _IMAGE_OPTIONS[name] else ["retrieval", "zero_shot"]
        if not any(asked[str(kind)] for kind in kinds):
            options = " or ".join(f"--{str(kind).replace('_', '-')}" for kind in kinds)
            raise ValueError(f"--{name.replace('_', '-')} is for {options}, which is not given")
    names = {"data_revision": "revision", "template": "templates"}
    found: dict[str, dict[str, Any]] = {}
    for kind in ("zero_shot", "retrieval"):
        own = {names.get(name, name): value for name, value in given.items() if _IMAGE_OPTIONS[name] in (None, kind)}
        for data in asked[kind]:
            name = f"{Path(data).stem or data}_{kind}"
            if name in found:
                raise ValueError(f"--{kind.replace('_', '-')} {data}: there is a task {name!r} already")
            found[name] = {"kind": kind, "data": data, **own}
    return {**found, **{name: {"kind": name} for name in asked["benchmark"]}}


def _update_card(folder: Path, tasks: Mapping[str, Any]) -> None:
    from hf_blemo.hub import write_card

    metrics = read_json(folder / "metrics.json")
    earlier = metrics.get("evaluation") or {"step": metrics["num_steps"], "tasks": {}}
    metrics["evaluation"] = {**earlier, "tasks": {**earlier["tasks"], **tasks}}
    write_card(folder, metrics)
    write_json({folder / "metrics.json": metrics})


def _tables(tasks: Mapping[str, Mapping[str, Any]]) -> str:
    """The results as Markdown tables."""
    from hf_blemo.programs.tables import table

    def shown(value: float | None) -> str:
        return "" if value is None else f"{value:.4f}"

    parts = []
    zero_shot = {name: found for name, found in tasks.items() if found["kind"] == "zero_shot"}
    if zero_shot:
        measures = {"top_1": "top-1", "top_5": "top-5"}
        if any(PER_CLASS in found for found in zero_shot.values()):
            measures[PER_CLASS] = "mean per class"
        rows = [
            [name, f"{found['images']:,}", f"{found['classes']:,}", *(shown(found.get(key)) for key in measures)]
            for name, found in zero_shot.items()
        ]
        parts.append(table(["zero-shot", "images", "classes", *measures.values()], rows))
    retrieval = {name: found for name, found in tasks.items() if found["kind"] == "retrieval"}
    if retrieval:
        rows = []
        for name, found in retrieval.items():
            for prefix, protocol in (("", "standard"), ("one_caption_", "first caption only")):
                if prefix and found["captions"] == found["images"]:
                    # With one caption per image, both protocols agree.
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
        f"{name}: could not read {found['broken']} image{'s' * (found['broken'] > 1)}, for example "
        f"{found['broken_examples'][0]}"
        for name, found in tasks.items()
        if "broken" in found
    ]
    return "\n\n".join([*parts, *broken])
