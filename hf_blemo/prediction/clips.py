"""Raw clips to blends: features by the fusion's own encoders, one prediction per clip and one per window."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_blemo.encoders.encoder import Encoder
from hf_blemo.encoders.encoder_options import placed, with_faces
from hf_blemo.encoders.loading import load_encoders
from hf_blemo.errors import check_known, one_line
from hf_blemo.extraction.decoding import ClipFeatures
from hf_blemo.extraction.extraction import encode_clips
from hf_blemo.files import limits
from hf_blemo.prediction.fusion import FusionMember, common_encoders, results
from hf_blemo.rank_aware_fusion.pipeline_rank_aware_fusion import BlendedEmotionRecognitionPipeline

logger = logging.getLogger(__name__)

# Clips of BlEmoRE last up to 30 seconds; longer ones get a timeline.
LONGEST_CLIP = 30.0
WINDOW = 4.0
_WINDOWS_AT_ONCE = 64
_OF_CLIPS = {"clip", "novelty", "unlike_training", "notes"}
# Seconds without a row that the row before them may stand for.
_LONGEST_GAP = 60.0


@dataclass
class Windows:
    """The windows of a timeline.

    Args:
        seconds: length of a window; 0 for no timeline.
        hop: seconds from the start of a window to that of the next; half a window by default.
        longer_than: seconds up to which clips have no timeline.

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

    def spans(self, duration: float, clip: str = "clip") -> list[tuple[float, float]]:
        """The windows, (start, end) in seconds, of a clip of a duration and a name, up to the one that reaches its
        end."""
        if not self.seconds or duration <= self.longer_than:
            return []
        assert self.hop is not None
        count = 1 + max(0, int(np.ceil((duration - self.seconds) / self.hop - 1e-9)))
        if count > limits().max_windows:
            raise ValueError(limits().excess(clip, f"{count:,} windows in its timeline", "max_windows"))
        starts = [start for start in (self.hop * number for number in range(count)) if start < duration]
        return [(start, min(start + self.seconds, duration)) for start in starts]


def fusion_encoders(
    members: Sequence[FusionMember], person: str | int | None = None, detector: str | None = None, **options: Any
) -> dict[str, Encoder]:
    """Loads the encoders that the config of a fusion names.

    Args:
        members: the fusion, or several with the same encoders.
        person, detector: whose faces encoders with `crop: face` look at, and where their detector is, if not as the
            config says.
        options: `device`, `dtype`, `backend` and `trust_remote_code` of [`load_encoder`].

    Returns:
        Name -> encoder. Encoders for which the config names no model, and those of text, which no clip holds, are
        skipped with a warning. A `model_id` that begins with `./` is looked for in the fusion's own folder first.

    Raises:
        ValueError: the config names no model at all, or no encoder looks at faces and there is a person or
            detector; else as [`load_encoders`].
        FileNotFoundError: as [`load_encoders`].
    """
    config = members[0][0].config
    text = [name for name, entry in config.encoders.items() if entry["modality"] == "text"]
    known = {name: entry for name, entry in config.encoders.items() if entry.get("model_id") and name not in text}
    unknown = [name for name in config.encoders if name not in known]
    if not known:
        raise ValueError(
            f"the config names no model for any of its encoders ({', '.join(unknown)}), so clips cannot be encoded; "
            "give their features instead"
        )
    for names, which in (
        (set(unknown) - set(text), "encoders whose model the config does not name"),
        (text, "encoders of text"),
    ):
        if names:
            logger.warning("predicting without %s: %s", which, ", ".join(sorted(names)))
    known = {name: placed(str(config.name_or_path), entry) for name, entry in known.items()}
    return load_encoders(with_faces(known, person, detector), **options)


def predict_clips(
    clips: Iterable[Any],
    members: Sequence[FusionMember],
    encoders: Mapping[str, Encoder],
    windows: Windows | None = None,
    num_threads: int | None = None,
    num_thumbnails: int = 0,
    **options: Any,
) -> Iterator[dict[str, Any]]:
    """Predicts the blends of raw clips, as they are decoded.

    Args:
        clips, num_threads, num_thumbnails: as `encode_clips` takes them.
        members: models with their processors; several predict by the mean of their probabilities.
        encoders: the models' own, by name; see [`fusion_encoders`].
        windows: of the timeline of long clips; by default windows of 4 seconds every 2 for clips over 30 seconds.
        options: `top_labels` and the decoding, as `results` takes them.

    Yields:
        For each clip the entries of `results`, `duration` (seconds), `notes` (sentences about the clip), with
        `num_thumbnails` `thumbnails` (JPEG files), and for long clips `timeline`, whose entries have `start` and `end`
        (seconds) beside those of `results`. For a clip that cannot be read, or whose features are not finite, `clip`
        and `error`. Where an encoder looks at all persons, each has an entry of its own with their number as `person`.

    Raises:
        ValueError: the models have different encoders, or a parameter is unknown; else as `results` and
            `encode_clips`.
        MissingExtraError: PyAV is not installed.
    """
    common_encoders(members)
    check_known("predict_clips", options, BlendedEmotionRecognitionPipeline.parameters)
    windows = Windows() if windows is None else windows
    for model, _ in members:
        model.eval()
    for clip in encode_clips(clips, encoders, num_threads, num_thumbnails):
        if (problem := clip.problem) is not None:
            yield {"clip": clip.name, "error": problem}
            continue
        # As the file says, or up to the last row of an encoder.
        duration = max(clip.duration or 0.0, *(float(times[-1]) for times in clip.times.values()))
        try:
            spans = windows.spans(duration, clip.name)
            [result] = results([clip.features], [clip.name], members, **options)
            timeline = _timeline(clip, spans, members, options)
        except ValueError as error:
            line = one_line(error)
            # What is said of a clip ends only that clip; anything else would hold for all of them.
            if clip.name not in line:
                raise
            yield {"clip": clip.name, "error": line}
            continue
        if clip.person:
            result["person"] = clip.person
        result |= {"duration": duration, "notes": [*result.get("notes", ()), *clip.notes]}
        if num_thumbnails:
            result["thumbnails"] = clip.thumbnails
        if timeline:
            result["timeline"] = timeline
        yield result


def _timeline(
    clip: ClipFeatures,
    spans: Sequence[tuple[float, float]],
    members: Sequence[FusionMember],
    options: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """The results of windows that have any row."""
    found: list[dict[str, Any]] = []
    filled = [(span, sample) for span in spans if (sample := _window(clip, *span))]
    for first in range(0, len(filled), _WINDOWS_AT_ONCE):
        part = filled[first : first + _WINDOWS_AT_ONCE]
        rows = results([sample for _, sample in part], [clip.name] * len(part), members, **options)
        for ((start, end), _), row in zip(part, rows, strict=True):
            # What is unlike is known of whole clips.
            for name in _OF_CLIPS & set(row):
                del row[name]
            found.append({"start": start, "end": end, **row})
    return found


def _window(clip: ClipFeatures, start: float, end: float) -> dict[str, np.ndarray]:
    """Features of the rows that begin in a window, or of the row that spans it."""
    sample = {}
    for name, times in clip.times.items():
        first, last = np.searchsorted(times, (start, end))
        if first == last:
            # A row lasts until the next one begins, but not over a long gap, and the last one as long as others do.
            length = float(np.median(np.diff(times))) if len(times) > 1 else end - start
            longest = length if first == len(times) else max(_LONGEST_GAP, 2 * length)
            if first == 0 or times[first - 1] + longest <= start:
                continue
            first, last = first - 1, first
        sample[name] = clip.features[name][first:last]
    return sample
