"""A distillation from settings to a folder with the student."""

import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from tqdm.auto import tqdm
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, CLIPImageProcessorPil, set_seed

from hf_blemo.checkpoints import Checkpoints, check_same_run
from hf_blemo.clip_rd.configuration_clip_rd import PRESETS, CLIPRDConfig
from hf_blemo.clip_rd.distillation_clip_rd import CLIPRDDistiller, cached_backward
from hf_blemo.clip_rd.losses_clip_rd import CLIPRDLoss
from hf_blemo.clip_rd.modeling_clip_rd import CLIPRDModel
from hf_blemo.clip_rd_training.pairs import PairBatches, PairProcessor, load_pairs
from hf_blemo.clip_rd_training.settings import DistillationSettings
from hf_blemo.data.synthetic_pairs import synthetic_tokenizer
from hf_blemo.json_files import read_json, write_json

CUSTOM = "custom"
FREE_IN_RESUME = {"output_dir", "resume", "checkpoint_every"}


class History:
    """Means of the terms over the steps between two entries; part of the checkpoint."""

    def __init__(self):
        self.rows: list[dict[str, Any]] = []
        self.sums: dict[str, float] = {}
        self.count = 0

    def add(self, terms: Mapping[str, torch.Tensor]) -> None:
        """Takes the terms of a step."""
        values = torch.stack([value.detach() for value in terms.values()]).tolist()
        for name, value in zip(terms, values, strict=True):
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += 1

    def close(self, step: int, **more: float) -> dict[str, Any]:
        """Ends an entry after a step, counted from 1.

        Returns:
            The entry.
        """
        means = {name: value / self.count for name, value in self.sums.items()}
        self.rows.append({"step": step, **means, **more})
        self.sums, self.count = {}, 0
        return self.rows[-1]

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return {"rows": self.rows, "sums": self.sums, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores [`state_dict`]."""
        self.rows, self.sums, self.count = list(state["rows"]), dict(state["sums"]), state["count"]


def distill(settings: DistillationSettings, command: str | None = None) -> dict[str, Any]:
    """Trains a student and fills `settings.output_dir`.

    The folder then holds the student with its tokenizer and image processor, and `metrics.json`: settings, parameters,
    `history` (mean of every term over the steps since the last entry) and seconds.

    Args:
        settings: of the run.
        command: the command line.

    Returns:
        The content of `metrics.json`.

    Raises:
        ValueError, FileNotFoundError: settings or data are not usable; nothing is written then.
    """
    start = time.perf_counter()
    if settings.resume and settings.checkpoint_every == 0:
        raise ValueError("resume needs checkpoint_every of at least 1: without checkpoints there is nothing left")
    accelerator = Accelerator(mixed_precision=settings.mixed_precision)
    pairs = load_pairs(settings)
    teacher: Any = None
    teacher_processor = None
    if settings.teacher is not None:
        teacher, teacher_processor = _load_teacher(settings)
    set_seed(settings.seed)
    student, processor = make_student(settings, teacher_processor)
    loss = CLIPRDLoss(
        student.config.projection_dim,
        student.config.projection_dim if teacher is None else teacher.config.projection_dim,
        settings.weights,
        settings.scales,
    )
    batches = PairBatches(
        pairs, processor, teacher_processor, settings, accelerator.process_index, accelerator.num_processes
    )
    output = Path(settings.output_dir)
    checkpoints, began = output / "checkpoints", output / "checkpoints" / "settings.json"
    if settings.resume and began.is_file():
        check_same_run(asdict(settings), read_json(began), FREE_IN_RESUME, settings.output_dir)
    if accelerator.is_main_process:
        if not settings.resume:
            shutil.rmtree(checkpoints, ignore_errors=True)
        if settings.checkpoint_every:
            write_json({began: asdict(settings)})
    accelerator.wait_for_everyone()
    distiller = CLIPRDDistiller(student, teacher, loss).to(getattr(torch, settings.dtype)).train()
    optimizer = torch.optim.AdamW(
        parameter_groups(distiller, settings.weight_decay), lr=settings.learning_rate, betas=(0.9, 0.98), eps=1e-6
    )
    model, optimizer = accelerator.prepare(distiller, optimizer)
    history = History()
    accelerator.register_for_checkpointing(history)
    _train(
        accelerator,
        model,
        optimizer,
        batches,
        settings,
        history,
        Checkpoints(accelerator, checkpoints, settings.checkpoint_every, "step"),
    )

    metrics: dict[str, Any] = {}
    if accelerator.is_main_process:
        student.save_pretrained(output)
        processor.tokenizer.save_pretrained(output)
        processor.image_processor.save_pretrained(output)
        metrics = {
            "schema_version": 1,
            "model_type": student.config.model_type,
            "data": {"source": settings.data, "pairs": len(pairs)},
            "num_parameters": student.num_parameters(),
            "num_parameters_vision": student.vision_model.num_parameters(),
            "num_processes": accelerator.num_processes,
            "history": history.rows,
            "config": asdict(settings),
            "command": command,
            "wall_seconds": round(time.perf_counter() - start, 1),
        }
        write_json({output / "metrics.json": metrics})
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return metrics


def _train(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: PairBatches,
    settings: DistillationSettings,
    history: History,
    checkpoints: Checkpoints,
) -> None:
    distiller = accelerator.unwrap_model(model)
    begin = checkpoints.restore(settings.num_steps) if settings.resume else 0
    # Each process makes its own share of the steps that are left, so nothing remains for Accelerate to deal out.
    rest = torch.utils.data.Subset(batches, range(begin, settings.num_steps))
    bar = tqdm(
        total=settings.num_steps,
        initial=begin,
        desc="distillation",
        unit="step",
        disable=not accelerator.is_main_process,
    )
    for step, batch in enumerate(torch.utils.data.DataLoader(rest, batch_size=None), begin):
        batch = {name: values.to(accelerator.device, non_blocking=True) for name, values in batch.items()}
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings)
        if settings.chunk_size:
            terms = cached_backward(model, batch, settings.chunk_size, accelerator.backward)
        else:
            terms = model(batch)
            accelerator.backward(terms.loss)
        if settings.max_grad_norm:
            # Unscales the gradients first.
            accelerator.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        done, last = step + 1, step + 1 == settings.num_steps
        distiller.set_step(done)
        if last:
            distiller.clamp_scales()
        history.add(terms)
        if done % settings.log_every == 0 or last:
            row = history.close(done, logit_scale=distiller.student.logit_scale.exp().item())
            bar.set_postfix(loss=f"{row['loss']:.3f}")
        checkpoints.save(done, last)
        bar.update(1)
    bar.close()


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


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; biases, norms and scales do not."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in trained if parameter.dim() >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.dim() < 2], "weight_decay": 0.0},
    ]


def _load_teacher(settings: DistillationSettings) -> tuple[Any, PairProcessor]:
    assert settings.teacher is not None
    _check_model(settings.teacher, "teacher")
    options = {} if settings.teacher_revision is None else {"revision": settings.teacher_revision}
    teacher = AutoModel.from_pretrained(settings.teacher, **options)
    for name in ("get_image_features", "get_text_features", "logit_scale"):
        if not hasattr(teacher, name):
            raise ValueError(f"teacher {settings.teacher!r}: {type(teacher).__name__} has no {name}; expected a CLIP")
    processor = PairProcessor(
        AutoTokenizer.from_pretrained(settings.teacher, **options),
        AutoImageProcessor.from_pretrained(settings.teacher, backend="pil", **options),
    )
    return teacher, processor


def _check_model(source: str, what: str) -> None:
    path = Path(source)
    local = source.startswith((".", "/")) or source.count("/") != 1 or path.exists()
    if local and not (path / "config.json").is_file():
        raise FileNotFoundError(
            f"{what} {source!r}: found no config.json there, expected a model's folder or a Hub id"
        )


def make_student(
    settings: DistillationSettings, teacher_processor: PairProcessor | None = None
) -> tuple[CLIPRDModel, PairProcessor]:
    """Makes the student and what prepares its inputs.

    Args:
        settings: of the run.
        teacher_processor: whose tokenizer it shares, unless the settings name another.

    Returns:
        The student, its tokenizer and image processor.

    Raises:
        ValueError: an unknown preset, or no tokenizer to take.
        FileNotFoundError: `student` is neither a preset nor a model.
    """
    if settings.tokenizer is not None:
        tokenizer = AutoTokenizer.from_pretrained(settings.tokenizer)
    elif teacher_processor is not None:
        tokenizer = teacher_processor.tokenizer
    elif settings.data == "synthetic":
        tokenizer = synthetic_tokenizer()
    else:
        raise ValueError("expected tokenizer: without a teacher there is none to share")
    if settings.student == CUSTOM or settings.student in PRESETS:
        vocabulary = {"vocab_size": len(tokenizer)}
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            if getattr(tokenizer, name) is not None:
                vocabulary[name] = getattr(tokenizer, name)
        if settings.student == CUSTOM:
            own = dict(settings.student_config)
            config = CLIPRDConfig(**{**own, "text_config": {**vocabulary, **own.get("text_config", {})}})
        else:
            config = CLIPRDConfig.from_preset(settings.student, **settings.student_config)
            for name, value in vocabulary.items():
                setattr(config.text_config, name, value)
        student = CLIPRDModel(config)
    else:
        _check_model(settings.student, "student")
        student = AutoModel.from_pretrained(settings.student)
        if not isinstance(student, CLIPRDModel):
            student = CLIPRDModel.from_clip(student)
    size = settings.image_size or getattr(student.config.vision_config, "image_size", None) or 224
    image_processor = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    return student, PairProcessor(tokenizer, image_processor)
