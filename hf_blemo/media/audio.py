"""Decoded audio as mono at any rates, with its times."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_blemo.errors import one_line
from hf_blemo.files import limits
from hf_blemo.media.sources import MediaError, check_seconds

# Containers round time stamps to milliseconds or to whole packets; only more than this is a gap.
_GAP = 0.05


@dataclass(frozen=True, eq=False)
class Audio:
    """A piece of the audio track.

    Args:
        time: of the first sample, in seconds from the start of the clip.
        rate: samples per second.
        samples: (n,) float32, mono, range about [-1, 1].
    """

    time: float
    rate: int
    samples: np.ndarray


class AudioTrack:
    """Mixes the decoded audio of a track down to mono at several rates, and keeps track of its time.

    Within a stretch without gaps, the pieces of one rate join without a break: times are counted in samples, whatever
    rounded time stamps say. A gap, an overlap or a change of format ends a stretch. The filters are FFmpeg's.

    Args:
        stream: of PyAV.
        origin: time stamp at which the clip starts, in seconds.
        name: of the clip, for messages.
        rates: samples per second, each once.
    """

    def __init__(self, stream: Any, origin: float, name: str, rates: Sequence[int]):
        self.stream, self._origin, self._name, self._rates = stream, origin, name, list(rates)
        self._kind: tuple[str, str, int] | None = None
        self._start, self._count = 0.0, 0
        self._seconds = 0.0
        self._outputs: list[_MonoOutput] = []

    def items(self, frames: Sequence[Any], is_end: bool) -> Iterator[Audio]:
        """Takes audio frames of PyAV, and at the end of the track also returns the last pieces.

        Raises:
            MediaError: the audio cannot be mixed.
        """
        import av

        try:
            for frame in frames:
                yield from self._push(frame)
            if is_end:
                yield from self._flush()
        except av.error.FFmpegError as error:
            message = f"{self._name}: cannot mix the audio to mono at {self._rates}: {one_line(error)}"
            raise MediaError(message) from error

    def _push(self, frame: Any) -> Iterator[Audio]:
        bounds, rate = limits(), frame.sample_rate
        if not bounds.min_rate <= rate <= bounds.max_rate:
            bound = "max_rate" if rate > bounds.max_rate else "min_rate"
            raise MediaError(bounds.excess(self._name, f"sound of {rate:,} samples per second", bound))
        # What was decoded in all, whatever the time stamps say.
        self._seconds += frame.samples / rate
        check_seconds(self._name, self._seconds)
        kind = (frame.format.name, frame.layout.name, rate)
        end = self._start + (self._count / self._kind[2] if self._kind else 0.0)
        time = end if frame.pts is None else float(frame.pts * self.stream.time_base) - self._origin
        if kind != self._kind or abs(time - end) > _GAP:
            yield from self._flush()
            self._kind, self._start, self._count = kind, time, 0
            self._outputs = [_MonoOutput(frame, rate, time) for rate in self._rates]
        self._count += frame.samples
        for output in self._outputs:
            yield from output.push(frame)

    def _flush(self) -> Iterator[Audio]:
        for output in self._outputs:
            yield from output.push(None)
        self._outputs = []


class _MonoOutput:
    """One stretch at one rate."""

    def __init__(self, frame: Any, rate: int, start: float):
        import av

        self._rate, self._start, self._count = rate, start, 0
        try:
            self._graph = _graph(frame, rate, ())
        except (av.error.FFmpegError, ValueError):
            # Channels without known places count alike.
            channels = "+".join(f"c{number}" for number in range(len(frame.layout.channels)))
            self._graph = _graph(frame, rate, (("pan", f"mono|c0<{channels}"),))

    def push(self, frame: Any) -> Iterator[Audio]:
        import av

        if frame is not None:
            frame.pts = None
        self._graph.push(frame)
        while True:
            try:
                samples = self._graph.pull().to_ndarray().reshape(-1)
            except (av.error.BlockingIOError, av.error.EOFError):
                return
            if len(samples):
                yield Audio(self._start + self._count / self._rate, self._rate, samples)
                self._count += len(samples)


def _graph(frame: Any, rate: int, mixing: Sequence[tuple[str, str]]) -> Any:
    import av.filter

    graph = av.filter.Graph()
    source = graph.add(
        "abuffer",
        sample_rate=str(frame.sample_rate),
        sample_fmt=frame.format.name,
        channel_layout=frame.layout.name,
        time_base=f"1/{frame.sample_rate}",
    )
    # Without this limit, FFmpeg mixes floats at constant power, and equal channels leave [-1, 1].
    filters = [*mixing, ("aresample", "rematrix_maxval=1.0")]
    filters.append(("aformat", f"sample_fmts=flt:channel_layouts=mono:sample_rates={rate}"))
    for name, arguments in filters:
        node = graph.add(name, arguments)
        source.link_to(node)
        source = node
    source.link_to(graph.add("abuffersink"))
    graph.configure()
    return graph
