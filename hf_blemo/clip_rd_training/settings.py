"""Settings of the programs that distil a CLIP: their pairs, the distillation, stored teachers, the comparison."""

import math
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from huggingface_hub.dataclasses import strict

from hf_blemo import built_in
from hf_blemo.clip_evaluation.settings import check_tasks
from hf_blemo.clip_rd.weights_clip_rd import CLIP_RD_WEIGHTS, check_weights
from hf_blemo.errors import check_choice, check_known
from hf_blemo.loading import find_config, local_path
from hf_blemo.pairs.settings import STORE_FILE, PairSourceSettings, check_clip
from hf_blemo.programs.run_folder import check_output
from hf_blemo.programs.settings import (
    PushSettings,
    at_least_one,
    check_overwrite,
    different_seeds,
    not_negative,
    repository,
    settings_of,
)

COMPARISON_FILE = "comparison.json"
CUSTOM, INHERIT, TEACHER = "custom", "inherit", "teacher"
OWN_SCALE = "own"
# The presets of `CLIPRDConfig`, which is not light, and the student whose config is given.
STUDENTS = (
    *("vit-t-16", "vit-b-16", "vit-l-14", "mobilevit-s", "swin-t", "efficientnet-b0", "mobilenet-v3-s", "resnet-18"),
    *("resnet-50", CUSTOM),
)
Precision = Literal["no", "bf16", "fp16"]
_AUGMENTATION = ("scale", "ratio", "flip", "variants", "seed")

CLIP_KD = ("task", "fd", "icl", "hrd")
# Terms that pictures without captions have.
IMAGES_ALONE = ("task", "fd", "hrd", "vrd_image")
VERTICAL = ("vrd", "vrd_image", "vrd_text")
SIDES = ("vision", "text")
METHODS = {
    "no distillation": ("task",),
    "affinity mimicking": ("task", "hrd"),
    "CLIP-KD": CLIP_KD,
    "CLIP-KD + vertical relations": (*CLIP_KD, *VERTICAL),
    "CLIP-KD + cross relations": (*CLIP_KD, "xrd"),
    "CLIP-RD": (*CLIP_KD, *VERTICAL, "xrd"),
}


@strict
@dataclass
class _PairDataSettings:
    """Settings of image-caption pairs.

    Args:
        data: `synthetic`, `emoji`, a Hub id, a folder (`save_to_disk`, Parquet, images with `metadata.csv`, WebDataset
            shards) or a file (.parquet, .csv with paths of images, .tar). Required unless there are `sources`.
        split: split of the data.
        image_column, caption_column: columns of the data (found by name in WebDataset shards). Captions may be
            lists; each visit of an image draws one. `caption_column: null` distils from pictures alone.
        streaming: read shards in turn instead of a table by row numbers.
        sources: several data sets instead of `data`, each a dict with `data` and, as needed, `weight` (its share of
            every batch), `split`, `name`, `revision`, `image_column`, `caption_column`, `streaming`, `options`.
        shuffle_block: consecutive pairs of a stream that are shuffled together; the order of shards is random, too.
        num_workers: processes that read and decode, per training process; 0 reads in the training process.
        max_broken_share: largest share of unreadable pairs; they are skipped and reported, more of them end the run.
        augmentation: RandomResizedCrop: `scale` (share of the area, [0.9, 1.0]), `ratio` (of width to height,
            [0.75, 1.3333]), `flip` (probability, 0), `variants` (different crops per image, 0 for a new one on every
            visit) and `seed`. Empty: the image processors resize and crop, without chance.
        image_size: pixels of a new student's images (default: those of its vision tower's config, else 224).
        synthetic, emoji: settings of the built-in pairs.
    """

    data: str | None = None
    split: str = "train"
    image_column: str = "image"
    caption_column: str | None = "caption"
    streaming: bool = False
    sources: list[dict[str, Any]] = field(default_factory=list)
    shuffle_block: int = at_least_one(1000)
    num_workers: int = not_negative(0)
    max_broken_share: float | int = not_negative(0.05)
    augmentation: dict[str, Any] = field(default_factory=dict)
    image_size: int | None = at_least_one(None)
    synthetic: dict[str, Any] = field(default_factory=dict)
    emoji: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if self.max_broken_share > 1:
            raise ValueError(f"max_broken_share: expected a number from 0 to 1, found {self.max_broken_share}")
        check_known("augmentation", self.augmentation, _AUGMENTATION)
        # As JSON returns it, since stores and checkpoints compare it with their own settings.
        self.augmentation = {
            name: list(value) if isinstance(value, tuple) else value for name, value in self.augmentation.items()
        }
        for name in ("variants", "seed"):
            value = self.augmentation.get(name, 0)
            if not isinstance(value, int) or value < 0:
                raise ValueError(f"augmentation.{name}: expected a whole number from 0, found {value!r}")
        for name in built_in.PAIRS:
            built_in.check_options(name, getattr(self, name))
        if self.data is None and not self.sources:
            raise ValueError(
                "data has no default: pass --data (folder, file, Hub id, synthetic or emoji) or --sources"
            )
        if self.sources and self.data not in (None, built_in.SYNTHETIC):
            raise ValueError(
                f"data {self.data!r}: found {len(self.sources)} sources as well, expected one or the other "
                "(--sources '[]' drops those of a config)"
            )
        for source in self.pair_sources():
            if source.data in built_in.PAIRS:
                built_in.check_options(source.data, source.options or {})

    def check_places(self) -> None:
        """Checks that the pairs are there."""
        for source in self.pair_sources():
            source.check_place()

    def pair_sources(self) -> list[PairSourceSettings]:
        """The settings of every source."""
        if self.sources:
            return [settings_of(PairSourceSettings, entry, "sources") for entry in self.sources]
        names = {entry.name for entry in fields(PairSourceSettings)} & {entry.name for entry in fields(self)}
        assert self.data is not None
        options = getattr(self, self.data) if self.data in built_in.PAIRS else None
        return [PairSourceSettings(**{name: getattr(self, name) for name in names}, options=options)]

    def described_sources(self) -> list[dict[str, Any]]:
        """The settings of every source as plain values."""
        # No options and an empty dict of them are the same data.
        return [{**asdict(source), "options": source.options or None} for source in self.pair_sources()]


@strict
@dataclass
class TeacherSettings:
    """One of several teachers.

    Args:
        teacher: as [`DistillationSettings`] takes it; with a `teacher_store`, its name in the store.
        revision: commit, branch or tag of a teacher on the Hub.
        scale: of its logits, exponentiated; `own` for the one it was trained with. By default the best for the pairs
            of the first batches, no sharper than its own.
    """

    teacher: str
    revision: str | None = None
    scale: float | int | Literal["own"] | None = None

    def __post_init__(self):
        if isinstance(self.scale, float | int) and not 0 < self.scale < math.inf:
            raise ValueError(f"scale of teacher {self.teacher!r}: expected a number above 0, found {self.scale!r}")


@strict
@dataclass
class DistillationSettings(PushSettings, _PairDataSettings):
    """Settings of `hf-blemo distill`.

    Args:
        output_dir: folder for the student, its tokenizer and image processor, card, plots and `metrics.json`.
        teacher: a folder or Hub id of any CLIP-like model of transformers, with its tokenizer and image processor, or
            `open_clip:NAME/PRETRAINED`; without one the student learns from the contrastive loss alone.
        teacher_revision: commit, branch or tag of a teacher on the Hub.
        teachers: several instead of `teacher`, each as it is named there or a dict with `teacher` and, as needed,
            `revision` and `scale`: of its logits, or `own`; by default the best for the first batches' pairs, no
            sharper than its own. With a `teacher_store`, their names in the store. Targets of relations are averaged
            as distributions, and features are distilled through a projection for each. Where a setting means one
            teacher, as `student: inherit` or `text_weights: teacher`, it is the first.
        teacher_store: a folder or Hub id written by `hf-blemo embed`. The teacher is then not loaded, and
            `teacher` may be omitted; if given, it must be the embedded one.
        teacher_name: name of the teacher, if the store holds several.
        student: a preset of `CLIPRDConfig`, a folder or Hub id of a CLIP to start from, or `inherit`: cut out of a
            teacher of CLIP's shape, of evenly spaced layers the most important heads, channels and neurons.
        student_config: entries of `CLIPRDConfig` (`vision_config`, `text_config`, `projection_dim`) that differ from
            the preset; with `student: custom`, all entries; with `inherit`, those of `num_hidden_layers`,
            `hidden_size`, `num_attention_heads` and `intermediate_size` that are smaller than the teacher's.
        inherit_by: what tells importance: the `magnitude` of weights, or mean absolute `activation` over 256 pairs.
        vision_weights, text_weights: where towers of a new student come from instead of random weights: a folder or
            Hub id of any tower, or of an image-text model with one, or `teacher`. They bring config, projection (where
            its width fits), tokenizer and image processor.
        freeze: towers that are not trained, of `vision` and `text`; a projection that came with one stays as well. A
            text tower that is never released reads each caption once, as does the teacher's then.
        release: frozen tower -> step, or share of the steps, from which it is trained after all, with a warm-up of its
            own.
        learning_rates: tower -> its highest rate, where it differs from `learning_rate`.
        tokenizer: a folder or Hub id. By default that of a checkpoint student, or the teacher's. Without both,
            built-in data gets a tokenizer of its words.
        weights: term -> weight of the loss; those of CLIP-RD by default.
        weight_schedule: term -> [[step, weight], ...], linear in between; its terms need no entry in `weights`. A
            step with a decimal point, from 0.0 to 1.0, is a share of all steps.
        scales: how the loss reads its learned scales.
        duplicates: what pairs of a batch with the same picture or the same caption are to each other: `share` gives
            them one target in the contrastive terms, `negative` pushes them apart as the released code does.
        precision: of the loss's products: `exact` (float32) or `fast` (inputs of 11 bits, float32 sums; the gradient
            moves by 0.1 %). By default `fast` on accelerators and `exact` on a CPU.
        num_steps: optimizer steps (default: 1000 without `epochs`).
        epochs: length of the training by its pairs instead: as many pairs are drawn as all sources hold, times this.
        batch_size: pairs per step over all processes; all are negatives of each other.
        chunk_size: pairs that a process runs at once; 0 runs the whole batch. The gradients are the same
            (`cached_backward`), but the towers run twice.
        learning_rate, weight_decay, warmup_steps, max_grad_norm: of AdamW with betas 0.9 and 0.98 and eps 1e-6. Only
            matrices decay. The rate rises linearly, then falls to 0 along a cosine; `warmup_steps` below 1 are a share
            of all steps. A norm of 0 does not clip.
        ema_decay: decay of the moving average of the student's weights, which is evaluated and saved; 0 saves the last
            weights.
        mixed_precision: precision of the towers; that of the loss is `precision`.
        compile: compile the towers of student and teacher (`torch.compile`); the first steps take minutes. Where the
            compiler fails, the run goes on without it.
        dtype: precision of the weights. float32 rounding grows with every step of Adam;
            `float64` keeps equal runs equal.
        seed: seed of the student's weights and the order of the pairs.
        log_every: steps between entries of the history.
        evaluation: task -> `kind` (`zero_shot`, `retrieval`, or the built-in tasks `synthetic` or `emoji`), `data`,
            `split`, `image_column`, `caption_column`, `label_column`, `classes`, `templates`, `limit`, `options`.
        evaluation_share: share of the pairs that is not trained on; the task `held_out` is to find its pictures and
            captions by each other, before training and after. The pictures' content decides, whatever the seed; each
            is read once for that.
        evaluate_every: steps between evaluations; 0 evaluates only at the end.
        evaluate_teacher: also evaluate the teacher once; not with a store.
        resume: resume an interrupted run of the same settings from its newest checkpoint in `output_dir`; it ends with
            the weights of an uninterrupted run.
        overwrite: replace the result of an earlier run in `output_dir`; it stays until the new one is whole.
        trackers: trackers of Accelerate, for instance `[tensorboard]`.
    """

    output_dir: str = "out/clip_rd"
    teacher: str | None = None
    teacher_revision: str | None = None
    teachers: list[str | dict[str, Any]] = field(default_factory=list)
    teacher_store: str | None = None
    teacher_name: str | None = None
    student: str = "vit-t-16"
    student_config: dict[str, Any] = field(default_factory=dict)
    inherit_by: Literal["magnitude", "activation"] = "magnitude"
    vision_weights: str | None = None
    text_weights: str | None = None
    freeze: list[Literal["vision", "text"]] = field(default_factory=list)
    release: dict[str, float | int] = field(default_factory=dict)
    learning_rates: dict[str, float | int] = field(default_factory=dict)
    tokenizer: str | None = None
    weights: dict[str, float | int] = field(default_factory=lambda: dict(CLIP_RD_WEIGHTS))
    weight_schedule: dict[str, list] = field(default_factory=dict)
    scales: Literal["released", "exponentiated"] = "released"
    duplicates: Literal["share", "negative"] = "negative"
    precision: Literal["exact", "fast"] | None = None
    num_steps: int | None = at_least_one(None)
    epochs: float | int | None = not_negative(None)
    batch_size: int = at_least_one(256)
    chunk_size: int = not_negative(0)
    learning_rate: float | int = not_negative(1e-3)
    weight_decay: float | int = not_negative(0.1)
    warmup_steps: float | int = not_negative(100)
    max_grad_norm: float | int = not_negative(0.0)
    ema_decay: float | int = not_negative(0.0)
    mixed_precision: Precision = "no"
    compile: bool = False
    dtype: Literal["float32", "float64"] = "float32"
    seed: int = not_negative(0)
    log_every: int = at_least_one(10)
    evaluation: dict[str, dict[str, Any]] = field(default_factory=dict)
    evaluation_share: float | int = not_negative(0.0)
    evaluate_every: int = not_negative(0)
    evaluate_teacher: bool = False
    resume: bool = False
    overwrite: bool = False
    trackers: list[str] = field(default_factory=list)

    def __post_init__(self):
        _PairDataSettings.__post_init__(self)
        PushSettings.__post_init__(self)
        check_overwrite(self.resume, self.overwrite)
        if self.epochs is None:
            self.num_steps = 1000 if self.num_steps is None else self.num_steps
        elif self.num_steps is not None:
            raise ValueError(
                f"num_steps {self.num_steps} and epochs {self.epochs:g}: expected one of them (--epochs null or "
                "--num_steps null drops that of a config)"
            )
        elif self.epochs == 0:
            raise ValueError("epochs: expected a number above 0, found 0")
        weights = check_weights(self.weights)
        if self.ema_decay >= 1:
            raise ValueError(f"ema_decay: expected a number below 1, found {self.ema_decay}")
        check_known("learning_rates", self.learning_rates, SIDES)
        for name, rate in self.learning_rates.items():
            if not 0 <= rate < math.inf:
                raise ValueError(f"learning_rates.{name}: expected a number from 0, found {rate!r}")
        check_known("release", self.release, SIDES)
        for name, step in self.release.items():
            if name not in self.freeze or step <= 0:
                raise ValueError(
                    f"release.{name}: expected a step from 1 or a share of the steps, and {name!r} in freeze, found "
                    f"{step:g} and {self.freeze}"
                )
        if self.teacher_store is None and self.teacher_name is not None:
            raise ValueError("teacher_name needs teacher_store")
        self._check_teachers()
        if self.evaluation_share >= 1:
            raise ValueError(f"evaluation_share: expected a number below 1, found {self.evaluation_share}")
        if self.evaluation_share and "held_out" in self.evaluation:
            raise ValueError("evaluation.held_out: evaluation_share makes a task of that name; give yours another")
        evaluated = self.evaluation or self.evaluation_share
        if self.evaluate_teacher and (self.teacher is None or self.teacher_store is not None or not evaluated):
            raise ValueError("evaluate_teacher needs an evaluation, and a teacher without teacher_store")
        if self.evaluate_every and not evaluated:
            raise ValueError("evaluate_every needs tasks: evaluation_share or evaluation")
        if self.teacher is None and self.teacher_store is None and not self.teachers:
            # Without a teacher there is one term to train with.
            self.weights = {"task": weights["task"]}
        if self.images_alone:
            self._check_images_alone()
        elif any(source.caption_column is None for source in self.pair_sources()):
            raise ValueError("sources: expected captions in all of them or in none")
        if not any(self.weights.values()):
            raise ValueError(f"weights: expected a weight above 0 for some term, found {self.weights}")

    def _check_teachers(self) -> None:
        """Refuses several teachers beside one, fewer than two, one twice, or what is for one alone."""
        if not self.teachers:
            return
        for name in ("teacher", "teacher_revision", "teacher_name"):
            if getattr(self, name) is not None:
                raise ValueError(
                    f"{name} {getattr(self, name)!r}: found {len(self.teachers)} teachers as well, expected one "
                    "of these (--teachers '[]' drops those of a config)"
                )
        known = [(entry.teacher, entry.revision) for entry in self.teacher_entries()]
        if len(known) < 2:
            raise ValueError(
                f"teachers: expected at least two, found {known[0][0]!r} alone; one is named by --teacher"
            )
        for teacher, revision in known:
            if known.count((teacher, revision)) > 1:
                raise ValueError(f"teachers: found {teacher!r} twice, expected different ones")
        if self.evaluate_teacher:
            raise ValueError("evaluate_teacher is for one teacher; measure several by hf-blemo evaluate")

    def teacher_entries(self) -> list[TeacherSettings]:
        """The settings of several teachers; none where there is one, or no one."""
        return [
            settings_of(TeacherSettings, {"teacher": entry} if isinstance(entry, str) else entry, "teachers")
            for entry in self.teachers
        ]

    @property
    def steps(self) -> int:
        """Optimizer steps, once [`for_pairs`] has turned epochs into them."""
        assert self.num_steps is not None, "epochs: call for_pairs first"
        return self.num_steps

    def for_pairs(self, pairs: int | None) -> "DistillationSettings":
        """These settings with `num_steps` for `epochs`, and with steps for shares of them.

        `pairs` are those to train on, of all sources; None where a stream does not know them, which has no epochs.
        """
        steps = self.num_steps
        if self.epochs is not None:
            if pairs is None:
                raise ValueError(
                    "epochs: a stream does not know how many pairs it has; pass --epochs null --num_steps STEPS"
                )
            # A tenth of 30 pairs is 3, whatever floats say.
            steps = max(1, int(self.epochs * pairs / self.batch_size + 1e-9))
        made = replace(self, num_steps=steps, epochs=None)

        def at(step: Any) -> Any:
            return round(step * made.steps) if isinstance(step, float) and step <= 1 else step

        schedule = {
            # On few steps two points may fall together; the later one counts.
            term: list({at(point[0]): [at(point[0]), *point[1:]] for point in points}.values())
            if all(isinstance(point, list) and point for point in points)
            else points
            for term, points in self.weight_schedule.items()
        }
        warmup = round(self.warmup_steps * made.steps) if self.warmup_steps < 1 else self.warmup_steps
        release: dict[str, float | int] = {
            side: round(step * made.steps if step < 1 else step) for side, step in self.release.items()
        }
        return replace(made, warmup_steps=warmup, weight_schedule=schedule, release=release)

    def _check_images_alone(self) -> None:
        """Sets what pictures without captions need; refuses what needs captions."""
        if self.teachers:
            raise ValueError("caption_column null: pictures alone have one teacher; pass --teacher")
        if self.teacher is None or self.teacher_store is not None:
            raise ValueError("caption_column null: pictures alone need a teacher that runs; pass --teacher")
        if self.weights == CLIP_RD_WEIGHTS:
            self.weights = {name: CLIP_RD_WEIGHTS[name] for name in IMAGES_ALONE}
        for name in [*self.weights, *self.weight_schedule]:
            if name not in IMAGES_ALONE and (self.weights.get(name) or name in self.weight_schedule):
                raise ValueError(
                    f"weights.{name}: needs captions, and caption_column null means pictures alone; expected some of "
                    f"{', '.join(IMAGES_ALONE)}"
                )
        if self.text_weights not in (None, TEACHER) or self.release.get("text"):
            raise ValueError("text_weights: with pictures alone, the student's text tower is the teacher's")
        if self.evaluation_share:
            raise ValueError("evaluation_share: pictures alone have no captions to find; name tasks in `evaluation`")
        if self.student != INHERIT:
            self.text_weights = TEACHER
        elif self.student_config.get("text_config"):
            raise ValueError("student_config.text_config: with pictures alone, the text tower is the teacher's")
        self.freeze = list(dict.fromkeys([*self.freeze, "text"]))

    @property
    def images_alone(self) -> bool:
        """Whether the data has no captions."""
        return all(source.caption_column is None for source in self.pair_sources())

    @property
    def frozen_text(self) -> bool:
        """Whether captions are read by a text tower that never changes."""
        return "text" in self.freeze and "text" not in self.release and not self.images_alone

    def check_places(self) -> None:
        """Checks that pairs, models and tasks are there, and that the output may be written."""
        self.check_output()
        super().check_places()
        check_tasks(self.evaluation)
        if self.teacher_store is not None:
            where = f"teacher_store {self.teacher_store!r}"
            store = local_path(self.teacher_store, where)
            if store is not None and not (store / STORE_FILE).is_file():
                raise FileNotFoundError(f"{where}: found no {STORE_FILE} there")
        elif self.teacher is not None:
            check_clip(self.teacher, "teacher", self.teacher_revision)
        for entry in self.teacher_entries() if self.teacher_store is None else ():
            check_clip(entry.teacher, "teacher", entry.revision)
        if self.student not in (*STUDENTS, INHERIT):
            local_path(self.student, f"student {self.student!r}", names=STUDENTS)
            check_clip(self.student, "student")
        for side, source in self.towers().items():
            if source != TEACHER:
                find_config(source, f"{side}_weights {source!r}")
        if self.tokenizer is not None:
            local_path(self.tokenizer, f"tokenizer {self.tokenizer!r}")

    def check_output(self) -> Path:
        """Refuses a folder with an earlier run that would be replaced, see `programs.run_folder.check_output`."""
        return check_output(self.output_dir, self.overwrite, self.resume)

    def towers(self) -> dict[str, str]:
        """Side -> where its tower comes from; without those that start from random weights."""
        given = {side: getattr(self, f"{side}_weights") for side in SIDES}
        return {side: source for side, source in given.items() if source is not None}


@strict
@dataclass
class EmbeddingSettings(_PairDataSettings):
    """Settings of `hf-blemo embed`.

    Args:
        output_dir: folder of the store; an interrupted run of the same settings resumes.
        teachers: name -> a folder or Hub id of any CLIP-like model of transformers, or `open_clip:NAME/PRETRAINED`;
            columns of the store begin with the name.
        revisions: name -> commit, branch or tag of a teacher on the Hub.
        image_size: pixels of the largest images that students will see (default: those of the largest teacher); with
            augmentation, JPEGs are decoded for the largest of these and the teachers'.
        batch_size: pairs that a process embeds at once.
        rows_per_shard: pairs of a shard.
        mixed_precision: precision of the towers; the stored embeddings are always float16.
        push_to_hub: data set repository (owner/name) to upload the store to; a new one is private.
    """

    output_dir: str = "out/teacher_store"
    teachers: dict[str, str] = field(default_factory=dict)
    revisions: dict[str, str] = field(default_factory=dict)
    batch_size: int = at_least_one(64)
    rows_per_shard: int = at_least_one(4096)
    mixed_precision: Precision = "no"
    push_to_hub: str | None = repository(None)

    def __post_init__(self):
        super().__post_init__()
        if not self.teachers:
            raise ValueError("teachers: expected at least one, as --teachers.NAME FOLDER_OR_HUB_ID")
        for name in self.teachers:
            if not name.isidentifier():
                raise ValueError(f"teachers: expected names of letters, digits and underscores, found {name!r}")
        for name in self.revisions:
            if name not in self.teachers:
                raise ValueError(f"revisions: no teacher {name!r}, found {', '.join(self.teachers)}")
        if self.augmentation and not self.augmentation.get("variants"):
            raise ValueError("augmentation.variants: expected the number of crops to embed of each image, at least 1")
        for source in self.pair_sources():
            if source.caption_column is None:
                raise ValueError(f"data {source.data!r}: a store holds pairs; expected a caption_column, found none")
            if source.streaming:
                raise ValueError(f"data {source.data!r}: embeddings are found by row, which a stream does not have")

    def check_places(self) -> None:
        """Checks that pairs and teachers are there."""
        super().check_places()
        for name, source in self.teachers.items():
            check_clip(source, f"teacher {name!r}", self.revisions.get(name))


@strict
@dataclass
class ComparisonSettings(DistillationSettings):
    """Settings of `hf-blemo compare`: those of every student.

    Args:
        output_dir: folder for teacher, students and tables; it fills method by method.
        teacher: a folder (default: train one there first, without distillation).
        teacher_config: entries of `student_config` that differ in the teacher.
        teacher_steps: optimizer steps of that teacher.
        seeds: one student of every method for each.
        evaluation: tasks (default: the built-in ones of `synthetic` or `emoji` data).
        methods: methods to train (default: all).
        resume: keep the students that a run of the same settings and inputs left in `output_dir`.
        overwrite: replace the comparison of an earlier run in `output_dir`.
    """

    output_dir: str = "out/comparison"
    teacher_config: dict[str, Any] = field(default_factory=dict)
    teacher_steps: int = at_least_one(600)
    seeds: list[int] = different_seeds(default_factory=lambda: [0, 1, 2, 3, 4])
    methods: list[str] = field(default_factory=lambda: list(METHODS))

    def __post_init__(self):
        weights = dict(self.weights)
        super().__post_init__()
        # The run trains its own teacher, so all terms keep their weights.
        self.weights = weights
        for name in self.methods:
            check_choice("methods", name, METHODS)
        if self.teachers:
            raise ValueError("teachers: all methods are compared with one; pass --teacher")
        if not (self.evaluation or self.evaluation_share or self.data in built_in.PAIRS):
            raise ValueError(
                f"data {self.data!r}: expected evaluation, tasks, or an evaluation_share (--evaluation_share 0.1)"
            )
        missing = [name for name in METHODS["CLIP-RD"] if not self.weights.get(name)]
        if missing:
            raise ValueError(f"weights: expected one above 0 for every term, found none for {', '.join(missing)}")

    def check_output(self) -> Path:
        """Refuses a folder with an earlier comparison that would be replaced."""
        return check_output(
            self.output_dir, self.overwrite, self.resume, [COMPARISON_FILE, "teacher"], COMPARISON_FILE
        )

    def comparison_tasks(self) -> dict[str, dict[str, Any]]:
        """Settings of the tasks that teacher and students are evaluated on."""
        if self.evaluation or self.data not in built_in.PAIRS:
            return self.evaluation
        own = getattr(self, str(self.data))
        options = {name: own[name] for name in ("image_size", "combinations", "font") if name in own}
        return {str(self.data): {"kind": self.data, "options": options}}
