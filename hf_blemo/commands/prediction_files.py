"""What `hf-blemo predict` writes into a .json and the other commands read: predictions and what they are of."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_blemo.errors import check_once, reading, reads
from hf_blemo.feature_sets.label_spaces import label_space, space_entry, space_from_entry
from hf_blemo.files import read_json
from hf_blemo.rank_aware_fusion.label_space_rank_aware_fusion import BLEMORE_SPACE, UNLABELLED, Blend, LabelSpace

_SPACE_KEY = "label_space"


@dataclass
class Predictions:
    """Predictions of clips, and the labels that they are of.

    Args:
        blends: clip, without the suffix of a file, -> blend.
        space: names and valid labels.
        kind: of the labels that the model was trained on, `valid` or `soft`.
        presence_share: a name is present where its share is above this.
        soft: whether the blends are whole distributions.
        probabilities: clip -> (C,) shares that sum to 1; empty where the file has none.
    """

    blends: dict[str, Blend]
    space: LabelSpace = BLEMORE_SPACE
    kind: str = "valid"
    presence_share: float = 0.0
    soft: bool = False
    probabilities: dict[str, np.ndarray] | None = None

    @property
    def official(self) -> bool:
        """Whether they are blends of BlEmoRE."""
        return self.space == BLEMORE_SPACE and self.kind == "valid" and not self.soft


def described(config: Any) -> dict[str, Any]:
    """What a file of predictions says of the labels by a model's config; BlEmoRE's need not be said."""
    if config.label_space == BLEMORE_SPACE and config.label_kind == "valid":
        return {}
    entry = space_entry(config.label_space, config.label_kind)
    return {_SPACE_KEY: {**entry, "presence_share": config.presence_share}}


def true_labels(inputs: Any, space: LabelSpace) -> dict[str, Blend]:
    """Clip -> label, where labels of the space come with what was predicted; clips have none but those of their
    names."""
    if "labels" not in getattr(inputs, "column_names", ()):
        return {}
    found, kind = label_space(inputs)
    labels = zip(inputs["clip"], inputs["labels"], strict=True) if found == space else ()
    known = {clip: np.array(row) for clip, row in labels if row is not None and (np.array(row) != UNLABELLED).any()}
    if kind == "valid":
        return {clip: space.blend(int(space.nearest(row[None])[0])) for clip, row in known.items()}
    from hf_blemo.rank_aware_fusion.decoding_rank_aware_fusion import decode_soft

    return {clip: decode_soft(row[None], space)[0] for clip, row in known.items()}


@reads("predictions")
def read_prediction_file(path: str | Path) -> Predictions:
    """Reads predictions: a .json that `hf-blemo predict` or a training wrote, or a submission (.zip or .json), whose
    labels are BlEmoRE's."""
    from hf_blemo import blemore

    path = Path(path)
    content = _content(path)
    entry = content.get(_SPACE_KEY, {})
    space, kind = space_from_entry(entry, str(path)) if entry else (BLEMORE_SPACE, "valid")
    soft = (content.get("decoding") or {}).get("name") == "soft"
    found = Predictions({}, space, kind, float(entry.get("presence_share", 0.0)), soft)
    if found.official:
        found.blends = blemore.read_predictions(path)
        return found
    if not isinstance(content.get("predictions"), dict):
        raise ValueError(f"{path}: expected a JSON object {{'predictions': {{clip: prediction}}}}")
    for clip, blend in content["predictions"].items():
        with reading(f"{path}: clip {clip!r}", f"a prediction of {space}"):
            space.shares(blend, "soft" if soft else "valid")
        found.blends[blemore.clip_name(clip)] = blend
    check_once(f"{path}: clip", map(blemore.clip_name, content["predictions"]))
    # `hf-blemo predict` writes a list of results, training beside its predictions the shares of every clip.
    rows = content.get("shares") or {
        clip["clip"]: clip["probabilities"] for clip in content.get("clips") or () if "probabilities" in clip
    }
    rows = {blemore.clip_name(clip): row for clip, row in rows.items()}
    if found.blends and set(found.blends) <= set(rows):
        # Files hold rounded numbers.
        shares = {clip: np.array([rows[clip][name] for name in space.names]) for clip in found.blends}
        found.probabilities = {clip: row / row.sum() for clip, row in shares.items()}
    return found


def _content(path: Path) -> dict[str, Any]:
    """The object of a .json; empty for a .zip, and for nothing, which the reader of submissions refuses."""
    return read_json(path) if path.suffix == ".json" and path.is_file() else {}
