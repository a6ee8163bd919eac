"""A distillation from settings to a folder with the student."""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import set_seed

from hf_blemo.clip_evaluation.evaluator import ClipEvaluator
from hf_blemo.clip_evaluation.tasks import make_tasks, tasks_of_training_data
from hf_blemo.clip_rd.checked_weights_clip_rd import not_finite
from hf_blemo.clip_rd.distillation_clip_rd import CLIPRDDistiller, cached_backward, features_of
from hf_blemo.clip_rd.losses_clip_rd import CLIPRDLoss
from hf_blemo.clip_rd_training.batches import PairBatches
from hf_blemo.clip_rd_training.data_position import DataPosition
from hf_blemo.clip_rd_training.frozen_texts import FrozenTexts
from hf_blemo.clip_rd_training.held_out import TASK, hold_out, retrieval_task
from hf_blemo.clip_rd_training.plots import plot_distillation
from hf_blemo.clip_rd_training.results import SimilarityMaps
from hf_blemo.clip_rd_training.settings import DistillationSettings
from hf_blemo.clip_rd_training.students import make_student
from hf_blemo.clip_rd_training.teachers import Teacher, open_teacher
from hf_blemo.clip_rd_training.towers import part_of
from hf_blemo.files import write_json
from hf_blemo.hub import write_card
from hf_blemo.hub.training_pushes import TrainingPushes
from hf_blemo.pairs.pair_processor import PairProcessor
from hf_blemo.pairs.pair_sources import PairStream, PairTable, open_source
from hf_blemo.programs.checkpoints import Checkpoints, start_trackers
from hf_blemo.programs.fingerprints import fingerprint
from hf_blemo.programs.processes import check_same, together
from hf_blemo.programs.progress import Progress
from hf_blemo.programs.run_folder import (
    CHECKPOINTS,
    begin_run,
    check_resumable,
    named_inputs,
    whole_results,
)
from hf_blemo.programs.settings import PUSH_SETTINGS

logger = logging.getLogger(__name__)

FREE_IN_RESUME = {"output_dir", "resume", "overwrite", "checkpoint_every", "trackers", *PUSH_SETTINGS}


class _Rows:
    """Rows that a run collects; its checkpoints hold the attributes in `kept`."""

    kept: tuple[str, ...] = ("rows",)

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def state_dict(self) -> dict[str, Any]:
        """Returns plain numbers."""
        return {name: getattr(self, name) for name in self.kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores [`state_dict`]."""
        for name in self.kept:
            setattr(self, name, type(getattr(self, name))(state[name]))


class _History(_Rows):
    """Means of the terms over the steps between two entries that computed them."""

    kept = ("rows", "sums")

    def __init__(self, cause: Callable[[], str] = str) -> None:
        super().__init__()
        self.cause = cause
        # Term -> sum and number of steps: a scheduled term may begin or end in between.
        self.sums: dict[str, tuple[float, int]] = {}
        self.pending: list[tuple[list[str], torch.Tensor]] = []

    def add(self, terms: Mapping[str, torch.Tensor]) -> None:
        """Adds the terms of a step, without waiting for the device."""
        self.pending.append((list(terms), torch.stack([value.detach() for value in terms.values()])))

    def state_dict(self) -> dict[str, Any]:
        """Returns plain numbers."""
        self.settle(len(self.pending))
        return super().state_dict()

    def settle(self, step: int) -> None:
        """Adds up the terms of all steps until one, counted from 1.

        Raises:
            ValueError: a term is not finite; the message names it and its step.
        """
        for number, (names, values) in enumerate(self.pending, step - len(self.pending) + 1):
            for name, value in zip(names, values.tolist(), strict=True):
                if not math.isfinite(value):
                    cause = self.cause()
                    raise ValueError(
                        f"step {number}: the training diverged: the term {name} of the loss is {value}"
                        + (f" ({cause})" if cause else "")
                    )
                total, count = self.sums.get(name, (0.0, 0))
                self.sums[name] = total + value, count + 1
        self.pending = []

    def close(self, step: int, **more: float) -> dict[str, Any]:
        """Ends an entry after a step, counted from 1, and returns it."""
        self.settle(step)
        means = {name: total / count for name, (total, count) in self.sums.items()}
        self.rows.append({"step": step, **means, **more})
        self.sums = {}
        return self.rows[-1]


class _Evaluations(_Rows):
    """Evaluations of a student during its training, on the first process."""

    def __init__(self, evaluator: ClipEvaluator | None, processor: PairProcessor):
        super().__init__()
        self.evaluator, self.processor = evaluator, processor

    def add(self, student: Any, step: int) -> dict[str, float]:
        """Evaluates after a step, counted from 1; returns the metrics, or nothing if that step has been evaluated."""
        if self.evaluator is None or any(row["step"] == step for row in self.rows):
            return {}
        tasks = self.evaluator.evaluate(student, self.processor)
        self.rows.append({"step": step, "tasks": tasks})
        return self.evaluator.flat(tasks)


def distill(settings: DistillationSettings, command: str | None = None) -> dict[str, Any]:
    """Trains a student and fills `settings.output_dir`.

    The folder then holds the student with its tokenizer and image processor, a card, plots and `metrics.json`:
    settings, parameters, data (pairs seen and broken), `history` (mean of every term over the steps since the last
    entry), evaluations and seconds. That content is returned; nothing on all processes but the first.

    Raises:
        ValueError, FileNotFoundError: settings or data are not usable; nothing is written then. During training: more
            pairs are broken than `max_broken_share` allows; the checkpoints stay.
        FileExistsError: the folder holds an earlier run's result or checkpoints, or another run writes there.
    """
    accelerator = Accelerator(
        mixed_precision=settings.mixed_precision,
        log_with=settings.trackers or None,
        project_dir=settings.output_dir if settings.trackers else None,
    )
    with together(accelerator, settings) as stack:
        return _distill(accelerator, settings, command, stack)


def _distill(
    accelerator: Accelerator, settings: DistillationSettings, command: str | None, stack: ExitStack
) -> dict[str, Any]:
    start = time.perf_counter()
    if settings.resume and settings.checkpoint_every == 0:
        raise ValueError("resume needs checkpoint_every of at least 1: only checkpoints can be resumed")
    output = settings.check_output()
    if settings.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError("mixed_precision 'fp16' needs an accelerator; a CPU has bf16")
    # The first process is the only one that evaluates.
    tasks = make_tasks(settings.evaluation) if accelerator.is_main_process else {}
    for name in tasks_of_training_data(settings.evaluation, settings.described_sources()) if tasks else ():
        logger.warning("evaluation.%s: its data is trained on; its numbers say nothing of other pairs", name)
    sources = [open_source(source, settings.shuffle_block, settings.seed) for source in settings.pair_sources()]
    teacher = open_teacher(settings)
    split = hold_out(accelerator, settings.evaluation_share, sources)
    set_seed(settings.seed)
    student, processor, inherited = make_student(settings, teacher, split.training)
    width = student.config.projection_dim
    loss = CLIPRDLoss(width, teacher.dim or width, settings.weights, settings.scales, precision=settings.precision)
    teacher.check(settings, sources, processor)
    if split.pictures and accelerator.is_main_process:
        tasks[TASK] = retrieval_task(sources, split.pictures)
    asked, settings = asdict(settings), settings.for_pairs(split.num_pairs)
    if accelerator.is_main_process and settings.warmup_steps >= settings.steps:
        logger.warning(
            "warmup_steps %d: the run has %d steps, so the learning rate never reaches %g; a number below 1 means a "
            "share of all steps (--warmup_steps 0.1)",
            settings.warmup_steps, settings.steps, settings.learning_rate,
        )  # fmt: skip
    rank, world = accelerator.process_index, accelerator.num_processes
    batches = PairBatches(settings, split.training, processor, teacher, rank, world)
    # Any number of workers reads a table alike.
    free = FREE_IN_RESUME | ({"num_workers"} if all(isinstance(source, PairTable) for source in sources) else set())
    inputs = _inputs(sources, teacher) if settings.checkpoint_every else {}
    if split.pictures and inputs:
        inputs["the choice of held-out pairs"] = fingerprint(split.pictures)
    run = (output, asked, free, inputs)
    check_resumable(*run)
    pushes = TrainingPushes(settings, accelerator)
    check_same(accelerator, inputs)
    if accelerator.is_main_process:
        stack.enter_context(begin_run(*run))
    accelerator.wait_for_everyone()
    start_trackers(accelerator, settings, "hf_blemo-clip_rd")
    distiller = CLIPRDDistiller(
        student,
        teacher.models,
        loss,
        teacher_logit_scale=teacher.logit_scale,
        weight_schedule=settings.weight_schedule if teacher.dim is not None else {},
        images_alone=settings.images_alone,
    )
    distiller.to(getattr(torch, settings.dtype)).train()
    if settings.compile:
        distiller.compile_towers()
    model, optimizer = accelerator.prepare(distiller, make_optimizer(distiller, settings))
    average = None
    if settings.ema_decay:
        # Buffers are copied, not averaged: an average would round the numbers of positions down to others.
        average = AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(settings.ema_decay))
        accelerator.register_for_checkpointing(average)
    evaluator = ClipEvaluator(tasks) if tasks else None
    training = _Training(accelerator, model, optimizer, batches, settings, average, evaluator, pushes)
    teacher_tasks = None
    if settings.evaluate_teacher and teacher.model is not None and evaluator is not None:
        assert teacher.processor is not None
        teacher_tasks = evaluator.evaluate(teacher.model, teacher.processor, accelerator.device)
    teacher.tune(training.distiller, batches, settings.chunk_size)
    maps = before = None
    if teacher.dim is not None and accelerator.is_main_process and loss.needs_teacher and not settings.images_alone:
        maps = SimilarityMaps(training.distiller, batches)
        before, _ = maps.now()
    training.run(Checkpoints(accelerator, output / CHECKPOINTS, settings.checkpoint_every, "step"))

    metrics: dict[str, Any] = {}
    if accelerator.is_main_process:
        training.student.float()
        if settings.images_alone:
            # Trained between images; between an image and a text it is the teacher's.
            with torch.no_grad():
                training.student.logit_scale.copy_(teacher.model.logit_scale)
        described = teacher.described(training.distiller)
        metrics = {
            "schema_version": 1,
            "model_type": student.config.model_type,
            "student": settings.student,
            "inherited": inherited,
            "images_alone": settings.images_alone,
            "teacher": described[0] if len(described) == 1 else None,
            "teachers": described,
            "data": split.description() | training.position.description(),
            "num_parameters": student.num_parameters(),
            "num_parameters_vision": student.vision_model.num_parameters(),
            "num_processes": accelerator.num_processes,
            "num_steps": settings.steps,
            "epochs": None if split.num_pairs is None else settings.steps * settings.batch_size / split.num_pairs,
            "batch_size": settings.batch_size,
            "seconds_per_step": round(training.seconds / training.trained, 4) if training.trained else None,
            "history": training.history.rows,
            "evaluation": training.evaluations.rows[-1] if training.evaluations.rows else None,
            "evaluations": training.evaluations.rows,
            "teacher_evaluation": None if teacher_tasks is None else {"tasks": teacher_tasks},
            "config": asdict(settings),
            "command": command,
            "wall_seconds": round(time.perf_counter() - start, 1),
        }
        shown = None
        if maps is not None and before is not None:
            after, theirs = maps.now()
            shown = theirs, before, after
        with whole_results(output) as made:
            training.save_student(made)
            write_json({made / "metrics.json": metrics})
            plot_distillation(metrics, shown, made / "plots")
            write_card(made, metrics)
        pushes.at_end(output)
    return metrics


def pair_inputs(sources: Sequence[PairTable | PairStream]) -> dict[str, Any]:
    """What the pairs are -> fingerprint of their content."""
    inputs: dict[str, Any] = {}
    for source in sources:
        inputs |= named_inputs(f"{source.settings.data!r}", source.fingerprint())
    return inputs


def _inputs(sources: Sequence[PairTable | PairStream], teacher: Teacher) -> dict[str, Any]:
    """The same of pairs and teachers."""
    inputs = pair_inputs(sources)
    for number, description in enumerate(teacher.descriptions):
        name = f"the teacher {description['source']!r}" if number else "the teacher"
        inputs |= named_inputs(name, {"weights": description["fingerprint"]})
    return inputs


class _Training:
    """The loop over the steps, on the prepared model and optimizer; `average` and `evaluator` may be None."""

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        batches: PairBatches,
        settings: DistillationSettings,
        average: AveragedModel | None,
        evaluator: ClipEvaluator | None,
        pushes: TrainingPushes,
    ):
        self.accelerator, self.model, self.optimizer, self.pushes = accelerator, model, optimizer, pushes
        self.batches, self.settings, self.average = batches, settings, average
        # Of the steps of this run, without evaluations and checkpoints.
        self.seconds, self.trained = 0.0, 0
        self.distiller = accelerator.unwrap_model(model)
        self.history = _History(self.distiller.loss.cause)
        self.position = DataPosition(accelerator, settings.max_broken_share)
        self.evaluations = _Evaluations(evaluator, batches.student)
        # Input of the distiller -> its values of each caption, where the text tower is frozen.
        self.texts: dict[str, FrozenTexts] = self._frozen_texts() if settings.frozen_text else {}
        for part in (self.history, self.position, self.evaluations):
            accelerator.register_for_checkpointing(part)

    @property
    def student(self) -> Any:
        """The student to be saved."""
        return self.distiller.student if self.average is None else self.average.module

    def save_student(self, folder: Path) -> None:
        """Saves the student with its tokenizer and image processor."""
        self.student.save_pretrained(folder)
        self.batches.student.save_pretrained(folder)

    def run(self, checkpoints: Checkpoints) -> None:
        """Trains from the newest checkpoint, or from the beginning, to the end."""
        settings, accelerator = self.settings, self.accelerator
        begin = checkpoints.restore(settings.steps) if settings.resume else 0
        self.batches.resume(begin, self.position.own_states())
        if settings.evaluation_share and not begin and accelerator.is_main_process:
            # What the start was worth tells what the training gained.
            self.evaluations.add(self.student, 0)
        shown, holds = accelerator.is_main_process, ("pairs", settings.batch_size)
        with Progress("distillation", "step", settings.steps, begin, shown, holds) as bar:
            loader = iter(self._loader()) if begin < settings.steps else None
            for step in range(begin, settings.steps):
                self._train(step, loader, checkpoints, bar)

    def _train(self, step: int, loader: Any, checkpoints: Checkpoints, bar: Any) -> None:
        """Trains a step, then logs, evaluates and saves what is due."""
        settings, accelerator = self.settings, self.accelerator
        begun = time.perf_counter()
        batch = self._next(loader)
        try:
            terms = self._step(step, batch)
        except ValueError as error:
            raise ValueError(f"step {step + 1}, seed {settings.seed}: {error}") from error
        done, last = step + 1, step + 1 == settings.steps
        self.distiller.set_step(done)
        if last:
            self.distiller.clamp_scales()
        if self.average is not None:
            self.average.update_parameters(self.distiller.student)
        self.history.add(terms)
        logged = {}
        if done % settings.log_every == 0 or last:
            self.position.share()
            scale = self.distiller.student.logit_scale.exp().item()
            logged = self.history.close(done, logit_scale=scale, learning_rate=_learning_rate(step, settings))
            bar.update(0, loss=f"{logged['loss']:.3f}")
        self.trained += 1
        self.seconds += time.perf_counter() - begun
        if last or (settings.evaluate_every and done % settings.evaluate_every == 0):
            found = self.evaluations.add(self.student, done) if accelerator.is_main_process else {}
            accelerator.wait_for_everyone()
            logged = {**logged, **found}
        if logged and settings.trackers:
            accelerator.log({name: value for name, value in logged.items() if name != "step"}, step=done)
        if checkpoints.due(done, last):
            self.history.settle(done)
            broken = not_finite(self.student.state_dict())
            if broken is not None:
                raise ValueError(f"step {done}: the training diverged: the weights {broken} are not finite")
            self.position.share()
            checkpoints.save(done, last)
            if accelerator.is_main_process and not last:
                self.pushes.on_save(f"step {done}", self.save_student)
        bar.update(1)

    def _loader(self) -> torch.utils.data.DataLoader:
        # Each process makes its own share, so nothing is left for Accelerate to deal out. The generator is its own:
        # drawing from the common one would make a resumed run another run.
        return torch.utils.data.DataLoader(
            self.batches,
            batch_size=None,
            num_workers=self.settings.num_workers,
            pin_memory=self.accelerator.device.type == "cuda",
            generator=torch.Generator(),
        )

    def _next(self, loader: Any) -> dict[str, torch.Tensor]:
        """Returns this process's share of the next batch."""
        batch, report = next(loader)
        if "error" in report:
            raise ValueError(report["error"])
        self.position.take(report)
        batch = {name: values.to(self.accelerator.device, non_blocking=True) for name, values in batch.items()}
        texts = {}
        for name, frozen in self.texts.items():
            prefix = "teacher_" if name.startswith("teacher_") and "teacher_input_ids" in batch else ""
            texts[name] = frozen(report["captions"], batch[f"{prefix}input_ids"], batch.get(f"{prefix}attention_mask"))
        return batch | texts

    def _frozen_texts(self) -> dict[str, FrozenTexts]:
        """Keeps what the frozen text tower of the student makes of each caption and, if it runs, the teacher."""
        student, teacher = self.distiller.student, self.distiller.teacher

        def encode(input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
            inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
            with self.accelerator.autocast():
                # Without its projection, which may be trained.
                return student.text_model(**inputs, return_dict=True).pooler_output

        def encode_teacher(input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
            with self.accelerator.autocast():
                return features_of(teacher.get_text_features(input_ids=input_ids, attention_mask=attention_mask))

        found = {"text_outputs": FrozenTexts(encode, self.batches.student.max_length)}
        processor = self.batches.teacher.processor
        if teacher is not None and processor is not None:
            found["teacher_text_embeds"] = FrozenTexts(encode_teacher, processor.max_length)
        return found

    def _step(self, step: int, batch: dict[str, torch.Tensor]) -> Any:
        settings, accelerator = self.settings, self.accelerator
        for group in self.optimizer.param_groups:
            group["lr"] = _learning_rate(step, settings, group["part"])
        for side in settings.freeze:
            # Evaluation mode: until its release, its batch statistics stay and nothing is dropped.
            getattr(self.distiller.student, f"{side}_model").train(step >= settings.release.get(side, math.inf))
        if settings.chunk_size:
            terms = cached_backward(self.model, batch, settings.chunk_size, accelerator.backward)
        else:
            terms = self.model(batch)
            accelerator.backward(terms.loss)
        for group in self.optimizer.param_groups:
            if step < settings.release.get(group["part"], 0):
                # Not trained yet: neither clipped with the others nor remembered by the optimizer.
                for parameter in group["params"]:
                    parameter.grad = None
        if settings.max_grad_norm:
            # Unscales the gradients first.
            accelerator.clip_grad_norm_(self.model.parameters(), settings.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return terms


def _learning_rate(step: int, settings: DistillationSettings, part: str | None = None) -> float:
    """Returns the rate of a step, counted from 0: a linear warm-up from the part's release, then a cosine to 0."""
    taken = max(step - settings.release.get(part or "", 0), -1)
    warm = min(1.0, (taken + 1) / max(settings.warmup_steps, 1))
    rest = max(settings.steps - settings.warmup_steps, 1)
    progress = min(max(step - settings.warmup_steps, 0) / rest, 1.0)
    highest = settings.learning_rates.get(part or "", settings.learning_rate)
    return highest * warm * 0.5 * (1 + math.cos(math.pi * progress))


def make_optimizer(distiller: nn.Module, settings: DistillationSettings) -> torch.optim.Optimizer:
    """Makes the AdamW of the recipe: matrices decay; biases, norms and scales do not.

    Towers with a rate or a release of their own have their own groups, named by `part`.
    """
    apart = settings.learning_rates.keys() | settings.release.keys()
    groups: dict[tuple[str | None, bool], list[nn.Parameter]] = {(None, True): [], (None, False): []}
    for name, value in distiller.named_parameters():
        if value.requires_grad:
            part = part_of(name)
            groups.setdefault((part if part in apart else None, value.dim() >= 2), []).append(value)
    entries = [
        {"params": values, "weight_decay": settings.weight_decay if decays else 0.0, "part": part}
        for (part, decays), values in groups.items()
    ]
    # Fused: one pass over the weights; the plain one takes a sixth of a small batch's step on a CPU.
    return torch.optim.AdamW(entries, lr=settings.learning_rate, betas=(0.9, 0.98), eps=1e-6, fused=True)
