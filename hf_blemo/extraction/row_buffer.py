"""Rows of features that come in parts, while nothing else of what they came with is kept."""

import numpy as np

# Above what memory managers carve out of a common heap, where blocks that stay leave holes between those that go.
_LARGEST_BLOCK = 2**26


class RowBuffer:
    """Gathers rows (D,) of one clip and one encoder.

    Parts are copied into blocks that double in size: a network's output, of which they may be a view, is free at once.

    Source: this project's choice.
    """

    def __init__(self):
        self._blocks: list[np.ndarray] = []
        # Rows of the last block that are filled.
        self._filled = 0

    def __len__(self) -> int:
        return sum(map(len, self._blocks[:-1])) + self._filled

    def append(self, rows: np.ndarray) -> None:
        """Adds rows at the end.

        Args:
            rows: (t, D), of the width and type of the first.
        """
        while len(rows):
            if not self._blocks or self._filled == len(self._blocks[-1]):
                most = max(1, _LARGEST_BLOCK // max(1, rows[0].nbytes))
                size = min(most, max(len(rows), 2 * len(self._blocks[-1]) if self._blocks else 0))
                self._blocks.append(np.empty((size, *rows.shape[1:]), rows.dtype))
                self._filled = 0
            block = self._blocks[-1]
            part = rows[: len(block) - self._filled]
            block[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            rows = rows[len(part) :]

    def take(self) -> np.ndarray:
        """All rows (T, D); blocks are let go one by one, so that they are not held twice. The buffer is empty then.

        Raises:
            ValueError: there is no row.
        """
        if not self._blocks:
            raise ValueError("found no rows, expected some")
        rows = np.empty((len(self), *self._blocks[0].shape[1:]), self._blocks[0].dtype)
        end = len(rows)
        while self._blocks:
            block = self._blocks.pop()[: self._filled]
            rows[end - len(block) : end] = block
            end -= len(block)
            self._filled = len(self._blocks[-1]) if self._blocks else 0
        return rows
