"""`hf-blemo submit`: makes and checks submissions to the challenge."""

import argparse
from typing import Any

from hf_blemo.commands.parsing import add_command, output_path
from hf_blemo.errors import say

_NUM_SHOWN_PROBLEMS = 20


def add_submit(commands: Any) -> None:
    """Adds `hf-blemo submit` to the subcommands that `add_subparsers` made."""
    parser = add_command(
        commands,
        "submit",
        _submit,
        "make a submission to the BlEmoRE challenge, or check one",
        """\
Reads predictions for exactly the 594 test clips and writes the zip that the challenge takes; or, with --check, reads
a submission and prints every problem.

Examples:
  hf-blemo submit --predictions out/predictions.json --output out/submission.zip
  hf-blemo submit --check out/submission.zip""",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--predictions", metavar="FILE", help="predictions (.json or .zip) to submit")
    source.add_argument("--check", metavar="FILE.zip", help="submission to check")
    parser.add_argument("--output", metavar="FILE.zip", help="submission to write; with --predictions")


def _submit(arguments: argparse.Namespace) -> None:
    from hf_blemo import blemore
    from hf_blemo.commands.prediction_files import read_prediction_file
    from hf_blemo.rank_aware_fusion.label_space_rank_aware_fusion import BLEMORE_SPACE, same_space

    if arguments.check is not None:
        if arguments.output is not None:
            raise ValueError("--output is for --predictions, --check writes nothing")
        problems = blemore.check_submission(arguments.check)
        for problem in problems[:_NUM_SHOWN_PROBLEMS]:
            say(problem)
        if len(problems) > _NUM_SHOWN_PROBLEMS:
            say(f"and {len(problems) - _NUM_SHOWN_PROBLEMS} more")
        if problems:
            raise ValueError(f"{arguments.check}: found {len(problems)} problems, expected a submission without any")
        say(f"{arguments.check}: a valid submission")
        return
    if arguments.output is None:
        raise ValueError("--predictions needs --output, the submission to write")
    output = output_path(arguments.output, "--output", ".zip")
    found = read_prediction_file(arguments.predictions)
    same_space(found.space, BLEMORE_SPACE, arguments.predictions, "the BlEmoRE challenge")
    if not found.official:
        raise ValueError(
            f"{arguments.predictions}: found distributions, expected blends: predict with another decoding"
        )
    predictions = found.blends
    path = blemore.write_submission(output, predictions, list(predictions.values()), strict=True)
    say(f"{path}: {len(predictions)} clips, ready to submit")
