"""Base of all encoders of clips: an encoder cuts a clip into pieces and runs its network on batches of them."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import nn

from hf_blemo.encoders.clip_sessions import ClipSessions
from hf_blemo.encoders.face_cropping import ALL, FaceCrop
from hf_blemo.encoders.layers import HiddenLayers
from hf_blemo.encoders.pieces import Piece, Session
from hf_blemo.media import MediaError, MediaFile

logger = logging.getLogger(__name__)


class EncoderMemoryError(MemoryError):
    """A device is out of memory even for a single piece of a clip."""


@dataclass
class EncodedClip:
    """Features of a clip by one encoder.

    Args:
        features: (T, D) float32.
        times: (T,) float64, seconds from the start of the clip at which each row begins.
    """

    features: np.ndarray
    times: np.ndarray


@dataclass
class EncoderSource:
    """Source and options of an encoder; kept with the models trained on its features.

    Args:
        model_id: Hub id or folder.
        revision: commit of the Hub repository, where it is one.
        extraction: options that change the features.
    """

    model_id: str
    revision: str | None = None
    extraction: dict[str, Any] = field(default_factory=dict)

    def options(self) -> dict[str, Any]:
        """Entries of `config.encoders`, without empty ones."""
        entries = {"model_id": self.model_id, "revision": self.revision, "extraction": dict(self.extraction)}
        return {key: value for key, value in entries.items() if value}


class Encoder(ABC):
    """A pre-trained network that turns clips into features; one subclass per family.

    With `layer` or `layers` among the options, rows come from the hidden states of these layers in every family, and
    where a row stands for a picture, a segment or a window, it is the mean over their tokens.

    Args:
        model: of transformers, in evaluation mode.
        processor: its processor.
        source: its origin and options.
        batch_size: pieces at once; halved for good when the device runs out of memory.

    Raises:
        ValueError: the batch size is not a positive whole number, or `layer` or `layers` have an invalid value.
    """

    modality: str
    audio_rate: int | None = None
    feature_size: int
    default_batch_size = 32
    # Most numbers in a batch whose pieces differ in size; an explicit batch size wins.
    largest_batch: int | None = None
    # Pieces that keep a core busy; on the CPU, such parts of a batch run side by side. None if they cannot.
    part_size: int | None = None
    # Axes of the network's inputs whose lengths differ between batches.
    free_axes: tuple[int, ...] = (0,)
    # Options of `extraction` that the family supports, with their defaults.
    extraction_defaults: dict[str, Any] = {"layer": None, "layers": None}
    # What it sees of frames; None for all of them.
    face_crop: FaceCrop | None = None

    def __init__(self, model: nn.Module, processor: Any, source: EncoderSource, batch_size: int | None = None):
        self.model: Any = model
        # Two-tower models do not need their text tower.
        for name in ("text_model", "text_projection"):
            if isinstance(getattr(model, name, None), nn.Module):
                setattr(model, name, None)
        self.processor = processor
        self.source = source
        # Rows of the network's last hidden states, or of the layers that the source's options name.
        self.rows_of = HiddenLayers(source.extraction, source.model_id)
        if batch_size is None:
            batch_size = self.default_batch_size
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"{source.model_id}: batch_size must be a positive whole number, found {batch_size!r}")
        self.batch_size = batch_size
        # What runs the network; see `backends`.
        self.execute: Callable[..., torch.Tensor] = self.network
        if type(model).__module__.startswith("transformers_modules"):
            # Code from the Hub may not be safe in several threads.
            self.part_size = None

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.model.device

    def to(self, device: str | torch.device) -> "Encoder":
        """Moves the model."""
        self.model.to(device)
        return self

    @property
    def pieces_at_once(self) -> int:
        """Pieces of one run: on the CPU a part of a batch, which fits a core's cache, else a batch."""
        if self.part_size is None or self.device.type != "cpu":
            return self.batch_size
        return min(self.part_size, self.batch_size)

    @abstractmethod
    def session(self) -> Session:
        """Begins a clip."""

    @abstractmethod
    def forward(self, pieces: Sequence[Piece]) -> list[np.ndarray]:
        """Features of some pieces, of any clips.

        Args:
            pieces: at least one.

        Returns:
            For each piece (rows, D) float32, rows to be skipped included.
        """

    def network(self, **inputs: torch.Tensor) -> torch.Tensor:
        """The part of `forward` from tensors to tensors, which other backends than eager torch run, too.

        Args:
            inputs: of the model for a batch of pieces, by name; each name is of a batch's axis or axes alike.

        Returns:
            (B, ..., D) features.
        """
        raise NotImplementedError(f"{type(self).__name__} runs no network of torch")

    def examples(self) -> list[dict[str, torch.Tensor]]:
        """Inputs of `network`, one for each set of names that `forward` may give it; none without a network."""
        return []

    @contextmanager
    def exportable(self) -> Iterator[None]:
        """Makes `network` one that can be traced."""
        yield

    def run(self, pieces: Sequence[Piece]) -> list[np.ndarray]:
        """Features of any number of pieces, in batches that fit the device.

        Args:
            pieces: of any clips.

        Returns:
            For each piece (t, D) float32, one row for each of its times.

        Raises:
            EncoderMemoryError: the device is out of memory for a single piece.
        """
        rows: list[np.ndarray] = []
        while len(rows) < len(pieces):
            part = self._batch(pieces[len(rows) : len(rows) + self.batch_size])
            found: list[np.ndarray] | None = None
            try:
                found = self.forward(part)
            except torch.OutOfMemoryError as error:
                if len(part) == 1:
                    raise EncoderMemoryError(
                        f"{self.source.model_id}: {self.device} is out of memory for a single piece of a clip"
                    ) from error
            if found is None:
                self.batch_size = len(part) // 2
                logger.warning(
                    "%s: %s is out of memory for %d pieces at once, continuing with %d",
                    self.source.model_id,
                    self.device,
                    len(part),
                    self.batch_size,
                )
                # Only now that the error is gone, and with it the stack frames that hold tensors.
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
                continue
            for piece, values in zip(part, found, strict=True):
                rows.append(values[piece.skip : piece.skip + len(piece.times)])
        return rows

    def _batch(self, pieces: Sequence[Piece]) -> Sequence[Piece]:
        """The largest leading group of pieces that may run together."""
        if self.largest_batch is None:
            return pieces
        sizes = np.cumsum([piece.values.size for piece in pieces])
        return pieces[: max(1, int((sizes <= self.largest_batch).sum()))]

    def encode(self, clip: Any) -> EncodedClip:
        """Features of one clip.

        Args:
            clip: a path, an address, the bytes of a file or an open file; see [`MediaFile`].

        Returns:
            Its features with their times.

        Raises:
            FileNotFoundError, IsADirectoryError, MediaError: the clip cannot be read, or has nothing for it.
            ValueError: it looks at all persons.
            MissingExtraError: PyAV is not installed.
        """
        if self.face_crop is not None and self.face_crop.person == ALL:
            raise ValueError(f"{self.source.model_id}: person all gives features of each, expected one person")
        rows, times = [], []
        with MediaFile(clip) as media:
            pieces = self._pieces(media)
            while batch := list(islice(pieces, self.pieces_at_once)):
                rows += self.run(batch)
                times += [piece.times for piece in batch]
            if not rows:
                raise MediaError(f"{media.name}: found no {self.sight}, expected some for {self.source.model_id}")
        return EncodedClip(np.concatenate(rows), np.concatenate(times))

    @property
    def sight(self) -> str:
        """What it looks for in a clip: `picture`, `face` or `sound`."""
        if self.modality != "video":
            return "sound"
        return "picture" if self.face_crop is None else "face"

    def _pieces(self, media: MediaFile) -> Iterator[Piece]:
        sessions = ClipSessions({"": self}, [self.modality])
        for item in media.read(sessions.with_video, sessions.audio_rates):
            for _, piece in sessions.push(item):
                yield piece
        for _, piece in sessions.finish():
            yield piece
