"""`hf-blemo publish`: uploads a model's folder to the Hub."""

import argparse
import sys
from typing import Any

from hf_blemo.commands.parsing import add_command, refuse_options, repository
from hf_blemo.errors import say


def add_publish(commands: Any) -> None:
    """Adds `hf-blemo publish` to the subcommands that `add_subparsers` made."""
    parser = add_command(
        commands,
        "publish",
        _publish,
        "check a model's folder and upload it to the Hub",
        """\
Reads FOLDER, written by a training program or by save_pretrained of model and processor. Without --repo it prints
the files to upload, or what is missing, and changes nothing. With --repo it updates the card README.md from
metrics.json and uploads model, processor, code, card, metrics and plots in one commit.

Example, where ME is your name on the Hub:
  hf-blemo publish out/fusion --repo "$ME/fusion" --tag v1""",
    )
    parser.add_argument("folder", metavar="FOLDER", help="the model's folder")
    parser.add_argument("--repo", metavar="OWNER/NAME", type=repository, help="repository; a new one is private")
    parser.add_argument("--public", action="store_true", help="make a new repository public")
    parser.add_argument("--tag", help="git tag to set on the commit")
    parser.add_argument(
        "--license",
        metavar="ID",
        help="licence of code and weights, such as cc-by-nc-4.0 (default: the card's; a terminal asks once)",
    )
    parser.add_argument("--message", help="commit message")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request instead of committing")


def _asked(folder: str, repo_id: str) -> str | None:
    """The licence that somebody at a terminal chooses, where no card states one; the card keeps it."""
    from hf_blemo.hub.publishing import known_license

    if not (sys.stdin.isatty() and sys.stderr.isatty()) or known_license(folder, repo_id) is not None:
        return None
    say(
        "No licence is stated. Choose one within those of your data and of what you started from, such as apache-2.0, "
        "cc-by-4.0, cc-by-nc-4.0 or other; without one nobody else may use the model.",
        error=True,
    )
    return input("licence (Enter for none): ").strip() or None


def _publish(arguments: argparse.Namespace) -> None:
    from hf_blemo.hub import files_to_publish, publish
    from hf_blemo.hub.uploads import hub_errors

    if arguments.repo is None:
        refuse_options(arguments, ["public", "tag", "license", "message", "create_pr"], "needs --repo")
        files = files_to_publish(arguments.folder)
        say(f"{arguments.folder} can be published; with --repo these files would be uploaded:")
        say(*(f"  {name}" for name in files))
        return
    with hub_errors(f"{arguments.folder} was not published to {arguments.repo}"):
        license = arguments.license or _asked(arguments.folder, arguments.repo)
        address = publish(
            arguments.folder,
            arguments.repo,
            private=not arguments.public,
            create_pr=arguments.create_pr,
            message=arguments.message,
            tag=arguments.tag,
            license=license,
        )
    say(address)
