"""A distillation from settings to a folder with the student."""

import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from tqdm.auto import tqdm
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, CLIPImageProcessorPil, set_seed

from hf_blemo.checkpoints import Checkpoints, begin_checkpoints, check_resumable
from hf_blemo.clip_rd.configuration_clip_rd import PRESETS, CLIPRDConfig
from hf_blemo.clip_rd.distillation_clip_rd import CLIPRDDistiller, cached_backward, features_of
from hf_blemo.clip_rd.losses_clip_rd import CLIPRDLoss
from hf_blemo.clip_rd.modeling_clip_rd import CLIPRDModel
from hf_blemo.clip_rd_training.pairs import PairBatches, PairProcessor, load_pairs
from hf_blemo.clip_rd_training.settings import DistillationSettings
from hf_blemo.data.synthetic_pairs import synthetic_tokenizer
from hf_blemo.json_files import write_json

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
    output = Path(settings.output_dir)
    if output.exists() and not output.is_dir():
        raise NotADirectoryError(f"output_dir {settings.output_dir!r}: found a file, expected a folder")
    accelerator = Accelerator(mixed_precision=settings.mixed_precision)
    if settings.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError("mixed_precision 'fp16' needs an accelerator; a CPU has bf16")
    pairs = load_pairs(settings)
    teacher: Any = None
    teacher_processor = None
    if settings.teacher is not None:
        teacher, teacher_processor = _load_teacher(settings)
    set_seed(settings.seed)
    student, processor = make_student(settings, teacher_processor)
    loss = CLIPRDLoss(
        student.config.projection_dim,
        student.config.projection_dim if teacher is None else _width(teacher, teacher_processor),
        settings.weights,
        settings.scales,
    )
    batches = PairBatches(
        pairs, processor, teacher_processor, settings, accelerator.process_index, accelerator.num_processes
    )
    checkpoints = output / "checkpoints"
    if settings.resume:
        check_resumable(checkpoints, asdict(settings), FREE_IN_RESUME)
    if accelerator.is_main_process:
        begin_checkpoints(checkpoints, asdict(settings), settings.checkpoint_every, settings.resume)
    accelerator.wait_for_everyone()
    schedule = settings.weight_schedule if teacher is not None else {}
    distiller = CLIPRDDistiller(student, teacher, loss, weight_schedule=schedule)
    distiller.to(getattr(torch, settings.dtype)).train()
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
        student.float().save_pretrained(output)
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
    # A generator of its own: the loader's draw from the common one would make a resumed run another run.
    loader = torch.utils.data.DataLoader(rest, batch_size=None, generator=torch.Generator())
    for step, batch in enumerate(loader, begin):
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
    options = {} if settings.teacher_revision is None else {"revision": settings.teacher_revision}
    _check_model(settings.teacher, "teacher")
    teacher = _load(AutoModel, settings.teacher, "teacher", **options)
    for name in ("get_image_features", "get_text_features", "logit_scale"):
        if not hasattr(teacher, name):
            raise ValueError(f"teacher {settings.teacher!r}: {type(teacher).__name__} has no {name}; expected a CLIP")
    return teacher, _load_processor(settings.teacher, "teacher", **options)


def _load(auto_class: Any, source: str, what: str, **options: Any) -> Any:
    """Loads a part of a model, or says in one line which is missing where."""
    try:
        return auto_class.from_pretrained(source, **options)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(f"{what} {source!r}: {auto_class.__name__} found nothing to load: {error}") from error


def _load_processor(source: str, what: str, **options: Any) -> PairProcessor:
    return PairProcessor(
        _load(AutoTokenizer, source, what, **options),
        _load(AutoImageProcessor, source, what, backend="pil", **options),
    )


@torch.no_grad()
def _width(teacher: Any, processor: PairProcessor | None) -> int:
    """Width of the teacher's embeddings, whatever its config calls it."""
    assert processor is not None
    return features_of(teacher.get_text_features(**processor.captions(["a"]))).shape[-1]


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

    A student that starts from a checkpoint keeps that one's tokenizer and image processor.

    Args:
        settings: of the run.
        teacher_processor: whose tokenizer a new student shares, unless the settings name another.

    Returns:
        The student, its tokenizer and image processor.

    Raises:
        ValueError: an unknown setting of the student, no tokenizer to take or one that its embeddings are too few for,
            or another size of images than a checkpoint's.
        FileNotFoundError: `student` is neither a preset nor a model.
    """
    if settings.student == CUSTOM or settings.student in PRESETS:
        return _new_student(settings, _tokenizer(settings, teacher_processor))
    _check_model(settings.student, "student")
    if settings.student_config:
        raise ValueError(f"student_config: {settings.student!r} is a checkpoint, whose config is its own")
    student = _load(AutoModel, settings.student, "student")
    if not isinstance(student, CLIPRDModel):
        student = CLIPRDModel.from_clip(student)
    processor = _load_processor(settings.student, "student")
    if settings.tokenizer is not None:
        processor.tokenizer = _load(AutoTokenizer, settings.tokenizer, "tokenizer")
    size = getattr(student.config.vision_config, "image_size", settings.image_size)
    if settings.image_size not in (None, size):
        raise ValueError(f"image_size {settings.image_size}: the student {settings.student!r} takes {size}")
    known, needed = student.text_model.config.vocab_size, len(processor.tokenizer)
    if needed > known:
        raise ValueError(f"student {settings.student!r}: knows {known} tokens, too few for a tokenizer of {needed}")
    return student, processor


def _tokenizer(settings: DistillationSettings, teacher_processor: PairProcessor | None) -> Any:
    if settings.tokenizer is not None:
        return _load(AutoTokenizer, settings.tokenizer, "tokenizer")
    if teacher_processor is not None:
        return teacher_processor.tokenizer
    if settings.data == "synthetic":
        return synthetic_tokenizer()
    raise ValueError("expected tokenizer: without a teacher there is none to share")


def _new_student(settings: DistillationSettings, tokenizer: Any) -> tuple[CLIPRDModel, PairProcessor]:
    """A student with random weights, made for a tokenizer and a size of images."""
    given = dict(settings.student_config)
    known = set(CLIPRDConfig.__annotations__)
    for key in given:
        if key not in known:
            raise ValueError(
                f"student_config.{key} is no setting of CLIPRDConfig; expected {', '.join(sorted(known))}"
            )
    text, vision = dict(given.get("text_config") or {}), dict(given.get("vision_config") or {})
    text.setdefault("vocab_size", len(tokenizer))
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if getattr(tokenizer, name) is not None:
            text.setdefault(name, getattr(tokenizer, name))
    if settings.image_size is not None:
        vision["image_size"] = settings.image_size
    given |= {"text_config": text, "vision_config": vision}
    make = CLIPRDConfig if settings.student == CUSTOM else partial(CLIPRDConfig.from_preset, settings.student)
    config = make(**given)
    towers: Any = (("text", text, config.text_config), ("vision", vision, config.vision_config))
    for name, asked, made in towers:
        fresh = type(made)()
        for key in asked:
            if not hasattr(fresh, key):
                raise ValueError(f"student_config.{name}_config.{key} is no setting of {type(made).__name__}")
    size = getattr(config.vision_config, "image_size", None) or settings.image_size or 224
    image_processor = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    return CLIPRDModel(config), PairProcessor(tokenizer, image_processor)
