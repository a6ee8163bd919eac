"""Encoders that listen to the waveform: HuBERT, WavLM, wav2vec 2.0 and their relatives."""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from hf_blemo.encoders.encoder import Encoder, EncoderSource, Piece
from hf_blemo.encoders.sound_windows import SoundSession

_WINDOW_SECONDS = 30.0
_CONTEXT_SECONDS = 2.0
# Sound that the first layers run on at once, where that gives the same: they would hold 800 MB of a whole window.
_CHUNK_SECONDS = 4.0
# Windows are padded to one length if the longest is at most this many times as long as the shortest.
_PADDING = 1.5
# Models that give the same for a window that is padded and masked; others have convolutions between their layers.
_MASKED_MODELS = ("hubert", "wav2vec2", "wavlm")


class _StepSession(SoundSession):
    """Windows of a waveform, and the steps of the network in them; a step hears `reach` samples."""

    def __init__(self, rate: int, stride: int, reach: int):
        # Windows begin at steps, so that the steps of neighbours coincide.
        window, context = (int(seconds * rate) // stride * stride for seconds in (_WINDOW_SECONDS, _CONTEXT_SECONDS))
        super().__init__(rate, window, context)
        self._stride, self._reach = stride, reach

    def piece(self, start: int, samples: np.ndarray, own_start: int, own_end: int, is_last: bool) -> Iterator[Piece]:
        # A copy, or the piece would keep the whole buffer in memory.
        samples = np.pad(samples, (0, max(0, self._reach - len(samples))))
        last = start // self._stride + (len(samples) - self._reach) // self._stride
        first = own_start // self._stride
        # The last window has all steps that fit; each other one those that begin in its own part.
        end_step = last + 1 if is_last else min(own_end // self._stride, last + 1)
        if end_step > first:
            times = self.buffer.seconds(np.arange(first, end_step) * self._stride)
            yield Piece(samples, times, skip=first - start // self._stride)


class _ChunkedConvolutions:
    """Runs the first layers of a speech model on one stretch of sound after another, in a fraction of the memory.

    Each step hears little of the sound, so the steps are the same as those of the whole sound, up to rounding.
    `num_steps` is the length of a stretch, counted over all sounds of a batch.
    """

    def __init__(self, convolutions: Callable[[torch.Tensor], torch.Tensor], stride: int, reach: int, num_steps: int):
        self.convolutions, self.stride, self.reach, self.num_steps = convolutions, stride, reach, num_steps

    def __call__(self, input_values: torch.Tensor) -> torch.Tensor:
        """(B, C, steps) of sound (B, samples)."""
        total = (input_values.shape[1] - self.reach) // self.stride + 1
        step = max(1, self.num_steps // len(input_values))
        parts = []
        for start in range(0, total, step):
            end = min(start + step, total)
            samples = input_values[:, start * self.stride : (end - 1) * self.stride + self.reach]
            parts.append(self.convolutions(samples))
        return torch.cat(parts, -1)


class SpeechEncoder(Encoder):
    """One row per step of the network (20 ms), from the last layer or others.

    Clips of up to 30 seconds are heard whole, longer ones in windows of 30 seconds that overlap by 4.

    Args:
        model, processor, source, batch_size: see [`Encoder`]; the processor is a feature extractor.

    Raises:
        ValueError: the model does not give one row per step, or there is no such layer.

    Source: the HuBERT and WavLM features of the BlEmoRE baselines: last layer, 20 ms steps.
    """

    modality = "audio"
    default_batch_size = 16
    free_axes = (0, 1)

    def __init__(self, model: nn.Module, processor: Any, source: EncoderSource, batch_size: int | None = None):
        super().__init__(model, processor, source, batch_size)
        config = self.model.config
        self.audio_rate = int(processor.sampling_rate)
        if batch_size is None:
            # The first layers of a large model hold some 600 MB per window.
            self.largest_batch = round(_WINDOW_SECONDS * self.audio_rate)
        self.stride = math.prod(config.conv_stride)
        self.reach = 1
        for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
            self.reach = (self.reach - 1) * stride + kernel
        # Where the first layer normalises over the window's whole time, padding would change every step.
        is_local = getattr(config, "feat_extract_norm", None) == "layer" and config.model_type in _MASKED_MODELS
        self.pads = bool(getattr(processor, "return_attention_mask", False)) and is_local
        if is_local:
            first = self.model.feature_extractor
            num_steps = round(_CHUNK_SECONDS * self.audio_rate / self.stride)
            first.forward = _ChunkedConvolutions(first.forward, self.stride, self.reach, num_steps)
        silence = np.zeros(self.reach + 2 * self.stride, np.float32)
        found = self.forward([Piece(silence, np.zeros(3))])[0]
        if len(found) != 3:
            raise ValueError(f"{source.model_id}: gives {len(found)} rows for 3 steps of sound, expected one each")
        self.feature_size = found.shape[-1]

    def session(self) -> SoundSession:
        """Begins a clip."""
        assert self.audio_rate is not None
        return _StepSession(self.audio_rate, self.stride, self.reach)

    @torch.inference_mode()
    def forward(self, pieces: Sequence[Piece]) -> list[np.ndarray]:
        """(steps, D) of each window."""
        # In groups of similar length.
        order = sorted(range(len(pieces)), key=lambda number: len(pieces[number].values))
        rows: dict[int, np.ndarray] = {}
        while order:
            shortest = len(pieces[order[0]].values)
            longest = int(_PADDING * shortest) if self.pads else shortest
            group = [number for number in order if len(pieces[number].values) <= longest]
            order = order[len(group) :]
            windows = [pieces[number].values for number in group]
            inputs = self._inputs(windows)
            with warnings.catch_warnings():
                # WavLM gives torch its mask and its bias in two types.
                warnings.filterwarnings("ignore", "Support for mismatched key_padding_mask", UserWarning)
                hidden = self.execute(**inputs)
            for number, window, steps in zip(group, windows, hidden.float().cpu().numpy(), strict=True):
                rows[number] = steps[: (len(window) - self.reach) // self.stride + 1]
        return [rows[number] for number in range(len(pieces))]

    def network(self, **inputs: torch.Tensor) -> torch.Tensor:
        """(B, steps, D) of `input_values` (B, samples), and where windows are padded their `attention_mask`."""
        return self.rows_of(self.model, lambda states: states, **inputs)

    def examples(self) -> list[dict[str, torch.Tensor]]:
        """Two windows of noise, of one length and of two where windows are padded."""
        noise = np.random.default_rng(0).standard_normal(self.reach + 40 * self.stride).astype(np.float32)
        groups = [[noise, noise[::-1].copy()]] + ([[noise, noise[: -10 * self.stride]]] if self.pads else [])
        return [self._inputs(windows) for windows in groups]

    @contextmanager
    def exportable(self) -> Iterator[None]:
        """Runs the first layers on whole windows: how many stretches they have is not known beforehand."""
        first = self.model.feature_extractor
        chunked = vars(first).pop("forward", None)
        try:
            yield
        finally:
            if chunked is not None:
                first.forward = chunked

    def _inputs(self, windows: list[np.ndarray]) -> dict[str, torch.Tensor]:
        # Without padding, no mask is needed.
        masks = len({len(window) for window in windows}) > 1
        inputs = self.processor(
            windows, sampling_rate=self.audio_rate, padding=masks, return_attention_mask=masks, return_tensors="pt"
        )
        given = {"input_values": inputs["input_values"].to(self.device, self.model.dtype)}
        if masks:
            given["attention_mask"] = inputs["attention_mask"].to(self.device)
        return given
