"""Settings of the comparison of distillation methods."""

from dataclasses import dataclass, field
from typing import Any

from hf_blemo import built_in
from hf_blemo.clip_rd_training.settings import DistillationSettings
from hf_blemo.programs.setting_checks import check_at_least_one, check_seeds

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
    """What `training/compare_distillation.py` reads: the settings of every student.

    Args:
        output_dir: where teacher, students and the tables go, method by method.
        teacher: a folder; by default one is trained there first, without distillation.
        teacher_config: entries of `student_config` that differ in the teacher.
        teacher_steps: how long it is trained.
        seeds: one student of every method each.
        evaluation: tasks; by default the built-in ones of the data, where that is `synthetic` or `emoji`.
        methods: which to train; all by default.
        resume: whether to keep the students that `output_dir` has from a run of the same settings.
    """

    output_dir: str = "out/comparison"
    teacher_config: dict[str, Any] = field(default_factory=dict)
    teacher_steps: int = 600
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])
    methods: list[str] = field(default_factory=lambda: list(METHODS))

    def __post_init__(self):
        weights = dict(self.weights)
        super().__post_init__()
        # The teacher is made on the way: all terms have their weights.
        self.weights = weights
        for name in self.methods:
            if name not in METHODS:
                raise ValueError(f"methods: expected some of {', '.join(METHODS)}, found {name!r}")
        if not self.evaluation and self.data not in built_in.PAIRS:
            raise ValueError(
                f"evaluation: expected tasks, which only the built-in data brings, found data {self.data!r}"
            )
        check_seeds(self.seeds)
        missing = [name for name in METHODS["CLIP-RD"] if not self.weights.get(name)]
        if missing:
            raise ValueError(f"weights: expected one above 0 for every term, found none for {', '.join(missing)}")
        check_at_least_one(self, ("teacher_steps",))

    def comparison_tasks(self) -> dict[str, dict[str, Any]]:
        """Settings of the tasks that teacher and students are evaluated on."""
        if self.evaluation:
            return self.evaluation
        own = getattr(self, self.data)
        options = {name: own[name] for name in ("image_size", "combinations", "font") if name in own}
        return {self.data: {"kind": self.data, "options": options}}
