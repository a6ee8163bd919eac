"""Settings of the distillation of a CLIP."""

from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from hf_blemo.clip_rd.losses_clip_rd import CLIP_RD_WEIGHTS, check_weights


@dataclass
class DistillationSettings:
    """What `training/distill_clip_rd.py` reads from YAML and command line.

    Args:
        data: `synthetic`, a folder (`save_to_disk`, Parquet files or images with `metadata.csv`) or a Hub id; with a
            split, `train`.
        image_column, caption_column: of the data.
        output_dir: where the student, its tokenizer and image processor, and `metrics.json` go.
        teacher: a folder or Hub id of any CLIP-like model of transformers, with its tokenizer and image processor;
            without one the student learns from the contrastive loss alone.
        teacher_revision: of a teacher on the Hub: a commit, branch or tag.
        student: a preset of `CLIPRDConfig`, or a folder or Hub id of a CLIP to start from.
        student_config: entries of `CLIPRDConfig` (`vision_config`, `text_config`, `projection_dim`) that differ from
            the preset, or, with `student: custom`, all of them.
        tokenizer: a folder or Hub id; by default that of a checkpoint student, else the teacher's, else, for
            `synthetic`, the built-in one.
        image_size: pixels of a new student; that of its vision tower's config by default, else 224.
        weights: term -> weight of the loss; those of CLIP-RD by default.
        weight_schedule: term -> [[step, weight], ...], linear in between; its terms need no entry in `weights`.
        scales: of the loss: `released` or `exponentiated`.
        num_steps: optimizer steps.
        batch_size: pairs per step over all processes; all of them are each other's negatives.
        chunk_size: pairs at once on a process; 0 takes the whole batch. The gradients are the same
            (`cached_backward`), the towers run twice.
        learning_rate, weight_decay, warmup_steps, max_grad_norm: of AdamW with betas 0.9 and 0.98, eps 1e-6; matrices
            alone decay; the rate rises linearly, then falls to 0 along a cosine; a norm of 0 does not clip.
        mixed_precision: of the towers: `no`, `bf16` or `fp16`; the loss is float32 always.
        dtype: of the weights: `float32`, or `float64`, in which runs that ought to be the same stay the same: rounding
            in float32 grows with every step of Adam.
        seed: of the student's weights and the order of the pairs.
        log_every: steps between entries of the history.
        checkpoint_every: steps between checkpoints; 0 writes none.
        resume: whether to go on from the newest checkpoint that an interrupted run of the same settings left in
            `output_dir`; it ends with the weights of an uninterrupted one.
        synthetic: settings of the built-in pairs.
    """

    data: str = "synthetic"
    image_column: str = "image"
    caption_column: str = "caption"
    output_dir: str = "out/clip_rd"
    teacher: str | None = None
    teacher_revision: str | None = None
    student: str = "vit-t-16"
    student_config: dict[str, Any] = field(default_factory=dict)
    tokenizer: str | None = None
    image_size: int | None = None
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
    mixed_precision: str = "no"
    dtype: str = "float32"
    seed: int = 0
    log_every: int = 10
    checkpoint_every: int = 0
    resume: bool = False
    synthetic: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        for name, choices in (
            ("scales", ("released", "exponentiated")),
            ("mixed_precision", ("no", "bf16", "fp16")),
            ("dtype", ("float32", "float64")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} {getattr(self, name)!r} is not one of {', '.join(choices)}")
        for name in ("num_steps", "batch_size", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        for name in (
            "chunk_size",
            "learning_rate",
            "weight_decay",
            "warmup_steps",
            "max_grad_norm",
            "seed",
            "checkpoint_every",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, found {getattr(self, name)}")
        weights = check_weights(self.weights)
        if self.teacher is None:
            # Without a teacher there is one term to train with.
            self.weights = {"task": weights["task"]}
        if not any(self.weights.values()):
            raise ValueError(f"weights: no term has a weight: {self.weights}")
        for key in self.synthetic:
            known = ("num_pairs", "seed", "image_size", "held_out")
            if key not in known:
                nearest = get_close_matches(key, known, 1, 0.0)[0]
                raise ValueError(f"synthetic.{key} is no setting of the built-in pairs; did you mean {nearest!r}?")
