"""Recipes: the files of settings that come with the package."""

import re
from pathlib import Path

from hf_blemo.errors import did_you_mean

_PACKAGE = Path(__file__).resolve().parents[1]
# In an installed package, and in a checkout.
_FOLDERS = (_PACKAGE / "recipes", _PACKAGE.parent / "training" / "configs")
_COMMAND = re.compile(r"^#\s+hf-blemo ([\w-]+) ", re.MULTILINE)


def recipes() -> dict[str, Path]:
    """Name -> file of every recipe, in the order of their names."""
    folder = next((folder for folder in _FOLDERS if folder.is_dir()), _FOLDERS[0])
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def described(path: Path) -> tuple[str, str]:
    """What a recipe says of itself: the command that it is for, and its first line."""
    text = path.read_text(encoding="utf-8")
    command = _COMMAND.search(text)
    return command[1] if command else "", text.partition("\n")[0].lstrip("# ")


def find_settings(text: str) -> Path:
    """The file that `--config` names by its path or as a recipe."""
    path, known = Path(text), recipes()
    if path.is_file():
        return path
    if path.name == text and path.stem in known and path.suffix in ("", ".yaml", ".yml"):
        return known[path.stem]
    if path.stem in known:
        hint = f"; a recipe of that name comes with the package: --config {path.stem}"
    else:
        hint = f"{did_you_mean(path.stem, known)} (hf-blemo recipes lists all)"
    raise FileNotFoundError(f"{text}: no such file, expected settings in YAML or the name of a recipe{hint}")
