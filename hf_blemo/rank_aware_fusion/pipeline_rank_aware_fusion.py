"""Pipeline of rank-aware selective fusion: features of clips in, blends with their explanation out."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Pipeline

from .configuration_rank_aware_fusion import TASK
from .decoding_rank_aware_fusion import output_probabilities
from .label_space_rank_aware_fusion import LabelSpace

FEATURE_SUFFIX = ".npy"


class BlendedEmotionRecognitionPipeline(Pipeline):
    """Recognises which emotions, or other names, a clip shows, how much of each, and which encoders it relied on.

    ```text
    recognise = pipeline("blended-emotion-recognition", model="out/fusion")
    recognise({"face": array_T_D, "voice": array_T_D})
    ```

    Args of a call:
        inputs: one clip or many. A clip is a mapping of encoders to (T, D) or (D,) arrays, absent encoders left out or
            None; a row of a data set, with the mapping under `features` and optionally a name under `clip`; or a
            folder with one file `ENCODER.npy` per encoder. Many are a list, a generator, a data set of `datasets`
            (streamed or not), or a folder of such folders, one per clip, or one per encoder with a file per clip.
        batch_size: clips at once; 1 by default.
        decoding, alpha, beta, blend_share: as of the processor's `post_process_blends`.
        top_labels: how many of the valid labels to list with their probabilities; none by default.

    Returns of a call:
        For a clip `blend` ([{"emotion": str, "salience": per cent}, ...]), `top` (the name with the largest share of
        it, the more probable on a tie), `probabilities` (name -> float), `presence` and `salience` (the same, by each
        head alone), `encoder_weights` (encoder -> float), `selected_encoders` (names in rank order), `clip` where it
        had a name, and with `top_labels` `labels` ([{"blend": ..., "probability": float}, ...]). Of a model that knows
        it also `novelty` (encoder -> how far the clip lies from the training clips, in units of what 999 of 1000 of
        them keep), `unlike_training` (whether one of these is above 1) and, if so, a sentence in `notes`. For many a
        list; for generators and data sets an iterator that reads as it goes.

    Raises of a call:
        ValueError: features the processor refuses, or for which the model gives no finite probabilities, naming the
            clip or its number; a folder without features; no clip.
    """

    model: Any
    processor: Any
    _load_processor: Any = True
    _load_tokenizer: Any = False
    _load_image_processor: Any = False
    _load_video_processor: Any = False
    _load_feature_extractor: Any = False
    parameters: tuple[str, ...] = ("decoding", "alpha", "beta", "blend_share", "top_labels")

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if not hasattr(self.processor, "post_process_blends"):
            raise ValueError(
                f"{TASK}: expected a model of rank-aware fusion with its processor, found a "
                f"{type(self.model).__name__} with a {type(self.processor).__name__}"
            )

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict, dict, dict]:
        unknown = sorted(set(kwargs) - set(self.parameters))
        if unknown:
            known = ", ".join(self.parameters)
            raise ValueError(f"{TASK}: unknown parameter {unknown[0]!r}, expected some of {known}")
        # A processor of another family has no labels; `__init__` refuses it.
        if kwargs.get("top_labels") is not None:
            check_top_labels(kwargs["top_labels"], self.processor.label_space)
        return {}, {}, {name: value for name, value in kwargs.items() if value is not None}

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Recognises the blends of a clip or of many; see the class."""
        if isinstance(inputs, str | Path):
            inputs = _read_folder(inputs, self.processor.encoders)
        elif hasattr(inputs, "column_names"):
            # A data set: rows as arrays are read faster than as lists.
            arrays = inputs.with_format("numpy") if hasattr(inputs, "with_format") else inputs
            inputs = (row for row in arrays)
        elif isinstance(inputs, tuple):
            inputs = list(inputs)
        if isinstance(inputs, list) and not inputs:
            raise ValueError(f"{TASK}: found no clips, expected at least one")
        return super().__call__(inputs, *args, **kwargs)

    def run_single(self, inputs: Any, preprocess_params: dict, forward_params: dict, postprocess_params: dict) -> Any:
        """One clip."""
        return next(self._results([inputs], 1, postprocess_params))

    def get_iterator(
        self,
        inputs: Iterable[Any],
        num_workers: int,
        batch_size: int,
        preprocess_params: dict,
        forward_params: dict,
        postprocess_params: dict,
    ) -> Any:
        """Results in the order of the clips; features are arrays already, so no workers are needed."""
        return self._results(inputs, batch_size, postprocess_params)

    def _results(self, inputs: Iterable[Any], batch_size: int, parameters: dict) -> Iterator[dict[str, Any]]:
        """Reads and predicts a batch at a time, of clips of any length and with any encoders."""
        clips = iter(inputs)
        start = 0
        while chunk := list(islice(clips, batch_size)):
            items = [self.preprocess(clip, number=start + number) for number, clip in enumerate(chunk)]
            yield from self.postprocess(self.forward(items), **parameters)
            start += len(chunk)

    def preprocess(self, input_: Any, **preprocess_parameters: Any) -> dict[str, Any]:
        """Finds the features of a clip, its name, and a name for messages: its `number` where it has none."""
        name, clip = f"clip {preprocess_parameters.get('number', 0)}", None
        if isinstance(input_, str | Path):
            found = _read_folder(input_, self.processor.encoders)
            if isinstance(found, list):
                raise ValueError(f"{input_}: found the folders of {len(found)} clips, expected that of one")
            input_ = found
        if isinstance(input_, Mapping) and isinstance(input_.get("features"), Mapping):
            if input_.get("clip"):
                name = clip = str(input_["clip"])
            input_ = input_["features"]
        if not isinstance(input_, Mapping):
            raise ValueError(
                f"{name}: expected encoder -> array, or the folder of a clip, found {type(input_).__name__}"
            )
        return {"clip": clip, "name": name, "features": dict(input_)}

    def _forward(self, input_tensors: Any, **_: Any) -> Any:
        items: Sequence[dict[str, Any]] = input_tensors
        names = [item["name"] for item in items]
        batch = self.processor([item["features"] for item in items], clips=names)
        output = self.model(**batch.to(self.model.device))
        return {"output": output, "clips": [item["clip"] for item in items], "names": names}

    def postprocess(self, model_outputs: Any, **parameters: Any) -> list[dict[str, Any]]:
        """Results of the clips of a batch; see the class."""
        top_labels = parameters.pop("top_labels", None)
        output = model_outputs["output"]
        values = {
            **output_probabilities(output, model_outputs["names"]),
            "selected_encoders": output["selected_encoders"],
        }
        blends = self.processor.post_process_blends(output, **parameters)
        encoders, space = list(self.model.config.encoders), self.processor.label_space
        results = []
        for row, (clip, found) in enumerate(zip(model_outputs["clips"], blends, strict=True)):
            result: dict[str, Any] = {} if clip is None else {"clip": clip}
            results.append(result | result_of_row(values, row, found, encoders, space, top_labels))
        return results


def check_top_labels(top_labels: int | None, space: LabelSpace) -> None:
    """Refuses to list more labels than there are, before anything is computed."""
    if top_labels is not None and not 0 < top_labels <= len(space):
        raise ValueError(f"top_labels must be from 1 to {len(space)}, found {top_labels}")


def result_of_row(
    values: Mapping[str, torch.Tensor],
    row: int,
    found: list[dict[str, Any]],
    encoders: Sequence[str],
    space: LabelSpace,
    top_labels: int | None = None,
) -> dict[str, Any]:
    """The result of one clip of a batch, as of [`BlendedEmotionRecognitionPipeline`], numbers as Python has them.

    Args:
        values: `probabilities`, `presence`, `salience` (B, C), `encoder_weights` (B, E), `selected_encoders` (B, n),
            `joint_probabilities` (B, L); optionally `novelty` (B, E).
        row, found: number of the clip, and its blend.
        encoders: names of the columns of `encoder_weights`.
        top_labels: how many of the valid labels to list.
    """
    result: dict[str, Any] = {"blend": found}
    heads = {
        name: dict(zip(space.names, values[name][row].float().tolist(), strict=True))
        for name in ("probabilities", "presence", "salience")
    }
    best = max(found, key=lambda part: (part["salience"], heads["probabilities"][part["emotion"]]))
    result |= {"top": best["emotion"], **heads}
    result["encoder_weights"] = dict(zip(encoders, values["encoder_weights"][row].float().tolist(), strict=True))
    selected = values["selected_encoders"][row].tolist()
    result["selected_encoders"] = [encoders[place] for place in selected if place >= 0]
    if "novelty" in values:
        novelty = dict(zip(encoders, values["novelty"][row].float().tolist(), strict=True))
        beyond = sorted((name for name in encoders if novelty[name] > 1), key=lambda name: -novelty[name])
        result |= {"novelty": novelty, "unlike_training": bool(beyond)}
        if beyond:
            by = ", ".join(f"{name} {novelty[name]:.1f}" for name in beyond)
            result["notes"] = [
                f"unlike the clips that the model was trained on ({by} times as far from them as 999 of 1000 of "
                "them): do not rely on the prediction"
            ]
    if top_labels is not None:
        top, places = values["joint_probabilities"][row].float().topk(top_labels)
        result["labels"] = [
            {"blend": space.blend(place), "probability": value}
            for place, value in zip(places.tolist(), top.tolist(), strict=True)
        ]
    return result


def _read_folder(folder: str | Path, encoders: Iterable[str]) -> Any:
    """`{"clip": name, "features": encoder -> array}`, or a list of these for a folder of folders."""
    folder, encoders = Path(folder), list(encoders)
    if folder.is_file():
        raise ValueError(
            f"{folder}: a file, expected a folder of features; clips themselves are read where the packages "
            "hf_blemo and av (PyAV) are installed and `import hf_blemo` comes before `pipeline(...)`"
        )
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder, expected one with files such as {encoders[0]}.npy")
    own = {path.stem: path for path in sorted(folder.glob(f"*{FEATURE_SUFFIX}")) if path.stem in encoders}
    if own:
        return {"clip": folder.name, "features": {name: _read(path) for name, path in own.items()}}
    clips: dict[str, dict[str, np.ndarray]] = {}
    for path in sorted(chain(*(inner.glob(f"*{FEATURE_SUFFIX}") for inner in sorted(folder.iterdir())))):
        inner, stem = path.parent.name, path.stem
        if inner in encoders:
            clips.setdefault(stem, {})[inner] = _read(path)
        elif stem in encoders:
            clips.setdefault(inner, {})[stem] = _read(path)
    if not clips:
        raise ValueError(
            f"{folder}: found no features, expected files such as {encoders[0]}.npy there or in sub-folders"
        )
    return [{"clip": name, "features": clips[name]} for name in sorted(clips)]


def _read(path: Path) -> np.ndarray:
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path}: expected an array of numbers without pickled objects, found {error}") from error
    if not np.issubdtype(array.dtype, np.number):
        raise ValueError(f"{path}: expected numbers, found {array.dtype}")
    return array
