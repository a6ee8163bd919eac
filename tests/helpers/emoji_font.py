"""Whether emoji can be drawn here."""

from pathlib import Path

import pytest
from PIL import features

from hf_blemo.built_in.emoji_pairs import find_emoji_font


def _found() -> Path | None:
    try:
        return find_emoji_font()
    except FileNotFoundError:
        return None


FOUND = _found()
needs_font = pytest.mark.skipif(
    FOUND is None or not features.check("raqm") or not features.check("fribidi"),
    reason="needs the Debian packages fonts-noto-color-emoji and libfribidi0",
)
