"""The pipeline of blended emotion recognition where this package is installed: raw clips as well as features."""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from hf_blemo.encoders.encoder import Encoder
from hf_blemo.extraction.clip_sources import NamedClip, SplitClip, chosen_columns, find_clips, row_source
from hf_blemo.extraction.extraction import clip_name
from hf_blemo.media.media import is_media
from hf_blemo.media.sources import is_address
from hf_blemo.rank_aware_fusion.pipeline_rank_aware_fusion import DECODING_PARAMETERS, TASK
from hf_blemo.rank_aware_fusion.pipeline_rank_aware_fusion import (
    BlendedEmotionRecognitionPipeline as FeaturesPipeline,
)

# As arguments of a call -> as fields of `Windows`.
_WINDOW_PARAMETERS = {"window": "seconds", "hop": "hop", "longer_than": "longer_than"}
_MEDIA_COLUMNS = ("video", "audio")


@dataclass
class _OneClip:
    """A clip that transformers shall not take for a list of inputs, as it does with tuples."""

    source: Any


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
            hf://, ...), the bytes of a file, an open file, a [`SplitClip`], or a row of a data set with a column
            `video` or `audio`, whose files are not decoded; each may be a [`NamedClip`]. Many of them as a list or
            generator, as a data set, or as a folder, which is searched for clips.
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
            from hf_blemo.prediction.clips import fusion_encoders

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
        given = {name: kwargs.pop(name) for name in _WINDOW_PARAMETERS if name in kwargs}
        known = (*DECODING_PARAMETERS, "top_labels", *_WINDOW_PARAMETERS)
        unknown = sorted(set(kwargs) - set(known))
        if unknown:
            raise ValueError(f"{TASK}: unknown parameter {unknown[0]!r}, expected some of {', '.join(known)}")
        preprocess, forward, postprocess = super()._sanitize_parameters(**kwargs)
        windows = {name: value for name, value in given.items() if value is not None}
        return preprocess, forward, {**postprocess, **windows}

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Recognises the blends of a clip or of many; see the class."""
        if isinstance(inputs, str | Path) and _is_folder_of_clips(Path(inputs)):
            inputs = [entry.named for entry in find_clips(inputs)]
        elif _is_clip(inputs):
            inputs = _OneClip(inputs)
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
        given = {field: parameters[name] for name, field in _WINDOW_PARAMETERS.items() if name in parameters}
        decoding = {name: value for name, value in parameters.items() if name not in _WINDOW_PARAMETERS}
        # It imports the pipeline that travels with the models, which brings in this file.
        from hf_blemo.prediction.clips import Windows, predict_clips

        windows = Windows(**given)
        for raw, group in groupby(enumerate(inputs), lambda numbered: _is_clip(numbered[1])):
            if not raw:
                yield from super()._results((item for _, item in group), batch_size, decoding)
                continue
            clips = (_named(item, number) for number, item in group)
            yield from predict_clips(clips, [(self.model, self.processor)], self.encoders, windows, **decoding)


def _is_folder_of_clips(path: Path) -> bool:
    return path.is_dir() and any(is_media(found) for found in path.rglob("*"))


def _is_clip(item: Any) -> bool:
    """Whether an input is a clip itself and not its features."""
    if isinstance(item, Mapping):
        files = [item[name] for name in _MEDIA_COLUMNS if name in item]
        return "features" not in item and bool(files) and all(value is None or _is_file(value) for value in files)
    if isinstance(item, str | Path):
        # A path that leads nowhere is a clip's where it looks like one, else that of a folder of features.
        return not Path(item).is_dir() and (Path(item).is_file() or is_address(item) or is_media(item))
    return isinstance(item, _OneClip | NamedClip | SplitClip) or _is_file(item)


def _is_file(value: Any) -> bool:
    """Whether a value is a file in one of its forms; features may have the name of a column too."""
    if isinstance(value, Mapping):
        return "path" in value or "bytes" in value
    return isinstance(value, str | Path | bytes | bytearray | memoryview) or hasattr(value, "read")


def _named(item: Any, number: int) -> NamedClip:
    """An input as [`encode_clips`] takes it, under the name of its file or of its place among the inputs."""
    if isinstance(item, _OneClip):
        item = item.source
    if isinstance(item, NamedClip):
        return item
    if isinstance(item, SplitClip):
        return NamedClip(_name((item.video, item.audio), number), item)
    if not isinstance(item, Mapping):
        return NamedClip(_name((item,), number), item)
    columns = {kind: kind for kind in _MEDIA_COLUMNS if kind in item}
    files = [item[kind] for kind in columns]
    paths = [value.get("path") if isinstance(value, Mapping) else value for value in files]
    name = str(item.get("clip") or _name(paths, number))
    # A row without a file is the error of this clip alone.
    return NamedClip(name, partial(row_source, item, columns, name))


def _name(files: Iterable[Any], number: int) -> str:
    """That of the first file that has one."""
    unnamed = f"clip {number}"
    names = (clip_name(file, number) for file in files if file is not None)
    return next((name for name in names if name != unnamed), unnamed)


def _rows(dataset: Any) -> Iterator[dict[str, Any]]:
    """Rows of a data set with its files undecoded, under the names of this pipeline."""
    import datasets

    features = dataset.features or {}
    types = {name: type(feature).__name__ for name, feature in features.items()}
    names = dataset.column_names or _MEDIA_COLUMNS
    for kind, column in chosen_columns("data set", names, types, None, None).items():
        if isinstance(features.get(column), datasets.Audio | datasets.Video):
            dataset = dataset.cast_column(column, type(features[column])(decode=False))
        if column != kind:
            dataset = dataset.rename_column(column, kind)
    yield from dataset
