"""The `hf-blemo` command: prediction, features, data sets, evaluation, submissions, publishing and export."""

import sys
from collections.abc import Sequence

from hf_blemo._registration import __version__
from hf_blemo.commands.dataset import add_dataset
from hf_blemo.commands.demo import add_demo
from hf_blemo.commands.evaluate import add_evaluate
from hf_blemo.commands.export import add_export
from hf_blemo.commands.features import add_features
from hf_blemo.commands.parsing import Parser
from hf_blemo.commands.predict import add_predict
from hf_blemo.commands.publish import add_publish
from hf_blemo.commands.submit import add_submit
from hf_blemo.errors import one_line_errors
from hf_blemo.files import limited
from hf_blemo.programs.progress import quiet_libraries


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: the arguments; those of the process by default.

    Returns:
        The exit code: 0, 2 after one line on stderr that says what is wrong, or 130 after Ctrl-C.
    """
    try:
        arguments = _make_parser().parse_args(argv)
        quiet_libraries()
        with one_line_errors(arguments.program), limited(dict(arguments.limits)):
            arguments.handler(arguments)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    return 0


def _make_parser() -> Parser:
    parser = Parser(
        prog="hf-blemo", description="Recognise blended emotions or any other labels by rank-aware fusion."
    )
    parser.add_argument("--version", action="version", version=f"hf_blemo {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    for add in (add_predict, add_demo, add_features, add_dataset, add_evaluate, add_submit, add_publish, add_export):
        add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
