"""Every page keeps to 120 columns and imports only from `hf_blemo` or from the top of a room."""

import re

import pytest
from fresh_processes import PACKAGE_FOLDER as ROOT

PAGES = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")] + sorted(ROOT.glob("docs/*.md"))
MAX_COLUMNS = 120
DEEP_MODULE = re.compile(r"(?:from|import) hf_blemo(?:\.\w+){2,}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lines_are_short_and_imports_come_from_the_top_of_a_room(page):
    text = page.read_text(encoding="utf-8")
    assert [line for line in text.splitlines() if len(line) > MAX_COLUMNS] == []
    assert DEEP_MODULE.findall(text) == []
