"""Settings of the programs that train the fusion."""

from dataclasses import dataclass, field, fields
from typing import Any

from hf_blemo.encoders.encoder_options import DTYPES
from hf_blemo.errors import check_known
from hf_blemo.fusion_training.protocol import PROTOCOLS
from hf_blemo.programs.push_settings import PUSH_SETTINGS, PushSettings
from hf_blemo.programs.setting_checks import check_at_least_one, check_choices, check_not_negative, check_seeds


@dataclass
class ExperimentSettings:
    """What every program that trains the fusion reads from YAML and command line.

    Args:
        data: a built data set (folder), a table, a Hub id, or `synthetic`.
        output_dir: where everything that the program makes goes.
        encoders: which encoders of the data to use; all of them by default.
        encoder_options: encoder -> entries of `config.encoders` (`pooling`, `modality`, `transform`, ...).
        pooling, transform: of encoders whose options do not say. Their modality is known for the encoders of the
            BlEmoRE distribution and `video` for others.
        align_folds: whether the features of each fold are shifted and scaled to the moments of all, for data sets of
            out-of-fold predictions, where every fold comes from another network; reads no label.
        model: further settings of `RankAwareFusionConfig`.
        protocol: `honest`, `published_style` or `none`.
        seeds: one complete run each; the final models are an ensemble of them.
        seeds_at_once: seeds trained in lockstep; 0 trains all together. Fewer need less memory.
        num_epochs: at most; with `protocol: none` exactly.
        patience: epochs without a better epoch for any scored fold before training ends; 0 never ends early.
        selection: what chooses the epoch: `loss` (joint negative log-likelihood) or `score`; the published style
            always chooses by the score, as the published baselines do.
        decoding: what turns probabilities into the reported and published predictions.
        batch_size, unlabelled_batch_size: rows per step and member over all processes.
        evaluation_batch_size: rows at once and process in evaluation.
        learning_rate, weight_decay, schedule, max_grad_norm: of AdamW; `schedule` is `constant` or `cosine`; a norm of
            0 does not clip.
        checkpoint_every: epochs between checkpoints; 0 writes none.
        resume: whether to go on from what an interrupted run of the same settings left in `output_dir`.
        synthetic: settings of the built-in data.
    """

    data: str = "synthetic"
    output_dir: str = "out/fusion"
    encoders: list[str] | None = None
    encoder_options: dict[str, dict] = field(default_factory=dict)
    pooling: str = "mean"
    transform: str = "none"
    align_folds: bool = False
    model: dict[str, Any] = field(default_factory=dict)
    protocol: str = "honest"
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    seeds_at_once: int = 0
    num_epochs: int = 30
    patience: int = 8
    selection: str = "loss"
    decoding: str = "expected_score"
    batch_size: int = 64
    unlabelled_batch_size: int = 64
    evaluation_batch_size: int = 512
    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    schedule: str = "constant"
    max_grad_norm: float = 1.0
    checkpoint_every: int = 0
    resume: bool = False
    synthetic: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        choices = {
            "protocol": tuple(PROTOCOLS),
            "selection": ("loss", "score"),
            "decoding": ("expected_score", "thresholds"),
            "schedule": ("constant", "cosine"),
        }
        check_choices(self, choices)
        check_at_least_one(self, ("num_epochs", "batch_size", "unlabelled_batch_size", "evaluation_batch_size"))
        names = ("patience", "checkpoint_every", "seeds_at_once", "max_grad_norm", "learning_rate", "weight_decay")
        check_not_negative(self, names)
        check_seeds(self.seeds)
        if self.encoders is not None and (not self.encoders or len(set(self.encoders)) != len(self.encoders)):
            raise ValueError(f"encoders must be different names, at least one, found {self.encoders}")

    @property
    def free_in_resume(self) -> set[str]:
        """Settings that may change when a run is resumed."""
        free = {"output_dir", "resume", "checkpoint_every", "trackers", "test_data", "only", *PUSH_SETTINGS}
        return free | {"num_epochs"} if self.schedule == "constant" else free


@dataclass
class FusionSettings(PushSettings, ExperimentSettings):
    """What `training/train_fusion.py` reads.

    Args:
        output_dir: where model, processor, metrics, plots, card and predictions go.
        test_data: clips to predict with the final models; scored where they have labels.
        unlabelled_data: target rows of the domain adaptation; their labels, if any, are not read.
        trackers: of Accelerate, for instance `[tensorboard]`.
    """

    test_data: str | None = None
    unlabelled_data: str | None = None
    trackers: list[str] = field(default_factory=list)

    def __post_init__(self):
        super().__post_init__()
        self.check_push_settings(self.checkpoint_every)
        if self.unlabelled_data is not None and self.model.get("domain_adaptation", "none") == "none":
            raise ValueError(
                "unlabelled_data serves the domain adaptation alone, and model.domain_adaptation is none; choose mmd, "
                "coral or adversarial"
            )
        if self.resume and self.checkpoint_every == 0:
            raise ValueError("resume needs checkpoint_every of at least 1: without checkpoints there is nothing left")


ADAPTATION_WEIGHTS = {
    "fused": {"mmd": 20.0, "coral": 20.0, "adversarial": 0.5},
    "encoders": {"mmd": 40.0, "coral": 40.0, "adversarial": 2.0},
}


@dataclass
class AblationSettings(ExperimentSettings):
    """What `training/ablate_fusion.py` reads: the settings of a training run, every row of the table differing in one.

    Args:
        output_dir: where the table goes, row by row.
        resume: whether to keep the rows that `output_dir` has from a run of the same settings.
        only: names of rows (or their beginnings) to compute; all by default.
        adaptation_weights: level (`fused`, `encoders`) -> kind (`mmd`, `coral`, `adversarial`) -> weight of the domain
            adaptation; the defaults were chosen on built-in data of `structure_seed` 0.
    """

    output_dir: str = "out/ablation"
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])
    only: list[str] = field(default_factory=list)
    adaptation_weights: dict[str, dict[str, float]] = field(
        default_factory=lambda: {level: dict(weights) for level, weights in ADAPTATION_WEIGHTS.items()}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.protocol == "none":
            raise ValueError("protocol 'none' scores nothing; an ablation needs honest or published_style")
        for level, weights in ADAPTATION_WEIGHTS.items():
            found = self.adaptation_weights.get(level, {})
            if set(found) != set(weights) or set(self.adaptation_weights) != set(ADAPTATION_WEIGHTS):
                raise ValueError(
                    f"adaptation_weights: expected a weight of each of {', '.join(weights)} for each of "
                    f"{', '.join(ADAPTATION_WEIGHTS)}, found {self.adaptation_weights}"
                )


@dataclass
class EncoderAblationSettings:
    """What `training/ablate_encoders.py` reads: clips, encoders, and which of them are fused for each row.

    Args:
        data: clips with labels and folds, as of `training/extract_features.py`, or `synthetic`.
        output_dir: where features and table go; a run of the same settings goes on where it stopped.
        encoders: name -> `model_id` and what else `training/extract_features.py` knows of an encoder.
        sets: name of a row -> encoders that are fused in it.
        fusion: settings of `training/train_fusion.py` that are common to all rows.
        seeds: complete cross-validations each.
        timed_clips: clips whose extraction is timed.
        timing_rounds: how often, sets taking turns; the median counts.
        dtype: of the encoders: `float32`, `bfloat16` or `float16` (on a GPU).
        synthetic: settings of the built-in clips.
    """

    data: str = "synthetic"
    output_dir: str = "out/encoders"
    encoders: dict[str, dict] = field(default_factory=dict)
    sets: dict[str, list] = field(default_factory=dict)
    fusion: dict[str, Any] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])
    timed_clips: int = 24
    timing_rounds: int = 5
    dtype: str = "float32"
    synthetic: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        check_seeds(self.seeds)
        check_at_least_one(self, ("timed_clips", "timing_rounds"))
        check_choices(self, {"dtype": DTYPES})
        if not self.sets:
            raise ValueError("sets: expected at least one, as a name with a list of encoders")
        for name, encoders in self.sets.items():
            for encoder in encoders or [None]:
                if encoder not in self.encoders:
                    raise ValueError(f"sets.{name}: found {encoder!r}, expected some of {', '.join(self.encoders)}")
        known = {entry.name for entry in fields(ExperimentSettings)} - {"data", "output_dir", "encoders", "seeds"}
        check_known("fusion", self.fusion, known)
