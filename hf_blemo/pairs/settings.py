"""Settings of one source of image-caption pairs; importing them is light."""

from dataclasses import dataclass
from typing import Any

from huggingface_hub.dataclasses import strict

from hf_blemo.built_in import PAIRS


@strict
@dataclass
class PairSourceSettings:
    """One source of image-caption pairs.

    Args:
        data: `synthetic`, `emoji`, a Hub id, a folder (`save_to_disk`, Parquet, images with `metadata.csv`, WebDataset
            shards) or a file (.parquet, .csv with paths of images, .tar).
        weight: share of a batch, in proportion to the other sources' weights.
        split: of the data.
        name: configuration of a Hub data set.
        revision: commit, branch or tag of a Hub data set.
        image_column, caption_column: of the data; a column of captions may hold lists; each visit draws one. A caption
            column of None: pictures alone.
        streaming: read shards in turn instead of a table by row numbers.
        options: of the built-in data.
    """

    data: str
    weight: float | int = 1.0
    split: str = "train"
    name: str | None = None
    revision: str | None = None
    image_column: str = "image"
    caption_column: str | None = "caption"
    streaming: bool = False
    options: dict[str, Any] | None = None

    def __post_init__(self):
        if not self.weight > 0:
            raise ValueError(f"source {self.data!r}: weight must be above 0, found {self.weight}")
        if self.streaming and self.data in PAIRS:
            raise ValueError(f"source {self.data!r}: the built-in data is a table, found streaming")
