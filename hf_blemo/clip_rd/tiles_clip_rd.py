"""The terms of CLIP-RD and their gradients by tiles, so that no N x N matrix is ever in memory.

All terms are made of six products of (N, d) embeddings. They are visited tile by tile, twice: first for the row and
column log-sum-exps, then for the values and gradients. As the result is one scalar, both passes run in the forward of
one autograd function that keeps nothing but the gradients. With several processes each has the rows of its own pairs
and sees the columns of all of them.

The fast precision rounds what enters a product to 11 bits (float16) and adds up in float32: normalised embeddings, and
slopes (the gradient with respect to the logits) times a power of two that keeps them inside float16's range. Scales
multiply after the product. Nothing in it waits for the device. Where Triton runs, `kernels_clip_rd` computes strips of
whole rows; elsewhere the same numbers come tile by tile from plain operations.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers.utils import logging

from .gathering_clip_rd import Processes
from .matches_clip_rd import CROSS, IMAGE, TEXT, Matches
from .weights_clip_rd import TERMS

logger = logging.get_logger(__name__)

# Sides of a square tile: a few stay in the caches of cores, an accelerator wants few and large ones.
CPU_TILE_SIZE = 768
ACCELERATOR_TILE_SIZE = 2048
# Entries of a strip of whole rows: the kernels' buffers of the six products and five slopes take 1.1 GiB.
STRIP_ENTRIES = 2**25
# Sums of exponentials of at most 1 that are larger lose nothing that float32 could hold; log-sum-exps that differ by
# less have a ratio that neither overflows nor meets an underflow that matters.
SMALLEST_SUM = 1e-20
LARGEST_RATIO = 40.0
# Slopes are at most this in float16, half of its range.
LARGEST_SLOPE_BITS = 15
NOT_FINITE = "the loss is not finite: NaN or infinite values in the projections"


@dataclass
class TilesCall:
    """Arguments beside the tensors: weights of all terms, a tile's side, processes, their rows, precision, matches."""

    weights: dict[str, float]
    tile_size: int | None
    group: Processes
    rows: list[int]
    fast: bool = False
    matches: Matches | None = None


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
# Products that terms compare: no term reads two of these pairs.
_PAIRS = ((_OWN, _TEACHERS), (_IMAGE, _TEXT), (_TEXT_TO_IMAGE, _IMAGE_TO_TEXT))
# Which of the five scales multiplies a product: student, teacher, cross, image, text.
_SCALE = (0, 1, 3, 4, 2, 2)
# What has to match for a shared target, and the terms whose targets the products of students have.
_MATCHING = {_OWN: CROSS, _IMAGE: IMAGE, _TEXT: TEXT, _TEXT_TO_IMAGE: CROSS, _IMAGE_TO_TEXT: CROSS}

_kernels: dict[torch.device, Any] = {}


def _kernels_for(device: torch.device) -> Any:
    """The module of Triton kernels, compiled once for a device; None where it cannot run."""
    if device not in _kernels:
        _kernels[device] = _prepared_kernels(device)
    return _kernels[device]


def _prepared_kernels(device: torch.device) -> Any:
    if device.type != "cuda":
        return None
    try:
        from . import kernels_clip_rd

        kernels_clip_rd.prepare(device)
    except torch.OutOfMemoryError:
        raise
    # Whatever a missing or broken compiler raises: plain operations give the same.
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        logger.warning(f"CLIPRDLoss: no Triton kernels on {device}, plain operations compute the same ({reason})")
        return None
    return kernels_clip_rd


@contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """Sets the precision of float32 products, whatever the program's setting for the towers."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class TiledTerms(torch.autograd.Function):
    """Weighted sum of the terms, and the values of all; forward computes the gradients, and backward returns them."""

    @staticmethod
    def forward(ctx, own_image, own_text, image, text, teacher_image, teacher_text, multipliers, call: TilesCall):
        needed = ctx.needs_input_grad
        tiles = _Tiles(own_image, own_text, image, text, teacher_image, teacher_text, multipliers, call)
        values = tiles.compute(gradients=any(needed))
        # Python numbers: a tensor of the weights would be copied to the device, which waits for it.
        loss = torch.stack([call.weights[name] * value for name, value in zip(TERMS, values, strict=True)]).sum()
        values = values.to(own_image.dtype)
        ctx.mark_non_differentiable(values)
        if any(needed):
            gradients = tiles.gradients
            ctx.save_for_backward(*(gradients[index] if needed[index] else None for index in (0, 1, 2, 3, 6)))
        return loss.to(own_image.dtype), values

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
        self.weights, self.group, self.rows, self.fast = call.weights, call.group, call.rows, call.fast
        weights = self.weights
        self.num_rows, self.total = len(own_image), sum(call.rows)
        self.own = (own_image, own_text)
        self.shared = image is None
        self.student = self.own if self.shared else (image, text)
        self.teacher = (teacher_image, teacher_text)
        self.device, self.dtype = own_image.device, own_image.dtype
        self.kernels: Any = _kernels_for(self.device) if self.fast else None
        self.used = [index for index, users in _USERS.items() if any(weights[name] for name in users)]
        scales = multipliers.detach().unbind()
        self.scale = [scales[number] for number in _SCALE]
        # The operands of the products.
        own_image, own_text, teacher_image, teacher_text = (
            self._rounded(values) for values in (own_image, own_text, teacher_image, teacher_text)
        )
        image, text = (own_image, own_text) if self.shared else (self._rounded(image), self._rounded(text))
        # Only embeddings that some term reads are gathered: the student's texts, the teacher's images and texts.
        parts = [
            (own_text, _OWN in self.used),
            (teacher_image, bool({_IMAGE, _TEXT_TO_IMAGE} & set(self.used))),
            (teacher_text, bool({_TEACHERS, _TEXT, _IMAGE_TO_TEXT} & set(self.used))),
        ]
        if self.group.size > 1 and self.used:
            gathered = self.group.gather(torch.cat([part for part, wanted in parts if wanted], 1), call.rows)
            widths = [part.shape[1] for part, wanted in parts if wanted]
            found = iter(gathered.split(widths, 1))
            parts = [(next(found).contiguous() if wanted else part, wanted) for part, wanted in parts]
        texts, images, captions = (part for part, _ in parts)
        self.left = [own_image, teacher_image, image, text, text, image]
        self.right = [texts, captions, images, captions, images, captions]
        # The local partners of the rows: where the diagonal of the global product is.
        self.partner = [own_text, teacher_text, teacher_image, teacher_text, teacher_image, teacher_text]
        self.first_row = sum(call.rows[: self.group.rank])
        # Product -> what its targets pick for the rows beyond the diagonal: nothing where no pairs match.
        self.matches, self.picked = call.matches, {}
        if self.matches is not None:
            own_rows = slice(self.first_row, self.first_row + self.num_rows)
            for index in set(_MATCHING) & set(self.used):
                picked = self._targets(index, self.right[index].to(self.dtype))[own_rows]
                self.picked[index] = picked - self.partner[index]
        self.row_log_sums = own_image.new_full((6, self.num_rows), -math.inf, dtype=self.dtype)
        self.column_log_sums = own_image.new_full((6, self.total), -math.inf, dtype=self.dtype)
        self.height, self.width = self._tile(call.tile_size)
        self.gradients: dict[int, torch.Tensor] = {}

    def _targets(self, index: int, values: torch.Tensor) -> torch.Tensor:
        """What a product's targets pick of (N, k): the means over matches, of rows or of rows and columns."""
        assert self.matches is not None
        over_rows = index in (_TEXT_TO_IMAGE, _IMAGE_TO_TEXT)
        return (self.matches.targets if over_rows else self.matches.both_targets)(_MATCHING[index], values)

    def _rounded(self, values: torch.Tensor) -> torch.Tensor:
        """What enters a product: float16 for the kernels, else its numbers in the computing precision."""
        if not self.fast:
            return values
        return values.half() if self.kernels else values.half().to(self.dtype)

    def _tile(self, size: int | None) -> tuple[int, int]:
        """Rows and columns of a tile."""
        if self.kernels is None:
            size = size or (CPU_TILE_SIZE if self.device.type == "cpu" else ACCELERATOR_TILE_SIZE)
            return min(size, max(self.num_rows, 1)), min(size, self.total)
        # Strips alike in height, so that few shapes occur.
        highest = size or max(STRIP_ENTRIES // self.total, 1)
        return -(-self.num_rows // max(-(-self.num_rows // highest), 1)), self.total

    def compute(self, gradients: bool) -> torch.Tensor:
        """Values of all terms, (8,) float64, of the global batch; with `gradients`, fills `self.gradients`."""
        # TF32 holds numbers of 11 bits exactly.
        on_accelerator = self.device.type != "cpu"
        with float32_products("high" if self.fast and on_accelerator else "highest"):
            self._log_sums()
            totals = self.group.sum(self._values_and_gradients(gradients))
        # The same sum on every process, so all of them raise or none.
        if not self.fast and not totals.isfinite().all():
            raise ValueError(f"CLIPRDLoss: {NOT_FINITE}")
        return totals / self.total

    def _buffer(self, *shape: int) -> torch.Tensor:
        return torch.empty(*shape, self.height * self.width, dtype=self.dtype, device=self.device)

    def _log_sums(self) -> None:
        """First pass: log-sum-exps over rows and columns of every product."""
        if self.kernels is not None and self.num_rows:
            for index in self.used:
                found = self.kernels.log_sums(self.left[index], self.right[index], self.scale[index])
                self.row_log_sums[index], self.column_log_sums[index] = found
        elif self.used:
            self._tiled_log_sums()
        self.column_log_sums = self.group.merge_log_sums(self.column_log_sums)

    def _tiled_log_sums(self) -> None:
        logits, shifted = self._buffer(2)
        for rows in _slices(self.num_rows, self.height):
            scaled = self._scaled_left(rows)
            for columns in _slices(self.total, self.width):
                shape = (rows.stop - rows.start, columns.stop - columns.start)
                x, e = _view(logits, shape), _view(shifted, shape)
                for index in self.used:
                    self._logits(index, scaled, rows, columns, x)
                    row_sums, column_sums = self.row_log_sums[index][rows], self.column_log_sums[index][columns]
                    # Each row's true maximum: bounded by the scale it would underflow where cosines are far below 1.
                    highest = x.amax(1)
                    torch.sub(x, highest.unsqueeze(1), out=e)
                    torch.logaddexp(row_sums, e.exp_().sum(1).log_().add_(highest), out=row_sums)
                    if self._may_read:
                        # The same exponentials, weighed by rows, sum up the columns, unless one underflows.
                        top = highest.max()
                        sums = torch.mv(e.T, (highest - top).exp_())
                        if sums.min() > SMALLEST_SUM:
                            torch.logaddexp(column_sums, sums.log_().add_(top), out=column_sums)
                            continue
                    highest = x.amax(0)
                    torch.sub(x, highest, out=e)
                    torch.logaddexp(column_sums, e.exp_().sum(0).log_().add_(highest), out=column_sums)

    @property
    def _may_read(self) -> bool:
        """Whether a shorter way may be chosen by a number on the device, which costs nothing on a CPU alone."""
        return self.device.type == "cpu" and not self.fast

    def _scaled_left(self, rows: slice) -> dict[int, torch.Tensor]:
        """Rows of the products as they enter them: scaled, unless that would round them again."""
        return {
            index: self.left[index][rows] if self.fast else self.left[index][rows] * self.scale[index]
            for index in self.used
        }

    def _logits(self, index: int, scaled: dict[int, torch.Tensor], rows: slice, columns: slice, out) -> None:
        torch.mm(scaled[index], self.right[index][columns].T, out=out)
        if self.fast:
            out.mul_(self.scale[index])

    def _values_and_gradients(self, gradients: bool) -> torch.Tensor:
        """Second pass; returns this process's share of the values, times N."""
        weights, total = self.weights, self.total
        zero = torch.zeros((), dtype=torch.float64, device=self.device)
        sums: dict[str, torch.Tensor] = dict.fromkeys(TERMS, zero)
        own = [torch.zeros_like(values) for values in self.own] if gradients else []
        student = own if self.shared or not gradients else [torch.zeros_like(values) for values in self.student]
        all_texts = None
        if gradients and _OWN in self.used:
            all_texts = self.own[1].new_zeros(self.right[_OWN].shape)
        scale_gradients = [zero] * 5
        # Product -> whose rows its slopes move, the weight of its targets, and the largest slope: weights times sums
        # of probabilities.
        owners = {
            _OWN: (own, 0, weights["task"], weights["task"] + weights["hrd"]),
            _IMAGE: (student, 0, weights["vrd_image"], weights["vrd_image"] + weights["vrd"]),
            _TEXT: (student, 1, weights["vrd_text"], weights["vrd_text"]),
            _TEXT_TO_IMAGE: (student, 1, weights["icl"] / 2, (weights["icl"] + weights["xrd"]) / 2),
            _IMAGE_TO_TEXT: (student, 0, weights["icl"] / 2, (weights["icl"] + weights["xrd"]) / 2),
        }
        moving = [index for index, (*_, bound) in owners.items() if gradients and bound]
        lift = {index: _lift(owners[index][3]) if self.fast else 1.0 for index in moving}
        needs_tiles = moving or any(weights[name] for name in ("hrd", "vrd", "xrd"))
        tile = self._make_strips(lift, sums) if self.kernels is not None else self._make_tiles(lift, sums)
        for rows in _slices(self.num_rows, self.height):
            scaled = self._scaled_left(rows)
            height = rows.stop - rows.start
            moved = {index: self.own[0].new_zeros(height, self.right[index].shape[1]) for index in moving}
            for columns in _slices(total, self.width) if needs_tiles else []:
                for index, slope in tile(rows, columns, scaled):
                    self._add_product(moved[index], slope, self.right[index][columns])
                    if index == _OWN:
                        assert all_texts is not None
                        self._add_product(all_texts[columns], slope.T, self.left[_OWN][rows])
            for index, gradient in moved.items():
                target, place, weight, _ = owners[index]
                gradient.mul_(1 / lift[index])
                if index in self.picked:
                    gradient.sub_(self.picked[index][rows], alpha=weight)
                number = _SCALE[index]
                scale_gradients[number] = scale_gradients[number] + _dot(self.left[index][rows], gradient)
                target[place][rows].addcmul_(gradient, self.scale[index])
        self._add_closed_forms(sums)
        if gradients:
            if all_texts is not None:
                all_texts.mul_(self.scale[_OWN] / lift[_OWN])
                if _OWN in self.picked:
                    placed = torch.zeros_like(all_texts)
                    placed[self.first_row : self.first_row + self.num_rows] = self.left[_OWN]
                    picked = self._targets(_OWN, placed).sub_(placed)
                    all_texts.addcmul_(picked, self.scale[_OWN], value=-weights["task"])
                own[1].add_(all_texts if self.group.size == 1 else self.group.scatter_sum(all_texts, self.rows))
            self._finish(own, student, torch.stack(scale_gradients))
        return torch.stack([sums[name] for name in TERMS])

    def _add_product(self, target: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
        if self.kernels is None:
            target.addmm_(left, right)
        else:
            target.add_(self.kernels.product(left, right))

    def _make_strips(self, lift: dict[int, float], sums: dict[str, torch.Tensor]) -> Any:
        """The second pass's work on a strip of whole rows, by the kernels: adds to `sums`, yields the slopes."""
        shape = (self.height, self.width)
        logits = {index: torch.empty(shape, dtype=self.dtype, device=self.device) for index in self.used}
        slopes = {index: torch.empty(shape, dtype=torch.float16, device=self.device) for index in lift}

        def strip(rows: slice, columns: slice, scaled: dict[int, torch.Tensor]) -> list[tuple[int, torch.Tensor]]:
            height = rows.stop - rows.start
            x = {index: buffer[:height] for index, buffer in logits.items()}
            found = {index: buffer[:height] for index, buffer in slopes.items()}
            for index in self.used:
                self.kernels.product(scaled[index], self.right[index].T, x[index])
            values = self.kernels.slopes(
                x,
                found,
                self.row_log_sums[:, rows],
                self.column_log_sums,
                [self.scale[index] for index in range(6)],
                self.first_row + rows.start,
                self.weights,
                lift,
            )
            for name, value in zip(("hrd", "vrd", "xrd"), values, strict=True):
                sums[name] = sums[name] + value
            return list(found.items())

        return strip

    def _make_tiles(self, lift: dict[int, float], sums: dict[str, torch.Tensor]) -> Any:
        """The same on a tile, by plain operations in the same few buffers."""
        weights = self.weights
        logits, both, single = ([self._buffer() for _ in range(2)] for _ in range(3))
        # Of every block of rows the largest and of every block of columns the smallest log-sum-exp, by their starts.
        bounds = {
            index: (
                {s.start: self.row_log_sums[index][s].max().item() for s in _slices(self.num_rows, self.height)},
                {s.start: self.column_log_sums[index][s].min().item() for s in _slices(self.total, self.width)},
            )
            for index in (self.used if self._may_read else [])
        }

        def probabilities(index: int, place: int, x: torch.Tensor, rows: slice, columns: slice):
            """The softmax over the row, and that plus the softmax over the column."""
            p, h = _view(single[place], x.shape), _view(both[place], x.shape)
            row_sums, column_sums = self.row_log_sums[index][rows], self.column_log_sums[index][columns]
            torch.sub(x, row_sums.unsqueeze(1), out=p)
            if self.fast:
                # Rounding of huge logits makes no probability above 1, so no slope leaves its bound.
                p.clamp_(max=0)
            p.exp_()
            if bounds and bounds[index][0][rows.start] - bounds[index][1][columns.start] < LARGEST_RATIO:
                # The second is the first times the ratio of the two sums, which cannot overflow here.
                middle = bounds[index][0][rows.start]
                torch.mul((row_sums - middle).exp().unsqueeze(1), (middle - column_sums).exp(), out=h)
                torch.addcmul(p, p, h, out=h)
            else:
                torch.sub(x, column_sums, out=h)
                if self.fast:
                    h.clamp_(max=0)
                h.exp_().add_(p)
            return p, h

        def tile(rows: slice, columns: slice, scaled: dict[int, torch.Tensor]) -> Iterator[tuple[int, torch.Tensor]]:
            shape = (rows.stop - rows.start, columns.stop - columns.start)
            # Row starts of the tile's piece of the global diagonal.
            offset = self.first_row + rows.start - columns.start
            task, hrd, vrd, icl, xrd = (weights[name] for name in ("task", "hrd", "vrd", "icl", "xrd"))

            def slope(
                index: int, values: torch.Tensor, weight: float, diagonal: float, other=None, share: float = 0.0
            ):
                """The gradient of the loss with respect to the logits, times N and the lift."""
                values.mul_(weight * lift[index])
                if share:
                    values.add_(other, alpha=share * lift[index])
                if diagonal and -shape[0] < offset < shape[1]:
                    values.diagonal(offset).sub_(diagonal * lift[index])
                if self.fast:
                    values.copy_(values.half())
                return index, values

            for pair in _PAIRS:
                x, p, h = {}, {}, {}
                for place, index in enumerate(pair):
                    if index in self.used:
                        x[index] = _view(logits[place], shape)
                        self._logits(index, scaled, rows, columns, x[index])
                        p[index], h[index] = probabilities(index, place, x[index], rows, columns)
                moving = [index for index in pair if index in lift]
                if pair[0] == _OWN:
                    if hrd:
                        sums["hrd"] = sums["hrd"] + _dot(h[_TEACHERS], x[_TEACHERS].sub_(x[_OWN])) / 2
                    if moving:
                        yield slope(_OWN, h[_OWN], (task + hrd) / 2, task, h.get(_TEACHERS), -hrd / 2)
                elif pair[0] == _IMAGE:
                    if vrd:
                        sums["vrd"] = sums["vrd"] + _dot(h[_TEXT], x[_IMAGE].neg_().add_(x[_TEXT])) / 2
                    if _IMAGE in moving:
                        value = weights["vrd_image"]
                        yield slope(_IMAGE, h[_IMAGE], (value + vrd) / 2, value, h.get(_TEXT), -vrd / 2)
                    if _TEXT in moving:
                        yield slope(_TEXT, h[_TEXT], weights["vrd_text"] / 2, weights["vrd_text"])
                else:
                    if xrd:
                        difference = h[_IMAGE_TO_TEXT].sub_(h[_TEXT_TO_IMAGE])
                        sums["xrd"] = sums["xrd"] + _dot(difference, x[_IMAGE_TO_TEXT].sub_(x[_TEXT_TO_IMAGE])) / 4
                    for index in moving:
                        sign = 0.25 if index == _IMAGE_TO_TEXT else -0.25
                        yield slope(index, p[index], icl / 2, icl / 2, h[_IMAGE_TO_TEXT], sign * xrd)

        return tile

    def _add_closed_forms(self, sums: dict[str, torch.Tensor]) -> None:
        """Adds what follows from log-sum-exps and diagonals alone; column sums are everyone's, so one process's."""
        weights = self.weights

        def rows(index: int) -> torch.Tensor:
            return self.row_log_sums[index].double().sum()

        def columns(index: int) -> torch.Tensor:
            return self.column_log_sums[index].double().sum() / self.group.size

        def diagonal(index: int) -> torch.Tensor:
            found = _dot(self.left[index], self.partner[index])
            if index in self.picked:
                found = found + _dot(self.left[index], self.picked[index])
            return self.scale[index] * found

        for name, index in (("task", _OWN), ("vrd_image", _IMAGE), ("vrd_text", _TEXT)):
            if weights[name]:
                sums[name] = sums[name] + (rows(index) + columns(index)) / 2 - diagonal(index)
        if weights["icl"]:
            for index in (_TEXT_TO_IMAGE, _IMAGE_TO_TEXT):
                sums["icl"] = sums["icl"] + (rows(index) - diagonal(index)) / 2
        for name, student, target in (("hrd", _OWN, _TEACHERS), ("vrd", _IMAGE, _TEXT)):
            if weights[name]:
                both = rows(student) - rows(target) + columns(student) - columns(target)
                sums[name] = sums[name] + both / 2
        if weights["fd"]:
            for values, targets in zip(self.student, self.teacher, strict=True):
                sums["fd"] = sums["fd"] + (values - targets).square().sum(1).double().sum() / values.shape[1]

    def _finish(self, own, student, scale_gradients: torch.Tensor) -> None:
        """Brings the gradients together; those of a mean over N, for an average over processes."""
        factor = self.group.size / self.total
        if self.weights["fd"]:
            for gradient, values, targets in zip(student, self.student, self.teacher, strict=True):
                alpha = 2 * self.weights["fd"] / values.shape[1]
                gradient.add_(values, alpha=alpha).sub_(targets, alpha=alpha)
        for gradient in {id(part): part for part in (*own, *student)}.values():
            gradient.mul_(factor)
        self.gradients = {0: own[0], 1: own[1], 6: scale_gradients.to(self.dtype).mul_(factor)}
        if not self.shared:
            self.gradients |= {2: student[0], 3: student[1]}


def _lift(bound: float) -> float:
    """The power of two that takes slopes of at most `bound` to the upper half of float16's range."""
    return 2.0 ** (LARGEST_SLOPE_BITS - math.ceil(math.log2(bound)))


def _slices(count: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, max(size, 1))]


def _view(buffer: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    return buffer[: shape[0] * shape[1]].view(shape)


def _dot(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Sum of the products of two matrices, summed over rows in float64."""
    if left.dtype == torch.float16:
        left = left.float()
    return torch.linalg.vecdot(left, right.to(left.dtype)).double().sum()
