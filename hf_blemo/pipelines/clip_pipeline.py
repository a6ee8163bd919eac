"""The pipeline of blended emotion recognition where this package is installed: raw clips as well as features."""

import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from hf_blemo.clip_prediction import Windows, fusion_encoders, predict_clips
from hf_blemo.encoders.clip_sources import NamedClip, find_clips, row_source
from hf_blemo.encoders.encoder import Encoder
from hf_blemo.encoders.extraction import clip_name
from hf_blemo.encoders.media import is_media
from hf_blemo.encoders.media_sources import is_address
from hf_blemo.rank_aware_fusion.pipeline_rank_aware_fusion import (
    BlendedEmotionRecognitionPipeline as FeaturesPipeline,
)

_WINDOW_PARAMETERS = ("window", "hop", "longer_than")
_MEDIA_COLUMNS = ("video", "audio")


class BlendedEmotionRecognitionPipeline(FeaturesPipeline):
    """Says which one or two emotions a clip shows, how much of each, and which encoders told so.

    ```text
    recognise = pipeline("blended-emotion-recognition", model="owner/fusion")
    recognise("clip.mp4")
    ```

    Args:
        args, kwargs: as of any pipeline of transformers.
        encoder_options: `device`, `dtype` and `trust_remote_code` of [`load_encoder`], for the encoders of clips,
            which are loaded when the first clip comes.

    Args of a call:
        inputs: features, as of the pipeline that travels with the models, or clips: a path, an address (https://,
            hf://, ...), the bytes of a file, an open file, a row of a data set with a column `video` or `audio`; many
            of them as a list or generator, as a data set, or as a folder, which is searched for clips.
        window, hop, longer_than: seconds of the windows of a timeline, from the start of one to that of the next, and
            above which clips have a timeline; 4, half a window and 30 by default, window 0 for none.
        batch_size: clips at once, of features; encoders of clips have their own batches.
        decoding, alpha, beta, blend_share, top_labels: as of the pipeline that travels with the models.

    Returns of a call:
        For a clip what [`predict_clips`] gives; in a list or an iterator a clip that cannot be read is
        `{"clip": name, "error": line}`.

    Raises of a call:
        ValueError: as of the pipeline that travels with the models; the only clip cannot be read; the model's config
            does not say where its encoders come from.
        MissingExtraError: PyAV is not installed.

    Source: this project's choice.
    """

    def __init__(self, *args: Any, encoder_options: Mapping[str, Any] | None = None, **kwargs: Any):
        self.encoder_options = dict(encoder_options or {})
        self._encoders: dict[str, Encoder] | None = None
        super().__init__(*args, **kwargs)

    @property
    def encoders(self) -> dict[str, Encoder]:
        """The model's encoders by name, loaded when they are first asked for."""
        if self._encoders is None:
            options = {"device": self.device, **self.encoder_options}
            self._encoders = fusion_encoders([(self.model, self.processor)], **options)
        return self._encoders

    def save_pretrained(self, save_directory: str | os.PathLike[Any], **kwargs: Any) -> None:
        """Saves model and processor, and the pipeline that needs this package for clips alone.

        Args:
            save_directory: folder, made where it is missing.
            kwargs: of the model's `save_pretrained`.
        """
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict, dict, dict]:
        windows = {name: kwargs.pop(name) for name in _WINDOW_PARAMETERS if kwargs.get(name) is not None}
        preprocess, forward, postprocess = super()._sanitize_parameters(**kwargs)
        return preprocess, forward, {**postprocess, **windows}

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Recognises the blends of a clip or of many; see the class."""
        if isinstance(inputs, str | Path) and _is_folder_of_clips(Path(inputs)):
            inputs = [entry.named for entry in find_clips(inputs)]
        elif isinstance(inputs, str | Path) and _is_clip(inputs):
            inputs = NamedClip(clip_name(inputs), inputs)
        elif hasattr(inputs, "column_names") and "features" not in (inputs.column_names or ()):
            inputs = _rows(inputs)
        return super().__call__(inputs, *args, **kwargs)

    def run_single(self, inputs: Any, preprocess_params: dict, forward_params: dict, postprocess_params: dict) -> Any:
        """One clip."""
        result = super().run_single(inputs, preprocess_params, forward_params, postprocess_params)
        if "error" in result:
            raise ValueError(result["error"])
        return result

    def _results(self, inputs: Iterable[Any], batch_size: int, parameters: dict) -> Iterator[dict[str, Any]]:
        """Clips and features as they come; neighbours of a kind together."""
        windows = Windows(**{name: parameters[name] for name in _WINDOW_PARAMETERS if name in parameters})
        decoding = {name: value for name, value in parameters.items() if name not in _WINDOW_PARAMETERS}
        for raw, group in groupby(inputs, _is_clip):
            if not raw:
                yield from super()._results(group, batch_size, decoding)
                continue
            clips = (_clip(item) for item in group)
            yield from predict_clips(clips, [(self.model, self.processor)], self.encoders, windows, **decoding)


def _is_folder_of_clips(path: Path) -> bool:
    return path.is_dir() and any(is_media(found) for found in path.rglob("*"))


def _is_clip(item: Any) -> bool:
    """Whether an input is a clip itself and not its features."""
    if isinstance(item, Mapping):
        return "features" not in item and any(name in item for name in _MEDIA_COLUMNS)
    if isinstance(item, str | Path):
        # A path that leads nowhere is a clip's where it looks like one, else that of a folder of features.
        return not Path(item).is_dir() and (Path(item).is_file() or is_address(item) or is_media(item))
    return isinstance(item, NamedClip | bytes | bytearray | memoryview) or hasattr(item, "read")


def _clip(item: Any) -> Any:
    """An input as [`encode_clips`] takes it."""
    if not isinstance(item, Mapping):
        return item
    columns = {name: name for name in _MEDIA_COLUMNS if item.get(name) is not None}
    source = row_source(item, columns or dict.fromkeys(_MEDIA_COLUMNS, "video"))
    return NamedClip(str(item["clip"]), source) if item.get("clip") else source


def _rows(dataset: Any) -> Iterator[dict[str, Any]]:
    """Rows of a data set with its files undecoded."""
    import datasets

    for name in _MEDIA_COLUMNS:
        feature = (dataset.features or {}).get(name)
        if isinstance(feature, datasets.Audio | datasets.Video):
            dataset = dataset.cast_column(name, type(feature)(decode=False))
    yield from dataset
