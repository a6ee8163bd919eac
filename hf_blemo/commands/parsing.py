"""What the parsers of the subcommands share."""

import argparse
from pathlib import Path
from typing import Any


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` with one-line errors, without the usage before them."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options)

    def error(self, message: str) -> Any:
        """Ends the program with the message."""
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def add_command(commands: Any, name: str, handler: Any, summary: str, details: str) -> argparse.ArgumentParser:
    """Adds a subcommand.

    Args:
        commands: what `add_subparsers` returned.
        name: of the subcommand.
        handler: called with the arguments.
        summary: one line for the list of commands.
        details: what it reads and writes, with an example.

    Returns:
        Its parser.
    """
    parser = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.\n\n{details}")
    parser.set_defaults(handler=handler, program=parser.prog)
    return parser


def positive(text: str) -> int:
    """A whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"found {text}, expected at least 1")
    return number


def output_path(text: str, option: str, *suffixes: str) -> Path:
    """Checks a file to write.

    Args:
        text: its path.
        option: that named it.
        suffixes: it may have.

    Returns:
        The path.

    Raises:
        ValueError: it has another suffix.
        IsADirectoryError: it is a folder.
    """
    path = Path(text)
    if path.suffix not in suffixes:
        raise ValueError(f"{option} {text}: expected the suffix {' or '.join(suffixes)}")
    if path.is_dir():
        raise IsADirectoryError(f"{option} {text}: found a folder, expected a file to write")
    return path
