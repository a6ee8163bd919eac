"""Every page keeps to 120 columns, imports from `hf_blemo` or from the top of a room, and runs as it stands."""

import argparse
import json
import re
from collections.abc import Iterator

import pytest
from fresh_processes import PACKAGE_FOLDER as ROOT

from hf_blemo.cli import _make_parser

PAGES = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")] + sorted(ROOT.glob("docs/*.md"))
MAX_COLUMNS = 120
DEEP_MODULE = re.compile(r"(?:from|import) hf_blemo(?:\.\w+){2,}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lines_are_short_and_imports_come_from_the_top_of_a_room(page):
    text = page.read_text(encoding="utf-8")
    assert [line for line in text.splitlines() if len(line) > MAX_COLUMNS] == []
    assert DEEP_MODULE.findall(text) == []


# Repositories that nobody has, which a reader would have to replace.
MADE_UP = re.compile(r"(?<!\$)\b(?:you|your[-\w]*|owner|user|username|somebody|me)/[\w.-]+", re.IGNORECASE)
BLOCK = re.compile(r"^ *```\w*\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


def helps(parser: argparse.ArgumentParser) -> Iterator[str]:
    """What a command and its subcommands say of themselves, examples included."""
    yield parser.description or ""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from helps(command)


def runnable() -> Iterator[tuple[str, str]]:
    """Where a reader finds lines to run, and these lines."""
    folders = ("*.md", "docs/**/*.md", "model_cards/*.jinja", "hf_blemo/**/*.py", "hf_blemo/built_in/model/*.md")
    for path in sorted(path for pattern in folders for path in ROOT.glob(pattern)):
        for block in BLOCK.findall(path.read_text(encoding="utf-8")):
            yield path.relative_to(ROOT).as_posix(), block
    for path in ROOT.glob("docs/**/*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        yield path.name, "".join(line for cell in cells if cell["cell_type"] == "code" for line in cell["source"])
    for text in helps(_make_parser()):
        yield "--help", "\n".join(line for line in text.splitlines() if line.startswith("  "))


def test_no_line_to_run_names_a_repository_that_nobody_has():
    found = [(where, MADE_UP.findall(lines)) for where, lines in runnable()]
    assert {where for where, _ in found} >= {
        "README.md",
        "docs/clips.md",
        "--help",
        "hf_blemo/built_in/model/README.md",
    }
    assert [(where, names) for where, names in found if names] == []
    for line in ("hf-blemo demo --model you/fusion", 'push("your-name/x")', "--repo Owner/name"):
        assert MADE_UP.search(line)
