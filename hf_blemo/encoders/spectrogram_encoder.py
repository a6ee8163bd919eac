"""Encoders that listen to spectrograms: Whisper, AST, CLAP, w2v-BERT and any other audio model of transformers."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from hf_blemo.encoders.encoder import Encoder, EncoderSource, Piece
from hf_blemo.encoders.sound_windows import SoundSession

_DEFAULT_SECONDS = 10.0
# A shorter last window is filled up with silence to this length: a standard deviation needs two spectra, of 25 ms each
# and 10 ms apart.
_SHORTEST_SECONDS = 0.04


class _WindowSession(SoundSession):
    """Windows that follow each other without overlap, with a row for every `step` samples."""

    def __init__(self, rate: int, window: int, step: int):
        super().__init__(rate, window)
        self._step, self._shortest = step, int(_SHORTEST_SECONDS * rate)

    def piece(self, start: int, samples: np.ndarray, own_start: int, own_end: int, is_last: bool) -> Iterator[Piece]:
        count = -(-len(samples) // self._step)
        times = self.buffer.seconds(start + np.arange(count) * self._step)
        yield Piece(np.pad(samples, (0, max(0, self._shortest - len(samples)))), times)


class SpectrogramEncoder(Encoder):
    """One row per 20 ms for Whisper, and one per window of the model's length for others.

    CLAP's rows are its embeddings, those of others the mean of the last hidden states.

    Args:
        model, processor, source, batch_size: see [`Encoder`]; the processor is a feature extractor.
    """

    modality = "audio"
    default_batch_size = 4
    # One window at a time.
    free_axes: tuple[int, ...] = ()

    def __init__(self, model: nn.Module, processor: Any, source: EncoderSource, batch_size: int | None = None):
        self.is_whisper = hasattr(model, "get_encoder") and hasattr(model, "decoder")
        if self.is_whisper:
            whole: Any = model
            model = whole.get_encoder()
        super().__init__(model, processor, source, batch_size)
        rate = int(processor.sampling_rate)
        self.audio_rate = rate
        seconds = getattr(processor, "chunk_length", None) or getattr(processor, "max_length_s", None)
        frames = getattr(processor, "max_length", None)
        if seconds is None:
            # AST counts its length in spectrogram frames of 10 ms.
            seconds = frames / 100 if isinstance(frames, int) else _DEFAULT_SECONDS
        self.window = round(float(seconds) * rate)
        self.step = self.window
        if self.is_whisper:
            self.step = round(self.window / self.model.config.max_source_positions)
        if self.is_whisper and not self.rows_of:
            # All its windows are of full length, which takes too long for a trial.
            self.feature_size = int(self.model.config.d_model)
        else:
            silence = np.zeros(int(_SHORTEST_SECONDS * rate), np.float32)
            self.feature_size = self.forward([Piece(silence, np.zeros(1))])[0].shape[-1]
            # Most extractors fill up windows to one length, not those of wav2vec 2.0 BERT.
            sizes = [
                next(iter(self._inputs(np.resize(silence, n)).values())).shape for n in (len(silence), self.window)
            ]
            self.free_axes = tuple(
                axis for axis, (short, whole) in enumerate(zip(*sizes, strict=True)) if short != whole
            )

    def session(self) -> SoundSession:
        """Begins a clip."""
        assert self.audio_rate is not None
        return _WindowSession(self.audio_rate, self.window, self.step)

    @torch.inference_mode()
    def forward(self, pieces: Sequence[Piece]) -> list[np.ndarray]:
        """(rows, D) of each window."""
        rows = []
        for piece in pieces:
            # One at a time, since extractors differ in how they pad short ones in a batch.
            rows.append(self.execute(**self._inputs(piece.values)).float().cpu().numpy())
        return rows

    def network(self, **inputs: torch.Tensor) -> torch.Tensor:
        """(rows, D) of one window, of what the extractor makes of it."""
        if self.is_whisper:
            return self.rows_of(self.model, lambda hidden: hidden[0], input_features=inputs["input_features"])
        is_clap = hasattr(self.model, "get_audio_features")
        if is_clap and not self.rows_of:
            output = self.model.get_audio_features(**inputs)
            return output if isinstance(output, torch.Tensor) else output.pooler_output
        mask = None if is_clap else inputs.get("attention_mask")
        tower = self.model.audio_model if is_clap else self.model
        return self.rows_of(tower, lambda hidden: self._mean(hidden, mask), **inputs)

    def examples(self) -> list[dict[str, torch.Tensor]]:
        """A window of noise."""
        return [self._inputs(np.random.default_rng(0).standard_normal(self.window).astype(np.float32))]

    def _inputs(self, window: np.ndarray) -> dict[str, torch.Tensor]:
        inputs = self.processor(window, sampling_rate=self.audio_rate, return_tensors="pt")
        return {name: self._placed(values) for name, values in inputs.items()}

    def _placed(self, values: torch.Tensor) -> torch.Tensor:
        return values.to(self.device, self.model.dtype if values.is_floating_point() else None)

    @staticmethod
    def _mean(hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """(1, D) of steps (1, T, D), without those that only fill up the window."""
        if mask is None or mask.shape != hidden.shape[:2]:
            return hidden.mean(1)
        weights = mask.to(hidden.dtype)[..., None]
        return (hidden * weights).sum(1) / weights.sum(1)
