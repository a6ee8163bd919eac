"""The terms of CLIP-RD and their gradients by tiles, so that no N x N matrix is ever in memory.

All terms are made of six products of (N, d) embeddings. They are visited tile by tile, twice: first for the row and
column log-sum-exps, then for the values and gradients. As the result is one scalar, both passes run in the forward of
one autograd function that keeps nothing but the gradients. With several processes each has the rows of its own pairs
and sees the columns of all of them.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch

from .gathering_clip_rd import Processes
from .weights_clip_rd import TERMS

# Sums of exponentials of at most 1 that are larger lose nothing that float32 could hold; log-sum-exps that differ by
# less have a ratio that neither overflows nor meets an underflow that matters.
SMALLEST_SUM = 1e-20
LARGEST_RATIO = 40.0


@dataclass
class TilesCall:
    """Arguments beside the tensors: weights of all terms, side of a tile, and the processes with their rows."""

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


class TiledTerms(torch.autograd.Function):
    """Weighted sum of the terms, and the values of all; forward computes the gradients, and backward returns them."""

    @staticmethod
    def forward(ctx, own_image, own_text, image, text, teacher_image, teacher_text, multipliers, call: TilesCall):
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

    def __init__(self, own_image, own_text, image, text, teacher_image, teacher_text, multipliers, call: TilesCall):
        self.call, self.weights = call, call.weights
        self.group = call.group
        self.num_rows, self.total = len(own_image), sum(call.rows)
        self.own = (own_image, own_text)
        self.shared = image is None
        self.student = self.own if self.shared else (image, text)
        self.teacher = (teacher_image, teacher_text)
        student, teacher, cross, vision, language = multipliers.tolist()
        used = [index for index, users in _USERS.items() if any(self.weights[name] for name in users)]
        # Only embeddings that some term reads are gathered: the student's texts, the teacher's images and texts.
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
        # Only the two products of `icl` read the softmax over rows alone; that of the others is summed and dropped.
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
