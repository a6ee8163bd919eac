"""Encoders that listen to spectrograms: Whisper, AST, CLAP, w2v-BERT and any other audio model of transformers."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from hf_blemo.encoders.encoder import Encoder, EncoderSource, Piece, Session, drop_text_side
from hf_blemo.encoders.sound_windows import SoundBuffer, windows

DEFAULT_SECONDS = 10.0
# What is left at the end may be shorter than the two spectra, each of 25 ms and 10 ms apart, that have a deviation; it
# is filled up with silence to so many seconds.
SHORTEST_SECONDS = 0.04


class WindowSession(Session):
    """Windows of sound that follow each other without overlap.

    Args:
        rate: samples per second.
        window: samples at once.
        step: samples of one row.
    """

    def __init__(self, rate: int, window: int, step: int):
        self.buffer = SoundBuffer(rate)
        self.window, self.step = window, step
        self.shortest = int(SHORTEST_SECONDS * rate)

    def push(self, item: Any) -> Iterator[Piece]:
        """A stretch of sound."""
        if self.buffer.is_far(item.time):
            yield from self.finish()
            self.buffer = SoundBuffer(self.buffer.rate)
        self.buffer.append(item.time, item.samples)
        yield from self._pieces(ended=False)

    def finish(self) -> Iterator[Piece]:
        """The last window."""
        yield from self._pieces(ended=True)

    def _pieces(self, ended: bool) -> Iterator[Piece]:
        for start, end, _, _ in windows(self.buffer, self.window, 0, ended):
            count = -(-(end - start) // self.step)
            times = self.buffer.seconds(start + np.arange(count) * self.step)
            samples = self.buffer.read(start, end)
            yield Piece(np.pad(samples, (0, max(0, self.shortest - len(samples)))), times)


class SpectrogramEncoder(Encoder):
    """Rows in the rhythm of the model: of Whisper 20 ms, else one row per window of the model's length.

    CLAP's rows are its embeddings, the others' the mean of the last hidden states. Of models of sound and text, only
    the side of sound is kept in memory.

    Args:
        model, processor, source, batch_size: as of [`Encoder`]; the processor is a feature extractor.

    Source: this project's choice.
    """

    modality = "audio"
    default_batch_size = 4

    def __init__(self, model: nn.Module, processor: Any, source: EncoderSource, batch_size: int | None = None):
        self.is_whisper = hasattr(model, "get_encoder") and hasattr(model, "decoder")
        if self.is_whisper:
            whole: Any = model
            model = whole.get_encoder()
        drop_text_side(model)
        super().__init__(model, processor, source, batch_size)
        rate = int(processor.sampling_rate)
        self.audio_rate = rate
        seconds = getattr(processor, "chunk_length", None) or getattr(processor, "max_length_s", None)
        frames = getattr(processor, "max_length", None)
        if seconds is None:
            # AST counts its length in spectrogram frames of 10 ms.
            seconds = frames / 100 if isinstance(frames, int) else DEFAULT_SECONDS
        self.window = round(float(seconds) * rate)
        self.step = self.window
        if self.is_whisper:
            self.step = round(self.window / self.model.config.max_source_positions)
            # Its windows have one length, which takes too long for a trial.
            self.feature_size = int(self.model.config.d_model)
        else:
            silence = np.zeros(int(SHORTEST_SECONDS * rate), np.float32)
            self.feature_size = self.forward([Piece(silence, np.zeros(1))])[0].shape[-1]

    def session(self) -> WindowSession:
        """Begins a clip."""
        assert self.audio_rate is not None
        return WindowSession(self.audio_rate, self.window, self.step)

    @torch.inference_mode()
    def forward(self, pieces: Sequence[Piece]) -> list[np.ndarray]:
        """(rows, D) of each window."""
        rows = []
        for piece in pieces:
            # Each by itself: what extractors do to the short ones of a batch differs from model to model.
            inputs = self.processor(piece.values, sampling_rate=self.audio_rate, return_tensors="pt")
            rows.append(self._rows({name: self._placed(values) for name, values in inputs.items()}))
        return rows

    def _placed(self, values: torch.Tensor) -> torch.Tensor:
        return values.to(self.device, self.model.dtype if values.is_floating_point() else None)

    def _rows(self, inputs: dict[str, torch.Tensor]) -> np.ndarray:
        if hasattr(self.model, "get_audio_features"):
            output = self.model.get_audio_features(**inputs)
            values = output if isinstance(output, torch.Tensor) else output.pooler_output
        elif self.is_whisper:
            values = self.model(inputs["input_features"]).last_hidden_state[0]
        else:
            values = self._mean(self.model(**inputs).last_hidden_state, inputs.get("attention_mask"))
        return values.float().cpu().numpy()

    @staticmethod
    def _mean(hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """(1, D) of steps (1, T, D), without those that only fill the window up."""
        if mask is None or mask.shape != hidden.shape[:2]:
            return hidden.mean(1)
        weights = mask.to(hidden.dtype)[..., None]
        return (hidden * weights).sum(1) / weights.sum(1)
