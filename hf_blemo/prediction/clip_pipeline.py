"""The pipeline of blended emotion recognition with this package installed: raw clips as well as features."""

import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from hf_blemo.encoders.encoder import Encoder
from hf_blemo.extraction.clip_sources import KINDS, MediaClip, as_clip, find_clips, undecoded
from hf_blemo.media import is_address, is_media
from hf_blemo.rank_aware_fusion.pipeline_rank_aware_fusion import (
    BlendedEmotionRecognitionPipeline as FeaturesPipeline,
)

# Arguments of a call -> fields of `Windows`.
_WINDOW_PARAMETERS = {"window": "seconds", "hop": "hop", "longer_than": "longer_than"}
_CLIP_PARAMETERS = (*_WINDOW_PARAMETERS, "num_thumbnails")


class BlendedEmotionRecognitionPipeline(FeaturesPipeline):
    """Says which of its names (emotions, or others) a clip shows, how much of each, and which encoders it relied on.

    ```text
    recognise = pipeline("blended-emotion-recognition", model=hf_blemo.built_in.MODEL)
    recognise(hf_blemo.built_in.CLIPS[0])
    ```

    Args:
        args, kwargs: as of any pipeline of transformers.
        encoder_options: `device`, `dtype`, `backend` and `trust_remote_code` of [`load_encoder`], and `person` and
            `detector` of [`fusion_encoders`], for the encoders of clips, which are loaded with the first clip.

    Args of a call:
        inputs: features, as the pipeline that travels with the models takes them, or clips: a path, an address
            (https://, hf://, ...), the bytes of a file, an open file, a [`MediaClip`], or a row of a data set with a
            column `video` or `audio` of undecoded files. Many of them come as a list, a generator, a data set, or a
            folder, which is searched for clips.
        window, hop, longer_than: in seconds, the length of a timeline's windows, the time between their starts, and
            the length above which clips have a timeline; by default 4, half a window and 30; window 0 for none.
        num_thumbnails: pictures of each clip in its result, at most; none by default.
        batch_size: features of clips at once; encoders have batches of their own.
        decoding, alpha, beta, blend_share, top_labels: as of the pipeline that travels with the models.

    Returns of a call:
        For a clip the result of [`predict_clips`], or a list of those of its persons where an encoder looks at all; in
        a list or an iterator a clip that cannot be read is
        `{"clip": name, "error": line}`.

    Raises of a call:
        ValueError: as the pipeline that travels with the models; the only clip cannot be read; the model's config
            does not say where its encoders come from.
        MissingExtraError: PyAV is not installed.
    """

    parameters = (*FeaturesPipeline.parameters, *_CLIP_PARAMETERS)

    def __init__(self, *args: Any, encoder_options: Mapping[str, Any] | None = None, **kwargs: Any):
        self.encoder_options = dict(encoder_options or {})
        self._encoders: dict[str, Encoder] | None = None
        super().__init__(*args, **kwargs)

    @property
    def encoders(self) -> dict[str, Encoder]:
        """The model's encoders by name, loaded on first use."""
        if self._encoders is None:
            options = {"device": self.device, **self.encoder_options}
            from hf_blemo.prediction.clips import fusion_encoders

            self._encoders = fusion_encoders([(self.model, self.processor)], **options)
        return self._encoders

    def save_pretrained(self, save_directory: str | os.PathLike[Any], **kwargs: Any) -> None:
        """Saves model and processor, as their `save_pretrained` do; the pipeline comes with this package."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Recognises the blends of a clip or of many; see the class."""
        if isinstance(inputs, str | Path) and Path(inputs).is_dir() and any(map(is_media, Path(inputs).rglob("*"))):
            inputs = find_clips(inputs)
        elif _is_clip(inputs):
            inputs = as_clip(inputs)
        elif hasattr(inputs, "column_names") and "features" not in (inputs.column_names or ()):
            inputs = _rows(inputs)
        return super().__call__(inputs, *args, **kwargs)

    def run_single(self, inputs: Any, preprocess_params: dict, forward_params: dict, postprocess_params: dict) -> Any:
        """One clip."""
        found = list(self._results([inputs], 1, postprocess_params))
        if "error" in found[0]:
            raise ValueError(found[0]["error"])
        return found if "person" in found[0] else found[0]

    def _results(self, inputs: Iterable[Any], batch_size: int, parameters: dict) -> Iterator[dict[str, Any]]:
        """Clips and features in their order, neighbours of one kind together."""
        # clips.py imports the pipeline of the family, whose registration imports this file.
        from hf_blemo.prediction.clips import Windows, predict_clips

        own = {name: parameters[name] for name in parameters if name not in _CLIP_PARAMETERS}
        given = {field: parameters[name] for name, field in _WINDOW_PARAMETERS.items() if name in parameters}
        windows = Windows(**given)
        own_of_clips = {"num_thumbnails": parameters.get("num_thumbnails", 0), **own}
        for raw, group in groupby(enumerate(inputs), lambda numbered: _is_clip(numbered[1])):
            if not raw:
                yield from super()._results((item for _, item in group), batch_size, own)
                continue
            clips = (as_clip(item, number) for number, item in group)
            yield from predict_clips(clips, [(self.model, self.processor)], self.encoders, windows, **own_of_clips)


def _is_clip(item: Any) -> bool:
    """Whether an input is a clip rather than its features."""
    if isinstance(item, Mapping):
        files = [item[name] for name in KINDS if name in item]
        return "features" not in item and bool(files) and all(value is None or _is_file(value) for value in files)
    if isinstance(item, str | Path):
        # A missing path counts as a clip if its suffix is one of media, else as a folder of features.
        return not Path(item).is_dir() and (Path(item).is_file() or is_address(item) or is_media(item))
    return isinstance(item, MediaClip) or _is_file(item)


def _is_file(value: Any) -> bool:
    """Whether a value is a file in any form; an encoder may have the name of a column too."""
    if isinstance(value, Mapping):
        return "path" in value or "bytes" in value
    return isinstance(value, str | Path | bytes | bytearray | memoryview) or hasattr(value, "read")


def _rows(dataset: Any) -> Iterator[dict[str, Any]]:
    """Gives the rows of a data set as `as_clip` takes them, their files undecoded."""
    dataset, columns = undecoded(dataset)
    for row in dataset:
        yield {"clip": row.get("clip"), **{kind: row.get(column) for kind, column in columns.items()}}
