"""Interlaced and HDR pictures as a player shows them, by FFmpeg's own filters."""

import threading
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

# Curves of brightness of HDR, in FFmpeg's numbers: PQ (SMPTE 2084) and HLG.
HDR_CURVES = {16: "PQ", 18: "HLG"}
# Each picture becomes one, and pictures that are not interlaced stay as they are.
_DEINTERLACE = [("bwdif", "mode=send_frame:deint=interlaced")]
_TONE_MAP = [
    ("scale", "out_transfer=bt709:out_primaries=bt709:intent=perceptual"),
    ("format", "pix_fmts=rgb24"),
]


class _Chain:
    """Filters of one picture size and kind.

    Args:
        like: a picture as those to come.
        filters: names with their options.

    Raises:
        Exception: FFmpeg has no such filter or option.
    """

    def __init__(self, like: Any, filters: list[tuple[str, str]]):
        import av

        self.kind = _kind(like)
        self._graph = av.filter.Graph()
        size = {"width": like.width, "height": like.height}
        last = self._graph.add_buffer(format=like.format, time_base=like.time_base or Fraction(1, 1000), **size)
        for name, options in filters:
            following = self._graph.add(name, options)
            last.link_to(following)
            last = following
        last.link_to(self._graph.add("buffersink"))
        self._graph.configure()

    def __call__(self, picture: Any) -> Iterator[Any]:
        """Puts in a picture, or None at the end, and takes out what is ready."""
        import av

        self._graph.push(picture)
        while True:
            try:
                yield self._graph.pull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return


class Deinterlacer:
    """Makes whole pictures of interlaced ones; what comes before the first interlaced one passes through."""

    def __init__(self) -> None:
        self._chain: _Chain | None = None
        self._waiting: deque[Any] = deque()

    def __call__(self, picture: Any, mark: Any) -> Iterator[tuple[Any, Any]]:
        """Takes the next picture.

        Args:
            picture: of the decoder.
            mark: anything, returned beside the picture.

        Returns:
            Pictures that are ready, with their marks, in order; one may have to wait for the next.
        """
        if self._chain is not None and self._chain.kind != _kind(picture):
            yield from self.finish()
        if self._chain is None and picture.interlaced_frame:
            self._chain = _Chain(picture, _DEINTERLACE)
        if self._chain is None:
            yield picture, mark
            return
        self._waiting.append(mark)
        yield from self._taken(picture)

    def finish(self) -> Iterator[tuple[Any, Any]]:
        """Gives the last pictures."""
        if self._chain is not None:
            yield from self._taken(None)
            self._chain = None
            self._waiting.clear()

    def _taken(self, picture: Any) -> Iterator[tuple[Any, Any]]:
        assert self._chain is not None
        for found in self._chain(picture):
            if self._waiting:
                yield found, self._waiting.popleft()


_of_thread = threading.local()


def tone_mapped(picture: Any) -> Any:
    """Makes RGB of a picture of HDR, with its brightness as an ordinary screen shows it.

    FFmpeg takes seconds to make its table, so each thread keeps its own for the pictures and clips to come.

    Raises:
        Exception: this FFmpeg cannot.
    """
    kind = (*_kind(picture), picture.color_trc, picture.color_primaries, picture.colorspace, picture.color_range)
    if getattr(_of_thread, "kind", None) != kind:
        _of_thread.chain, _of_thread.kind = _Chain(picture, _TONE_MAP), kind
    return next(_of_thread.chain(picture))


def _kind(picture: Any) -> tuple[Any, ...]:
    return picture.width, picture.height, picture.format.name
