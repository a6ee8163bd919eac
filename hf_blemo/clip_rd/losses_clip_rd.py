"""Losses of relational distillation: every term of CLIP-RD, exactly."""

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from transformers.utils import ModelOutput

from .gathering_clip_rd import OtherProcessError, Processes
from .matches_clip_rd import CROSS, IMAGE, TEXT, Matches, check_ids
from .tiles_clip_rd import NOT_FINITE, TiledTerms, TilesCall, float32_products
from .weights_clip_rd import CLIP_RD_WEIGHTS, TERMS, check_weights

CLIP_KD_WEIGHTS = {"task": 1.0, "fd": 2000.0, "icl": 1.0, "hrd": 1.0}
AFFINITY_MIMICKING_WEIGHTS = {"task": 1.0, "hrd": 1.0}
INITIAL_SCALE = math.log(1 / 0.07)
MAXIMAL_LOG_SCALE = math.log(100)

# Problems a process can find in its part of the batch; exchanged by number, so that all processes stop together.
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
    "image_ids and text_ids are not one whole number for each pair",
    "the teachers' embeddings and scales are not as many as teacher_dim has widths",
)
_ROWS, _STUDENT, _TEACHER, _TYPE, _FINITE, _ZERO, _SCALE, _NO_TEACHER, _GRADIENT, _ELSEWHERE, _IDS, _COUNT = range(
    1, len(_PROBLEMS)
)
# Those that only the numbers on the device tell.
_FLAGGED = (_FINITE, _ZERO, _SCALE)


@dataclass
class CLIPRDLossOutput(ModelOutput):
    """Output of [`CLIPRDLoss`]; every value is that of the global batch, the same on all processes.

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


class CLIPRDLoss(nn.Module):
    """Distils a CLIP into another by matching relations across pairs, modalities and models.

    With several teachers, the targets of `hrd`, `vrd` and `xrd` are the means of the teachers' softmax distributions,
    and all else is the mean over teachers. What the student compares to a mean of distributions p_1, ..., p_T has the
    gradient of the mean of its divergences from each, KL(mean p ‖ q) = mean KL(p_t ‖ q) - what the teachers differ
    among themselves, which no gradient moves. So `hrd` is the mean over teachers; `vrd` and `xrd`, where the student's
    side q_t too is a teacher's, are the means over all pairs of a target's teacher and a student's side. The values of
    the three terms include that difference.

    Args:
        student_dim: d_s, width of the student's embeddings.
        teacher_dim: d, width of the teacher's; that of the student by default. Where they differ, a linear map takes
            the student's embeddings to the teacher's width for all terms but `task` and `hrd`, which live in the
            student's own space. A sequence of widths means several teachers, each with its own map, equal widths or
            not, and with the learned scales in common.
        weights: term -> weight; those of CLIP-RD's recipe by default. Terms that are left out have weight 0 and cost
            nothing. `fd` is a mean over entries, so its weight of 2,000 is tied to d = 512.
        scales: how the learned scales are read. `released`: the parameters are the multipliers, as in the released
            code. `exponentiated`: the parameters are their logarithms, read between 0 and ln 100 and kept there by
            [`clamp_scales`], as CLIP keeps its own (ours).
        tile_size: rows and columns of a tile; 768 on a CPU, 2,048 elsewhere by default. Where kernels compute whole
            rows, how many of them. It changes speed and memory, not the result.
        dense: whether to compute the same by plain N x N matrices and autograd, on one process with one teacher; for
            checking.
        process_group: the processes that share a batch; all of them by default.
        precision: of the products. `exact`: that of the embeddings, float32 at least. `fast`: what enters a product is
            rounded to 11 bits and summed up in float32, which moves the gradient by 0.1 %; one process never waits
            for the accelerator, so embeddings that are not finite or have no direction give a loss of NaN, whose cause
            [`check_finite`] raises. By default `fast` on accelerators and `exact` on a CPU. float64 is always exact.

    Attributes:
        cross_scale, image_scale, text_scale: parameters, scalars, starting at ln(1 / 0.07).
        visual_projection, text_projection: `nn.Linear(d_s, d)`, or None where the widths are equal; with several
            teachers an `nn.ModuleList` of one for each.

    Raises:
        ValueError: an unknown term, a weight below 0, none above 0, sizes below 1, or `dense` with `fast` or several
            teachers.

    Source: "CLIP-RD: Relational Distillation for Efficient CLIP Knowledge Distillation", arXiv 2603.25383; with
    `CLIP_KD_WEIGHTS` the losses of CLIP-KD (CVPR 2024).
    """

    def __init__(
        self,
        student_dim: int,
        teacher_dim: int | Sequence[int] | None = None,
        weights: Mapping[str, float] | None = None,
        scales: str = "released",
        tile_size: int | None = None,
        dense: bool = False,
        process_group: "dist.ProcessGroup | None" = None,
        precision: str | None = None,
    ):
        super().__init__()
        self.student_dim = student_dim
        self.teacher_dims: list[int] = _listed(student_dim if teacher_dim is None else teacher_dim)
        if min([student_dim, *self.teacher_dims], default=0) < 1 or (tile_size is not None and tile_size < 1):
            raise ValueError(
                f"student_dim, teacher_dim and tile_size must be at least 1, found {student_dim}, {teacher_dim} and "
                f"{tile_size}"
            )
        if scales not in ("released", "exponentiated"):
            raise ValueError(f"scales {scales!r} is not one of released, exponentiated")
        if precision not in (None, "exact", "fast"):
            raise ValueError(f"precision {precision!r} is not one of exact, fast")
        if dense and precision == "fast":
            raise ValueError("dense computes exactly; expected no precision beside it, found 'fast'")
        if dense and len(self.teacher_dims) > 1:
            raise ValueError(f"dense computes for one teacher, found {len(self.teacher_dims)}")
        self.scales = scales
        self.tile_size = tile_size
        self.dense = dense
        self.precision = precision
        # Of the first step since the last look whose inputs were not in order: one flag a problem of `_FLAGGED`.
        self._flags: torch.Tensor | None = None
        self.process_group = process_group
        self.set_weights(CLIP_RD_WEIGHTS if weights is None else weights)
        if not any(self.weights.values()):
            raise ValueError(f"weights: expected one above 0, found {dict(weights or {})}")
        self.cross_scale = nn.Parameter(torch.tensor(INITIAL_SCALE))
        self.image_scale = nn.Parameter(torch.tensor(INITIAL_SCALE))
        self.text_scale = nn.Parameter(torch.tensor(INITIAL_SCALE))
        self.visual_projection = _maps(student_dim, self.teacher_dims)
        self.text_projection = _maps(student_dim, self.teacher_dims)

    def set_weights(self, weights: Mapping[str, float]) -> None:
        """Replaces all weights; terms that are left out get 0.

        Raises:
            ValueError: an unknown term, or a weight that is negative or not finite.
        """
        self.weights = check_weights(weights)

    @property
    def teacher_dim(self) -> int:
        """Width of the teacher's embeddings; of several, the first one's."""
        return self.teacher_dims[0]

    @property
    def needs_teacher(self) -> bool:
        """Whether any term with a weight reads the teacher; `task` alone does not."""
        return any(self.weights[name] for name in TERMS if name != "task")

    def extra_repr(self) -> str:
        weights = ", ".join(f"{name}={weight:g}" for name, weight in self.weights.items() if weight)
        dims = self.teacher_dim if len(self.teacher_dims) == 1 else self.teacher_dims
        return f"{self.student_dim}, {dims}, {weights}, scales={self.scales}"

    def multipliers(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The cross, image and text scales as they multiply the similarities."""
        parameters = (self.cross_scale, self.image_scale, self.text_scale)
        if self.scales == "released":
            return parameters
        # Clamps only the value: a scale at a bound still has a gradient to come back.
        bounded = [value + (value.clamp(0, MAXIMAL_LOG_SCALE) - value).detach() for value in parameters]
        return bounded[0].exp(), bounded[1].exp(), bounded[2].exp()

    @torch.compiler.disable
    def forward(
        self,
        student_image: torch.Tensor,
        student_text: torch.Tensor,
        teacher_image: torch.Tensor | Sequence[torch.Tensor | None] | None,
        teacher_text: torch.Tensor | Sequence[torch.Tensor | None] | None,
        student_logit_scale: torch.Tensor | float,
        teacher_logit_scale: torch.Tensor | float | Sequence[torch.Tensor | float] | None,
        image_ids: torch.Tensor | None = None,
        text_ids: torch.Tensor | None = None,
    ) -> CLIPRDLossOutput:
        """Computes the terms over the pairs of all processes.

        Under `DistributedDataParallel`, which averages gradients, the gradients are those of one process with all
        pairs; the processes may hold different numbers of pairs. Computed in float32 at least, autocast or not.

        Args:
            student_image, student_text: (n, d_s), this process's pairs, not normalised.
            teacher_image, teacher_text: (n, d), without gradient; normalised here. They and their scale may be None
                where `task` alone has a weight. Of several teachers a sequence, (n, d) of each.
            student_logit_scale: the student's CLIP scale, exponentiated.
            teacher_logit_scale: the teacher's CLIP scale, exponentiated; constant. Of several teachers a sequence.
            image_ids, text_ids: (n,) integers; equal ones mark the same picture, the same caption, on any process.
                Such pairs share the targets of the contrastive terms evenly instead of pushing each other apart: an
                image and a text match if their pairs share either, two images if the picture is the same, two texts
                if the caption is. None: every pair is a negative of all others (the released code).

        Returns:
            [`CLIPRDLossOutput`].

        Raises:
            ValueError: on every process alike, when any of them found embeddings of different N, of a wrong width,
                with NaN, infinite values or a row of zeros, a scale that is not finite, or ids that are not (n,)
                integers; and a teacher with a gradient. On one process, the fast precision answers numbers that are
                not in order with NaN instead.
        """
        problem = 0
        images, texts, theirs = _listed(teacher_image), _listed(teacher_text), _listed(teacher_logit_scale)
        if any(value is None for value in (*images, *texts, *theirs)):
            problem = _NO_TEACHER if self.needs_teacher else 0
            images = texts = [student_image.detach().new_ones(len(student_image), self.teacher_dim)]
            theirs = [1.0]
        elif not len(images) == len(texts) == len(theirs) == len(self.teacher_dims):
            problem = _COUNT
        if any(values.requires_grad for values in (*images, *texts)):
            problem = _GRADIENT
        theirs = [scale.detach() if isinstance(scale, torch.Tensor) else scale for scale in theirs]
        device = student_image.device
        group = Processes(self.process_group)
        embeddings = (student_image, student_text, *images, *texts)
        scales = [_on_device(scale, device) for scale in (student_logit_scale, *theirs, *self.multipliers())]
        dtype = computing_dtype(student_image)
        fast = self._is_fast(dtype, device)
        ids = (image_ids, text_ids)
        problem = problem or self._problem(embeddings, scales)
        if not problem and not check_ids(ids, len(student_image)):
            problem = _IDS
        flags = None
        if not problem:
            flags = _flags(embeddings, scales)
            # Several processes wait for each other's findings anyway.
            if not fast or group.size > 1:
                problem = _first_problem(flags)
        count = student_image.shape[0] if student_image.dim() else 0
        rows = _agree(group, problem, count, _digest(self.weights, ids), device)
        matches = _matches(group, ids, rows, device)
        # Neither autocast nor a reduced precision of float32 products: both move the gradient by about 1 %.
        with torch.autocast(device.type, enabled=False), float32_products("highest"):
            own_image, own_text = student_image.to(dtype), student_text.to(dtype)
            # Only terms of the teacher's space read the projections.
            projects = self.visual_projection is not None and any(
                self.weights[name] for name in TERMS if name not in ("task", "hrd")
            )
            spaces = []
            for number in range(len(images) if projects else 0):
                layers = (_map_of(layer, number) for layer in (self.visual_projection, self.text_projection))
                pair = zip(layers, (own_image, own_text), strict=True)
                spaces.append([F.normalize(_linear(layer, values), dim=-1) for layer, values in pair])
            own_image, own_text = F.normalize(own_image, dim=-1), F.normalize(own_text, dim=-1)
            targets = [
                [F.normalize(part.to(dtype), dim=-1) for part in pair] for pair in zip(images, texts, strict=True)
            ]
            numbers = [scale.to(dtype).reshape(()) for scale in scales]
            if self.dense:
                if group.size > 1:
                    raise ValueError("dense computes on one process; leave it out for several")
                image, text = spaces[0] if projects else (own_image, own_text)
                multipliers = torch.stack(numbers)
                terms = _dense_terms(
                    own_image, own_text, image, text, targets[0][0], targets[0][1], multipliers, self.weights, matches
                )
                loss = sum((self.weights[name] * value for name, value in terms.items()), multipliers.sum() * 0)
                return CLIPRDLossOutput(loss=loss, **{name: value.detach() for name, value in terms.items()})
            parts = []
            for weights, of_images, of_texts, to_images, to_texts in self._parts(len(images)):
                call = TilesCall(weights, self.tile_size, group, rows, fast, matches)
                # Without projections the towers' embeddings serve all terms: passed once, their gradients come once.
                projected = (spaces[of_images][0], spaces[of_texts][1]) if projects else (None, None)
                taught = targets[to_images][0], targets[to_texts][1]
                multipliers = torch.stack([numbers[0], numbers[1 + to_images], *numbers[-3:]])
                parts.append(TiledTerms.apply(own_image, own_text, *projected, *taught, multipliers, call))
            loss, found = (
                parts[0] if len(parts) == 1 else (torch.stack(part).sum(0) for part in zip(*parts, strict=True))
            )
            if not projects:
                # Gradients of zero: distributed training waits for those of every parameter.
                loss = loss + sum((value.sum() * 0 for value in self._projection_parameters()), 0.0)
            if fast and flags is not None:
                # Whatever came of such numbers: neither the loss nor its gradients pass for a result.
                factor = torch.ones((), device=device).masked_fill(flags.any(), math.nan)
                loss, found = loss * factor, found * factor
                if self._flags is not None and self._flags.device == device:
                    flags = torch.where(self._flags.any(), self._flags, flags)
                self._flags = flags
        terms = {name: found[index] for index, name in enumerate(TERMS) if self.weights[name]}
        if len(images) > 1:
            terms = {name: value / _divisor(name, len(images)) for name, value in terms.items()}
        return CLIPRDLossOutput(loss=loss, **terms)

    def _parts(self, count: int) -> list[tuple[dict[str, float], int, int, int, int]]:
        """The calls of the tiles that make up the loss of so many teachers.

        Returns:
            Weights of each call, and the numbers of the teachers whose space its student images and texts are in and
            whose images and texts it takes.
        """
        shares = {name: weight / _divisor(name, count) for name, weight in self.weights.items()}
        parts = [
            ({**shares, "task": 0.0 if number else shares["task"]}, number, number, number, number)
            for number in range(count)
        ]
        for one, other in permutations(range(count), 2):
            parts += [
                (check_weights({"vrd": shares["vrd"]}), one, other, one, other),
                (check_weights({"xrd": shares["xrd"]}), other, one, one, other),
            ]
        return [parts[0], *(part for part in parts[1:] if any(part[0].values()))]

    def _is_fast(self, dtype: torch.dtype, device: torch.device) -> bool:
        """Whether embeddings of a dtype on a device are computed in the fast precision."""
        wanted = self.precision == "fast" or (self.precision is None and device.type != "cpu")
        return wanted and not self.dense and dtype != torch.float64

    def check_finite(self, loss: torch.Tensor | float) -> None:
        """Raises the cause of a loss that is not finite; call it where the loss is read, since this reads it as well.

        Args:
            loss: that of a step since the last call, or a sum of several.

        Raises:
            ValueError: it is NaN or infinite; names the cause.
        """
        if math.isfinite(loss.detach() if isinstance(loss, torch.Tensor) else loss):
            return
        raise ValueError(f"CLIPRDLoss: {self.cause()}")

    def cause(self) -> str:
        """What made a loss since the last call not finite; waits for the device."""
        flags, self._flags = self._flags, None
        return _PROBLEMS[0 if flags is None else _first_problem(flags)] or NOT_FINITE

    def _projection_parameters(self) -> list[nn.Parameter]:
        layers = (self.visual_projection, self.text_projection)
        return [value for layer in layers if layer is not None for value in layer.parameters()]

    def report_failure(self, device: torch.device) -> None:
        """Tells the other processes that this one failed, so that they raise instead of waiting for it."""
        Processes(self.process_group).exchange([_ELSEWHERE, 0, 0], device)

    @torch.no_grad()
    def clamp_scales(self) -> None:
        """Keeps exponentiated scales between 0 and ln 100; released ones are left as they are."""
        if self.scales == "exponentiated":
            for value in (self.cross_scale, self.image_scale, self.text_scale):
                value.clamp_(0, MAXIMAL_LOG_SCALE)

    def _problem(self, embeddings: tuple[torch.Tensor, ...], scales: list[torch.Tensor]) -> int:
        """Number of the first problem that shapes and types tell, 0 for none."""
        if any(values.dim() != 2 or values.shape[0] != embeddings[0].shape[0] for values in embeddings):
            return _ROWS
        if any(values.shape[1] != self.student_dim for values in embeddings[:2]):
            return _STUDENT
        count = len(embeddings) // 2 - 1
        widths = self.teacher_dims[:count] * 2
        if any(values.shape[1] != width for values, width in zip(embeddings[2:], widths, strict=True)):
            return _TEACHER
        if not all(values.is_floating_point() for values in embeddings):
            return _TYPE
        if any(scale.numel() != 1 for scale in scales):
            return _SCALE
        return 0


def _divisor(name: str, count: int) -> int:
    """Over how much a term of so many teachers is a mean; the student's own loss is no teacher's."""
    return 1 if name == "task" else count**2 if name in ("vrd", "xrd") else count


def _listed(value: Any) -> list[Any]:
    """One value, or several, as a list."""
    return list(value) if isinstance(value, list | tuple) else [value]


def _maps(student_dim: int, teacher_dims: Sequence[int]) -> nn.Module | None:
    """The linear maps to the teachers' spaces; of several teachers, each has its own."""
    if len(teacher_dims) > 1:
        return nn.ModuleList(nn.Linear(student_dim, dim) for dim in teacher_dims)
    return None if teacher_dims[0] == student_dim else nn.Linear(student_dim, teacher_dims[0])


def _map_of(layer: nn.Module | None, number: int) -> Any:
    return layer[number] if isinstance(layer, nn.ModuleList) else layer


def _flags(embeddings: tuple[torch.Tensor, ...], scales: list[torch.Tensor]) -> torch.Tensor:
    """Whether the numbers have the problems of `_FLAGGED`, on their device."""
    with torch.no_grad():
        # The squared norms alone distinguish NaN, infinities and zeros; in float32, since fp16 overflows here.
        norms = [torch.linalg.vector_norm(values, dim=1, dtype=computing_dtype(values)) for values in embeddings]
        found = torch.cat(norms)
        numbers = torch.stack([scale.detach().to(found).reshape(()) for scale in scales])
        finite, scaled = found.isfinite().all(), numbers.isfinite().all()
        return torch.stack([finite.logical_not(), (found == 0).any(), scaled.logical_not()])


def _first_problem(flags: torch.Tensor) -> int:
    """Number of the first problem that is flagged, 0 for none; waits for the device."""
    return next((code for code, flag in zip(_FLAGGED, flags.tolist(), strict=True) if flag), 0)


def _on_device(scale: torch.Tensor | float, device: torch.device) -> torch.Tensor:
    # Neither a number that the device makes itself nor such a copy waits for it.
    if isinstance(scale, torch.Tensor):
        return scale.to(device, non_blocking=True)
    return torch.full((), scale, device=device)


def computing_dtype(values: torch.Tensor) -> torch.dtype:
    """What values of this dtype are computed in: float64 as it is, anything else in float32."""
    return torch.float64 if values.dtype == torch.float64 else torch.float32


def _linear(layer: nn.Linear | None, values: torch.Tensor) -> torch.Tensor:
    assert layer is not None
    bias = None if layer.bias is None else layer.bias.to(values.dtype)
    return F.linear(values, layer.weight.to(values.dtype), bias)


def _agree(processes: Processes, problem: int, rows: int, digest: int, device: torch.device) -> list[int]:
    """Exchanges the findings of all processes, before any of them waits for another's embeddings; returns the number
    of rows of each.

    Raises:
        ValueError: a process has a problem, the processes have different weights or ids, or none has a row.
    """
    found = processes.exchange([problem, rows, digest], device)
    for rank, (code, _, _) in enumerate(found):
        if code:
            where = "" if processes.size == 1 else f" on process {rank} of {processes.size}"
            kind = OtherProcessError if code == _ELSEWHERE else ValueError
            raise kind(f"CLIPRDLoss: {_PROBLEMS[code]}{where}")
    if len({digest for _, _, digest in found}) > 1:
        raise ValueError(
            "CLIPRDLoss: the processes have different weights, or ids of the pairs on some only; expected all alike"
        )
    counts = [count for _, count, _ in found]
    if sum(counts) == 0:
        raise ValueError("CLIPRDLoss: the batch is empty, expected at least one pair")
    return counts


def _digest(weights: Mapping[str, float], ids: Sequence[torch.Tensor | None]) -> int:
    return zlib.crc32(repr((weights, [one is None for one in ids])).encode())


def _matches(
    processes: Processes, ids: Sequence[torch.Tensor | None], rows: list[int], device: torch.device
) -> Matches | None:
    """Which pairs of all processes match; None where none can or, on a CPU, none does."""
    given = [one.to(device, non_blocking=True).long() for one in ids if one is not None]
    if not given:
        return None
    everyone = iter(processes.gather(torch.stack(given, 1), rows).unbind(1))
    found = Matches(*(None if one is None else next(everyone) for one in ids))
    return found if device.type != "cpu" or found.any() else None


def _dense_terms(
    own_image: torch.Tensor,
    own_text: torch.Tensor,
    image: torch.Tensor,
    text: torch.Tensor,
    teacher_image: torch.Tensor,
    teacher_text: torch.Tensor,
    multipliers: torch.Tensor,
    weights: Mapping[str, float],
    matches: Matches | None,
) -> dict[str, torch.Tensor]:
    """Computes the unweighted terms as their formulas read, by N x N matrices and autograd; for checking the tiles."""
    student, teacher, cross, vision, language = multipliers

    def contrastive(kind: str, *products: torch.Tensor) -> torch.Tensor:
        targets = torch.eye(len(own_image), dtype=own_image.dtype, device=own_image.device)
        if matches is not None:
            targets = matches.targets(kind, targets)
        return torch.stack([F.cross_entropy(product, targets) for product in products]).mean()

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
        "task": lambda: contrastive(CROSS, own, own.T),
        "fd": lambda: F.mse_loss(image, teacher_image) + F.mse_loss(text, teacher_text),
        "icl": lambda: contrastive(CROSS, image_to_text, text_to_image),
        "hrd": lambda: divergence((teachers, own), (teachers.T, own.T)),
        "vrd": lambda: divergence((texts.T, images.T), (texts, images)),
        "vrd_image": lambda: contrastive(IMAGE, images.T, images),
        "vrd_text": lambda: contrastive(TEXT, texts.T, texts),
        "xrd": lambda: divergence(
            (image_to_text, text_to_image),
            (text_to_image, image_to_text),
            (image_to_text.T, text_to_image.T),
            (text_to_image.T, image_to_text.T),
        ),
    }
    return {name: compute() for name, compute in terms.items() if weights[name]}
