"""Losses of relational distillation: every term of CLIP-RD, exactly, without ever holding an N x N matrix.

All terms are made of six products of (N, d) embeddings. They are visited tile by tile, twice: first for the row and
column log-sum-exps, then for the values and gradients. As the result is one scalar, both passes run in the forward of
one autograd function that keeps nothing but the gradients. With several processes each has the rows of its own pairs
and sees the columns of all of them.
"""

import math
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from transformers.utils import ModelOutput

from .gathering_clip_rd import Processes

TERMS = ("task", "fd", "icl", "hrd", "vrd", "vrd_image", "vrd_text", "xrd")
CLIP_RD_WEIGHTS = {**dict.fromkeys(TERMS, 1.0), "fd": 2000.0}
CLIP_KD_WEIGHTS = {"task": 1.0, "fd": 2000.0, "icl": 1.0, "hrd": 1.0}
AFFINITY_MIMICKING_WEIGHTS = {"task": 1.0, "hrd": 1.0}
INITIAL_SCALE = math.log(1 / 0.07)
MAXIMAL_LOG_SCALE = math.log(100)
# Tiles that stay in the cache of a core; an accelerator wants few and large ones.
CPU_TILE_SIZE = 512
ACCELERATOR_TILE_SIZE = 2048

# Sums of exponentials of at most 1 that are larger lose nothing that float32 could hold; log-sum-exps that differ by
# less have a ratio that neither overflows nor meets an underflow that matters.
SMALLEST_SUM = 1e-20
LARGEST_RATIO = 40.0

# What a process can find wrong with its part of the batch; exchanged as a number, so that all processes stop together.
_PROBLEMS = (
    "",
    "the embeddings have different numbers of rows, or are not matrices",
    "student embeddings are not as wide as student_dim",
    "teacher embeddings are not as wide as teacher_dim",
    "embeddings are not floating-point numbers",
    "embeddings hold NaN or infinite values",
    "embeddings hold a row of zeros, which has no direction",
    "a scale is not one finite number",
    "there is no teacher, and terms other than task have a weight",
    "the teacher has a gradient: compute it under torch.no_grad()",
    "its embeddings could not be computed",
)
_ROWS, _STUDENT, _TEACHER, _TYPE, _FINITE, _ZERO, _SCALE, _NO_TEACHER, _GRADIENT, _ELSEWHERE = range(1, len(_PROBLEMS))


@dataclass
class CLIPRDLossOutput(ModelOutput):
    """What [`CLIPRDLoss`] returns; every value is that of the global batch, the same on all processes.

    Args:
        loss: scalar, the weighted sum; the only one with a gradient.
        task, fd, icl, hrd, vrd, vrd_image, vrd_text, xrd: scalars, unweighted and detached; None where the weight is
            0, as such a term is not computed.
    """

    loss: torch.Tensor | None = None
    task: torch.Tensor | None = None
    fd: torch.Tensor | None = None
    icl: torch.Tensor | None = None
    hrd: torch.Tensor | None = None
    vrd: torch.Tensor | None = None
    vrd_image: torch.Tensor | None = None
    vrd_text: torch.Tensor | None = None
    xrd: torch.Tensor | None = None


def check_weights(weights: Mapping[str, float]) -> dict[str, float]:
    """Completes weights of the terms with zeros.

    Args:
        weights: term -> weight.

    Returns:
        The weight of every term of `TERMS`.

    Raises:
        ValueError: an unknown term, or a weight that is negative or not finite.
    """
    for name, weight in weights.items():
        if name not in TERMS:
            nearest = get_close_matches(str(name), TERMS, 1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
            raise ValueError(f"weights: unknown term {name!r}, expected some of {', '.join(TERMS)}{hint}")
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"weights: {name} must be a finite number of at least 0, found {weight}")
    return {name: float(weights.get(name, 0.0)) for name in TERMS}


class CLIPRDLoss(nn.Module):
    """Distils a CLIP into another by the relations between pairs, modalities and models.

    Args:
        student_dim: d_s, width of the student's embeddings.
        teacher_dim: d, width of the teacher's; that of the student by default. Where they differ, a linear map takes
            the student's embeddings to the teacher's width for all terms but `task` and `hrd`, which live in the
            student's own space.
        weights: term -> weight; those of CLIP-RD's recipe by default. Terms that are left out have weight 0 and cost
            nothing. `fd` is a mean over entries, so its weight of 2,000 is tied to d = 512.
        scales: how the learned scales are read. `released`: the parameters are the multipliers, as in the released
            code. `exponentiated`: the parameters are their logarithms, read between 0 and ln 100 and kept there by
            [`clamp_scales`], as CLIP keeps its own (ours).
        tile_size: rows and columns of a tile; 512 on a CPU, 2,048 elsewhere by default. It changes speed and memory,
            not the result.
        dense: computes the same by plain N x N matrices and autograd, on one process; for checking.
        process_group: the processes that share a batch; all of them by default.

    Attributes:
        cross_scale, image_scale, text_scale: parameters, scalars, starting at ln(1 / 0.07).
        visual_projection, text_projection: `nn.Linear(d_s, d)`, or None where the widths are equal.

    Raises:
        ValueError: an unknown term, a weight below 0, none above 0, or sizes below 1.

    Source: "CLIP-RD: Relational Distillation for Efficient CLIP Knowledge Distillation", arXiv 2603.25383; with
    `CLIP_KD_WEIGHTS` the losses of CLIP-KD (CVPR 2024).
    """

    def __init__(
        self,
        student_dim: int,
        teacher_dim: int | None = None,
        weights: Mapping[str, float] | None = None,
        scales: str = "released",
        tile_size: int | None = None,
        dense: bool = False,
        process_group: "dist.ProcessGroup | None" = None,
    ):
        super().__init__()
        self.student_dim = student_dim
        self.teacher_dim = student_dim if teacher_dim is None else teacher_dim
        if min(self.student_dim, self.teacher_dim) < 1 or (tile_size is not None and tile_size < 1):
            raise ValueError(
                f"student_dim, teacher_dim and tile_size must be at least 1, found {student_dim}, {teacher_dim} and "
                f"{tile_size}"
            )
        if scales not in ("released", "exponentiated"):
            raise ValueError(f"scales {scales!r} is not one of released, exponentiated")
        self.scales = scales
        self.tile_size = tile_size
        self.dense = dense
        self.process_group = process_group
        self.set_weights(CLIP_RD_WEIGHTS if weights is None else weights)
        if not any(self.weights.values()):
            raise ValueError(f"weights: expected one above 0, found {dict(weights or {})}")
        self.cross_scale = nn.Parameter(torch.tensor(INITIAL_SCALE))
        self.image_scale = nn.Parameter(torch.tensor(INITIAL_SCALE))
        self.text_scale = nn.Parameter(torch.tensor(INITIAL_SCALE))
        same = self.student_dim == self.teacher_dim
        self.visual_projection = None if same else nn.Linear(self.student_dim, self.teacher_dim)
        self.text_projection = None if same else nn.Linear(self.student_dim, self.teacher_dim)

    def set_weights(self, weights: Mapping[str, float]) -> None:
        """Replaces all weights; terms that are left out get 0.

        Raises:
            ValueError: an unknown term, or a weight that is negative or not finite.
        """
        self.weights = check_weights(weights)

    @property
    def needs_teacher(self) -> bool:
        """Whether any term with a weight reads the teacher; `task` alone does not."""
        return any(self.weights[name] for name in TERMS if name != "task")

    def extra_repr(self) -> str:
        weights = ", ".join(f"{name}={weight:g}" for name, weight in self.weights.items() if weight)
        return f"{self.student_dim}, {self.teacher_dim}, {weights}, scales={self.scales}"

    def multipliers(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The cross, image and text scales as they multiply the similarities."""
        parameters = (self.cross_scale, self.image_scale, self.text_scale)
        if self.scales == "released":
            return parameters
        # Clamped in value alone: a scale that has reached a bound can still come back.
        bounded = [value + (value.clamp(0, MAXIMAL_LOG_SCALE) - value).detach() for value in parameters]
        return bounded[0].exp(), bounded[1].exp(), bounded[2].exp()

    @torch.compiler.disable
    def forward(
        self,
        student_image: torch.Tensor,
        student_text: torch.Tensor,
        teacher_image: torch.Tensor | None,
        teacher_text: torch.Tensor | None,
        student_logit_scale: torch.Tensor | float,
        teacher_logit_scale: torch.Tensor | float | None,
    ) -> CLIPRDLossOutput:
        """Computes the terms over the pairs of all processes.

        Under `DistributedDataParallel`, which averages gradients, the gradients are those of one process with all
        pairs; the processes may hold different numbers of pairs. Computed in float32 at least, autocast or not.

        Args:
            student_image, student_text: (n, d_s), this process's pairs, not normalised.
            teacher_image, teacher_text: (n, d), without gradient; normalised here. They and their scale may be None
                where `task` alone has a weight.
            student_logit_scale: the student's CLIP scale, exponentiated.
            teacher_logit_scale: the teacher's CLIP scale, exponentiated; constant.

        Returns:
            [`CLIPRDLossOutput`].

        Raises:
            ValueError: on every process alike, when any of them found embeddings of different N, of a wrong width,
                with NaN, infinite values or a row of zeros, or a scale that is not finite; and a teacher with a
                gradient.
        """
        problem = 0
        if teacher_image is None or teacher_text is None or teacher_logit_scale is None:
            problem = _NO_TEACHER if self.needs_teacher else 0
            teacher_image = teacher_text = student_image.detach().new_ones(len(student_image), self.teacher_dim)
            teacher_logit_scale = 1.0
        if teacher_image.requires_grad or teacher_text.requires_grad:
            problem = _GRADIENT
        if isinstance(teacher_logit_scale, torch.Tensor):
            teacher_logit_scale = teacher_logit_scale.detach()
        device = student_image.device
        group = Processes(self.process_group)
        embeddings = (student_image, student_text, teacher_image, teacher_text)
        scales = [
            torch.as_tensor(scale, device=device)
            for scale in (student_logit_scale, teacher_logit_scale, *self.multipliers())
        ]
        problem = problem or self._problem(embeddings, scales)
        count = student_image.shape[0] if student_image.dim() else 0
        rows = _agree(group, problem, count, self.weights, device)
        # Neither autocast nor a reduced precision of float32 products: both move the gradient by about 1 %.
        with torch.autocast(device.type, enabled=False), _exact_products():
            dtype = computing_dtype(student_image)
            own_image, own_text = student_image.to(dtype), student_text.to(dtype)
            # Only terms of the teacher's space read the projections.
            projects = self.visual_projection is not None and any(
                self.weights[name] for name in TERMS if name not in ("task", "hrd")
            )
            if projects:
                image = F.normalize(_linear(self.visual_projection, own_image), dim=-1)
                text = F.normalize(_linear(self.text_projection, own_text), dim=-1)
            own_image, own_text = F.normalize(own_image, dim=-1), F.normalize(own_text, dim=-1)
            if not projects:
                image, text = own_image, own_text
            targets = [F.normalize(part.to(dtype), dim=-1) for part in (teacher_image, teacher_text)]
            multipliers = torch.stack([scale.to(dtype).reshape(()) for scale in scales])
            if self.dense:
                if group.size > 1:
                    raise ValueError("dense computes on one process; leave it out for several")
                terms = dense_terms(
                    own_image, own_text, image, text, targets[0], targets[1], multipliers, self.weights
                )
                loss = sum((self.weights[name] * value for name, value in terms.items()), multipliers.sum() * 0)
                return CLIPRDLossOutput(loss=loss, **{name: value.detach() for name, value in terms.items()})
            tile_size = self.tile_size or (CPU_TILE_SIZE if device.type == "cpu" else ACCELERATOR_TILE_SIZE)
            call = _Call(self.weights, tile_size, group, rows)
            # Without projections the towers' embeddings serve all terms: passed once, their gradients come once.
            projected = (image, text) if projects else (None, None)
            loss, found = _TiledTerms.apply(own_image, own_text, *projected, *targets, multipliers, call)
            if not projects:
                # Gradients of zero: distributed training waits for those of every parameter.
                loss = loss + sum((value.sum() * 0 for value in self._projection_parameters()), 0.0)
        terms = {name: found[index] for index, name in enumerate(TERMS) if self.weights[name]}
        return CLIPRDLossOutput(loss=loss, **terms)

    def _projection_parameters(self) -> list[nn.Parameter]:
        layers = (self.visual_projection, self.text_projection)
        return [value for layer in layers if layer is not None for value in layer.parameters()]

    def report_failure(self, device: torch.device) -> None:
        """Tells the other processes that this one has no embeddings, so that they raise instead of waiting for it."""
        Processes(self.process_group).exchange([_ELSEWHERE, 0, _digest(self.weights)], device)

    @torch.no_grad()
    def clamp_scales(self) -> None:
        """Keeps exponentiated scales between 0 and ln 100; released ones are left as they are."""
        if self.scales == "exponentiated":
            for value in (self.cross_scale, self.image_scale, self.text_scale):
                value.clamp_(0, MAXIMAL_LOG_SCALE)

    def _problem(self, embeddings: tuple[torch.Tensor, ...], scales: list[torch.Tensor]) -> int:
        """Number of the first problem this process has, 0 for none."""
        if any(values.dim() != 2 or values.shape[0] != embeddings[0].shape[0] for values in embeddings):
            return _ROWS
        if any(values.shape[1] != self.student_dim for values in embeddings[:2]):
            return _STUDENT
        if any(values.shape[1] != self.teacher_dim for values in embeddings[2:]):
            return _TEACHER
        if not all(values.is_floating_point() for values in embeddings):
            return _TYPE
        if any(scale.numel() != 1 for scale in scales):
            return _SCALE
        with torch.no_grad():
            # One look at the squared norms tells NaN, infinities and zeros apart; float32, since fp16 overflows here.
            norms = [torch.linalg.vector_norm(values, dim=1, dtype=computing_dtype(values)) for values in embeddings]
            found = torch.cat(norms)
            numbers = torch.stack([scale.detach().to(found).reshape(()) for scale in scales])
            finite, zero, scaled = (
                found.isfinite().all().logical_not(),
                (found == 0).any(),
                numbers.isfinite().all().logical_not(),
            )
            flags = torch.stack([finite, zero, scaled]).tolist()
        return next((code for code, flag in zip((_FINITE, _ZERO, _SCALE), flags, strict=True) if flag), 0)


@contextmanager
def _exact_products() -> Iterator[None]:
    """Float32 products in full precision, whatever the program has set for the towers."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def computing_dtype(values: torch.Tensor) -> torch.dtype:
    """What values of this dtype are computed in: float64 as it is, anything else in float32."""
    return torch.float64 if values.dtype == torch.float64 else torch.float32


def _linear(layer: nn.Linear | None, values: torch.Tensor) -> torch.Tensor:
    assert layer is not None
    bias = None if layer.bias is None else layer.bias.to(values.dtype)
    return F.linear(values, layer.weight.to(values.dtype), bias)


def _agree(
    processes: Processes, problem: int, rows: int, weights: Mapping[str, float], device: torch.device
) -> list[int]:
    """Exchanges what each process found, before any of them waits for another's embeddings.

    Returns:
        Number of rows of every process.

    Raises:
        ValueError: a process has a problem, the processes have different weights, or none has a row.
    """
    found = processes.exchange([problem, rows, _digest(weights)], device)
    for rank, (code, _, _) in enumerate(found):
        if code:
            where = "" if processes.size == 1 else f" on process {rank} of {processes.size}"
            raise ValueError(f"CLIPRDLoss: {_PROBLEMS[code]}{where}")
    if len({digest for _, _, digest in found}) > 1:
        raise ValueError("CLIPRDLoss: the processes have different weights; set them on all of them alike")
    counts = [count for _, count, _ in found]
    if sum(counts) == 0:
        raise ValueError("CLIPRDLoss: the batch is empty, expected at least one pair")
    return counts


def _digest(weights: Mapping[str, float]) -> int:
    return zlib.crc32(repr(weights).encode())


@dataclass
class _Call:
    """What one computation needs beside its tensors.

    Args:
        weights: of all terms.
        tile_size: rows and columns of a tile.
        group: the processes.
        rows: number of rows of each.
    """

    weights: dict[str, float]
    tile_size: int
    group: Processes
    rows: list[int]


# The six products, rows times columns: the student's rows are this process's, the columns are everyone's.
_OWN, _TEACHERS, _IMAGE, _TEXT, _TEXT_TO_IMAGE, _IMAGE_TO_TEXT = range(6)
_USERS = {
    _OWN: ("task", "hrd"),
    _TEACHERS: ("hrd",),
    _IMAGE: ("vrd", "vrd_image"),
    _TEXT: ("vrd", "vrd_text"),
    _TEXT_TO_IMAGE: ("icl", "xrd"),
    _IMAGE_TO_TEXT: ("icl", "xrd"),
}


class _TiledTerms(torch.autograd.Function):
    """Weighted sum of the terms, and the values of all; the gradients are found on the way and merely handed out."""

    @staticmethod
    def forward(ctx, own_image, own_text, image, text, teacher_image, teacher_text, multipliers, call: _Call):
        needed = ctx.needs_input_grad
        tiles = _Tiles(own_image, own_text, image, text, teacher_image, teacher_text, multipliers, call)
        values = tiles.compute(gradients=any(needed))
        weights = values.new_tensor([call.weights[name] for name in TERMS])
        loss = (weights * values).sum().to(own_image.dtype)
        values = values.to(own_image.dtype)
        ctx.mark_non_differentiable(values)
        if any(needed):
            gradients = tiles.gradients
            ctx.save_for_backward(*(gradients[index] if needed[index] else None for index in (0, 1, 2, 3, 6)))
        return loss, values

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, loss_gradient, _):
        own_image, own_text, image, text, multipliers = (
            None if gradient is None else gradient * loss_gradient for gradient in ctx.saved_tensors
        )
        return own_image, own_text, image, text, None, None, multipliers, None


class _Tiles:
    """Both passes over the tiles of one batch.

    Args:
        own_image, own_text: (n, d_s), normalised rows of this process.
        image, text: (n, d), their normalised projections; None where there are none.
        teacher_image, teacher_text: (n, d), normalised.
        multipliers: (5,), scales of the student, the teacher, cross, image, text.
        call: everything else.
    """

    def __init__(self, own_image, own_text, image, text, teacher_image, teacher_text, multipliers, call: _Call):
        self.call, self.weights = call, call.weights
        self.group = call.group
        self.num_rows, self.total = len(own_image), sum(call.rows)
        self.own = (own_image, own_text)
        self.shared = image is None
        self.student = self.own if self.shared else (image, text)
        self.teacher = (teacher_image, teacher_text)
        student, teacher, cross, vision, language = multipliers.tolist()
        used = [index for index, users in _USERS.items() if any(self.weights[name] for name in users)]
        # Only what some term reads travels: the student's texts, the teacher's images, the teacher's texts.
        parts = [
            (own_text, _OWN in used),
            (teacher_image, bool({_IMAGE, _TEXT_TO_IMAGE} & set(used))),
            (teacher_text, bool({_TEACHERS, _TEXT, _IMAGE_TO_TEXT} & set(used))),
        ]
        if self.group.size > 1 and used:
            gathered = self.group.gather(torch.cat([part for part, wanted in parts if wanted], 1), call.rows)
            widths = [part.shape[1] for part, wanted in parts if wanted]
            found = iter(gathered.split(widths, 1))
            parts = [(next(found).contiguous() if wanted else part, wanted) for part, wanted in parts]
        all_texts, all_teacher_images, all_teacher_texts = (part for part, _ in parts)
        left = {
            _OWN: (own_image, student),
            _TEACHERS: (teacher_image, teacher),
            _IMAGE: (self.student[0], vision),
            _TEXT: (self.student[1], language),
            _TEXT_TO_IMAGE: (self.student[1], cross),
            _IMAGE_TO_TEXT: (self.student[0], cross),
        }
        right = {
            _OWN: all_texts,
            _TEACHERS: all_teacher_texts,
            _IMAGE: all_teacher_images,
            _TEXT: all_teacher_texts,
            _TEXT_TO_IMAGE: all_teacher_images,
            _IMAGE_TO_TEXT: all_teacher_texts,
        }
        # The local partners of the rows: where the diagonal of the global product is.
        partner = {
            _OWN: own_text,
            _TEACHERS: teacher_text,
            _IMAGE: teacher_image,
            _TEXT: teacher_text,
            _TEXT_TO_IMAGE: teacher_image,
            _IMAGE_TO_TEXT: teacher_text,
        }
        self.used = used
        self.left, self.right, self.partner = left, right, partner
        shape = (len(used), self.num_rows), (len(used), self.total)
        lowest = own_image.new_tensor(-math.inf)
        self.row_log_sums = dict(zip(used, lowest.expand(shape[0]).clone(), strict=True))
        self.column_log_sums = dict(zip(used, lowest.expand(shape[1]).clone(), strict=True))
        size = call.tile_size
        self.buffer_size = min(size, max(self.num_rows, 1)) * min(size, self.total)
        self.new_buffer = lambda: own_image.new_empty(self.buffer_size)
        self.gradients: dict[int, torch.Tensor] = {}

    def _slices(self, count: int) -> list[slice]:
        size = self.call.tile_size
        return [slice(start, min(start + size, count)) for start in range(0, count, size)]

    def compute(self, gradients: bool) -> torch.Tensor:
        """Values of all terms, (8,) float64, of the global batch; with `gradients`, fills `self.gradients`."""
        self._log_sums()
        totals = self.group.sum(self._values_and_gradients(gradients))
        # The same sum on every process, so all of them raise or none.
        if not totals.isfinite().all():
            raise ValueError("CLIPRDLoss: the loss is not finite: NaN or infinite values in the projections")
        return totals / self.total

    def _log_sums(self) -> None:
        """First pass: log-sum-exps over rows and columns of every product."""
        logits, shifted = self.new_buffer(), self.new_buffer()
        for rows in self._slices(self.num_rows):
            scaled = {index: self.left[index][0][rows] * self.left[index][1] for index in self.used}
            for columns in self._slices(self.total):
                for index in self.used:
                    right = self.right[index][columns]
                    shape = (rows.stop - rows.start, columns.stop - columns.start)
                    x, e = _view(logits, shape), _view(shifted, shape)
                    torch.mm(scaled[index], right.T, out=x)
                    row_sums, column_sums = self.row_log_sums[index][rows], self.column_log_sums[index][columns]
                    # Each row's true maximum: bounded by the scale it would underflow where cosines are far below 1.
                    highest = x.amax(1)
                    torch.sub(x, highest.unsqueeze(1), out=e)
                    torch.logaddexp(row_sums, e.exp_().sum(1).log_().add_(highest), out=row_sums)
                    if x.device.type == "cpu":
                        # The same exponentials, weighed by rows, sum up the columns, unless one underflows.
                        top = highest.max()
                        sums = torch.mv(e.T, (highest - top).exp_())
                        if sums.min() > SMALLEST_SUM:
                            torch.logaddexp(column_sums, sums.log_().add_(top), out=column_sums)
                            continue
                    highest = x.amax(0)
                    torch.sub(x, highest, out=e)
                    torch.logaddexp(column_sums, e.exp_().sum(0).log_().add_(highest), out=column_sums)
        if self.used:
            merged = self.group.merge_log_sums(torch.stack(list(self.column_log_sums.values())))
            self.column_log_sums = dict(zip(self.used, merged, strict=True))

    def _values_and_gradients(self, gradients: bool) -> torch.Tensor:
        """Second pass; returns this process's share of the values, times N."""
        weights, total = self.weights, self.total
        sums: dict[str, Any] = dict.fromkeys(TERMS, 0.0)
        own = [torch.zeros_like(values) for values in self.own] if gradients else []
        student = own if self.shared or not gradients else [torch.zeros_like(values) for values in self.student]
        all_texts = None
        if gradients and _OWN in self.used:
            # On one process all texts are its own.
            all_texts = own[1] if self.group.size == 1 else torch.zeros_like(self.right[_OWN])
        scale_gradients: list[Any] = [0.0] * 5
        logits = {index: self.new_buffer() for index in self.used}
        both = {index: self.new_buffer() for index in self.used}
        # The softmax over rows alone is read by the two products of `icl`; the others' is added up and forgotten.
        scratch = self.new_buffer()
        single = {
            index: self.new_buffer() if index in (_TEXT_TO_IMAGE, _IMAGE_TO_TEXT) else scratch for index in self.used
        }
        needs_tiles = gradients or any(weights[name] for name in ("hrd", "vrd", "xrd"))
        # Row gradients: product -> (which of the student's rows, which of the five scales, weight of the diagonal).
        owner = {
            _OWN: (own, 0, 0, weights["task"]),
            _IMAGE: (student, 0, 3, weights["vrd_image"]),
            _TEXT: (student, 1, 4, weights["vrd_text"]),
            _TEXT_TO_IMAGE: (student, 1, 2, 0.5 * weights["icl"]),
            _IMAGE_TO_TEXT: (student, 0, 2, 0.5 * weights["icl"]),
        }
        # Of every block of rows the largest and of every block of columns the smallest log-sum-exp, by their starts.
        bounds = {
            index: (
                {part.start: self.row_log_sums[index][part].max().item() for part in self._slices(self.num_rows)},
                {part.start: self.column_log_sums[index][part].min().item() for part in self._slices(total)},
            )
            for index in self.used
        }
        for rows in self._slices(self.num_rows):
            scaled = {index: self.left[index][0][rows] * self.left[index][1] for index in self.used}
            moved = {
                index: self.right[index].new_zeros(rows.stop - rows.start, self.right[index].shape[1])
                for index in self.used
                if gradients and index != _TEACHERS
            }
            for columns in self._slices(total) if needs_tiles else []:
                shape = (rows.stop - rows.start, columns.stop - columns.start)
                x, p, h = {}, {}, {}
                for index in self.used:
                    x[index], p[index], h[index] = (_view(part[index], shape) for part in (logits, single, both))
                    torch.mm(scaled[index], self.right[index][columns].T, out=x[index])
                    # p: softmax over the row; h: that plus the softmax over the column.
                    row_sums, column_sums = self.row_log_sums[index][rows], self.column_log_sums[index][columns]
                    torch.sub(x[index], row_sums.unsqueeze(1), out=p[index]).exp_()
                    if bounds[index][0][rows.start] - bounds[index][1][columns.start] < LARGEST_RATIO:
                        # The second is the first times the ratio of the two sums, which cannot overflow here.
                        middle = bounds[index][0][rows.start]
                        torch.mul((row_sums - middle).exp().unsqueeze(1), (middle - column_sums).exp(), out=h[index])
                        torch.addcmul(p[index], p[index], h[index], out=h[index])
                    else:
                        torch.sub(x[index], column_sums, out=h[index]).exp_()
                        h[index] += p[index]
                if weights["hrd"]:
                    sums["hrd"] += _dot(h[_TEACHERS], x[_TEACHERS].sub_(x[_OWN])) / 2
                if weights["vrd"]:
                    sums["vrd"] += _dot(h[_TEXT], x[_IMAGE].neg_().add_(x[_TEXT])) / 2
                if weights["xrd"]:
                    difference = h[_IMAGE_TO_TEXT].sub_(h[_TEXT_TO_IMAGE])
                    sums["xrd"] += _dot(difference, x[_IMAGE_TO_TEXT].sub_(x[_TEXT_TO_IMAGE])) / 4
                if not gradients:
                    continue
                # Gradients of the loss with respect to the logits, times N, without the diagonal.
                if _OWN in self.used:
                    slope = h[_OWN].mul_((weights["task"] + weights["hrd"]) / 2)
                    if weights["hrd"]:
                        slope.add_(h[_TEACHERS], alpha=-weights["hrd"] / 2)
                    moved[_OWN].addmm_(slope, self.right[_OWN][columns])
                    assert all_texts is not None
                    all_texts[columns].addmm_(slope.T, scaled[_OWN])
                if _IMAGE in self.used:
                    slope = h[_IMAGE].mul_((weights["vrd_image"] + weights["vrd"]) / 2)
                    if weights["vrd"]:
                        slope.add_(h[_TEXT], alpha=-weights["vrd"] / 2)
                    moved[_IMAGE].addmm_(slope, self.right[_IMAGE][columns])
                if weights["vrd_text"]:
                    moved[_TEXT].addmm_(h[_TEXT], self.right[_TEXT][columns], alpha=weights["vrd_text"] / 2)
                for index, sign in ((_TEXT_TO_IMAGE, -0.25), (_IMAGE_TO_TEXT, 0.25)):
                    if index not in self.used:
                        continue
                    slope = p[index].mul_(weights["icl"] / 2)
                    if weights["xrd"]:
                        slope.add_(h[_IMAGE_TO_TEXT], alpha=sign * weights["xrd"])
                    moved[index].addmm_(slope, self.right[index][columns])
            for index, gradient in moved.items():
                target, place, scale, diagonal = owner[index]
                values, multiplier = self.left[index]
                if diagonal:
                    gradient.sub_(self.partner[index][rows], alpha=diagonal)
                scale_gradients[scale] += _dot(values[rows], gradient)
                target[place][rows].add_(gradient, alpha=multiplier)
        self._add_closed_forms(sums)
        if gradients:
            self._finish(own, student, all_texts, scale_gradients)
        return torch.tensor([float(sums[name]) for name in TERMS], dtype=torch.float64, device=self.own[0].device)

    def _add_closed_forms(self, sums: dict[str, Any]) -> None:
        """Adds what follows from log-sum-exps and diagonals alone; column sums are everyone's, so one process's."""
        weights = self.weights

        def rows(index: int) -> float:
            return float(self.row_log_sums[index].double().sum())

        def columns(index: int) -> float:
            return float(self.column_log_sums[index].double().sum()) / self.group.size

        def diagonal(index: int) -> float:
            values, multiplier = self.left[index]
            return multiplier * float(_dot(values, self.partner[index]))

        for name, index in (("task", _OWN), ("vrd_image", _IMAGE), ("vrd_text", _TEXT)):
            if weights[name]:
                sums[name] += (rows(index) + columns(index)) / 2 - diagonal(index)
        if weights["icl"]:
            for index in (_TEXT_TO_IMAGE, _IMAGE_TO_TEXT):
                sums["icl"] += (rows(index) - diagonal(index)) / 2
        for name, student, target in (("hrd", _OWN, _TEACHERS), ("vrd", _IMAGE, _TEXT)):
            if weights[name]:
                sums[name] += (rows(student) - rows(target) + columns(student) - columns(target)) / 2
        if weights["fd"]:
            for values, targets in zip(self.student, self.teacher, strict=True):
                sums["fd"] += float((values - targets).square().sum(1).double().sum()) / values.shape[1]

    def _finish(self, own, student, all_texts, scale_gradients: list[Any]) -> None:
        """Brings the gradients together; those of a mean over N, for an average over processes."""
        factor = self.group.size / self.total
        if all_texts is not None:
            # The diagonal's part is this process's own; the rest is summed over all.
            own[1].sub_(self.own[0], alpha=self.weights["task"] * self.left[_OWN][1])
            if all_texts is not own[1]:
                own[1].add_(self.group.scatter_sum(all_texts, self.call.rows))
        if self.weights["fd"]:
            for gradient, values, targets in zip(student, self.student, self.teacher, strict=True):
                alpha = 2 * self.weights["fd"] / values.shape[1]
                gradient.add_(values, alpha=alpha).sub_(targets, alpha=alpha)
        for gradient in {id(part): part for part in (*own, *student)}.values():
            gradient.mul_(factor)
        scales = own[0].new_tensor([float(value) for value in scale_gradients]).mul_(factor)
        self.gradients = {0: own[0], 1: own[1], 6: scales}
        if not self.shared:
            self.gradients |= {2: student[0], 3: student[1]}


def _view(buffer: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    return buffer[: shape[0] * shape[1]].view(shape)


def _dot(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Sum of the products of two matrices, summed over rows in float64."""
    return torch.linalg.vecdot(left, right).double().sum()


def dense_terms(
    own_image: torch.Tensor,
    own_text: torch.Tensor,
    image: torch.Tensor,
    text: torch.Tensor,
    teacher_image: torch.Tensor,
    teacher_text: torch.Tensor,
    multipliers: torch.Tensor,
    weights: Mapping[str, float],
) -> dict[str, torch.Tensor]:
    """The terms as their formulas read, by N x N matrices and autograd.

    Args:
        own_image, own_text: (N, d_s), normalised.
        image, text: (N, d), normalised.
        teacher_image, teacher_text: (N, d), normalised, without gradient.
        multipliers: (5,), scales of the student, the teacher, cross, image, text.
        weights: of all terms.

    Returns:
        Unweighted scalars of the terms whose weight is not 0.
    """
    student, teacher, cross, vision, language = multipliers

    def contrastive(*products: torch.Tensor) -> torch.Tensor:
        diagonal = torch.arange(len(own_image), device=own_image.device)
        return torch.stack([F.cross_entropy(product, diagonal) for product in products]).mean()

    def divergence(*pairs: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        values = [
            F.kl_div(found.log_softmax(1), target.detach().log_softmax(1), reduction="batchmean", log_target=True)
            for target, found in pairs
        ]
        return torch.stack(values).mean()

    own = student * own_image @ own_text.T
    teachers = teacher * teacher_image @ teacher_text.T
    # Without projections to the teacher's width these products do not exist, and no term asks for them.
    if image.shape[1] == teacher_image.shape[1]:
        images = vision * image @ teacher_image.T
        texts = language * text @ teacher_text.T
        text_to_image = cross * text @ teacher_image.T
        image_to_text = cross * image @ teacher_text.T
    terms = {
        "task": lambda: contrastive(own, own.T),
        "fd": lambda: F.mse_loss(image, teacher_image) + F.mse_loss(text, teacher_text),
        "icl": lambda: contrastive(image_to_text, text_to_image),
        "hrd": lambda: divergence((teachers, own), (teachers.T, own.T)),
        "vrd": lambda: divergence((texts.T, images.T), (texts, images)),
        "vrd_image": lambda: contrastive(images.T, images),
        "vrd_text": lambda: contrastive(texts.T, texts),
        "xrd": lambda: divergence(
            (image_to_text, text_to_image),
            (text_to_image, image_to_text),
            (image_to_text.T, text_to_image.T),
            (text_to_image.T, image_to_text.T),
        ),
    }
    return {name: compute() for name, compute in terms.items() if weights[name]}
