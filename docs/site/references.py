"""An extension of griffe, which reads the docstrings for the reference."""

import re
from typing import Any

from griffe import Extension, Object


class PlainReferences(Extension):
    """Docstrings write other names of the package as [`name`]; the reference shows the name alone."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Called once for everything that was found in the package."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"\[(`[^`\]]+`)\](?!\()", r"\1", obj.docstring.value)
