"""`hf-blemo recipes`: lists, shows and copies the files of settings that come with the package."""

import argparse
import shutil
from pathlib import Path
from typing import Any

from hf_blemo.commands.parsing import add_command
from hf_blemo.errors import did_you_mean, say
from hf_blemo.programs.recipes import described, recipes


def add_recipes(commands: Any) -> None:
    """Adds `hf-blemo recipes` to the subcommands that `add_subparsers` made."""
    parser = add_command(
        commands,
        "recipes",
        _recipes,
        "list, show or copy the files of settings of the training commands",
        """\
Reads nothing but what came with the package. Without NAME it lists all recipes, the command each is for, and what it
does; with NAME it prints that one, or copies it to a file or into a folder, to be changed there. --config of the
training commands takes a name as well as a file.

Examples:
  hf-blemo recipes
  hf-blemo recipes fusion_blemore
  hf-blemo recipes fusion_blemore --output my_fusion.yaml""",
    )
    parser.add_argument("name", metavar="NAME", nargs="?", help="recipe to print or copy")
    parser.add_argument("--output", metavar="PATH", type=Path, help="file or folder to copy it to")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")


def _recipes(arguments: argparse.Namespace) -> None:
    known, name, output = recipes(), arguments.name, arguments.output
    if name is None:
        if output is not None or arguments.overwrite:
            raise ValueError("--output and --overwrite need the NAME of a recipe")
        rows = [(name, *described(path)) for name, path in known.items()]
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        say(*(f"{name:<{widths[0]}}  {command:<{widths[1]}}  {line}" for name, command, line in rows))
        return
    path = known.get(name.removesuffix(".yaml"))
    if path is None:
        raise ValueError(f"unknown recipe {name!r}{did_you_mean(name, known)} (hf-blemo recipes lists all)")
    if output is None:
        if arguments.overwrite:
            raise ValueError("--overwrite needs --output")
        say(*path.read_text(encoding="utf-8").rstrip("\n").split("\n"))
        return
    if output.is_dir() or not output.suffix:
        output = output / path.name
    if output.exists() and not arguments.overwrite:
        raise FileExistsError(f"{output}: already exists; pass --overwrite to replace it, or another --output")
    output.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, output)
    command, _ = described(path)
    say(f"{output}: change it, then run hf-blemo {command} --config {output}")
