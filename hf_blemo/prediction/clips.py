"""From raw clips to blends: features by a fusion's own encoders, one prediction per clip and one per moment."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_blemo.encoders.encoder import Encoder
from hf_blemo.encoders.loading import load_encoders
from hf_blemo.extraction.clip_problems import problem_of
from hf_blemo.extraction.extraction import ClipFeatures, encode_clips
from hf_blemo.prediction.fusion import FusionMember, common_encoders, mean_outputs
from hf_blemo.rank_aware_fusion.pipeline_rank_aware_fusion import DECODING_PARAMETERS, result_of_row

logger = logging.getLogger(__name__)

# Clips of BlEmoRE last up to 30 seconds; longer ones are told moment by moment.
LONGEST_CLIP = 30.0
WINDOW, HOP = 4.0, 2.0
_WINDOWS_AT_ONCE = 64


@dataclass
class Windows:
    """The moments of a timeline.

    Args:
        seconds: length of a window; 0 for no timeline.
        hop: seconds from the start of a window to that of the next; half a window by default.
        longer_than: clips up to so many seconds have no timeline.

    Raises:
        ValueError: a length is negative or infinite, or a hop is not positive.
    """

    seconds: float = WINDOW
    hop: float | None = None
    longer_than: float = LONGEST_CLIP

    def __post_init__(self):
        if not 0 <= self.seconds < np.inf:
            raise ValueError(f"window must be a number of seconds, 0 for no timeline, found {self.seconds}")
        if self.hop is not None and not 0 < self.hop < np.inf:
            raise ValueError(f"hop must be a positive number of seconds, found {self.hop}")
        if self.hop is None:
            self.hop = self.seconds / 2

    def spans(self, duration: float) -> list[tuple[float, float]]:
        """(start, end) in seconds of the windows of a clip, up to the one that reaches its end.

        Args:
            duration: of the clip, in seconds.
        """
        if not self.seconds or duration <= self.longer_than:
            return []
        assert self.hop is not None
        count = 1 + max(0, int(np.ceil((duration - self.seconds) / self.hop - 1e-9)))
        starts = [start for start in (self.hop * number for number in range(count)) if start < duration]
        return [(start, min(start + self.seconds, duration)) for start in starts]


def fusion_encoders(members: Sequence[FusionMember], **options: Any) -> dict[str, Encoder]:
    """Loads the encoders that the config of a fusion names.

    Args:
        members: the fusion, or several with the same encoders.
        options: `device`, `dtype` and `trust_remote_code` of [`load_encoder`].

    Returns:
        Name -> encoder. Encoders whose config names no model are left out, with a warning: the fusion does without.

    Raises:
        ValueError: the config names no model at all; else as [`load_encoders`].
        FileNotFoundError: as [`load_encoders`].

    Source: this project's choice.
    """
    config = members[0][0].config
    known = {name: entry for name, entry in config.encoders.items() if entry.get("model_id")}
    unknown = [name for name in config.encoders if name not in known]
    if not known:
        raise ValueError(
            f"the config names no model for any of its encoders ({', '.join(unknown)}), so clips cannot be encoded; "
            "give their features instead"
        )
    if unknown:
        logger.warning("predicting without encoders whose model the config does not name: %s", ", ".join(unknown))
    return load_encoders(known, **options)


def predict_clips(
    clips: Iterable[Any],
    members: Sequence[FusionMember],
    encoders: Mapping[str, Encoder],
    windows: Windows | None = None,
    top_labels: int | None = None,
    num_threads: int | None = None,
    **decoding: Any,
) -> Iterator[dict[str, Any]]:
    """Predicts the blends of raw clips, as they are decoded.

    Args:
        clips, num_threads: as of [`encode_clips`].
        members: models with their processors; several predict by the mean of their probabilities.
        encoders: the models' own, by name; see [`fusion_encoders`].
        windows: of the timeline of long clips; by default windows of 4 seconds every 2 for clips over 30 seconds.
        top_labels: how many of the 36 labels to list with their probabilities; none by default.
        decoding: `decoding`, `alpha`, `beta`, `blend_share` as of the processor's `post_process_blends`.

    Yields:
        For each clip `clip` (name), `blend`, `probabilities`, `presence`, `salience`, `encoder_weights`,
        `selected_encoders`, with `top_labels` `labels`, as of [`BlendedEmotionRecognitionPipeline`]; `duration`
        (seconds), `notes` (sentences about the file) and for long clips `timeline`, whose entries have `start` and
        `end` (seconds) and the same keys from `blend` on. For a clip that cannot be read, or whose features are no
        numbers, `clip` and `error`.

    Raises:
        ValueError: as of [`predict_blends`] and [`encode_clips`].
        MissingExtraError: PyAV is not installed.

    Source: this project's choice.
    """
    common_encoders(members)
    unknown = set(decoding) - set(DECODING_PARAMETERS)
    if unknown:
        raise ValueError(
            f"unknown parameter {sorted(unknown)[0]!r}, expected some of {', '.join(DECODING_PARAMETERS)}"
        )
    windows = Windows() if windows is None else windows
    for model, _ in members:
        model.eval()
    for clip in encode_clips(clips, encoders, num_threads):
        problem = problem_of(clip)
        if problem is not None:
            yield {"clip": clip.name, "error": problem}
            continue
        [result] = _results([clip.features], [clip.name], members, top_labels, decoding)
        result = {"clip": clip.name, **result, "duration": _duration(clip), "notes": clip.notes}
        spans = [(span, sample) for span in windows.spans(_duration(clip)) if (sample := _window(clip, *span))]
        if spans:
            rows: list[dict[str, Any]] = []
            for first in range(0, len(spans), _WINDOWS_AT_ONCE):
                samples = [sample for _, sample in spans[first : first + _WINDOWS_AT_ONCE]]
                rows += _results(samples, [clip.name] * len(samples), members, top_labels, decoding)
            result["timeline"] = [
                {"start": start, "end": end, **row} for ((start, end), _), row in zip(spans, rows, strict=True)
            ]
        yield result


def _results(
    samples: list[dict[str, np.ndarray]],
    names: list[str],
    members: Sequence[FusionMember],
    top_labels: int | None,
    decoding: Mapping[str, Any],
) -> list[dict[str, Any]]:
    model, processor = members[0]
    output = mean_outputs([member for member, _ in members], processor(samples, clips=names))
    blends = processor.post_process_blends(output, **decoding)
    encoders = list(model.config.encoders)
    return [result_of_row(output, row, blends[row], encoders, top_labels) for row in range(len(samples))]


def _duration(clip: ClipFeatures) -> float:
    """Seconds of the clip: what the file says, or up to the last thing an encoder saw."""
    last = max(float(times[-1]) for times in clip.times.values())
    return max(clip.duration or 0.0, last)


def _window(clip: ClipFeatures, start: float, end: float) -> dict[str, np.ndarray]:
    """Features of the rows that begin in a window, or of the one that lasts throughout."""
    sample = {}
    for name, times in clip.times.items():
        first, last = np.searchsorted(times, (start, end))
        if first == last:
            # A row lasts until the next one begins, and the last one as long as others do.
            length = float(np.median(np.diff(times))) if len(times) > 1 else end - start
            if first == 0 or (first == len(times) and times[-1] + length <= start):
                continue
            first, last = first - 1, first
        sample[name] = clip.features[name][first:last]
    return sample
