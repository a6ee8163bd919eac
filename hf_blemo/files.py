"""JSON files that are read with a clear error and written whole or not at all."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read_json(path: Path, where: str | None = None) -> dict[str, Any]:
    """Reads a JSON object.

    Args:
        path: of the file.
        where: what messages call it; its path by default.

    Raises:
        ValueError: the file is not JSON, or holds something other than an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{where or path}: expected JSON, found: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{where or path}: expected a JSON object, found {type(content).__name__}")
    return content


def write_json(contents: Mapping[Path, Any]) -> None:
    """Writes files so that each appears whole, and none before all of them could be written."""
    temporaries = {path: path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in contents}
    try:
        for path, content in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            temporaries[path].write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        for path, temporary in temporaries.items():
            os.replace(temporary, path)
    finally:
        for temporary in temporaries.values():
            temporary.unlink(missing_ok=True)
