"""CITATION.cff follows version 1.2 of its format and says what the rest of the repository says."""

import re

import pytest
import yaml
from fresh_processes import PACKAGE_FOLDER as ROOT

from hf_blemo._registration import __version__

CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
PERSON, ENTITY = {"family-names", "given-names"}, {"name"}


def test_the_package_is_cited_as_it_is():
    assert CITATION["cff-version"] == "1.2.0" and CITATION["type"] == "software"
    assert {"message", "title", "authors"} <= set(CITATION)
    assert CITATION["authors"] == [{"name": "The hf_blemo contributors"}] and CITATION["license"] == "Apache-2.0"
    assert __version__.removesuffix(".dev0") == CITATION["version"]


@pytest.mark.parametrize("paper", CITATION["references"], ids=lambda paper: paper["title"][:30])
def test_a_paper_is_complete_and_on_the_page(paper):
    assert paper["type"] == "article" and isinstance(paper["year"], int) and paper["authors"]
    assert all(set(author) in (PERSON, ENTITY) for author in paper["authors"])
    [number] = re.findall(r"arxiv\.org/abs/([0-9.]+)$", paper["url"])
    assert [entry["value"] for entry in paper["identifiers"]] == [f"arXiv:{number}"]
    page = (ROOT / "docs" / "citing.md").read_text(encoding="utf-8")
    [entry] = [text for text in page.split("@misc") if number in text]
    assert f"year          = {{{paper['year']}}}" in entry
    assert all(
        author["family-names"].replace("ü", '{\\"u}') in entry for author in paper["authors"] if "name" not in author
    )
    plain = re.sub(r"[{}]|\s+", " ", entry)
    assert re.sub(r"\s+", "", paper["title"]) in re.sub(r"\s+", "", plain)


def test_every_paper_of_the_page_is_in_the_file():
    page = (ROOT / "docs" / "citing.md").read_text(encoding="utf-8")
    cited = {paper["url"].rsplit("/", 1)[1] for paper in CITATION["references"]}
    assert set(re.findall(r"eprint += \{([0-9.]+)\}", page)) == cited
