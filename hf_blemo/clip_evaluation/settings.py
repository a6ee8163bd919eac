"""Settings of tasks to evaluate CLIP-like models on; importing them is light."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from huggingface_hub.dataclasses import strict

from hf_blemo.built_in import PAIRS, SYNTHETIC
from hf_blemo.clip_evaluation.standard_sets import STANDARD_SETS, standard_name
from hf_blemo.errors import check_extra, did_you_mean, listed
from hf_blemo.pairs.settings import PairSourceSettings
from hf_blemo.programs.settings import not_negative, settings_of


@strict
@dataclass
class TaskSettings:
    """Data and prompts of one task.

    Args:
        kind: `zero_shot` (images with labels), `retrieval` (images with captions), or `synthetic` or `emoji`, each
            several built-in tasks.
        data, split, name, revision: as for a source of pairs.
        image_column, caption_column, label_column: of the data; labels are class numbers or class names.
        classes: for `zero_shot`: a JSON file with `classes` and optionally `templates`, or a standard set, such as
            `food101`, whose names and templates clip_benchmark has; by default the names of the data's own labels.
        templates: prompts with `{}` for the class name; by default those of `classes`, or a few plain ones.
        limit: most images; 0 takes all.
        streaming: whether to read the first `limit` images from the shards instead of fetching the whole data set.
        options: of the built-in tasks: `seed`, `image_size`, `combinations`, and `images` of `synthetic` or `font` of
            `emoji`.
    """

    kind: Literal["zero_shot", "retrieval", "synthetic", "emoji"] = "retrieval"
    data: str = SYNTHETIC
    split: str = "test"
    name: str | None = None
    revision: str | None = None
    image_column: str = "image"
    caption_column: str = "caption"
    label_column: str = "label"
    classes: str | None = None
    templates: list[str] | None = None
    limit: int = not_negative(0)
    streaming: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if self.kind not in PAIRS and self.data in PAIRS:
            raise ValueError(f"kind {self.kind!r} needs data; the built-in tasks are of kind {self.data!r}")
        if self.streaming and not self.limit:
            raise ValueError("streaming needs limit, how many images to take from the stream")

    def source(self) -> PairSourceSettings:
        """Where images and their captions or labels are; not of a built-in kind."""
        return PairSourceSettings(
            **{key: getattr(self, key) for key in ("data", "split", "name", "revision", "image_column", "streaming")},
            caption_column=self.caption_column if self.kind == "retrieval" else self.label_column,
        )

    def check_place(self) -> None:
        """Checks that data and the table of classes, or the package with those of standard sets, are there."""
        if self.kind in PAIRS:
            return
        self.source().check_place()
        if standard_name(self.classes) is not None:
            check_extra("sets", f"classes {self.classes!r}")
        elif self.classes is not None and not Path(self.classes).is_file():
            hint = did_you_mean(self.classes, STANDARD_SETS) or f", expected {listed(STANDARD_SETS)}"
            raise FileNotFoundError(f"classes {self.classes!r}: neither a JSON file nor a standard set{hint}")


def check_tasks(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, TaskSettings]:
    """Task -> its settings of some entries, checked before anything is imported to read their data."""
    found = {name: settings_of(TaskSettings, entries, f"evaluation.{name}") for name, entries in settings.items()}
    for task in found.values():
        task.check_place()
    return found
