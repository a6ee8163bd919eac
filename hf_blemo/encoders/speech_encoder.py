"""Encoders that listen to the waveform: HuBERT, WavLM, wav2vec 2.0 and their relatives."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from hf_blemo.encoders.encoder import Encoder, EncoderSource, Piece, Session
from hf_blemo.encoders.sound_windows import SoundBuffer, windows

WINDOW_SECONDS = 30.0
CONTEXT_SECONDS = 2.0


class StepSession(Session):
    """Windows of a waveform, and the steps in which the network answers.

    Args:
        rate: samples per second.
        stride: samples between two steps.
        reach: samples that one step hears of the network's first layers.
    """

    def __init__(self, rate: int, stride: int, reach: int):
        self.stride, self.reach = stride, reach
        self.buffer = SoundBuffer(rate)
        # Windows begin at steps, so that the steps of neighbours fall together.
        self.window = int(WINDOW_SECONDS * rate) // stride * stride
        self.context = int(CONTEXT_SECONDS * rate) // stride * stride

    def push(self, item: Any) -> Iterator[Piece]:
        """A stretch of sound."""
        self.buffer.append(item.time, item.samples)
        yield from self._pieces(ended=False)

    def finish(self) -> Iterator[Piece]:
        """The last window."""
        yield from self._pieces(ended=True)

    def _pieces(self, ended: bool) -> Iterator[Piece]:
        for start, end, own_start, own_end in windows(self.buffer, self.window, self.context, ended):
            samples = self.buffer.read(start, end)
            if len(samples) < self.reach:
                samples = np.pad(samples, (0, self.reach - len(samples)))
            last = start // self.stride + (len(samples) - self.reach) // self.stride
            first = own_start // self.stride
            # A window that others follow has all the steps that begin in it; the last one those that fit.
            end_step = last + 1 if ended and own_end == end else min(own_end // self.stride, last + 1)
            if end_step > first:
                times = [self.buffer.seconds(step * self.stride) for step in range(first, end_step)]
                yield Piece(samples.copy(), np.array(times), skip=first - start // self.stride)


class SpeechEncoder(Encoder):
    """One row per step of the network (20 ms), of the last layer or of another.

    Clips of up to 30 seconds are heard whole, longer ones in windows of 30 seconds that overlap by 4.

    Args:
        model, processor, source, batch_size: as of [`Encoder`]; the processor is a feature extractor.

    Source: the HuBERT and WavLM features of the BlEmoRE baselines: last layer, 20 ms steps.
    """

    modality = "audio"
    default_batch_size = 4
    extraction_defaults = {"layer": None}

    def __init__(self, model: nn.Module, processor: Any, source: EncoderSource, batch_size: int | None = None):
        super().__init__(model, processor, source, batch_size)
        config = self.model.config
        self.audio_rate = int(processor.sampling_rate)
        self.stride = math.prod(config.conv_stride)
        self.reach = 1
        for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
            self.reach = (self.reach - 1) * stride + kernel
        self.feature_size = int(getattr(config, "output_hidden_size", None) or config.hidden_size)
        self.layer = source.extraction.get("layer")
        if self.layer is not None:
            layers = config.num_hidden_layers
            if isinstance(self.layer, bool) or not isinstance(self.layer, int) or not 0 <= self.layer <= layers:
                raise ValueError(f"{source.model_id}: layer must be from 0 to {layers} or null, found {self.layer!r}")
            self.feature_size = int(config.hidden_size)
        # Where the first layer normalises over the window's whole time, padding would change every step.
        self.pads = bool(getattr(processor, "return_attention_mask", False)) and config.feat_extract_norm == "layer"

    def session(self) -> StepSession:
        """Begins a clip."""
        assert self.audio_rate is not None
        return StepSession(self.audio_rate, self.stride, self.reach)

    @torch.inference_mode()
    def forward(self, pieces: Sequence[Piece]) -> list[np.ndarray]:
        """(steps, D) of each window."""
        if self.pads:
            groups = [list(range(len(pieces)))]
        else:
            lengths: dict[int, list[int]] = {}
            for number, piece in enumerate(pieces):
                lengths.setdefault(len(piece.values), []).append(number)
            groups = list(lengths.values())
        rows: dict[int, np.ndarray] = {}
        for group in groups:
            rows |= zip(group, self._steps([pieces[number].values for number in group]), strict=True)
        return [rows[number] for number in range(len(pieces))]

    def _steps(self, windows: list[np.ndarray]) -> list[np.ndarray]:
        inputs = self.processor(
            windows, sampling_rate=self.audio_rate, padding=True, return_attention_mask=self.pads, return_tensors="pt"
        )
        given = {"input_values": inputs["input_values"].to(self.device, self.model.dtype)}
        if self.pads:
            given["attention_mask"] = inputs["attention_mask"].to(self.device)
        output = self.model(**given, output_hidden_states=self.layer is not None)
        hidden = output.last_hidden_state if self.layer is None else output.hidden_states[self.layer]
        values = hidden.float().cpu().numpy()
        counts = [(len(window) - self.reach) // self.stride + 1 for window in windows]
        return [row[:count] for row, count in zip(values, counts, strict=True)]
