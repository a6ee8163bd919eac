"""Acoustic features that people designed: eGeMAPS and its kin, by openSMILE."""

import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from hf_blemo.encoders.encoder import Encoder, EncoderSource, Piece
from hf_blemo.encoders.encoder_options import check_opensmile
from hf_blemo.encoders.sound_windows import SoundSession
from hf_blemo.errors import check_choice, check_extra
from hf_blemo.loading import OPENSMILE

logger = logging.getLogger(__name__)

_RATE = 16000
_LEVELS = ("functionals", "lld")
_WINDOW_SECONDS, _HOP_SECONDS = 2.0, 1.0
# Of low-level descriptors, which are taken from long sound in windows that overlap; whole rows of 10 ms.
_DESCRIPTOR_SECONDS, _CONTEXT_SECONDS = 30.0, 2.0
# All sets have a row for so much sound; the slowest descriptors need 70 ms.
_SHORTEST_SECONDS = 0.1
# The largest number of 16 bits; openSMILE turns a larger one into the smallest.
_LOUDEST = 1 - 2**-15


class FeatureSet(nn.Module):
    """A feature set of openSMILE at one level, in the place of a network; it has no weights.

    Args:
        name: of the set.
        level: `functionals` or `lld`.
    """

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, name: str, level: str):
        super().__init__()
        import opensmile

        levels = opensmile.FeatureLevel
        with warnings.catch_warnings():
            # Of older sets, which is no news to those who name one.
            warnings.simplefilter("ignore", UserWarning)
            self.smile = opensmile.Smile(
                opensmile.FeatureSet[name],
                levels.Functionals if level == "functionals" else levels.LowLevelDescriptors,
            )
        self.version: str = opensmile.__version__
        # What tells it apart, where weights do that of networks.
        self.register_buffer(
            "set", torch.frombuffer(bytearray(f"{name} {level} {self.version}".encode()), dtype=torch.uint8)
        )

    def num_parameters(self) -> int:
        """None."""
        return 0

    def forward(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Features of a stretch of sound.

        Args:
            samples: (n,) float32 at 16 kHz, at least a tenth of a second.

        Returns:
            (rows, D) float32, and the seconds (rows,) from the first sample at which they begin.
        """
        limited = np.clip(np.nan_to_num(samples), -1.0, _LOUDEST)
        found = self.smile.process_signal(limited, _RATE)
        return found.to_numpy(np.float32), found.index.get_level_values("start").total_seconds().to_numpy()


class _FeatureSession(SoundSession):
    """Windows of sound, each given to openSMILE as it is cut; a row that is not finite ends the clip."""

    def __init__(self, features: FeatureSet, where: str, window: int, context: int, is_row: bool):
        super().__init__(_RATE, window, context)
        self._features, self._where, self._is_row = features, where, is_row
        self._shortest = round(_SHORTEST_SECONDS * _RATE)

    def piece(self, start: int, samples: np.ndarray, own_start: int, own_end: int, is_last: bool) -> Iterator[Piece]:
        if self._is_row and start and len(samples) < self._shortest:
            return
        rows, seconds = self._features(np.pad(samples, (0, max(0, self._shortest - len(samples)))))
        begins = start + np.round(seconds * _RATE).astype(int)
        own = (begins >= own_start) & (begins < own_end)
        if self._is_row:
            begins, own = np.array([start]), np.ones(1, bool)
        rows, times = rows[own], self.buffer.seconds(begins[own])
        if not np.isfinite(rows).all():
            raise ValueError(f"{self._where} gives numbers that are not finite for its sound from {times[0]:.1f} s on")
        if len(rows):
            yield Piece(rows, times)


class OpenSmileEncoder(Encoder):
    """One row per window of functionals (2 seconds, every second), or one per 10 ms of low-level descriptors.

    openSMILE runs in the threads that decode, since it is no network; `forward` has nothing left to do.

    Args:
        model, processor, source, batch_size: see [`Encoder`]; made by [`load_opensmile`].

    Raises:
        ValueError: an option has an invalid value.

    Source: Eyben et al., The Geneva Minimalistic Acoustic Parameter Set (GeMAPS), 2016; Eyben et al., openSMILE, 2010.
    """

    modality = "audio"
    extraction_defaults = {"level": "functionals", "window_seconds": _WINDOW_SECONDS, "hop_seconds": _HOP_SECONDS}

    def __init__(self, model: nn.Module, processor: Any, source: EncoderSource, batch_size: int | None = None):
        super().__init__(model, processor, source, batch_size)
        self.audio_rate = _RATE
        self.is_row, self.window, self.context = _windows(source)
        rows, _ = self.model(np.zeros(round(_SHORTEST_SECONDS * _RATE), np.float32))
        self.feature_size = rows.shape[-1]

    def session(self) -> SoundSession:
        """Begins a clip."""
        return _FeatureSession(self.model, self.source.model_id, self.window, self.context, self.is_row)

    def forward(self, pieces: Sequence[Piece]) -> list[np.ndarray]:
        """(rows, D) of each window, which its session has made."""
        return [piece.values for piece in pieces]


def _windows(source: EncoderSource) -> tuple[bool, int, int]:
    """Whether a window is one row, and the samples of a window and of its context on each side."""
    options = source.extraction
    check_choice(f"{source.model_id}: level", options.get("level", "functionals"), _LEVELS)
    if options.get("level") == "lld":
        for name in ("window_seconds", "hop_seconds"):
            if options.get(name) is not None:
                raise ValueError(f"{source.model_id}: {name} belongs to level functionals, found level lld")
        return False, round(_DESCRIPTOR_SECONDS * _RATE), round(_CONTEXT_SECONDS * _RATE)
    window, hop = (
        default if (found := options.get(name)) is None else found
        for name, default in (("window_seconds", _WINDOW_SECONDS), ("hop_seconds", _HOP_SECONDS))
    )
    for name, value, least, most in (
        ("window_seconds", window, _SHORTEST_SECONDS, math.inf),
        ("hop_seconds", hop, 0.01, window),
    ):
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not is_number or not least <= value <= most:
            upper = f" to window_seconds, {most}" if name == "hop_seconds" else " on"
            raise ValueError(f"{source.model_id}: {name} must be a number from {least}{upper}, found {value!r}")
    context = round((window - hop) * _RATE / 2)
    return True, round(hop * _RATE) + 2 * context, context


def load_opensmile(
    model_id: str, revision: str | None, extraction: dict[str, Any], batch_size: int | None = None
) -> OpenSmileEncoder:
    """Loads a feature set of openSMILE.

    Args:
        model_id: `opensmile:` and the set, for instance `opensmile:eGeMAPSv02`.
        revision: version of the package whose features are wanted; another one that is installed gets a warning.
        extraction: see [`OpenSmileEncoder`].
        batch_size: without effect.

    Returns:
        The encoder; its revision is the version that is installed.

    Raises:
        MissingExtraError: the package is not installed.
        ValueError: there is no such set, or an option has an invalid value.
    """
    source = EncoderSource(model_id, None, extraction)
    is_row, _, _ = _windows(source)
    check_opensmile(model_id)
    check_extra("opensmile", model_id)
    model = FeatureSet(model_id.removeprefix(OPENSMILE), "functionals" if is_row else "lld")
    if revision not in (None, model.version):
        logger.warning(
            "%s: opensmile %s is installed, expected %s, which may give other numbers",
            model_id,
            model.version,
            revision,
        )
    source.revision = model.version
    return OpenSmileEncoder(model, None, source, batch_size)
