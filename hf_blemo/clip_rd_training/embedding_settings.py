"""Settings of the embedding of teachers."""

from dataclasses import dataclass, field

from hf_blemo.clip_rd_training.data_settings import PairDataSettings
from hf_blemo.pairs.teacher_store import check_teacher_name
from hf_blemo.programs.setting_checks import check_at_least_one, check_choices, check_repository


@dataclass
class EmbeddingSettings(PairDataSettings):
    """What `training/embed_teacher.py` reads from YAML and command line.

    Args:
        output_dir: of the store; an interrupted run of the same settings goes on where it stopped.
        teachers: name -> a folder or Hub id of any CLIP-like model of transformers, or `open_clip:NAME/PRETRAINED`;
            the name begins the columns of the store.
        revisions: name -> of a teacher on the Hub: a commit, branch or tag.
        image_size: pixels of the largest images that students will be trained on; with augmentation JPEGs are decoded
            for the largest of these and the teachers'. That of the largest teacher by default.
        batch_size: pairs at once.
        rows_per_shard: pairs of a shard.
        mixed_precision: of the towers: `no`, `bf16` or `fp16`; what is stored is float16 always.
        push_to_hub: data set repository (owner/name) to upload the store to, private where it is new.
    """

    output_dir: str = "out/teacher_store"
    teachers: dict[str, str] = field(default_factory=dict)
    revisions: dict[str, str] = field(default_factory=dict)
    batch_size: int = 64
    rows_per_shard: int = 4096
    mixed_precision: str = "no"
    push_to_hub: str | None = None

    def __post_init__(self):
        super().__post_init__()
        if not self.teachers:
            raise ValueError("teachers: expected at least one, as --teachers.NAME FOLDER_OR_HUB_ID")
        for name in self.teachers:
            check_teacher_name(name)
        for name in self.revisions:
            if name not in self.teachers:
                raise ValueError(f"revisions: no teacher {name!r}, found {', '.join(self.teachers)}")
        check_at_least_one(self, ("batch_size", "rows_per_shard"))
        check_choices(self, {"mixed_precision": ("no", "bf16", "fp16")})
        if self.augmentation and not self.augmentation.get("variants"):
            raise ValueError("augmentation.variants: expected the number of crops to embed of each image, at least 1")
        for source in self.pair_sources():
            if source.streaming:
                raise ValueError(f"data {source.data!r}: embeddings are found by row, which a stream does not have")
        check_repository("push_to_hub", self.push_to_hub)
