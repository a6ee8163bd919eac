"""`hf-blemo features`: clips to a data set of features."""

import argparse
import sys
from typing import Any

from hf_blemo.commands.parsing import add_command, positive
from hf_blemo.encoders.encoder_options import DTYPES, IMAGE_BACKENDS


def add_features(commands: Any) -> None:
    """Adds the subcommand.

    Args:
        commands: what `add_subparsers` returned.
    """
    parser = add_command(
        commands,
        "features",
        _features,
        "extract features of clips with pre-trained encoders (extra media)",
        """\
Reads SOURCE: a folder of clips, one clip, a .csv with a column video or audio of paths, a saved data set, a data set
on the Hub, or 'synthetic'. A folder with BlEmoRE's train_metadata.csv also gives labels and folds. Writes the folder
DIR, which the training program, hf-blemo predict and datasets.load_from_disk read. An interrupted run resumes with the
missing clips; a clip that cannot be read is reported and left out. For several GPUs and more settings, use
accelerate launch training/extract_features.py.

Examples:
  hf-blemo features clips/ --output out/features --encoder clip=openai/clip-vit-base-patch16 wavlm=microsoft/wavlm-base
  hf-blemo features clips/ --output out/features --model owner/fusion""",
    )
    parser.add_argument("source", metavar="SOURCE", help="clips")
    parser.add_argument("--output", metavar="DIR", required=True, help="data set to make")
    encoders = parser.add_mutually_exclusive_group(required=True)
    encoders.add_argument(
        "--encoder",
        metavar="NAME=MODEL[@REVISION]",
        nargs="+",
        help="encoders: folder or Hub id of any image, video or audio model of transformers",
    )
    encoders.add_argument("--model", metavar="MODEL", help="folder or Hub id of a fusion; uses its encoders")
    parser.add_argument(
        "--imported", metavar="NAME=DIR", nargs="+", default=[], help="features of other programs, one file per clip"
    )
    parser.add_argument(
        "--frames-per-second", type=float, metavar="N", help="frames sampled per second (default: every frame)"
    )
    parser.add_argument(
        "--image-backend",
        choices=IMAGE_BACKENDS,
        help="how to resize frames: exact (pil, the default) or fast (torchvision)",
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="precision of the encoders (default: float32)"
    )
    parser.add_argument(
        "--threads", type=positive, metavar="N", help="clips decoded at once (default: half the cores)"
    )
    parser.add_argument("--split", default="train", help="split of a data set on the Hub (default: train)")
    parser.add_argument("--video-column", metavar="NAME", help="video column of a list or data set")
    parser.add_argument("--audio-column", metavar="NAME", help="audio column of a list or data set")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing data set at DIR")
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run code of an encoder's repository, pinned by a commit"
    )
    parser.add_argument("--push-to-hub", metavar="OWNER/NAME", help="also upload it as a Hub data set, private")
    parser.add_argument("--public", action="store_true", help="with --push-to-hub: make a new repository public")


def named_values(texts: list[str], option: str, expected: str) -> dict[str, str]:
    """Parses arguments of the form NAME=VALUE.

    Args:
        texts: of the command line.
        option: that took them.
        expected: what the value is.

    Returns:
        Name -> value.

    Raises:
        ValueError: a text is not of this form, or a name comes twice.
    """
    values: dict[str, str] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not (name and sign and value):
            raise ValueError(f"{option} {text}: expected NAME={expected}")
        if name in values:
            raise ValueError(f"{option}: found {name!r} twice, expected different names")
        values[name] = value
    return values


def _features(arguments: argparse.Namespace) -> None:
    if arguments.public and arguments.push_to_hub is None:
        raise ValueError("--public needs --push-to-hub")
    encoders: dict[str, Any] = {}
    for name, value in named_values(arguments.encoder or [], "--encoder", "MODEL[@REVISION]").items():
        model_id, _, revision = value.partition("@")
        encoders[name] = {"model_id": model_id, **({"revision": revision} if revision else {})}
    imported = named_values(arguments.imported, "--imported", "DIR")

    from hf_blemo.extraction.settings import ExtractionSettings

    settings = ExtractionSettings(
        data=arguments.source,
        output_dir=arguments.output,
        encoders=encoders,
        model=arguments.model,
        imported=imported,
        frames_per_second=arguments.frames_per_second,
        image_backend=arguments.image_backend,
        split=arguments.split,
        video_column=arguments.video_column,
        audio_column=arguments.audio_column,
        dtype=arguments.dtype,
        num_threads=arguments.threads or 0,
        overwrite=arguments.overwrite,
        trust_remote_code=arguments.trust_remote_code,
        push_to_hub=arguments.push_to_hub,
        hub_private=not arguments.public,
    )

    from hf_blemo.extraction.run import extract_features

    result = extract_features(settings, report_line=lambda line: print(line, file=sys.stderr))
    if result:
        widths = ", ".join(f"{name} {width}" for name, width in result["encoders"].items())
        print(f"{result['clips']} clips, {len(result['failed'])} failed; {widths}: {arguments.output}")
