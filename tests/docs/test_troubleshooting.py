"""Every error that the page on troubleshooting quotes is one that the package raises."""

import ast
import re
from collections.abc import Iterator
from functools import cache

import pytest
from fresh_processes import PACKAGE_FOLDER as ROOT

PAGE = ROOT / "docs" / "troubleshooting.md"
# Terms of the page that begin with a quote of the package's; others quote other libraries in words.
QUOTED = re.findall(r"^(`+)(.+)\1\n:", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
HOLE = "\0"


def texts(node: ast.expr) -> str:
    """What an expression of text says, with holes for what it fills in."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else HOLE for part in node.values)
    if isinstance(node, ast.BinOp):
        return texts(node.left) + texts(node.right)
    return HOLE


@cache
def messages() -> list[str]:
    """Every text in the package that is no docstring."""

    def of(tree: ast.Module) -> Iterator[str]:
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp) and id(node) not in docstrings:
                yield texts(node)

    paths = sorted(ROOT.glob("hf_blemo/**/*.py"))
    return [text for path in paths for text in of(ast.parse(path.read_text(encoding="utf-8")))]


def is_said(quote: str) -> bool:
    """Whether a text of the package reads like a quote, whose dots stand for what the text fills in."""
    pattern = ".*".join(re.escape(part) for part in quote.split("..."))
    return any(re.fullmatch(pattern, text, re.DOTALL) for text in messages())


@pytest.mark.parametrize("quote", [quote for _, quote in QUOTED])
def test_a_quoted_error_is_one_of_the_package(quote):
    assert is_said(quote)


def test_errors_that_nobody_raises_are_noticed():
    assert len(QUOTED) > 40
    assert not is_said("...: no such unicorn, expected one")
