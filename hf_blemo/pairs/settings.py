"""Settings of one source of image-caption pairs; importing them is light."""

from dataclasses import dataclass
from typing import Any

from huggingface_hub.dataclasses import strict

from hf_blemo.built_in import PAIRS
from hf_blemo.errors import check_extra, check_regular
from hf_blemo.loading import find_config, is_hub_id, local_path

OPEN_CLIP = "open_clip:"
STORE_FILE = "store.json"
# Suffix of a file -> its builder in `datasets`, which looks into folders itself.
READERS = {".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".tar": "webdataset", ".arrow": "arrow"}


@strict
@dataclass
class PairSourceSettings:
    """One source of image-caption pairs; data, columns and `streaming` are as the programs' settings have them.

    Args:
        weight: share of a batch, in proportion to the other sources' weights.
        name: configuration of a Hub data set.
        revision: commit, branch or tag of a Hub data set.
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

    def check_place(self) -> None:
        """Checks that the data is there, where that can be seen without reading it."""
        if self.data in PAIRS:
            return
        where = f"data {self.data!r}"
        path = local_path(self.data, where)
        if path is not None:
            check_regular(path, "images with captions")
        if path is not None and path.is_file() and path.suffix not in READERS:
            raise ValueError(f"{where}: found a file {path.suffix!r}, expected one of {', '.join(READERS)}")


def check_clip(source: str, what: str, revision: str | None = None) -> None:
    """Checks that a CLIP-like model is there, as [`load_clip`] takes it, before anything large is imported for it."""
    if source.startswith(OPEN_CLIP):
        check_extra("openclip", f"{what} {source}", load=False)
    else:
        find_config(source, f"{what} {source!r}", revision if is_hub_id(source) else None)
