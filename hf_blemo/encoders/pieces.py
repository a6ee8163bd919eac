"""The pieces of a clip: what an encoder's network takes at a time."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hf_blemo.media import Audio, Frame


@dataclass
class Piece:
    """One input of an encoder's network, from one clip.

    Args:
        values: input of the model for this piece, without a batch axis.
        times: (t,) seconds from the start of the clip at which its t rows of features begin.
        skip: leading rows of context, which the piece before has already given.
        person: whose face it shows, where there are results for each; else 0.
    """

    values: np.ndarray
    times: np.ndarray
    skip: int = 0
    person: int = 0


class Session(ABC):
    """Cuts one clip into pieces, as it is decoded."""

    @abstractmethod
    def push(self, item: Frame | Audio) -> Iterator[Piece]:
        """Takes the next frame or stretch of sound of the encoder's modality; yields pieces that are complete now."""

    def finish(self) -> Iterator[Piece]:
        """Ends the clip; yields the remaining pieces."""
        yield from ()
