"""A distillation from settings to a folder with the student."""

import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm
from transformers import set_seed

from hf_blemo.clip_evaluation.evaluator import ClipEvaluator, flat_metrics
from hf_blemo.clip_evaluation.tasks import make_tasks
from hf_blemo.clip_rd.distillation_clip_rd import CLIPRDDistiller, cached_backward
from hf_blemo.clip_rd.losses_clip_rd import CLIPRDLoss
from hf_blemo.clip_rd_training.batches import PairBatches
from hf_blemo.clip_rd_training.data_position import DataPosition
from hf_blemo.clip_rd_training.report import SimilarityMaps, write_report
from hf_blemo.clip_rd_training.settings import DistillationSettings
from hf_blemo.clip_rd_training.students import make_student
from hf_blemo.clip_rd_training.teachers import StoredTeacher, open_store
from hf_blemo.hub.training_pushes import TrainingPushes
from hf_blemo.pairs.clip_models import Clip, fingerprint, load_clip
from hf_blemo.pairs.pair_processor import PairProcessor
from hf_blemo.pairs.pair_sources import PairStream, PairTable, open_source
from hf_blemo.programs.checkpoints import Checkpoints, begin_checkpoints, check_resumable
from hf_blemo.programs.processes import end_training
from hf_blemo.programs.settings import PUSH_SETTINGS, check_output_folder

FREE_IN_RESUME = {"output_dir", "resume", "checkpoint_every", "trackers", *PUSH_SETTINGS}


class History:
    """Means of the terms over the steps between two entries that computed them; part of the checkpoint."""

    def __init__(self):
        self.rows: list[dict[str, Any]] = []
        # Term -> sum and number of steps: a scheduled term may begin or end in between.
        self.sums: dict[str, tuple[float, int]] = {}

    def add(self, terms: Mapping[str, torch.Tensor]) -> None:
        """Takes the terms of a step."""
        values = torch.stack([value.detach() for value in terms.values()]).tolist()
        for name, value in zip(terms, values, strict=True):
            total, count = self.sums.get(name, (0.0, 0))
            self.sums[name] = total + value, count + 1

    def close(self, step: int, **more: float) -> dict[str, Any]:
        """Ends an entry after a step, counted from 1.

        Returns:
            The entry.
        """
        means = {name: total / count for name, (total, count) in self.sums.items()}
        self.rows.append({"step": step, **means, **more})
        self.sums = {}
        return self.rows[-1]

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return {"rows": self.rows, "sums": self.sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores [`state_dict`]."""
        self.rows, self.sums = list(state["rows"]), dict(state["sums"])


class Evaluations:
    """Evaluations of a student during its training; part of the checkpoint.

    Args:
        evaluator: None where nothing is evaluated.
        processor: of the student.
    """

    def __init__(self, evaluator: ClipEvaluator | None, processor: PairProcessor):
        self.evaluator, self.processor = evaluator, processor
        self.rows: list[dict[str, Any]] = []

    def add(self, student: Any, step: int) -> dict[str, float]:
        """Evaluates after a step, counted from 1; the metrics alone, or nothing where that step has been evaluated."""
        if self.evaluator is None or any(row["step"] == step for row in self.rows):
            return {}
        tasks = self.evaluator.evaluate(student, self.processor)
        self.rows.append({"step": step, "tasks": tasks})
        return flat_metrics(tasks)

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return {"rows": self.rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores [`state_dict`]."""
        self.rows = list(state["rows"])


def distill(settings: DistillationSettings, command: str | None = None) -> dict[str, Any]:
    """Trains a student and fills `settings.output_dir`.

    The folder then holds the student with its tokenizer and image processor, a card, plots and `metrics.json`:
    settings, parameters, data (pairs seen and broken), `history` (mean of every term over the steps since the last
    entry), evaluations and seconds.

    Args:
        settings: of the run.
        command: the command line.

    Returns:
        The content of `metrics.json`; empty on all processes but the first.

    Raises:
        ValueError, FileNotFoundError: settings or data are not usable; nothing is written then. While training: more
            pairs are broken than `max_broken_share` allows; the checkpoints stay.
    """
    start = time.perf_counter()
    if settings.resume and settings.checkpoint_every == 0:
        raise ValueError("resume needs checkpoint_every of at least 1: only checkpoints can be resumed")
    output = check_output_folder(settings.output_dir)
    accelerator = Accelerator(
        mixed_precision=settings.mixed_precision,
        log_with=settings.trackers or None,
        project_dir=str(output) if settings.trackers else None,
    )
    if settings.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError("mixed_precision 'fp16' needs an accelerator; a CPU has bf16")
    # Every process evaluates nothing but the first.
    tasks = make_tasks(settings.evaluation)
    sources = [open_source(source, settings.shuffle_block, settings.seed) for source in settings.pair_sources()]
    stored = open_store(settings)
    teacher: Clip | None = None
    if settings.teacher is not None and stored is None:
        teacher = load_clip(settings.teacher, "teacher", settings.teacher_revision)
    # Before the weights change their dtype.
    taught_by = None if teacher is None else fingerprint(teacher)
    set_seed(settings.seed)
    known = teacher.processor if teacher is not None else stored.processor if stored is not None else None
    student, processor = make_student(settings, known)
    width = teacher.dim if teacher is not None else stored.store.dim if stored is not None else None
    loss = CLIPRDLoss(
        student.config.projection_dim, width or student.config.projection_dim, settings.weights, settings.scales
    )
    batches = PairBatches(
        sources,
        processor,
        teacher.processor if teacher is not None else None,
        settings.batch_size,
        settings.num_steps,
        settings.seed,
        settings.augmentation,
        accelerator.process_index,
        accelerator.num_processes,
        settings.num_workers,
        stored.store if stored is not None else None,
    )
    if stored is not None:
        stored.check(settings, sources, processor)
    checkpoints = output / "checkpoints"
    streams = any(isinstance(source, PairStream) for source in sources)
    # Tables are read alike by any number of workers.
    free = FREE_IN_RESUME if streams else FREE_IN_RESUME | {"num_workers"}
    if settings.resume:
        check_resumable(checkpoints, asdict(settings), free)
    pushes = TrainingPushes(settings, accelerator)
    if accelerator.is_main_process:
        begin_checkpoints(checkpoints, asdict(settings), settings.checkpoint_every, settings.resume)
    accelerator.wait_for_everyone()
    if settings.trackers:
        accelerator.init_trackers("hf_blemo-clip_rd", config=_flat(asdict(settings)))
    distiller = CLIPRDDistiller(
        student,
        None if teacher is None else teacher.model,
        loss,
        teacher_logit_scale=None if stored is None else stored.store.logit_scale,
        weight_schedule=settings.weight_schedule if width is not None else {},
    )
    distiller.to(getattr(torch, settings.dtype)).train()
    model, optimizer = accelerator.prepare(distiller, make_optimizer(distiller, settings))
    average = None
    if settings.ema_decay:
        # Buffers are copied, not averaged: the numbers of positions would be rounded down to others.
        average = AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(settings.ema_decay))
        accelerator.register_for_checkpointing(average)
    evaluator = ClipEvaluator(tasks) if tasks else None
    training = Training(accelerator, model, optimizer, batches, settings, average, evaluator, processor, pushes)
    teacher_tasks = None
    if settings.evaluate_teacher and teacher is not None and evaluator is not None and accelerator.is_main_process:
        teacher_tasks = evaluator.evaluate(teacher.model, teacher.processor, accelerator.device)
    maps = before = None
    if width is not None and accelerator.is_main_process and loss.needs_teacher:
        maps = SimilarityMaps(training.distiller, batches)
        before, _ = maps.now()
    training.run(Checkpoints(accelerator, checkpoints, settings.checkpoint_every, "step"))

    metrics: dict[str, Any] = {}
    if accelerator.is_main_process:
        best: Any = average.module if average is not None else student
        best.float().save_pretrained(output)
        processor.save_pretrained(output)
        data = training.position
        pairs = [len(source) if isinstance(source, PairTable) else None for source in sources]
        described = [
            {"data": source.settings.data, "weight": source.settings.weight, "pairs": count}
            for source, count in zip(sources, pairs, strict=True)
        ]
        metrics = {
            "schema_version": 1,
            "model_type": student.config.model_type,
            "student": settings.student,
            "teacher": _described(settings, teacher, stored, taught_by),
            "data": {
                "sources": described,
                "pairs": None if None in pairs else sum(count or 0 for count in pairs),
                "seen": data.seen,
                "broken": data.broken,
                "broken_examples": data.examples,
            },
            "num_parameters": student.num_parameters(),
            "num_parameters_vision": student.vision_model.num_parameters(),
            "num_processes": accelerator.num_processes,
            "num_steps": settings.num_steps,
            "batch_size": settings.batch_size,
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
        write_report(output, metrics, shown)
        pushes.at_end(output)
    accelerator.wait_for_everyone()
    del model, training
    end_training(accelerator)
    return metrics


def _described(
    settings: DistillationSettings, teacher: Clip | None, stored: StoredTeacher | None, taught_by: str | None
) -> dict[str, Any] | None:
    if teacher is not None:
        assert settings.teacher is not None
        return {
            "source": settings.teacher,
            "fingerprint": taught_by,
            "parameters": sum(values.numel() for values in teacher.model.parameters()),
            "logit_scale": teacher.model.logit_scale.exp().item(),
            "stored": False,
        }
    if stored is not None:
        kept = {key: stored.store.teacher[key] for key in ("source", "fingerprint", "parameters", "logit_scale")}
        return {**kept, "stored": True}
    return None


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings as trackers take them."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, int | float | str | bool) else str(value)
    return flat


class Training:
    """The loop over the steps.

    Args:
        accelerator: of the run.
        model, optimizer: prepared by it.
        batches: of all steps.
        settings: of the run.
        average: of the student's weights, or None.
        evaluator: of the student, or None.
        processor: of the student.
        pushes: of the student, to the Hub.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        batches: PairBatches,
        settings: DistillationSettings,
        average: AveragedModel | None,
        evaluator: ClipEvaluator | None,
        processor: PairProcessor,
        pushes: TrainingPushes,
    ):
        self.processor, self.pushes = processor, pushes
        self.accelerator, self.model, self.optimizer = accelerator, model, optimizer
        self.batches, self.settings, self.average, self.evaluator = batches, settings, average, evaluator
        self.distiller = accelerator.unwrap_model(model)
        self.history = History()
        self.position = DataPosition(accelerator, settings.max_broken_share)
        self.evaluations = Evaluations(evaluator, processor)
        for part in (self.history, self.position, self.evaluations):
            accelerator.register_for_checkpointing(part)

    @property
    def student(self) -> Any:
        """The student as it would be saved now."""
        return self.distiller.student if self.average is None else self.average.module

    def run(self, checkpoints: Checkpoints) -> None:
        """Trains from the newest checkpoint, or from the beginning, to the end."""
        settings, accelerator = self.settings, self.accelerator
        begin = checkpoints.restore(settings.num_steps) if settings.resume else 0
        self.batches.go_on(begin, self.position.own_states())
        with tqdm(
            total=settings.num_steps,
            initial=begin,
            desc="distillation",
            unit="step",
            disable=not accelerator.is_main_process,
        ) as bar:
            loader = iter(self._loader()) if begin < settings.num_steps else None
            for step in range(begin, settings.num_steps):
                self._train(step, loader, checkpoints, bar)

    def _train(self, step: int, loader: Any, checkpoints: Checkpoints, bar: Any) -> None:
        """One step, and all that is due after it."""
        settings, accelerator = self.settings, self.accelerator
        terms = self._step(step, self._next(loader))
        done, last = step + 1, step + 1 == settings.num_steps
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
            logged = self.history.close(done, logit_scale=scale, learning_rate=learning_rate(step, settings))
            bar.set_postfix(loss=f"{logged['loss']:.3f}")
        if last or (settings.evaluate_every and done % settings.evaluate_every == 0):
            logged = {**logged, **self._evaluate(done)}
        if logged and settings.trackers:
            accelerator.log({name: value for name, value in logged.items() if name != "step"}, step=done)
        if checkpoints.due(done, last):
            self.position.share()
            checkpoints.save(done, last)
            if accelerator.is_main_process and not last:
                self.pushes.on_save(f"step {done}", self._save_student)
        bar.update(1)

    def _save_student(self, folder: Path) -> None:
        self.student.save_pretrained(folder)
        self.processor.save_pretrained(folder)

    def _loader(self) -> torch.utils.data.DataLoader:
        # Each process makes its own share, so nothing remains for Accelerate to deal out. A generator of its own: the
        # loader's draw from the common one would make a resumed run another run.
        return torch.utils.data.DataLoader(
            self.batches,
            batch_size=None,
            num_workers=self.settings.num_workers,
            pin_memory=self.accelerator.device.type == "cuda",
            generator=torch.Generator(),
        )

    def _next(self, loader: Any) -> dict[str, torch.Tensor]:
        """This process's share of the next batch; where it fails, the others are told before they wait for it."""
        try:
            batch, report = next(loader)
            if "error" in report:
                raise ValueError(report["error"])
        except Exception:
            self.distiller.loss.report_failure(self.distiller.step.device)
            raise
        self.position.take(report)
        return {name: values.to(self.accelerator.device, non_blocking=True) for name, values in batch.items()}

    def _step(self, step: int, batch: dict[str, torch.Tensor]) -> Any:
        settings, accelerator = self.settings, self.accelerator
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, settings)
        if settings.chunk_size:
            terms = cached_backward(self.model, batch, settings.chunk_size, accelerator.backward)
        else:
            terms = self.model(batch)
            accelerator.backward(terms.loss)
        if settings.max_grad_norm:
            # Unscales the gradients first.
            accelerator.clip_grad_norm_(self.model.parameters(), settings.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return terms

    def _evaluate(self, done: int) -> dict[str, float]:
        found = self.evaluations.add(self.student, done) if self.accelerator.is_main_process else {}
        self.accelerator.wait_for_everyone()
        return found


def learning_rate(step: int, settings: DistillationSettings) -> float:
    """Linear warm-up, then a cosine to 0.

    Args:
        step: counted from 0.
        settings: of the run.
    """
    warm = min(1.0, (step + 1) / max(settings.warmup_steps, 1))
    rest = max(settings.num_steps - settings.warmup_steps, 1)
    progress = min(max(step - settings.warmup_steps, 0) / rest, 1.0)
    return settings.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * progress))


def make_optimizer(distiller: nn.Module, settings: DistillationSettings) -> torch.optim.Optimizer:
    """AdamW of the recipe."""
    groups = parameter_groups(distiller, settings.weight_decay)
    # Fused: one pass over the weights; the plain one takes a sixth of a small batch's step on a CPU.
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.98), eps=1e-6, fused=True)


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; biases, norms and scales do not."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in trained if parameter.dim() >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.dim() < 2], "weight_decay": 0.0},
    ]
