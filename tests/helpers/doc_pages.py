"""Reads the pages of the documentation: their programs, printed lines and commands."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_BLOCK = re.compile(r"^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
_DECIMAL = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")
_PROGRAM = re.compile(r"training/\w+\.py")


@dataclass(frozen=True)
class Page:
    """One page.

    Args:
        name: path from the root of the repository.
        program: its ```python blocks, joined.
        printed: the lines of its ```text blocks.
        commands: the words of each command of this package in its other blocks.
    """

    name: str
    program: str
    printed: tuple[str, ...]
    commands: tuple[tuple[str, ...], ...]


def read_pages() -> dict[str, Page]:
    """Pages by name: README.md and all of docs/."""
    paths = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    pages = [read_page(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")) for path in paths]
    return {page.name: page for page in pages}


def read_page(name: str, text: str) -> Page:
    """Reads a page.

    Args:
        name: of the page.
        text: its Markdown.
    """
    found: dict[str, list[str]] = {"python": [], "text": [], "": []}
    for block in _BLOCK.finditer(text):
        found.setdefault(block["language"], []).append(block["code"])
    commands = [command for code in found[""] + found.get("bash", []) for command in _commands(code)]
    return Page(name, "\n".join(found["python"]), tuple("".join(found["text"]).splitlines()), tuple(commands))


def _commands(code: str) -> list[tuple[str, ...]]:
    """Commands of this package, without comments, launchers and placeholders."""
    commands = []
    for line in code.replace("\\\n", " ").splitlines():
        # Brackets mark optional arguments; three dots stand for options shown before.
        line = re.sub(r"(--config )?\.\.\.(?= |$)", "", re.sub(r"\[(--.*?)\]", r"\1", line))
        words = shlex.split(line, comments=True)
        place = next((n for n, word in enumerate(words) if word == "hf-blemo" or _PROGRAM.fullmatch(word)), None)
        if place is not None:
            commands.append(tuple(words[place:]))
    return commands


def pattern_of(line: str) -> re.Pattern[str]:
    """Pattern of a printed line: any decimal fraction matches another, three dots match anything."""
    parts = [".*".join(map(re.escape, part.split("..."))) for part in _DECIMAL.split(line)]
    return re.compile(r"-?\d+\.\d+(?:e-?\d+)?".join(parts))


def missing_line(printed: tuple[str, ...], output: str) -> str | None:
    """The first printed line of a page that the output lacks, in this order.

    Args:
        printed: the lines of the page.
        output: output of its program; may contain other lines in between.
    """
    lines = iter(output.splitlines())
    for expected in printed:
        pattern = pattern_of(expected)
        if not any(pattern.fullmatch(line.strip()) for line in lines):
            return expected
    return None
