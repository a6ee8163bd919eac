"""What the site makes of the package at each build: pages of its commands and of its public names, and notebooks."""

import argparse
import ast
import base64
import itertools
import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "hf_blemo"
FETCHED_WORKER = "https://unpkg.com/iframe-worker/shim"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages."""
    pages = {"reference/commands.md": commands_page()}
    pages |= {f"api/{room or 'top_level'}.md": room_page(room) for room in public_names()}
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        text = Path(file.abs_src_path or "").read_text(encoding="utf-8")
        pages[file.src_uri.replace(".ipynb", ".md")] = notebook_page(json.loads(text), Path(file.src_uri).name)
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to notebooks lead to their pages, those of their own downloads aside."""
    return markdown if page.file.src_uri.startswith("notebooks/") else markdown.replace(".ipynb)", ".md)")


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Takes the script that searches from disk from the site itself, where the theme would fetch one."""
    return output.replace(FETCHED_WORKER, get_relative_url("javascripts/worker.js", page.url))


def on_post_template(output_content: str, template_name: str, config: MkDocsConfig) -> str:
    """The same for the page that a server shows for a wrong address."""
    return output_content.replace(FETCHED_WORKER, "/javascripts/worker.js")


# Public names


def public_names() -> dict[str, list[str]]:
    """Room -> the names in its `__all__`; the room of the package's own is empty."""
    found = {}
    for path in sorted(PACKAGE.glob("**/__init__.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                found[".".join(path.parent.relative_to(PACKAGE).parts)] = ast.literal_eval(node.value)
    return found


def room_page(room: str) -> str:
    """The reference of one room: its docstring and each of its names."""
    module = f"hf_blemo.{room}" if room else "hf_blemo"
    options = "{heading_level: 1, members: false, show_root_full_path: true}"
    lines = ["---", f"title: {module}", "---", "", f"::: {module}", f"    options: {options}", ""]
    rooms = public_names()
    for name in rooms[room]:
        if name in rooms:
            lines += [f"## {name}", "", f"[The room `hf_blemo.{name}`]({name}.md) has a page of its own.", ""]
        else:
            lines += [f"::: {module}.{name}", ""]
    return "\n".join(lines)


# Commands


def commands_page() -> str:
    """The reference of `hf-blemo`, from its parsers."""
    from hf_blemo.cli import _make_parser

    lines = [
        "# Commands",
        "",
        "Every command has `--help`, shows its progress, and ends with code 2 and one line that says what is wrong.",
        "`hf-blemo recipes` lists the files of settings for `--config` of the training commands.",
        "",
    ]
    for parser in parsers(_make_parser()):
        parser.add_settings()
        lines += parser_section(parser)
    return "\n".join(lines)


def parsers(parser: Any) -> Iterator[Any]:
    """A parser's subcommands that do something, with theirs, in order."""
    inner = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not inner:
        yield parser
    for action in inner:
        for child in dict.fromkeys(action.choices.values()):
            yield from parsers(child)


def parser_section(parser: Any) -> list[str]:
    """The heading, description and arguments of a command."""
    lines = [f"## {parser.prog}", "", *description(parser.description or ""), ""]
    if parser.settings_class() is not None:
        from hf_blemo.programs.settings import described_settings

        lines += ["Settings, in the file of `--config` or on the command line:", ""]
        for name, kind, default, text in described_settings(parser.settings_class()):
            lines += [f"`--{name}` *{escaped(kind)}*, {escaped(default)}", f":   {literal(text)}", ""]
        return lines
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if action.help is not argparse.SUPPRESS]
        shown = [action for action in actions if not isinstance(action, argparse._HelpAction)]
        if not shown:
            continue
        if group.title not in ("positional arguments", "options"):
            lines += [f"**{group.title}**", "", *([group.description, ""] if group.description else [])]
        for action in shown:
            lines += [written(parser, action), f":   {escaped(parser._get_formatter()._expand_help(action))}", ""]
    return lines


def description(text: str) -> list[str]:
    """Paragraphs as they are; indented lines, which are examples and lists, as code."""
    lines: list[str] = []
    for indented, block in itertools.groupby(text.splitlines(), lambda line: line.startswith(" ")):
        found = list(block)
        lines += (
            ["", "```", *textwrap.dedent("\n".join(found)).splitlines(), "```", ""]
            if indented
            else map(escaped, found)
        )
    return lines


def written(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """An argument as one types it."""
    values = parser._get_formatter()._format_args(action, action.metavar or action.dest.upper())
    if not action.option_strings:
        return f"`{values}`"
    return "`" + ", ".join(f"{option} {values}".strip() for option in action.option_strings) + "`"


def escaped(text: str) -> str:
    """Text without what Markdown and HTML would take for theirs."""
    for mark in "\\`*_<[":
        text = text.replace(mark, "&lt;" if mark == "<" else f"\\{mark}")
    return text


def literal(text: str) -> str:
    """The text of a docstring, whose Markdown counts, without HTML."""
    return text.replace("<", "&lt;")


# Notebooks


def notebook_page(notebook: dict[str, Any], name: str) -> str:
    """A notebook as a page: its words, its code, and what the code printed and drew when it was stored."""
    lines: list[str] = []
    for cell in notebook["cells"]:
        text = "".join(cell["source"]).rstrip()
        if cell["cell_type"] == "markdown":
            lines += [text, ""]
            if len(lines) == 2:
                lines += [f"[Download this notebook]({name})", ""]
            continue
        lines += ["```python", text, "```", ""]
        for output in cell["outputs"]:
            lines += output_lines(output)
    return "\n".join(lines)


def output_lines(output: dict[str, Any]) -> list[str]:
    """What one output of a cell shows."""
    if output["output_type"] == "stream":
        return ["```text", "".join(output["text"]).rstrip(), "```", ""]
    data = output["data"]
    if "image/png" in data:
        picture = base64.b64encode(base64.b64decode("".join(data["image/png"]))).decode()
        return [f'<img src="data:image/png;base64,{picture}" alt="{"".join(data.get("text/plain", ""))}">', ""]
    return ["```text", "".join(data["text/plain"]).rstrip(), "```", ""]
