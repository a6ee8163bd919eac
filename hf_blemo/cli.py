"""The `hf-blemo` command: data sets, predictions, scores, submissions and publishing from the shell.

Every handler imports what it needs itself, so that `--help` answers at once.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hf_blemo
from hf_blemo.clip_evaluation_command import CLIP_OPTIONS, add_clip_options, evaluate_clip
from hf_blemo.json_files import write_json
from hf_blemo.settings import run_command

if TYPE_CHECKING:
    import datasets
    import numpy as np

    from hf_blemo.prediction import FusionPredictions

SYNTHETIC = "synthetic"
# Which options of `dataset build` each kind of source has a use for.
BUILD_OPTIONS = {
    "the distribution": ("split", "encoders", "aggregate", "feature_dtype", "allow_missing"),
    "a table": ("encoders", "feature_dtype"),
    SYNTHETIC: ("num_clips", "seed", "domain"),
}

_NUM_SHOWN = 3
_NUM_SHOWN_PROBLEMS = 20
_DECIMALS = 6


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: the arguments; those of the process by default.

    Returns:
        The exit code: 0, or 2 after one line on stderr that says what is wrong.

    Source: this project's choice.
    """
    try:
        arguments = make_parser().parse_args(argv)
        run_command(lambda: arguments.handler(arguments), arguments.program)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    return 0


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, without the usage before it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options)

    def error(self, message: str) -> Any:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def make_parser() -> argparse.ArgumentParser:
    """Makes the parser of the command and of all its subcommands.

    Returns:
        The parser; `handler` of its result is the function to call with that result.

    Source: this project's choice.
    """
    parser = _Parser(prog="hf-blemo", description="Blended emotion recognition by rank-aware fusion, on BlEmoRE.")
    parser.add_argument("--version", action="version", version=f"hf_blemo {hf_blemo.__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    dataset = commands.add_parser("dataset", help="build a data set of features, or describe one")
    dataset_commands = dataset.add_subparsers(required=True, metavar="command")
    _add_build(dataset_commands)
    _add_info(dataset_commands)
    _add_predict(commands)
    _add_evaluate(commands)
    _add_submit(commands)
    _add_publish(commands)
    _add_export(commands)
    return parser


def _add_command(commands: Any, name: str, handler: Any, summary: str, details: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.\n\n{details}")
    parser.set_defaults(handler=handler, program=parser.prog)
    return parser


def _add_build(commands: Any) -> None:
    parser = _add_command(
        commands,
        "build",
        _build_dataset,
        "build a data set from the BlEmoRE distribution, a table, or the built-in generator",
        """\
Reads SOURCE: the folder of the distribution (train_metadata.csv and pre_extracted_{train,test}_data/), a table with
one row per clip (.parquet, .npz, .csv), or the word 'synthetic'.
Writes the folder DIR, which datasets.load_from_disk, hf-blemo predict and the training programs read. It appears only
when it is whole; a build of the distribution or of a table that was interrupted goes on where it stopped.

Example:
  hf-blemo dataset build data/BlEmoRE --output out/blemore --encoders ImageBind WavLM_large""",
    )
    parser.add_argument("source", metavar="SOURCE", help="folder, table, or the word 'synthetic'")
    parser.add_argument("--output", metavar="DIR", required=True, help="folder to make")
    parser.add_argument("--overwrite", action="store_true", help="replace a data set that is at DIR")
    parser.add_argument(
        "--encoders",
        metavar="NAME",
        nargs="+",
        help="encoders to take, in this order; all by default (distribution and tables)",
    )
    parser.add_argument(
        "--feature-dtype",
        choices=("auto", "float16", "float32"),
        help="what features are stored in; auto (the distribution's default) is float16 where the first clip fits, "
        "float32 is the tables' default (distribution and tables)",
    )
    parser.add_argument("--split", choices=("train", "test"), help="which clips; train by default (distribution)")
    parser.add_argument(
        "--aggregate",
        choices=("statistics",),
        help="store the seven official statistics instead of the sequences (distribution)",
    )
    parser.add_argument(
        "--allow-missing",
        action="store_true",
        default=None,
        help="a clip may lack the file of an encoder (distribution)",
    )
    parser.add_argument("--num-clips", type=_positive, metavar="N", help="number of clips (synthetic)")
    parser.add_argument("--seed", type=int, metavar="N", help="seed of the clips (synthetic)")
    parser.add_argument("--domain", choices=("source", "target"), help="source by default (synthetic)")
    parser.add_argument("--push-to-hub", metavar="OWNER/NAME", help="also upload it as a Hub data set, private")
    parser.add_argument("--public", action="store_true", help="with --push-to-hub: make a new repository public")


def _add_info(commands: Any) -> None:
    parser = _add_command(
        commands,
        "info",
        _describe_dataset,
        "describe a data set: clips, labels, folds, and each encoder's width and dtype",
        """\
Reads PATH: a built data set, a table (.parquet, .npz, .csv), or a folder of feature files. Writes nothing.

Example:
  hf-blemo dataset info out/blemore""",
    )
    parser.add_argument("path", metavar="PATH", help="what holds the features")


def _add_predict(commands: Any) -> None:
    parser = _add_command(
        commands,
        "predict",
        _predict,
        "predict the blends of clips",
        """\
Reads models with their processors (folders or Hub ids; several predict by the mean of their probabilities) and the
features of any clips: a built data set, a table, or a folder of feature files. Labels and folds are not needed.
Writes {"predictions": {clip: [{"emotion": ..., "salience": ...}]}}, clips named as in the data.

Example:
  hf-blemo predict --model out/fusion out/fusion/seed_1 --features out/blemore_test --output out/predictions.json""",
    )
    parser.add_argument("--model", metavar="MODEL", nargs="+", required=True, help="folder or Hub id (owner/name)")
    parser.add_argument("--revision", help="branch, tag or commit of the Hub repositories")
    parser.add_argument("--features", metavar="PATH", required=True, help="data set, table or folder")
    parser.add_argument("--output", metavar="FILE.json", required=True, help="predictions to write")
    parser.add_argument(
        "--details", metavar="FILE.json", help="also write probabilities, encoder weights and ranks of every clip"
    )
    parser.add_argument(
        "--decoding", choices=("expected_score", "thresholds"), help="that of the first model's processor by default"
    )
    parser.add_argument("--alpha", type=_share, help="presence threshold from 0 to 1 (decoding thresholds)")
    parser.add_argument("--beta", type=_share, help="salience threshold from 0 to 1 (decoding thresholds)")
    parser.add_argument("--batch-size", type=_positive, default=64, metavar="N", help="clips at once (default: 64)")


def _add_evaluate(commands: Any) -> None:
    parser = _add_command(
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
    add_clip_options(parser, _positive)


def _add_submit(commands: Any) -> None:
    parser = _add_command(
        commands,
        "submit",
        _submit,
        "make a submission to the challenge, or check one",
        """\
Reads predictions for exactly the 594 test clips and writes the zip that the challenge takes; or, with --check, reads
a submission and prints all that is wrong with it.

Examples:
  hf-blemo submit --predictions out/predictions.json --output out/submission.zip
  hf-blemo submit --check out/submission.zip""",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--predictions", metavar="FILE", help="predictions (.json or .zip) to submit")
    source.add_argument("--check", metavar="FILE.zip", help="submission to check")
    parser.add_argument("--output", metavar="FILE.zip", help="submission to write; with --predictions")


def _add_publish(commands: Any) -> None:
    parser = _add_command(
        commands,
        "publish",
        _publish,
        "check a model's folder and upload it to the Hub",
        """\
Reads FOLDER: what the training program wrote, or save_pretrained of model and processor. Without --repo it prints
the files that would be uploaded, or what is missing, and changes nothing. With --repo it brings the card README.md up
to date from metrics.json and uploads model, processor, code, card, metrics and plots in one commit.

Example:
  hf-blemo publish out/fusion --repo owner/blemore-fusion --tag v1""",
    )
    parser.add_argument("folder", metavar="FOLDER", help="the model's folder")
    parser.add_argument("--repo", metavar="OWNER/NAME", help="repository, made private where there is none")
    parser.add_argument("--public", action="store_true", help="make a new repository public")
    parser.add_argument("--tag", help="git tag to set on the commit")
    parser.add_argument("--message", help="message of the commit")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request instead of committing")


def _add_export(commands: Any) -> None:
    parser = _add_command(
        commands,
        "export",
        _export,
        "write a model as ONNX files (extra onnx)",
        """\
Writes model.onnx of a fusion, or image_model.onnx and text_model.onnx of a student, with free batch and time axes, and
onnx.json with what the inputs are called.

Example:
  hf-blemo export out/fusion --output out/fusion_onnx --int8""",
    )
    parser.add_argument("model", metavar="MODEL", help="folder or Hub id of a fusion, a student or a CLIP")
    parser.add_argument("--revision", help="branch, tag or commit of the model on the Hub")
    parser.add_argument("--output", metavar="DIR", required=True, help="folder to write into")
    parser.add_argument("--overwrite", action="store_true", help="replace ONNX files that are in DIR")
    parser.add_argument("--int8", action="store_true", help="also write every file quantised to int8")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"found {text}, expected at least 1")
    return number


def _share(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"found {text}, expected a number from 0 to 1")
    return number


def _build_dataset(arguments: argparse.Namespace) -> None:
    source, output = Path(arguments.source), Path(arguments.output)
    if arguments.source == SYNTHETIC:
        kind = SYNTHETIC
    elif source.exists():
        kind = "the distribution" if source.is_dir() else "a table"
    else:
        raise FileNotFoundError(f"{source}: no such file or folder, expected a distribution, a table or {SYNTHETIC!r}")
    options = _build_options(arguments, kind)
    if arguments.public and arguments.push_to_hub is None:
        raise ValueError("--public is about the repository of --push-to-hub, which is not given")
    if output.exists() and not arguments.overwrite:
        raise FileExistsError(f"{output}: already exists; pass --overwrite to replace it")

    from hf_blemo import blemore

    common = {"overwrite": arguments.overwrite, "progress": sys.stderr.isatty()}
    if kind == SYNTHETIC:
        dataset = _build_synthetic(output, arguments.overwrite, options)
    elif kind == "a table":
        dataset = blemore.build_table_dataset(source, output, **options, **common)
    else:
        dataset = blemore.build_distribution_dataset(source, output, **options, **common)
    print(f"{output}\n{_summary(dataset)}")
    if arguments.push_to_hub is not None:
        from hf_blemo.hub.dataset_card import push_features
        from hf_blemo.hub.hub_errors import hub_errors

        with hub_errors(f"{output} was built, but not uploaded to {arguments.push_to_hub}"):
            split = options.get("split", "train")
            push_features(dataset, arguments.push_to_hub, split, private=not arguments.public)
        print(f"uploaded to {arguments.push_to_hub}, split {split}")


def _build_options(arguments: argparse.Namespace, kind: str) -> dict[str, Any]:
    """The options given, after a check that this kind of source has a use for each."""
    names = {name for options in BUILD_OPTIONS.values() for name in options}
    given = {name: getattr(arguments, name) for name in sorted(names) if getattr(arguments, name) is not None}
    for name in given:
        if name not in BUILD_OPTIONS[kind]:
            kinds = " or ".join(other for other, options in BUILD_OPTIONS.items() if name in options)
            raise ValueError(f"--{name.replace('_', '-')} is for {kinds}, found {arguments.source!r}, which is {kind}")
    return given


def _build_synthetic(output: Path, overwrite: bool, options: Mapping[str, Any]) -> "datasets.Dataset":
    import datasets

    from hf_blemo.blemore.dataset_writing import refuse_existing
    from hf_blemo.data.synthetic_blends import make_synthetic_blends

    refuse_existing(output, overwrite)
    dataset = make_synthetic_blends(**options)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as folder:
        new, old = Path(folder) / "new", Path(folder) / "old"
        dataset.save_to_disk(str(new))
        if output.exists():
            os.rename(output, old)
        try:
            os.rename(new, output)
        except OSError:
            if old.exists():
                os.rename(old, output)
            raise
    return datasets.Dataset.load_from_disk(str(output))


def _describe_dataset(arguments: argparse.Namespace) -> None:
    from hf_blemo import blemore

    print(_summary(blemore.load_features(arguments.path)))


def _summary(dataset: "datasets.Dataset") -> str:
    from collections import Counter

    import numpy as np

    from hf_blemo import blemore

    indices = np.full(len(dataset), -1)
    if "labels" in dataset.column_names:
        indices = blemore.label_indices(np.array(dataset["labels"][:], dtype=np.float64))
    counts = Counter(fold for fold in dataset["fold"] if fold >= 0) if "fold" in dataset.column_names else {}
    folds = ", ".join(f"{fold}: {count}" for fold, count in sorted(counts.items()))
    blends = int((indices >= len(blemore.EMOTIONS)).sum())
    encoders = _encoder_table(dataset)
    longest = max(len(row[0]) for row in encoders)
    return "\n".join(
        [
            f"clips     {len(dataset)}",
            f"labelled  {int((indices >= 0).sum())}, {blends} of them blends",
            f"folds     {folds or 'none'}",
            *(f"{name:<{longest}}  {width:>6}  {dtype:<8}  {clips:>6}" for name, width, dtype, clips in encoders),
        ]
    )


def _encoder_table(dataset: "datasets.Dataset") -> list[tuple[str, str, str, str]]:
    """A row per encoder below a head: its name, width, dtype, and how many clips have it."""
    from hf_blemo import blemore

    widths = blemore.encoder_widths(dataset)
    dtypes = dict.fromkeys(widths, "")
    clips = dict.fromkeys(widths, 0)
    for batch in dataset.with_format("arrow", columns=["features"]).iter(batch_size=256):
        for chunk in batch.column("features").chunks:
            for field, values in zip(chunk.type, chunk.flatten(), strict=True):
                clips[field.name] += len(values) - values.null_count
                dtypes[field.name] = _number_type(field.type)
    rows = [(name, str(width), dtypes[name], str(clips[name])) for name, width in widths.items()]
    return [("encoder", "width", "dtype", "clips"), *rows]


def _number_type(arrow_type: Any) -> str:
    """Name of the numbers inside a nested Arrow type, as NumPy calls it."""
    while True:
        if hasattr(arrow_type, "storage_type"):
            arrow_type = arrow_type.storage_type
        elif hasattr(arrow_type, "value_type"):
            arrow_type = arrow_type.value_type
        else:
            return str(arrow_type.to_pandas_dtype().__name__)


def _predict(arguments: argparse.Namespace) -> None:
    output = _json_path(arguments.output, "--output")
    details = None if arguments.details is None else _json_path(arguments.details, "--details")
    if details == output:
        raise ValueError(f"{output}: named by both --output and --details, expected two files")

    from hf_blemo import blemore

    dataset = blemore.load_features(arguments.features)

    import torch

    from hf_blemo.prediction import load_fusion, predict_blends

    models = [load_fusion(model, arguments.revision) for model in arguments.model]
    processor = models[0][1]
    decoding = arguments.decoding or processor.decoding
    thresholds = {
        "alpha": processor.alpha if arguments.alpha is None else arguments.alpha,
        "beta": processor.beta if arguments.beta is None else arguments.beta,
    }
    if decoding != "thresholds":
        for name in thresholds:
            if getattr(arguments, name) is not None:
                raise ValueError(f"--{name} is for --decoding thresholds, the decoding is {decoding}")
    predictions = predict_blends(
        models,
        dataset,
        batch_size=arguments.batch_size,
        device="cuda" if torch.cuda.is_available() else None,
        progress=sys.stderr.isatty(),
        decoding=decoding,
        **thresholds,
    )
    contents: dict[Path, Any] = {
        output: {"predictions": dict(zip(predictions.clips, predictions.blends, strict=True))}
    }
    if details is not None:
        used = thresholds if decoding == "thresholds" else {"blend_share": processor.blend_share}
        contents[details] = {"decoding": {"name": decoding, **used}, "clips": _details(predictions)}
    write_json(contents)
    print(f"{len(predictions.clips)} clips, decoding {decoding}: {', '.join(map(str, contents))}")


def _details(predictions: "FusionPredictions") -> dict[str, dict[str, Any]]:
    from hf_blemo import blemore

    def named(names: Sequence[str], values: "np.ndarray") -> dict[str, float]:
        return {name: round(value, _DECIMALS) for name, value in zip(names, values.tolist(), strict=True)}

    return {
        clip: {
            "probabilities": named(blemore.EMOTIONS, predictions.probabilities[row]),
            "encoder_weights": named(predictions.encoders, predictions.encoder_weights[row]),
            "selected_encoders": [
                predictions.encoders[index] for index in predictions.selected_encoders[row] if index >= 0
            ],
        }
        for row, clip in enumerate(predictions.clips)
    }


def _evaluate(arguments: argparse.Namespace) -> None:
    output = None if arguments.json is None else _json_path(arguments.json, "--json")
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


def _submit(arguments: argparse.Namespace) -> None:
    from hf_blemo import blemore

    if arguments.check is not None:
        if arguments.output is not None:
            raise ValueError("--output is for --predictions, --check writes nothing")
        problems = blemore.check_submission(arguments.check)
        for problem in problems[:_NUM_SHOWN_PROBLEMS]:
            print(problem)
        if len(problems) > _NUM_SHOWN_PROBLEMS:
            print(f"and {len(problems) - _NUM_SHOWN_PROBLEMS} more")
        if problems:
            raise ValueError(f"{arguments.check}: found {len(problems)} problems, expected a submission without any")
        print(f"{arguments.check}: a valid submission")
        return
    if arguments.output is None:
        raise ValueError("--predictions needs --output, the submission to write")
    if Path(arguments.output).suffix != ".zip":
        raise ValueError(f"--output {arguments.output}: expected the suffix .zip")
    predictions = blemore.read_predictions(arguments.predictions)
    path = blemore.write_submission(arguments.output, predictions, list(predictions.values()), strict=True)
    print(f"{path}: {len(predictions)} clips, ready to submit")


def _publish(arguments: argparse.Namespace) -> None:
    from hf_blemo.hub import files_to_publish, publish
    from hf_blemo.hub.hub_errors import hub_errors

    if arguments.repo is None:
        for option in ("public", "tag", "message", "create_pr"):
            if getattr(arguments, option):
                raise ValueError(f"--{option.replace('_', '-')} is about an upload, which needs --repo")
        files = files_to_publish(arguments.folder)
        print(f"{arguments.folder} can be published; with --repo these files would be uploaded:")
        print("\n".join(f"  {name}" for name in files))
        return
    with hub_errors(f"{arguments.folder} was not published to {arguments.repo}"):
        address = publish(
            arguments.folder,
            arguments.repo,
            private=not arguments.public,
            create_pr=arguments.create_pr,
            message=arguments.message,
            tag=arguments.tag,
        )
    print(address)


def _export(arguments: argparse.Namespace) -> None:
    from hf_blemo.export_command import export_model

    export_model(arguments)


def _json_path(text: str, option: str) -> Path:
    path = Path(text)
    if path.suffix != ".json":
        raise ValueError(f"{option} {text}: expected the suffix .json")
    if path.is_dir():
        raise IsADirectoryError(f"{option} {text}: found a folder, expected a file to write")
    return path


if __name__ == "__main__":
    sys.exit(main())
