"""Values in Markdown: no name, setting or message is read as a tag, a link, the end of a cell or a block's marker."""

import re
from typing import Any

from markupsafe import Markup

from hf_blemo.errors import printable

_SPECIAL = re.compile(r"[\\|`\[\]~]")


def text(value: Any) -> Markup:
    """A value as the text that it is, in one line; Markdown that was made of such parts stays as it is."""
    if isinstance(value, Markup):
        return value
    return Markup(_SPECIAL.sub(r"\\\g<0>", _line(value)).replace("<", "&lt;"))


def code(value: Any) -> Markup:
    """A value between backticks, also in a table."""
    line = _line(value).replace("|", "\\|").replace("<!--", "<! --")
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    padding = " " if "`" in (line[:1], line[-1:]) else ""
    return Markup(f"{fence}{padding}{line}{padding}{fence}")


def command(value: Any) -> Markup:
    """A command as a line of a block of code."""
    return Markup(_line(value).lstrip("`~ ").replace("<!--", "<! --"))


def _line(value: Any) -> str:
    return printable(re.sub(r"\s+", " ", str(value)))
