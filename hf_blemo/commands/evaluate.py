"""`hf-blemo evaluate`: scores of predictions, and of CLIPs."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_blemo.commands.clip_evaluation import CLIP_OPTIONS, add_clip_options, evaluate_clip
from hf_blemo.commands.parsing import add_command, output_path
from hf_blemo.files import write_json

_NUM_SHOWN = 3


def add_evaluate(commands: Any) -> None:
    """Adds the subcommand.

    Args:
        commands: what `add_subparsers` returned.
    """
    parser = add_command(
        commands,
        "evaluate",
        _evaluate,
        "score predictions of blends by the official metrics, or a CLIP by zero-shot classification and retrieval",
        """\
Reads predictions (.json or .zip) and labels: a built data set, a table, or train_metadata.csv; by default the labels
in the clips' names. Predictions and labels must be of the same clips. Prints ACC_presence, ACC_salience and Score,
from 0 to 1, and writes them where --json says.

With --model it reads any CLIP-like model of transformers, or open_clip:NAME/PRETRAINED, and images with labels
(zero-shot: top-1 and top-5) or captions (retrieval: R@1, R@5 and R@10; in the standard protocol any of an image's
captions counts; where images have several, the protocol of the first caption alone is shown beside it).

Examples:
  hf-blemo evaluate --predictions out/fusion/predictions.json --labels out/blemore
  hf-blemo evaluate --model out/student --benchmark synthetic --card
  hf-blemo evaluate --model out/student --retrieval out/flickr30k --caption-column captions --json out/flickr.json""",
    )
    evaluated = parser.add_mutually_exclusive_group(required=True)
    evaluated.add_argument("--predictions", metavar="FILE", help="predictions (.json or .zip)")
    evaluated.add_argument("--model", metavar="MODEL", help="folder, Hub id (owner/name) or open_clip:NAME/PRETRAINED")
    parser.add_argument("--json", metavar="FILE.json", help="also write the metrics")
    parser.add_argument("--labels", metavar="PATH", help="data set, table or train_metadata.csv; with --predictions")
    add_clip_options(parser)


def _evaluate(arguments: argparse.Namespace) -> None:
    output = None if arguments.json is None else output_path(arguments.json, "--json")
    strange = ("labels",) if arguments.predictions is None else CLIP_OPTIONS
    for name in strange:
        if getattr(arguments, name) is not None:
            other = "--predictions" if arguments.predictions is None else "--model"
            raise ValueError(f"--{name.replace('_', '-')} is for {other}, which is not given")
    if arguments.predictions is None:
        evaluate_clip(arguments, output)
        return

    from hf_blemo import blemore

    predictions = blemore.read_predictions(arguments.predictions)
    if arguments.labels is None:
        labels = {clip: blemore.soft_label(clip) for clip in predictions}
    else:
        labels = _read_labels(Path(arguments.labels))
        _check_same_clips(predictions, labels, arguments.predictions, arguments.labels)
    blends, rows = list(predictions.values()), [labels[clip] for clip in predictions]
    metrics = {
        "acc_presence": blemore.acc_presence(blends, rows),
        "acc_salience": blemore.acc_salience(blends, rows),
        "score": blemore.score(blends, rows),
        "clips": len(rows),
        "blends": int((blemore.label_indices(rows) >= len(blemore.EMOTIONS)).sum()),
    }
    if output is not None:
        write_json({output: metrics})
    print(f"clips         {metrics['clips']}, {metrics['blends']} of them blends")
    for name, shown in (("acc_presence", "ACC_presence"), ("acc_salience", "ACC_salience"), ("score", "Score")):
        print(f"{shown:<12}  {metrics[name]:.4f}")


def _read_labels(path: Path) -> dict[str, Any]:
    """Clip name -> soft label, of the labelled clips alone."""
    import numpy as np

    from hf_blemo import blemore
    from hf_blemo.blemore.distribution import METADATA_COLUMNS, read_metadata
    from hf_blemo.blemore.feature_files import read_csv

    if path.is_file() and path.suffix == ".csv" and set(METADATA_COLUMNS) <= set(read_csv(path)[0]):
        return {clip: label for clip, label, _ in read_metadata(path)}
    dataset = blemore.load_features(path)
    if "labels" not in dataset.column_names:
        raise ValueError(f"{path}: found the columns {', '.join(dataset.column_names)}, expected 'labels' among them")
    rows = np.array(dataset["labels"][:], dtype=np.float64)
    names = [blemore.clip_name(clip) for clip in dataset["clip"]]
    return {name: row for name, row in zip(names, rows, strict=True) if row[0] != blemore.UNLABELLED}


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
