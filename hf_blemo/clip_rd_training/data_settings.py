"""Settings of the image-caption pairs that training and the embedding of a teacher read."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from hf_blemo import built_in
from hf_blemo.errors import check_known
from hf_blemo.pairs.pair_sources import PairSourceSettings
from hf_blemo.programs.setting_checks import check_at_least_one, check_not_negative

AUGMENTATION = ("scale", "ratio", "flip", "variants", "seed")


@dataclass
class PairDataSettings:
    """Which pairs are read, and how.

    Args:
        data: `synthetic`, `emoji`, a Hub id, a folder (`save_to_disk`, Parquet, images with `metadata.csv`, WebDataset
            shards) or a file (.parquet, .csv with paths of images, .tar).
        split: of the data.
        image_column, caption_column: of the data; those of WebDataset shards are found without being named. A column
            of captions may hold lists, of which each visit of an image draws one.
        streaming: whether to read shards in turn instead of a table by row numbers.
        sources: several data sets instead of `data`, each a dict with `data` and, as needed, `weight` (its share of
            every batch), `split`, `name`, `revision`, `image_column`, `caption_column`, `streaming`, `options`.
        shuffle_block: consecutive pairs of a stream that are shuffled among each other; the order of the shards is
            random, too.
        num_workers: processes that read and decode, per training process; 0 reads in the training process.
        max_broken_share: pairs that cannot be read are left out, counted and reported; a larger share of them than
            this ends the run.
        augmentation: of RandomResizedCrop: `scale` (share of the area, [0.9, 1.0]), `ratio` (of width to height,
            [0.75, 1.3333]), `flip` (probability, 0), `variants` (different crops per image, 0 for a new one on every
            visit) and `seed`. Empty: the image processors' own resizing and cropping, without chance.
        image_size: pixels of a new student; that of its vision tower's config by default, else 224.
        synthetic, emoji: settings of the built-in pairs.
    """

    data: str = built_in.SYNTHETIC
    split: str = "train"
    image_column: str = "image"
    caption_column: str = "caption"
    streaming: bool = False
    sources: list[dict[str, Any]] = field(default_factory=list)
    shuffle_block: int = 1000
    num_workers: int = 0
    max_broken_share: float = 0.05
    augmentation: dict[str, Any] = field(default_factory=dict)
    image_size: int | None = None
    synthetic: dict[str, Any] = field(default_factory=dict)
    emoji: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        check_at_least_one(self, ("shuffle_block",))
        check_not_negative(self, ("num_workers",))
        if not 0 <= self.max_broken_share <= 1:
            raise ValueError(f"max_broken_share must be from 0 to 1, found {self.max_broken_share}")
        check_known("augmentation", self.augmentation, AUGMENTATION)
        # As JSON gives it back: a store and the checkpoints of a run are compared with what they were made with.
        self.augmentation = {
            name: list(value) if isinstance(value, tuple) else value for name, value in self.augmentation.items()
        }
        for name in ("variants", "seed"):
            value = self.augmentation.get(name, 0)
            if not isinstance(value, int) or value < 0:
                raise ValueError(f"augmentation.{name} must be a whole number of at least 0, found {value!r}")
        for name in built_in.PAIRS:
            built_in.check_options(name, getattr(self, name))
        if self.sources and self.data != built_in.SYNTHETIC:
            raise ValueError(
                f"data {self.data!r}: sources are given, too, {len(self.sources)} of them; expected one of both "
                "(--sources '[]' leaves those of a config out)"
            )
        for source in self.pair_sources():
            if source.data in built_in.PAIRS:
                built_in.check_options(source.data, source.options or {})

    def pair_sources(self) -> list[PairSourceSettings]:
        """The settings of every source."""
        if self.sources:
            return [PairSourceSettings.from_dict(entry) for entry in self.sources]
        names = {entry.name for entry in fields(PairSourceSettings)} & {entry.name for entry in fields(self)}
        options = getattr(self, self.data) if self.data in built_in.PAIRS else None
        return [PairSourceSettings(**{name: getattr(self, name) for name in names}, options=options)]

    def described_sources(self) -> list[dict[str, Any]]:
        """The settings of every source as plain values."""
        # No options and an empty dict of them are the same data.
        return [{**asdict(source), "options": source.options or None} for source in self.pair_sources()]
