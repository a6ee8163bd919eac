"""What the package brings along: data that it draws itself, and a small model of drawn clips.

[`load`] draws data, [`check_options`] checks its settings:

| kind | drawn by | as |
|---|---|---|
| `blends` | [`make_synthetic_blends`] | data set of features, labels and folds |
| `clips` | [`make_synthetic_clips`] | folder of films with sound |
| `synthetic` | [`make_synthetic_pairs`] | data set of drawn scenes with captions |
| `emoji` | [`make_emoji_pairs`] | data set of emoji with their names |

Nothing heavy is imported before something is drawn.

`MODEL` is the folder of a fusion with its encoders, for `pipeline("blended-emotion-recognition", model=MODEL)` and
`AutoModel.from_pretrained(MODEL)`; `CLIPS` are the paths of two clips for it. Both are drawn: the model says nothing
about recordings of people, as the card in its folder tells.
"""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_blemo._registration import lazy_names
from hf_blemo.errors import check_known

if TYPE_CHECKING:
    from hf_blemo.built_in.emoji_pairs import emoji_tokenizer, make_emoji_pairs
    from hf_blemo.built_in.random_encoder import save_random_speech_encoder
    from hf_blemo.built_in.synthetic_blends import SYNTHETIC_ENCODERS, make_synthetic_blends
    from hf_blemo.built_in.synthetic_clips import make_synthetic_clips
    from hf_blemo.built_in.synthetic_pairs import COLOURS, caption_of, draw_scene, make_synthetic_pairs
    from hf_blemo.built_in.synthetic_pairs import synthetic_tokenizer  # isort: skip

__all__ = [
    "CLIPS", "COLOURS", "EMOJI", "MODEL", "MODEL_NAME", "PAIRS", "SYNTHETIC", "SYNTHETIC_ENCODERS", "caption_of",
    "check_options", "draw_scene", "emoji_tokenizer", "load", "load_tokenizer", "make_emoji_pairs",
    "make_synthetic_blends", "make_synthetic_clips", "make_synthetic_pairs", "save_random_speech_encoder",
    "synthetic_tokenizer",
]  # fmt: skip

SYNTHETIC = "synthetic"
"""How settings name the drawn data."""
EMOJI = "emoji"
"""How settings name the emoji, which only programs of image-caption pairs know."""
PAIRS = (SYNTHETIC, EMOJI)
"""The built-in data of image-caption pairs."""

# Made by `training/make_built_in.py`.
_FOLDER = Path(__file__).parent / "model"
MODEL = str(_FOLDER)
"""The folder of a small fusion of drawn clips, with its encoders."""
MODEL_NAME = "built-in model (knows drawn clips only)"
"""How outputs name it."""
CLIPS = tuple(str(_FOLDER / "clips" / f"{name}.mp4") for name in ("A211_mix_hap_sad_30_70_ver1", "A207_fea_int1_ver1"))
"""Paths of two clips for it."""

_MAKERS = {
    "blends": "make_synthetic_blends",
    "clips": "make_synthetic_clips",
    SYNTHETIC: "make_synthetic_pairs",
    EMOJI: "make_emoji_pairs",
}
# Arguments that settings cannot give.
_PLACE = ("folder", "overwrite")

_DEFINERS = {
    "emoji_pairs": ("emoji_tokenizer", "make_emoji_pairs"),
    "random_encoder": ("save_random_speech_encoder",),
    "synthetic_blends": ("SYNTHETIC_ENCODERS", "make_synthetic_blends"),
    "synthetic_clips": ("make_synthetic_clips",),
    "synthetic_pairs": ("COLOURS", "caption_of", "draw_scene", "make_synthetic_pairs", "synthetic_tokenizer"),
}
__getattr__, __dir__ = lazy_names(
    __name__, {name: f"{__name__}.{module}" for module, names in _DEFINERS.items() for name in names}
)


def check_options(kind: str, options: Mapping[str, Any]) -> None:
    """Refuses settings that the built-in data does not have.

    Args:
        kind: see the table above.
        options: found in settings.

    Raises:
        ValueError: a name is unknown; the error names the nearest known one.
    """
    if options:
        known = set(inspect.signature(__getattr__(_MAKERS[kind])).parameters) - set(_PLACE)
        check_known(kind if kind in PAIRS else SYNTHETIC, options, sorted(known))


def load(kind: str, options: Mapping[str, Any] | None = None, **fixed: Any) -> Any:
    """Draws built-in data.

    Args:
        kind: see the table above.
        options: from settings, checked by [`check_options`].
        fixed: further arguments of the function that draws; they win over `options`.

    Returns:
        What that function returns.

    Raises:
        ValueError: an unknown option, or a value out of its range.
        MissingExtraError, FileNotFoundError, FileExistsError: see the function.
    """
    check_options(kind, options or {})
    return __getattr__(_MAKERS[kind])(**{**(options or {}), **fixed})


def load_tokenizer(kind: str) -> Any:
    """Makes the tokenizer of whole words for the captions of `synthetic` or `emoji`."""
    return __getattr__(f"{kind}_tokenizer")()
