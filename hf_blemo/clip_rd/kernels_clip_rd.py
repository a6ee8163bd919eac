"""Triton kernels of the fast loss; this module is imported only where Triton runs."""

from collections.abc import Mapping, Sequence

import torch
import triton
import triton.language as tl

# Rows, columns and depth of a product's tile, warps, stages: for much shared memory, then for little.
CONFIGS = ((256, 128, 64, 8, 3), (128, 128, 32, 4, 3))
SLOPE_TILE = (8, 256)
_config = CONFIGS[0]


@triton.jit
def _log_sums(
    LEFT, RIGHT, SCALE, ROWS, COLUMNS, m, n, K: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr
):
    """Log-sum-exps over the rows and columns of each tile of scale * LEFT @ RIGHT.T; the product is not stored."""
    # Tiles of eight rows of tiles follow each other, so that their operands stay in the cache.
    program = tl.program_id(0)
    tiles_m, tiles_n = tl.cdiv(m, BM), tl.cdiv(n, BN)
    first = program // (8 * tiles_n) * 8
    height = min(tiles_m - first, 8)
    tile_m = first + program % (8 * tiles_n) % height
    tile_n = program % (8 * tiles_n) // height
    row, column = tile_m * BM + tl.arange(0, BM), tile_n * BN + tl.arange(0, BN)
    depth = tl.arange(0, BK)
    left = LEFT + (row % m).to(tl.int64)[:, None] * K + depth[None, :]
    right = RIGHT + (column % n).to(tl.int64)[None, :] * K + depth[:, None]
    total = tl.zeros((BM, BN), tl.float32)
    for k in range(0, K, BK):
        if K % BK == 0:
            total = tl.dot(tl.load(left), tl.load(right), total)
        else:
            inside = k + depth < K
            total = tl.dot(
                tl.load(left, mask=inside[None, :], other=0.0), tl.load(right, mask=inside[:, None], other=0.0), total
            )
        left += BK
        right += BK
    # Powers of two are the processor's own.
    total *= tl.load(SCALE) * 1.4426950408889634
    total = tl.where((row < m)[:, None] & (column < n)[None, :], total, float("-inf"))
    top = tl.max(total, 1)
    found = (top + tl.log2(tl.sum(tl.exp2(total - top[:, None]), 1))) * 0.6931471805599453
    tl.store(ROWS + tile_n.to(tl.int64) * m + row, found, mask=row < m)
    top = tl.max(total, 0)
    found = (top + tl.log2(tl.sum(tl.exp2(total - top[None, :]), 0))) * 0.6931471805599453
    tl.store(COLUMNS + tile_m.to(tl.int64) * n + column, found, mask=column < n)


@triton.jit
def _probabilities(X, SCALE, ROWS, COLUMNS, row, column, place, inside, m, n):
    """Logits, their softmax over rows, and that plus their softmax over columns."""
    x = tl.load(X + place, mask=inside, other=0.0) * tl.load(SCALE)
    rows = tl.load(ROWS + row, mask=row < m, other=0.0)
    columns = tl.load(COLUMNS + column, mask=column < n, other=0.0)
    # Rounding of huge logits makes no probability above 1, so no slope leaves its bound.
    p = tl.exp(tl.minimum(x - rows[:, None], 0.0))
    return x, p, p + tl.exp(tl.minimum(x - columns[None, :], 0.0))


@triton.jit
def _slopes(
    X0, X1, X2, X3, X4, X5, S0, S1, S2, S3, S4, G0, G2, G3, G4, G5, ROWS, COLUMNS, SUMS, m, n, rows_apart, first_row,
    own, hrd, task, image, vrd, vrd_image, text, vrd_text, icl, xrd,
    HRD: tl.constexpr, VRD: tl.constexpr, XRD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr
):  # fmt: skip
    """Value sums of the relations and the slopes of all products, of a strip; products that are None are not used."""
    row, column = tl.program_id(0) * BM + tl.arange(0, BM), tl.program_id(1) * BN + tl.arange(0, BN)
    inside = (row < m)[:, None] & (column < n)[None, :]
    place = row.to(tl.int64)[:, None] * n + column[None, :]
    diagonal = (row + first_row)[:, None] == column[None, :]
    sums = SUMS + (tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)) * 3
    if X0 is not None:
        x0, p0, h0 = _probabilities(X0, S0, ROWS, COLUMNS, row, column, place, inside, m, n)
        slope = h0 * own
        if HRD:
            x1, p1, h1 = _probabilities(
                X1, S1, ROWS + rows_apart, COLUMNS + n, row, column, place, inside, m, n
            )  # fmt: skip
            tl.store(sums, tl.sum(h1 * (x1 - x0)))
            slope -= h1 * hrd
        if G0 is not None:
            tl.store(G0 + place, (slope - tl.where(diagonal, task, 0.0)).to(tl.float16), mask=inside)
    if X3 is not None:
        x3, p3, h3 = _probabilities(
            X3, S3, ROWS + 3 * rows_apart, COLUMNS + 3 * n, row, column, place, inside, m, n
        )  # fmt: skip
        if G3 is not None:
            tl.store(G3 + place, (h3 * text - tl.where(diagonal, vrd_text, 0.0)).to(tl.float16), mask=inside)
    if X2 is not None:
        x2, p2, h2 = _probabilities(
            X2, S2, ROWS + 2 * rows_apart, COLUMNS + 2 * n, row, column, place, inside, m, n
        )  # fmt: skip
        slope = h2 * image
        if VRD:
            tl.store(sums + 1, tl.sum(h3 * (x3 - x2)))
            slope -= h3 * vrd
        if G2 is not None:
            tl.store(G2 + place, (slope - tl.where(diagonal, vrd_image, 0.0)).to(tl.float16), mask=inside)
    if X4 is not None:
        x4, p4, h4 = _probabilities(
            X4, S4, ROWS + 4 * rows_apart, COLUMNS + 4 * n, row, column, place, inside, m, n
        )  # fmt: skip
        x5, p5, h5 = _probabilities(
            X5, S4, ROWS + 5 * rows_apart, COLUMNS + 5 * n, row, column, place, inside, m, n
        )  # fmt: skip
        other = (h5 - h4) * xrd
        if XRD:
            tl.store(sums + 2, tl.sum((h5 - h4) * (x5 - x4)))
        if G4 is not None:
            tl.store(G4 + place, (p4 * icl - other - tl.where(diagonal, icl, 0.0)).to(tl.float16), mask=inside)
            tl.store(G5 + place, (p5 * icl + other - tl.where(diagonal, icl, 0.0)).to(tl.float16), mask=inside)


def product(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """(m, k) @ (k, n) of float16 -> (m, n) in float32."""
    return torch.mm(left, right, out_dtype=torch.float32, out=out)


def log_sums(left: torch.Tensor, right: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-sum-exps (m,) and (n,) in float32 of scale * left @ right.T over its columns and over its rows.

    `left` and `right` are (m, d) and (n, d) in float16, contiguous; the scale is a scalar in float32.
    """
    (m, depth), n = left.shape, len(right)
    high, wide, deep, warps, stages = _config
    tiles_m, tiles_n = triton.cdiv(m, high), triton.cdiv(n, wide)
    rows = torch.empty(tiles_n, m, device=left.device)
    columns = torch.empty(tiles_m, n, device=left.device)
    with torch.cuda.device_of(left):
        _log_sums[(tiles_m * tiles_n,)](
            left, right, scale, rows, columns, m, n, depth, high, wide, deep, num_warps=warps, num_stages=stages
        )
    return rows.logsumexp(0), columns.logsumexp(0)


def slopes(
    logits: Mapping[int, torch.Tensor],
    found: Mapping[int, torch.Tensor],
    row_log_sums: torch.Tensor,
    column_log_sums: torch.Tensor,
    scales: Sequence[torch.Tensor],
    first_row: int,
    weights: Mapping[str, float],
    lift: Mapping[int, float],
) -> list[torch.Tensor]:
    """Fills the slopes of a strip of whole rows from its products.

    Args:
        logits: number of a product -> (m, n) in float32, unscaled; those in use.
        found: number of a product -> (m, n) in float16, to be filled with slopes times their lift.
        row_log_sums, column_log_sums: (6, m), a slice of rows that lie further apart, and (6, n).
        scales: those of the six products.
        first_row: the column of the first row's pair.
        weights: of all terms.
        lift: number of a product -> power of two.

    Returns:
        This strip's share of the sums of `hrd`, `vrd` and `xrd`, scalars in float64.
    """
    m, n = next(iter(logits.values())).shape
    high, wide = SLOPE_TILE
    grid = triton.cdiv(m, high), triton.cdiv(n, wide)
    sums = torch.zeros(grid[0] * grid[1], 3, device=row_log_sums.device)
    own, image, text, cross = (lift.get(index, 0.0) for index in (0, 2, 3, 5))
    task, hrd, vrd, icl, xrd = (weights[name] for name in ("task", "hrd", "vrd", "icl", "xrd"))
    vrd_image, vrd_text = weights["vrd_image"], weights["vrd_text"]
    factors = (
        *(own * (task + hrd) / 2, own * hrd / 2, own * task),
        *(image * (vrd_image + vrd) / 2, image * vrd / 2, image * vrd_image),
        *(text * vrd_text / 2, text * vrd_text),
        *(cross * icl / 2, cross * xrd / 4),
    )
    with torch.cuda.device_of(row_log_sums):
        _slopes[grid](
            *(logits.get(index) for index in range(6)),
            *scales[:5],
            *(found.get(index) for index in (0, 2, 3, 4, 5)),
            *(row_log_sums, column_log_sums, sums, m, n, row_log_sums.stride(0), first_row),
            *factors,
            *(bool(hrd), bool(vrd), bool(xrd)),
            *SLOPE_TILE,
            num_warps=8,
        )
    total = sums.double().sum(0)
    return [total[0] / 2, total[1] / 2, total[2] / 4]


def prepare(device: torch.device) -> None:
    """Compiles both kernels, with the larger tiles that the device has room for, and checks them on a small case.

    Raises:
        RuntimeError: their numbers are not those of plain operations.
    """
    global _config
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(count, 40, generator=generator).to(device) / 6 for count in (37, 300))
    left, right, scale = left.half(), right.half(), torch.full((), 5.0, device=device)
    for config in CONFIGS:
        _config = config
        try:
            found = log_sums(left, right, scale)
            break
        except triton.runtime.errors.OutOfResources:
            if config == CONFIGS[-1]:
                raise
    # Six products that differ, so that none can stand for another.
    raw = {index: product(left.roll(index, 0), right.roll(2 * index, 0).T) for index in range(6)}
    x = torch.stack(list(raw.values())) * scale
    rows, columns = x.logsumexp(2), x.logsumexp(1)
    p = (x - rows.unsqueeze(2)).exp()
    h = p + (x - columns.unsqueeze(1)).exp()
    weights = {"task": 1.0, "hrd": 2.0, "vrd": 3.0, "vrd_image": 4.0, "vrd_text": 5.0, "icl": 6.0, "xrd": 7.0}
    diagonal, across = torch.eye(37, 300, device=device).roll(3, 1), (h[5] - h[4]) * 7 / 4
    expected = {
        0: h[0] * 3 / 2 - h[1] - diagonal,
        2: h[2] * 7 / 2 - h[3] * 3 / 2 - diagonal * 4,
        3: h[3] * 5 / 2 - diagonal * 5,
        4: p[4] * 3 - across - diagonal * 3,
        5: p[5] * 3 + across - diagonal * 3,
    }
    filled = {index: torch.empty_like(values, dtype=torch.float16) for index, values in expected.items()}
    sums = slopes(raw, filled, rows, columns, [scale] * 6, 3, weights, dict.fromkeys(filled, 1.0))
    relations = ((h[1], x[1] - x[0], 2), (h[3], x[3] - x[2], 2), (h[5] - h[4], x[5] - x[4], 4))
    pairs = [(found[0], rows[0]), (found[1], columns[0])]
    pairs += [(filled[index], values) for index, values in expected.items()]
    pairs += [(one, (left * right).sum() / share) for one, (left, right, share) in zip(sums, relations, strict=True)]
    for one, other in pairs:
        # NaN is not close to anything.
        if not torch.allclose(one.float(), other.float(), rtol=5e-3, atol=5e-3):
            raise RuntimeError("the kernels disagree with plain operations")
