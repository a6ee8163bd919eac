"""Settings of the comparison of distillation methods."""

from dataclasses import dataclass, field
from typing import Any

from hf_blemo.clip_rd_training.settings import DistillationSettings

CLIP_KD = ("task", "fd", "icl", "hrd")
VERTICAL = ("vrd", "vrd_image", "vrd_text")
METHODS = {
    "no distillation": ("task",),
    "affinity mimicking": ("task", "hrd"),
    "CLIP-KD": CLIP_KD,
    "CLIP-KD + vertical relations": (*CLIP_KD, *VERTICAL),
    "CLIP-KD + cross relations": (*CLIP_KD, "xrd"),
    "CLIP-RD": (*CLIP_KD, *VERTICAL, "xrd"),
}


@dataclass
class ComparisonSettings(DistillationSettings):
    """What `training/compare_distillation.py` reads: the settings of every student; its data is the built-in one.

    Args:
        output_dir: where teacher, students and the tables go, method by method.
        teacher: a folder; by default one is trained there first, without distillation.
        teacher_config: entries of `student_config` that differ in the teacher.
        teacher_steps: how long it is trained.
        seeds: one student of every method each.
        evaluation_pairs: drawn scenes to evaluate on, of the drawn combinations and of the held-out ones.
        resume: whether to keep the students that `output_dir` has from a run of the same settings.
    """

    output_dir: str = "out/comparison"
    teacher_config: dict[str, Any] = field(default_factory=dict)
    teacher_steps: int = 600
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])
    evaluation_pairs: int = 500

    def __post_init__(self):
        weights = dict(self.weights)
        super().__post_init__()
        # The teacher is made on the way: all terms have their weights.
        self.weights = weights
        if self.data != "synthetic":
            raise ValueError(f"the comparison is made on the built-in pairs, found data {self.data!r}")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds must be different non-negative integers, at least one, found {self.seeds}")
        missing = [name for name in METHODS["CLIP-RD"] if not self.weights.get(name)]
        if missing:
            raise ValueError(f"weights: expected one above 0 for every term, found none for {', '.join(missing)}")
        for name in ("teacher_steps", "evaluation_pairs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
