"""Settings of the programs that train the fusion."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from huggingface_hub.dataclasses import strict

from hf_blemo.built_in import SYNTHETIC
from hf_blemo.encoders.encoder_options import TorchDtype
from hf_blemo.errors import check_choice, check_known
from hf_blemo.extraction.settings import ExtractionSettings
from hf_blemo.loading import local_path
from hf_blemo.programs.run_folder import check_output
from hf_blemo.programs.settings import (
    PUSH_SETTINGS,
    PushSettings,
    at_least_one,
    check_overwrite,
    different_seeds,
    not_negative,
    share,
)

PROTOCOLS = {
    "honest": "Epoch and thresholds are chosen for each scored fold on the other folds alone: models trained without "
    "two folds predict both of them, the predictions for one choose the settings under which the other is scored. The "
    "scored predictions come from a model trained on all folds but the scored one.",
    "published_style": "Epoch and thresholds are chosen on the very fold that is scored, as the published baselines "
    "do: optimistic.",
    "none": "No cross-validation: trained on all labelled clips for the given number of epochs.",
}


@strict
@dataclass
class ExperimentSettings:
    """Settings shared by all programs that train the fusion.

    Args:
        data: a built data set (folder), a table, a Hub id, or `synthetic`.
        output_dir: folder for all output.
        encoders: encoders of the data to use (default: all).
        encoder_options: encoder -> entries of `config.encoders` (`pooling`, `modality`, `transform`, ...).
        pooling, transform: default for encoders without their own setting. The modality of BlEmoRE's encoders is
            known; for others it is `video`.
        align_folds: shift and scale the features of each fold to the moments of all folds. Meant for out-of-fold
            predictions, where every fold comes from another network. Reads no label.
        exchange_groups: share of the training rows whose features take the mean and deviation of another group of the
            training part, drawn anew every time, so that a model does not rely on who is seen or heard. Needs a
            column `group` in the data; encoders pooled by attention stay as they are.
        model: more settings of `RankAwareFusionConfig`.
        protocol: `honest`, `published_style` or `none`.
        seeds: one complete run each; their final models form an ensemble.
        seeds_at_once: seeds trained in lockstep; 0 trains all together. Fewer need less memory.
        num_epochs: maximum number of epochs; the exact number with `protocol: none`.
        patience: stop after this many epochs without improvement in any scored fold; 0 never stops early.
        selection_metric: choose the epoch by `loss` (the joint loss) or a measure, such as `accuracy`, `uar` or `kl`;
            by default by `loss`, for soft labels by `kl`. `last` takes the last epoch, where the schedule
            of the learning rate ends. `published_style` uses the score for the labels of BlEmoRE, as the published
            baselines do, and by default `accuracy` for others.
        decoding: `expected_score`, `thresholds` or `soft`, for the reported and published predictions; by default
            `soft` for soft labels, else `expected_score`.
        batch_size, unlabelled_batch_size: batch size per model, over all processes.
        evaluation_batch_size: batch size per process in evaluation.
        learning_rate, weight_decay, schedule, max_grad_norm: of AdamW. `schedule` is `constant` or `cosine`; a
            `max_grad_norm` of 0 does not clip.
        checkpoint_every: epochs between checkpoints; 0 writes none.
        resume: resume an interrupted run of the same settings and data in `output_dir`.
        overwrite: replace the result of an earlier run in `output_dir`; it stays until the new one is whole.
        synthetic: settings of the built-in data.
    """

    data: str
    output_dir: str = "out/fusion"
    encoders: list[str] | None = None
    encoder_options: dict[str, dict] = field(default_factory=dict)
    pooling: str = "mean"
    transform: str = "none"
    align_folds: bool = False
    exchange_groups: float | int = share(0.0)
    model: dict[str, Any] = field(default_factory=dict)
    protocol: Literal["honest", "published_style", "none"] = "honest"
    seeds: list[int] = different_seeds(default_factory=lambda: [0, 1, 2])
    seeds_at_once: int = not_negative(0)
    num_epochs: int = at_least_one(30)
    patience: int = not_negative(8)
    selection_metric: str | None = None
    decoding: Literal["expected_score", "thresholds", "soft"] | None = None
    batch_size: int = at_least_one(64)
    unlabelled_batch_size: int = at_least_one(64)
    evaluation_batch_size: int = at_least_one(512)
    learning_rate: float | int = not_negative(2e-3)
    weight_decay: float | int = not_negative(0.1)
    schedule: Literal["constant", "cosine"] = "constant"
    max_grad_norm: float | int = not_negative(1.0)
    checkpoint_every: int = not_negative(0)
    resume: bool = False
    overwrite: bool = False
    synthetic: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if self.encoders is not None and (not self.encoders or len(set(self.encoders)) != len(self.encoders)):
            raise ValueError(f"encoders must be different names, at least one, found {self.encoders}")
        check_overwrite(self.resume, self.overwrite)

    def check_places(self) -> Path:
        """Checks that the data is there, and that the output may be written; returns its folder."""
        output = self.check_output()
        for name in ("data", "test_data", "unlabelled_data"):
            source = getattr(self, name, None)
            if (
                source not in (None, SYNTHETIC)
                and local_path(source, f"data {source!r}", names=[SYNTHETIC]) is not None
            ):
                from hf_blemo.feature_sets import check_features

                check_features(source)
        return output

    def check_output(self) -> Path:
        """Refuses a folder with an earlier run that would be replaced, see `programs.run_folder.check_output`."""
        return check_output(self.output_dir, self.overwrite, self.resume)

    @property
    def free_in_resume(self) -> set[str]:
        """Settings that may change when a run is resumed."""
        free = {
            "output_dir",
            "resume",
            "overwrite",
            "checkpoint_every",
            "trackers",
            "test_data",
            "only",
            *PUSH_SETTINGS,
        }
        return free | {"num_epochs"} if self.schedule == "constant" else free


@strict
@dataclass
class FusionSettings(PushSettings, ExperimentSettings):
    """Settings of `hf-blemo train`.

    Args:
        output_dir: folder for model, processor, metrics, plots, card and predictions.
        test_data: clips to predict with the final models, and to score if they have labels.
        unlabelled_data: target rows of the domain adaptation; labels are not read.
        trackers: trackers of Accelerate, for instance `[tensorboard]`.
    """

    test_data: str | None = None
    unlabelled_data: str | None = None
    trackers: list[str] = field(default_factory=list)

    def __post_init__(self):
        ExperimentSettings.__post_init__(self)
        PushSettings.__post_init__(self)
        if self.unlabelled_data is not None and self.model.get("domain_adaptation", "none") == "none":
            raise ValueError(
                "unlabelled_data needs domain adaptation, but model.domain_adaptation is none; choose mmd, coral or "
                "adversarial"
            )
        if self.resume and self.checkpoint_every == 0:
            raise ValueError("resume needs checkpoint_every of at least 1: only checkpoints can be resumed")


ABLATION_FILE = "ablation.json"
ADAPTATION_WEIGHTS = {
    "fused": {"mmd": 20.0, "coral": 20.0, "adversarial": 0.5},
    "encoders": {"mmd": 40.0, "coral": 40.0, "adversarial": 2.0},
}


@strict
@dataclass
class AblationSettings(ExperimentSettings):
    """Settings of `hf-blemo ablate`: those of a training. Each row changes one.

    Args:
        output_dir: folder for the table, which is written row by row.
        resume: keep the rows of an earlier run of the same settings and data in `output_dir`.
        overwrite: replace the table of an earlier run in `output_dir`.
        only: names of rows to compute, or how they begin (default: all).
        adaptation_weights: level (`fused`, `encoders`) -> kind (`mmd`, `coral`, `adversarial`) -> weight of the domain
            adaptation; the defaults were chosen on built-in data of `structure_seed` 0.
    """

    output_dir: str = "out/ablation"
    seeds: list[int] = different_seeds(default_factory=lambda: [0, 1, 2, 3, 4])
    only: list[str] = field(default_factory=list)
    adaptation_weights: dict[str, dict[str, float | int]] = field(
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

    def check_output(self) -> Path:
        """Refuses a folder with an earlier table that would be replaced."""
        return check_output(self.output_dir, self.overwrite, self.resume, [ABLATION_FILE], ABLATION_FILE)


@strict
@dataclass
class EncoderAblationSettings:
    """Settings of `hf-blemo ablate-encoders`.

    Args:
        data: clips with labels and folds, as in `hf-blemo features`, or `synthetic`.
        output_dir: folder for features and table; an interrupted run of the same settings and inputs resumes.
        overwrite: start anew, without the features and rows of an earlier run in `output_dir`.
        encoders: name -> `model_id` and other settings of an encoder, as in `hf-blemo features`.
        sets: name of a row -> encoders to fuse.
        fusion: settings of `hf-blemo train` for all rows.
        seeds: one complete cross-validation each.
        timed_clips: clips in each timed extraction.
        timing_rounds: timed extractions per set, interleaved; the median counts.
        dtype: precision of the encoders: `float32`, `bfloat16` or `float16` (on a GPU).
        synthetic: settings of the built-in clips.
    """

    data: str
    output_dir: str = "out/encoders"
    overwrite: bool = False
    encoders: dict[str, dict] = field(default_factory=dict)
    sets: dict[str, list] = field(default_factory=dict)
    fusion: dict[str, Any] = field(default_factory=dict)
    seeds: list[int] = different_seeds(default_factory=lambda: [0, 1, 2, 3, 4])
    timed_clips: int = at_least_one(24)
    timing_rounds: int = at_least_one(5)
    dtype: TorchDtype = "float32"
    synthetic: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if not self.sets:
            raise ValueError("sets: expected at least one, as a name with a list of encoders")
        for name, encoders in self.sets.items():
            for encoder in encoders or [None]:
                check_choice(f"sets.{name}", encoder, self.encoders)
        own = {"data", "output_dir", "encoders", "seeds", "overwrite"}
        known = {entry.name for entry in fields(ExperimentSettings)} - own
        check_known("fusion", self.fusion, known)

    def check_places(self) -> None:
        """Checks that clips and encoders are there; see `ExtractionSettings`."""
        self.extraction().check_inputs()

    def extraction(self) -> ExtractionSettings:
        """The settings of the extraction that all rows share."""
        return ExtractionSettings(
            data=self.data,
            output_dir=str(Path(self.output_dir, "features")),
            encoders=self.encoders,
            dtype=self.dtype,
            synthetic=self.synthetic if self.data == SYNTHETIC else {},
        )
