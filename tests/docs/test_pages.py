"""Every page keeps to 120 columns."""

import pytest
from doc_pages import ROOT

PAGES = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")] + sorted(ROOT.glob("docs/*.md"))
MAX_COLUMNS = 120


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lines_are_short(page):
    text = page.read_text(encoding="utf-8")
    assert [line for line in text.splitlines() if len(line) > MAX_COLUMNS] == []
