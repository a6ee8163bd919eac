"""`hf-blemo completion`: what a shell completes the command with."""

import argparse
from collections.abc import Iterator

from hf_blemo.commands.parsing import Parser, add_command
from hf_blemo.errors import check_extra

_SHELLS = ("bash", "zsh", "fish", "tcsh")


def add_completion(commands: "argparse._SubParsersAction[Parser]", root: Parser) -> None:
    """Adds `hf-blemo completion` to the subcommands of `root`, the parser of the whole command."""
    parser = add_command(
        commands,
        "completion",
        lambda arguments: _completion(arguments, root),
        "print what a shell completes commands, options, settings and recipes with (needs shtab)",
        """\
Reads nothing. Prints a script for the shell to source, which starts no Python when a key is pressed; print it anew
after an update.

Examples:
  hf-blemo completion bash
  hf-blemo completion zsh

To keep it: bash: hf-blemo completion bash > ~/.local/share/bash-completion/completions/hf-blemo
zsh: hf-blemo completion zsh > a folder of $fpath, as _hf-blemo
fish: hf-blemo completion fish > ~/.config/fish/completions/hf-blemo.fish""",
    )
    parser.add_argument("shell", choices=_SHELLS, help="shell that reads it")


def _completion(arguments: argparse.Namespace, root: Parser) -> None:
    check_extra("completion")
    import shtab

    for parser in _parsers(root):
        parser.add_settings()
    print(shtab.complete(root, arguments.shell))  # noqa: T201


def _parsers(parser: Parser) -> Iterator[Parser]:
    """A parser and those of its subcommands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from _parsers(child)
