"""Whether emoji can be drawn here, and few of them for tests: drawing all takes long."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import features

from hf_blemo.built_in import emoji_pairs


def _found() -> Path | None:
    try:
        return emoji_pairs._find_font()
    except FileNotFoundError:
        return None


FOUND = _found()
needs_font = pytest.mark.skipif(
    FOUND is None or not features.check("raqm") or not features.check("fribidi"),
    reason="needs the Debian packages fonts-noto-color-emoji and libfribidi0",
)


@pytest.fixture(scope="module")
def few_emoji() -> Iterator[list[emoji_pairs._Emoji]]:
    """Makes the Unicode tables short for a module: every eighth role, all faces, some flags, few others."""
    table = emoji_pairs._emoji_table()
    roles = sorted({emoji.role for emoji in table if emoji.kind == "role"})[::8]
    kept = [emoji for emoji in table if emoji.kind == "face" or (emoji.kind == "role" and emoji.role in roles)]
    kept += [emoji for emoji in table if emoji.kind == "other"][::40]
    kept += [emoji for emoji in table if emoji.kind == "flag" if emoji.caption[8] in "BNS"]
    pictures, pairs = emoji_pairs._drawn_pictures, emoji_pairs.make_emoji_pairs
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(emoji_pairs, "_emoji_table", lambda: kept)
        for cached in (pictures, pairs):
            cached.cache_clear()
        yield kept
    for cached in (pictures, pairs):
        cached.cache_clear()
