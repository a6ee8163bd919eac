"""`hf-blemo features`: clips to a data set of features."""

import argparse
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin

from hf_blemo.commands.parsing import add_command, add_label_options
from hf_blemo.errors import say
from hf_blemo.extraction.settings import ExtractionSettings
from hf_blemo.programs.settings import documentation

# Settings that have options of their own here, and one that only the training program takes.
_LABELS = ("label_column", "label_prefix", "label_kind", "names", "blend_percents", "unblended", "folds", "group")
_OWN = (*_LABELS, "data", "output_dir", "encoders", "model", "imported", "hub_private", "synthetic", "limits")


def add_features(commands: Any) -> None:
    """Adds `hf-blemo features` to the subcommands that `add_subparsers` made."""
    parser = add_command(
        commands,
        "features",
        _features,
        "extract features of clips with pre-trained encoders (extra media)",
        """\
Reads SOURCE: a folder of clips, one clip, a .csv with a column video or audio of paths, a saved data set, a data set
on the Hub, or 'synthetic'. A folder with BlEmoRE's train_metadata.csv also gives labels and folds; a .csv or data set
gives them by --label-column or --label-prefix. Writes the folder
DIR, which the training program, hf-blemo predict and datasets.load_from_disk read. An interrupted run resumes with the
missing clips; a clip that cannot be read is reported and left out. For several GPUs and more settings, use
accelerate launch training/extract_features.py.

Examples:
  hf-blemo features clips/ --output out/features --encoder clip=openai/clip-vit-base-patch16 wavlm=microsoft/wavlm-base
  hf-blemo features clips/ --output out/features --model owner/fusion""",
    )
    parser.add_argument("data", metavar="SOURCE", help="clips")
    parser.add_argument("--output", metavar="DIR", dest="output_dir", required=True, help="data set to make")
    encoders = parser.add_mutually_exclusive_group(required=True)
    encoders.add_argument(
        "--encoder",
        metavar="NAME=MODEL[@REVISION]",
        dest="encoders",
        nargs="+",
        default=[],
        help="encoders: folder or Hub id of any image, video or audio model of transformers",
    )
    encoders.add_argument("--model", metavar="MODEL", help="folder or Hub id of a fusion; uses its encoders")
    parser.add_argument(
        "--imported", metavar="NAME=DIR", nargs="+", default=[], help="features of other programs, one file per clip"
    )
    texts = documentation(ExtractionSettings)
    for field in fields(ExtractionSettings):
        if field.name not in _OWN:
            # argparse formats its help by %.
            text = texts[field.name].replace("`", "").replace("%", "%%").rstrip(".")
            name = "threads" if field.name == "num_threads" else field.name.replace("_", "-")
            parser.add_argument(f"--{name}", dest=field.name, help=text, **_option(field.type, field.default))
    add_label_options(parser.add_argument_group("labels and folds of lists and data sets"))
    parser.add_argument("--public", action="store_true", help="with --push-to-hub: make a new repository public")


def _option(annotation: Any, default: Any) -> dict[str, Any]:
    """How argparse reads a setting of a type."""
    if annotation is bool:
        return {"action": "store_true"}
    kinds = (annotation, *get_args(annotation))
    choices = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    if choices:
        return {"default": default, "choices": choices}
    number = next((kind for kind in (float, int) if kind in kinds), None)
    return {"default": default, "type": number or str, "metavar": "N" if number else "TEXT"}


def _features(arguments: argparse.Namespace) -> None:
    if arguments.public and arguments.push_to_hub is None:
        raise ValueError("--public needs --push-to-hub")
    encoders: dict[str, Any] = {}
    for name, value in _named_values(arguments.encoders, "--encoder", "MODEL[@REVISION]").items():
        model_id, _, revision = value.partition("@")
        encoders[name] = {"model_id": model_id, **({"revision": revision} if revision else {})}
    names = {field.name for field in fields(ExtractionSettings)}
    values = {
        name: value
        for name, value in vars(arguments).items()
        if name in names and (value is not None or name not in _LABELS)
    }
    values |= {
        "limits": dict(arguments.limits),
        "encoders": encoders,
        "imported": _named_values(arguments.imported, "--imported", "DIR"),
    }
    settings = ExtractionSettings(**values, hub_private=not arguments.public)

    from hf_blemo.extraction.run import extract_features

    result = extract_features(settings, report_line=lambda line: say(line, error=True))
    if result:
        widths = ", ".join(f"{name} {width}" for name, width in result["encoders"].items())
        clips = "1 clip" if result["clips"] == 1 else f"{result['clips']} clips"
        say(f"{clips}, {len(result['failed'])} failed; {widths}: {arguments.output_dir}")


def _named_values(texts: list[str], option: str, expected: str) -> dict[str, str]:
    """Parses arguments of the form NAME=VALUE."""
    values: dict[str, str] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not (name and sign and value):
            raise ValueError(f"{option} {text}: expected NAME={expected}")
        if name in values:
            raise ValueError(f"{option}: found {name!r} twice, expected different names")
        values[name] = value
    return values
