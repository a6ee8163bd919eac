"""Settings of the distillation of a CLIP."""

from dataclasses import dataclass, field
from typing import Any

from hf_blemo.clip_rd.losses_clip_rd import CLIP_RD_WEIGHTS, check_weights
from hf_blemo.clip_rd_training.data_settings import PairDataSettings
from hf_blemo.programs.push_settings import PushSettings
from hf_blemo.programs.setting_checks import check_at_least_one, check_choices, check_not_negative


@dataclass
class DistillationSettings(PushSettings, PairDataSettings):
    """Settings of `training/distill_clip_rd.py`.

    Args:
        output_dir: folder for the student, its tokenizer and image processor, card, plots and `metrics.json`.
        teacher: a folder or Hub id of any CLIP-like model of transformers, with its tokenizer and image processor, or
            `open_clip:NAME/PRETRAINED`; without one the student learns from the contrastive loss alone.
        teacher_revision: commit, branch or tag of a teacher on the Hub.
        teacher_store: a folder or Hub id written by `training/embed_teacher.py`. The teacher is then not loaded, and
            `teacher` may be omitted; if given, it must be the embedded one.
        teacher_name: name of the teacher, if the store holds several.
        student: a preset of `CLIPRDConfig`, or a folder or Hub id of a CLIP to start from.
        student_config: entries of `CLIPRDConfig` (`vision_config`, `text_config`, `projection_dim`) that differ from
            the preset; with `student: custom`, all entries.
        tokenizer: a folder or Hub id. By default that of a checkpoint student, or the teacher's. Without both,
            built-in data gets a tokenizer of its words.
        weights: term -> weight of the loss; those of CLIP-RD by default.
        weight_schedule: term -> [[step, weight], ...], linear in between; its terms need no entry in `weights`.
        scales: scales of the loss, `released` or `exponentiated`.
        num_steps: optimizer steps.
        batch_size: pairs per step over all processes; all are negatives of each other.
        chunk_size: pairs that a process runs at once; 0 runs the whole batch. The gradients are the same
            (`cached_backward`), but the towers run twice.
        learning_rate, weight_decay, warmup_steps, max_grad_norm: of AdamW with betas 0.9 and 0.98 and eps 1e-6. Only
            matrices decay. The rate rises linearly, then falls to 0 along a cosine. A norm of 0 does not clip.
        ema_decay: decay of the moving average of the student's weights, which is evaluated and saved; 0 saves the last
            weights.
        mixed_precision: precision of the towers: `no`, `bf16` or `fp16`; the loss is always float32.
        dtype: precision of the weights: `float32` or `float64`. float32 rounding grows with every step of Adam;
            `float64` keeps equal runs equal.
        seed: seed of the student's weights and the order of the pairs.
        log_every: steps between entries of the history.
        evaluation: task -> `kind` (`zero_shot`, `retrieval`, or the built-in tasks `synthetic` or `emoji`), `data`,
            `split`, `image_column`, `caption_column`, `label_column`, `classes`, `templates`, `limit`, `options`.
        evaluate_every: steps between evaluations; 0 evaluates only at the end.
        evaluate_teacher: also evaluate the teacher once; not with a store.
        checkpoint_every: steps between checkpoints; 0 writes none.
        resume: resume an interrupted run of the same settings from its newest checkpoint in `output_dir`; it ends with
            the weights of an uninterrupted run.
        trackers: trackers of Accelerate, for instance `[tensorboard]`.
    """

    output_dir: str = "out/clip_rd"
    teacher: str | None = None
    teacher_revision: str | None = None
    teacher_store: str | None = None
    teacher_name: str | None = None
    student: str = "vit-t-16"
    student_config: dict[str, Any] = field(default_factory=dict)
    tokenizer: str | None = None
    weights: dict[str, float] = field(default_factory=lambda: dict(CLIP_RD_WEIGHTS))
    weight_schedule: dict[str, list] = field(default_factory=dict)
    scales: str = "released"
    num_steps: int = 1000
    batch_size: int = 256
    chunk_size: int = 0
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    warmup_steps: int = 100
    max_grad_norm: float = 0.0
    ema_decay: float = 0.0
    mixed_precision: str = "no"
    dtype: str = "float32"
    seed: int = 0
    log_every: int = 10
    evaluation: dict[str, dict[str, Any]] = field(default_factory=dict)
    evaluate_every: int = 0
    evaluate_teacher: bool = False
    checkpoint_every: int = 0
    resume: bool = False
    trackers: list[str] = field(default_factory=list)

    def __post_init__(self):
        super().__post_init__()
        choices = {
            "scales": ("released", "exponentiated"),
            "mixed_precision": ("no", "bf16", "fp16"),
            "dtype": ("float32", "float64"),
        }
        check_choices(self, choices)
        check_at_least_one(self, ("num_steps", "batch_size", "log_every"))
        names = ("chunk_size", "learning_rate", "weight_decay", "warmup_steps", "max_grad_norm", "seed")
        check_not_negative(self, (*names, "checkpoint_every", "evaluate_every"))
        weights = check_weights(self.weights)
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be at least 0 and below 1, found {self.ema_decay}")
        self.check_push_settings(self.checkpoint_every)
        if self.teacher_store is None and self.teacher_name is not None:
            raise ValueError("teacher_name needs teacher_store")
        if self.evaluate_teacher and (self.teacher is None or self.teacher_store is not None or not self.evaluation):
            raise ValueError("evaluate_teacher needs an evaluation, and a teacher without teacher_store")
        if self.evaluate_every and not self.evaluation:
            raise ValueError("evaluate_every needs evaluation, the tasks")
        if self.teacher is None and self.teacher_store is None:
            # Without a teacher there is one term to train with.
            self.weights = {"task": weights["task"]}
        if not any(self.weights.values()):
            raise ValueError(f"weights: expected a weight above 0 for some term, found {self.weights}")
