"""Captions under a frozen text tower, embedded once each."""

from collections.abc import Callable, Sequence
from itertools import islice

import torch
from torch.nn import functional as F

# Rows and multiples of tokens that the tower is run on, whatever the batch: of equal shapes, a row has equal bits.
_ROWS, _TOKENS = 64, 16
# Bytes of the embeddings that are kept.
MOST_BYTES = 2**30


class FrozenTexts:
    """Keeps what a frozen text tower makes of each caption, in memory.

    The result depends on the caption alone, not on the others of its batch: a resumed run has the bits of an
    uninterrupted one. It equals the tower run on the batch itself up to rounding.

    Args:
        encode: (input_ids, attention_mask) of (n, L) -> (n, w); without chance.
        longest: tokens that the tower takes at most; None for any number.
        most_bytes: beyond, captions that are not kept yet are computed on every visit.
    """

    def __init__(
        self,
        encode: Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor],
        longest: int | None,
        most_bytes: int = MOST_BYTES,
    ):
        self.encode, self.longest, self.most_bytes = encode, longest, most_bytes
        # Caption -> (w,).
        self.kept: dict[int, torch.Tensor] = {}

    @torch.no_grad()
    def __call__(
        self, captions: Sequence[int], input_ids: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Returns what the tower makes of a batch's captions, (n, w).

        Args:
            captions: number of each caption; equal ones are the same.
            input_ids, attention_mask: (n, L), padded on the right.
        """
        new = {caption: place for place, caption in enumerate(captions) if caption not in self.kept}
        made: dict[int, torch.Tensor] = {}
        if new:
            chosen = torch.tensor(list(new.values()), device=input_ids.device)
            rows = self._made(input_ids[chosen], None if attention_mask is None else attention_mask[chosen])
            made = dict(zip(new, rows, strict=True))
            self.kept |= islice(made.items(), max(self.most_bytes // rows[0].nbytes, 1) - len(self.kept))
        return torch.stack([self.kept[one] if one in self.kept else made[one] for one in captions])

    def _made(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """Runs the tower in shapes that do not depend on the batch."""
        width = input_ids.shape[1]
        lengths = [width] * len(input_ids)
        if attention_mask is not None:
            # Of each caption: its last token, rounded up.
            last = (attention_mask * torch.arange(1, width + 1, device=attention_mask.device)).amax(1).tolist()
            lengths = [min(-(-length // _TOKENS) * _TOKENS, self.longest or 2**30) for length in last]
        parts, order = [], []
        for length in sorted(set(lengths)):
            rows = [row for row, own in enumerate(lengths) if own == length]
            for start in range(0, len(rows), _ROWS):
                chunk = rows[start : start + _ROWS]
                full = chunk + chunk[-1:] * (_ROWS - len(chunk))
                tokens, mask = (
                    None if values is None else F.pad(values[full], (0, length - width))
                    for values in (input_ids, attention_mask)
                )
                assert tokens is not None
                parts.append(self.encode(tokens, mask)[: len(chunk)])
                order += chunk
        made = torch.cat(parts)
        return made[torch.tensor(order, device=made.device).argsort()]
