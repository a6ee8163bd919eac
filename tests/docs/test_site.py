"""The site builds without a warning, shows every public name and every option, and needs no network to be read."""

import os
import re
import subprocess
import sys
import zlib
from dataclasses import fields
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
from browser import MISSING, Browser
from fresh_processes import PACKAGE_FOLDER as ROOT

from hf_blemo.cli import _make_parser

pytestmark = pytest.mark.skipif(find_spec("mkdocs") is None, reason='mkdocs is not installed: extra "docs"')


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def rooms() -> list[str]:
    """Modules that list public names."""
    names = [path.parent.relative_to(ROOT).as_posix() for path in ROOT.glob("hf_blemo/**/__init__.py")]
    modules = [import_module(name.replace("/", ".")) for name in sorted(names)]
    return [module.__name__ for module in modules if hasattr(module, "__all__")]


@pytest.mark.parametrize("room", rooms())
def test_every_public_name_has_a_place_in_the_reference(room, site):
    inventory = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    places = {line.split()[0]: line.split()[3] for line in zlib.decompress(inventory).decode().splitlines()}
    for name in import_module(room).__all__:
        page, _, anchor = places[f"{room}.{name}"].replace("$", f"{room}.{name}").partition("#")
        _, found, text = (site / page).read_text(encoding="utf-8").partition(f'id="{anchor}"')
        assert found, f"{room}.{name} has no place"
        assert "<p>" in text.split("<h2")[0], f"{room}.{name} is not described"


def test_every_command_and_option_is_in_the_reference(site):
    page = re.sub("<[^>]*>", "", (site / "reference" / "commands.html").read_text(encoding="utf-8"))
    [commands] = [action.choices for action in _make_parser()._actions if isinstance(action.choices, dict)]
    assert "predict" in commands
    for name, parser in commands.items():
        assert f"hf-blemo {name}" in page
        settings = parser.settings_class()
        options = [f"--{field.name}" for field in fields(settings)] if settings else parser._option_string_actions
        for option in options:
            assert option in page or option in ("-h", "--help"), f"{name} {option}"


def test_pages_fetch_nothing(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    for path in [*pages, *site.rglob("*.css")]:
        text = path.read_text(encoding="utf-8")
        fetched = re.findall(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"?(https?:[^\" >]*)", text)
        fetched += re.findall(r"<link\b[^>]*rel=\"?(?:stylesheet|preconnect|icon)[^>]*href=\"?(https?:[^\" >]*)", text)
        assert fetched + re.findall(r"url\(\"?(https?:[^)]*)", text) == [], path


@pytest.mark.skipif(bool(MISSING), reason=MISSING)
def test_the_site_is_read_and_searched_from_disk(site):
    with Browser() as browser:
        browser.open(site / "index.html")
        browser.click("[data-md-component=search-query]")
        browser.run(
            "const field = document.querySelector('[data-md-component=search-query]');"
            "field.value = 'fit_thresholds'; field.dispatchEvent(new Event('keyup'))"
        )
        browser.wait_for("return document.querySelectorAll('.md-search-result__item').length > 0")
        assert "fit_thresholds" in browser.run("return document.querySelector('.md-search-result__list').innerText")
        for page in ("index", "api/blemore", "reference/commands", "results"):
            browser.open(site / f"{page}.html", width=360)
            assert browser.run("return document.documentElement.scrollWidth") <= 360, page
        assert browser.console() == []
        assert [address for address in browser.requests() if not address.startswith("file:")] == []
