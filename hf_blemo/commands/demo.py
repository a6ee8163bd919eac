"""`hf-blemo demo`: a local page for trying clips."""

import argparse
from pathlib import Path
from typing import Any

from hf_blemo import built_in
from hf_blemo.commands.parsing import (
    add_command,
    add_encoder_options,
    add_fusion_options,
    encoder_options,
    is_built_in,
    positive,
)
from hf_blemo.encoders.encoder_options import check_encoders, with_faces
from hf_blemo.errors import check_extra
from hf_blemo.programs.start import importing


def add_demo(commands: Any) -> None:
    """Adds `hf-blemo demo` to the subcommands that `add_subparsers` made."""
    parser = add_command(
        commands,
        "demo",
        _demo,
        "serve a local page for trying clips (extras demo and media)",
        """\
Reads a fusion with its processor, and the encoders that its config names. The page shows a clip's blend, the
probabilities of presence and salience, the encoder weights and, for long clips, the timeline. Only this machine
reaches it, and it loads nothing from the internet.

Examples:
  hf-blemo demo --built-in
  hf-blemo demo --model out/fusion""",
    )
    add_fusion_options(parser)
    parser.add_argument("--host", default="127.0.0.1", help="interface to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=positive, metavar="N", help="default: first free port from 7860")
    parser.add_argument("--open", action="store_true", help="show the page in the browser")
    parser.add_argument("--example", metavar="CLIP", nargs="+", default=[], help="clips to offer on the page")
    add_encoder_options(parser)


def _demo(arguments: argparse.Namespace) -> None:
    name = built_in.MODEL_NAME if is_built_in(arguments) else arguments.model
    examples = [*arguments.example, *(built_in.CLIPS if is_built_in(arguments) else ())]
    for example in arguments.example:
        if not Path(example).is_file():
            raise FileNotFoundError(f"--example {example}: no such file, expected a clip")
    check_extra("media", load=False)
    check_extra("demo", load=False)

    from hf_blemo.prediction.fusion_files import find_fusion

    files = find_fusion(arguments.model, arguments.revision)
    check_encoders(with_faces(files.encoders, arguments.person, arguments.detector), files.folder)

    from hf_blemo.prediction.demo_page import check_free, launch_demo, make_demo

    check_free(arguments.host, arguments.port)
    with importing():
        from hf_blemo.prediction.clip_report import NUM_THUMBNAILS
        from hf_blemo.prediction.clips import fusion_encoders, predict_clips
        from hf_blemo.prediction.fusion import load_fusion

    member = load_fusion(files)
    encoders = fusion_encoders([member], **encoder_options(arguments))

    def recognise(path: str) -> list[dict[str, Any]]:
        return list(predict_clips([path], [member], encoders, num_thumbnails=NUM_THUMBNAILS))

    demo = make_demo(recognise, name, examples, member[0].config.label_space.names)
    launch_demo(demo, arguments.host, arguments.port, arguments.open)
