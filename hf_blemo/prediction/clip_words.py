"""How reports, the page and the terminal say what a model predicts: words, names and colours."""

from collections.abc import Mapping, Sequence
from typing import Any

from hf_blemo.rank_aware_fusion.label_space_rank_aware_fusion import EMOTIONS

EMOTION_NAMES = {
    "ang": "anger",
    "disg": "disgust",
    "fea": "fear",
    "hap": "happiness",
    "sad": "sadness",
    "neu": "neutral",
}
LIMITS = (
    "A prediction says what a clip resembles among acted recordings, not what somebody feels. It knows six emotions "
    "and blends of two of them; do not use it to judge people."
)

# Fills of names other than BlEmoRE's, on light and on dark paper. The first eight stay apart for every kind of sight,
# as a test measures; the names themselves always stand beside them.
_COLOURS = (
    *(("#3b62a3", "#7c96d7"), ("#fea314", "#feb014"), ("#f11455", "#e41455"), ("#2ecabd", "#14f1ca")),
    *(("#3b4814", "#7c3bca"), ("#a36ffe", "#d7e489"), ("#7c2155", "#a34889"), ("#cabd62", "#bd5514")),
    *(("#bd5514", "#148962"), ("#bdb0fe", "#febdfe"), ("#3b96b0", "#3bb0bd"), ("#482e96", "#a389fe")),
    *(("#89ca89", "#fe8996"), ("#d72e7c", "#b09648"), ("#147c3b", "#b014a3"), ("#ca3bca", "#a3f155")),
    *(("#d76f7c", "#f15596"), ("#623b7c", "#62622e"), ("#ca962e", "#3b6ffe"), ("#fe6fd7", "#f1bd96")),
    *(("#1462f1", "#96a314"), ("#a31421", "#1462a3"), ("#7c2ebd", "#7cbd6f"), ("#897ce4", "#62d762")),
)
_MAX_WORDS = 4
_LEAST_WORD = 5.0


def title(names: Sequence[str] = EMOTIONS) -> str:
    """What a report is headed by, given the names that the model predicts in order."""
    return "Blended emotions" if is_blemore(names) else "Predictions"


def limits(names: Sequence[str] = EMOTIONS) -> str:
    """Says what predictions of these names are not good for."""
    if is_blemore(names):
        return LIMITS
    return (
        "A prediction says what a clip resembles among the data that the model was trained on. It knows "
        f"{len(names)} classes ({', '.join(names)}) and nothing else; do not use it to judge people."
    )


def blend_words(blend: Sequence[Mapping[str, Any]], names: Sequence[str] = EMOTIONS) -> str:
    """Says a blend in words: "70 % happiness, 30 % sadness", the name alone, or "no emotion" for an empty one.

    Of a whole distribution the largest parts are said. BlEmoRE's names are written out, others are said as they are.
    """
    spelled = EMOTION_NAMES if is_blemore(names) else {}
    if len(blend) < 2:
        return spelled.get(blend[0]["emotion"], blend[0]["emotion"]) if blend else "no emotion"
    parts, others = list(blend), 0.0
    if is_soft(blend, names):
        parts = sorted(blend, key=lambda part: -part["salience"])
        parts = [part for part in parts[:_MAX_WORDS] if part["salience"] >= _LEAST_WORD] or parts[:1]
        others = 100 - sum(part["salience"] for part in parts)
    words = [f"{part['salience']:.0f} % {spelled.get(part['emotion'], part['emotion'])}" for part in parts]
    return ", ".join([*words, f"{others:.0f} % others"] if others >= 0.5 else words)


def is_blemore(names: Sequence[str]) -> bool:
    return tuple(names) == EMOTIONS


def is_soft(blend: Sequence[Mapping[str, Any]], names: Sequence[str]) -> bool:
    """Whether a blend is a whole distribution: those of valid labels have whole per cents above 0."""
    shares = [part["salience"] for part in blend]
    return len(shares) == len(names) and any(share == 0 or share != round(share) for share in shares)


def names_of(results: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """What the model of some results predicts; BlEmoRE's names where all have failed."""
    return next((tuple(result["probabilities"]) for result in results if "error" not in result), EMOTIONS)


def heading_of(blends: Sequence[Sequence[Mapping[str, Any]]], names: Sequence[str]) -> str:
    """What a column of predictions is headed by."""
    if any(is_soft(blend, names) for blend in blends):
        return "Shares"
    return "Blend" if is_blemore(names) or any(len(blend) > 1 for blend in blends) else "Class"


def colours_of(names: Sequence[str]) -> dict[str, str]:
    """Name -> the end of its variable in the styles."""
    if is_blemore(names):
        return {name: name for name in names}
    return {name: f"c{place % len(_COLOURS)}" for place, name in enumerate(names)}


def bar_parts(blend: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """The parts of a bar."""
    colours = colours_of(names)
    return [
        {"salience": round(part["salience"], 3), "colour": colours[part["emotion"]]}
        for part in blend
        if part["salience"] >= 0.5
    ]


def fills(names: Sequence[str]) -> Sequence[tuple[str, str]]:
    """The fills that the styles define beside those of BlEmoRE."""
    return () if is_blemore(names) else _COLOURS[: len(names)]


def verdict(blend: Sequence[Mapping[str, Any]], truth: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """Whether a prediction is "right", "wrong", or "shares differ" where the names alone are right; of
    distributions the largest names are compared."""
    if is_soft(blend, names) or is_soft(truth, names):
        largest = [max(label, key=lambda part: part["salience"])["emotion"] for label in (blend, truth)]
        return "right" if largest[0] == largest[1] else "wrong"
    found, true = ({part["emotion"]: part["salience"] for part in label} for label in (blend, truth))
    return "right" if found == true else "shares differ" if set(found) == set(true) else "wrong"


def share(value: float) -> dict[str, Any]:
    # Sums of rounded numbers can be a little above 1.
    return {"share": min(value, 1.0), "text": f"{100 * min(value, 1.0):.1f} %"}
