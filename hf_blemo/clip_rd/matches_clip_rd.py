"""Pairs of one batch with the same picture or the same caption, which share a target instead of being negatives."""

from collections.abc import Sequence

import torch

IMAGE, TEXT, CROSS = "image", "text", "cross"


class Matches:
    """Which pairs of a batch match each other: M (N, N), of ones and zeros, which is never made.

    Images match images of the same picture, texts match texts of the same caption, and an image matches a text where
    their pairs share either. M times a matrix takes sums over groups, O(N * k).

    Args:
        image_ids, text_ids: (N,) integers of the pairs of all processes; equal ones mark the same picture, the same
            caption. None: all differ.
    """

    def __init__(self, image_ids: torch.Tensor | None, text_ids: torch.Tensor | None):
        given = next(ids for ids in (image_ids, text_ids) if ids is not None)
        apart = torch.arange(len(given), device=given.device)
        image, text = (apart if ids is None else _groups(ids) for ids in (image_ids, text_ids))
        # Pairs that share both are in both groups, and count once.
        self._groups = {IMAGE: [image], TEXT: [text], CROSS: [image, text, _groups(image * len(given) + text)]}
        ones = torch.ones(len(given), 1, dtype=torch.float64, device=given.device)
        self._counts = {kind: self._sum(kind, ones) for kind in self._groups}

    def any(self) -> bool:
        """Whether any two pairs match; waits for the device."""
        return bool((self._counts[CROSS] > 1).any())

    def targets(self, kind: str, values: torch.Tensor) -> torch.Tensor:
        """The mean over each row's matches, (N, k): what the target of a contrastive term over rows picks."""
        return self._sum(kind, values) / self._counts[kind].to(values.dtype)

    def both_targets(self, kind: str, values: torch.Tensor) -> torch.Tensor:
        """The same for the mean of the two terms over rows and over columns, (N, k)."""
        counts = self._counts[kind].to(values.dtype)
        return (self._sum(kind, values) / counts + self._sum(kind, values / counts)) / 2

    def _sum(self, kind: str, values: torch.Tensor) -> torch.Tensor:
        first, *others = (torch.zeros_like(values).index_add_(0, group, values)[group] for group in self._groups[kind])
        return first + others[0] - others[1] if others else first


def _groups(ids: torch.Tensor) -> torch.Tensor:
    """Numbers of the groups of equal ids, (N,), each below N; the device is not waited for."""
    values, order = ids.sort()
    starts = torch.cat([values.new_zeros(1), (values[1:] != values[:-1]).long()])
    return torch.empty_like(order).scatter_(0, order, starts.cumsum(0))


def check_ids(ids: Sequence[torch.Tensor | None], rows: int) -> bool:
    """Whether ids that are given are one whole number for each of so many pairs."""
    return all(
        one is None or (one.shape == (rows,) and not one.is_floating_point() and not one.is_complex()) for one in ids
    )
