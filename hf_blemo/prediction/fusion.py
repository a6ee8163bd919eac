"""Fusion models: loading them, and predicting blends from features."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hf_blemo import feature_sets
from hf_blemo.errors import check_once, one_line, reading
from hf_blemo.feature_sets.layout import check_known_encoders
from hf_blemo.files import read_json, within
from hf_blemo.loading import CONFIG_FILE, quiet_loading
from hf_blemo.prediction.fusion_files import (
    PROCESSOR_FILE,
    WEIGHTS_FILES,
    FusionFiles,
    check_averaged,
    find_fusion,
    first_difference,
)
from hf_blemo.rank_aware_fusion.configuration_rank_aware_fusion import RankAwareFusionConfig
from hf_blemo.rank_aware_fusion.decoding_rank_aware_fusion import output_probabilities
from hf_blemo.rank_aware_fusion.label_space_rank_aware_fusion import LabelSpace, same_space
from hf_blemo.rank_aware_fusion.modeling_rank_aware_fusion import RankAwareFusionModel
from hf_blemo.rank_aware_fusion.pipeline_rank_aware_fusion import check_top_labels, result_of_row
from hf_blemo.rank_aware_fusion.processing_rank_aware_fusion import RankAwareFusionProcessor

if TYPE_CHECKING:
    import datasets

FusionMember = tuple[RankAwareFusionModel, RankAwareFusionProcessor]

LABELS_KEY = "heads.label_percent"

_NUM_SHOWN = 3


def load_fusion(folder_or_repo: str | Path | FusionFiles, revision: str | None = None) -> FusionMember:
    """Loads a fusion model and its processor.

    Args:
        folder_or_repo: a folder with both, or the id of a Hub repository (`owner/name`); or what [`find_fusion`]
            found.
        revision: branch, tag or commit of the repository; its main branch by default.

    Returns:
        The model, in evaluation mode, and the processor.

    Raises:
        FileNotFoundError: there is no such folder or repository, or a file is missing from it.
        ValueError: it holds another kind of model, a file is damaged, model, processor and weights differ in encoders
            or labels, or a `revision` is given for a folder.
    """
    found = folder_or_repo if isinstance(folder_or_repo, FusionFiles) else find_fusion(folder_or_repo, revision)
    with reading(found.where, "a model of rank-aware fusion with its processor"):
        return _load(found.with_weights(), found.where)


def _load(folder: Path, where: str) -> FusionMember:
    model = _load_model(folder, where)
    processor = _load_processor(folder, where)
    if processor.encoders != model.config.encoders:
        raise ValueError(
            f"{where}: {PROCESSOR_FILE} and {CONFIG_FILE} belong to different models: "
            f"{first_difference(processor.encoders, model.config.encoders)}"
        )
    try:
        same_space(processor.label_space, model.config.label_space, PROCESSOR_FILE, CONFIG_FILE)
        if processor.label_kind != model.config.label_kind:
            raise ValueError(
                f"{PROCESSOR_FILE} has the label_kind {processor.label_kind!r}, {CONFIG_FILE} has "
                f"{model.config.label_kind!r}"
            )
    except ValueError as error:
        raise ValueError(f"{where}: {PROCESSOR_FILE} and {CONFIG_FILE} belong to different models: {error}") from None
    return model, processor


def predict_blends(
    members: Sequence[FusionMember],
    dataset: "datasets.Dataset",
    batch_size: int = 64,
    device: str | torch.device | None = None,
    **options: Any,
) -> Iterator[dict[str, Any]]:
    """Predicts the blends of every clip of a data set of features.

    Features are read batch by batch, so a data set of any length needs the memory of one batch. Encoders that the
    models do not know are left out, with a warning; so are, with another one, encoders that the data set lacks.

    Args:
        members: models with their processors, all with the same encoders and labels; several predict by the mean of
            their probabilities.
        dataset: columns `clip` and `features`; labels and folds are not read.
        batch_size: clips at once.
        device: where the models are moved; each stays where it is by default.
        options: `top_labels` and the decoding, as `results` takes them.

    Yields:
        The result of each clip, in the order of the data set; for one without features of an encoder that the models
        know, `{"clip": name, "error": line}`.

    Raises:
        ValueError: there is no model or clip, a clip comes twice, the models have different encoders or labels, the
            data set has none of the encoders, or the processor refuses a clip's features; the message names the clip.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, found {batch_size}")
    encoders = common_encoders(members)
    clips = _clips(dataset)
    check_known_encoders(dataset, encoders)
    modules: list[Any] = [model for model, _ in members]
    modes = [module.training for module in modules]
    try:
        for module in modules:
            module.eval()
            if device is not None:
                module.to(device)
        for start in range(0, len(clips), batch_size):
            rows = range(start, min(start + batch_size, len(clips)))
            samples = [
                {name: values for name, values in sample.items() if name in encoders}
                for sample in feature_sets.read_features(dataset, rows)
            ]
            present = [number for number, sample in enumerate(samples) if sample]
            names = [clips[rows[number]] for number in present]
            found = results([samples[number] for number in present], names, members, **options) if present else []
            by_clip = {result["clip"]: result for result in found}
            for row in rows:
                error = f"{clips[row]}: has no features of any encoder, expected some of {', '.join(encoders)}"
                yield by_clip.get(clips[row], {"clip": clips[row], "error": error})
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.train(mode)


@torch.inference_mode()
def results(
    samples: Sequence[Mapping[str, np.ndarray]],
    clips: Sequence[str],
    members: Sequence[FusionMember],
    top_labels: int | None = None,
    **decoding: Any,
) -> list[dict[str, Any]]:
    """Predicts the blends of some clips from their features.

    Args:
        samples: of each clip encoder -> (T, D).
        clips: names of the clips.
        members: models in evaluation mode with their processors, all with the same encoders; several predict by the
            mean of their probabilities. The first processor checks and decodes.
        top_labels: how many of the valid labels to list with their probabilities; none by default.
        decoding: `decoding`, `alpha`, `beta` and `blend_share` of the processor's `post_process_blends`.

    Returns:
        For each clip `clip` and the entries of [`BlendedEmotionRecognitionPipeline`]. `selected_encoders` are those of
        the first model, as a selection has no mean.

    Raises:
        ValueError: the processor refuses the features of a clip, which the message names, or the decoding; a model
            gives no finite probabilities for a clip; there are fewer valid labels than `top_labels`.
    """
    processor = members[0][1]
    check_top_labels(top_labels, processor.label_space)
    batch = processor(samples, clips=clips)
    outputs = [model(**batch.to(model.device)) for model, _ in members]
    parts = [output_probabilities(output, clips) for output in outputs]
    known = [name for name in parts[0] if all(name in part for part in parts)]
    means = {name: torch.stack([part[name].cpu() for part in parts]).mean(0) for name in known}
    values = {**means, "selected_encoders": outputs[0]["selected_encoders"].cpu()}
    blends = processor.post_process_blends(values, **decoding)
    encoders = list(members[0][0].config.encoders)
    return [
        {"clip": clip, **result_of_row(values, row, blends[row], encoders, processor.label_space, top_labels)}
        for row, clip in enumerate(clips)
    ]


def common_encoders(members: Sequence[FusionMember]) -> list[str]:
    """The encoders that several models share; refuses models with different encoders or labels."""
    if not members:
        raise ValueError("found no model, expected at least one")
    configs = [model.config for model, _ in members]
    check_averaged([(config.encoders, config.label_space) for config in configs])
    return list(configs[0].encoders)


def _clips(dataset: "datasets.Dataset") -> list[str]:
    if "clip" not in dataset.column_names:
        raise ValueError(f"found the columns {', '.join(dataset.column_names)}, expected 'clip' and 'features'")
    clips = list(dataset["clip"])
    if not clips:
        raise ValueError("found a data set without clips, expected at least one")
    check_once("data set: clip", clips)
    return clips


def _load_model(folder: Path, where: str) -> RankAwareFusionModel:
    from safetensors import SafetensorError

    try:
        config = RankAwareFusionConfig.from_pretrained(folder)
    except Exception as error:
        raise ValueError(f"{where}: {CONFIG_FILE} holds an invalid setting: {one_line(error)}") from None
    try:
        _check_labels(folder, config.label_space, where)
        with quiet_loading():
            loaded: Any = RankAwareFusionModel.from_pretrained(
                folder, config=config, use_safetensors=True, ignore_mismatched_sizes=True, output_loading_info=True
            )
    except SafetensorError as error:
        raise ValueError(f"{where}: the weights are damaged ({error}), expected safetensors") from None
    except ValueError as error:
        raise ValueError(one_line(error).replace(str(folder), where)) from None
    model, report = loaded
    # transformers fills missing weights with random numbers, which would pass for predictions.
    problems = [
        *(f"{key} is missing" for key in sorted(report["missing_keys"])),
        *(f"{key} is unknown" for key in sorted(report["unexpected_keys"])),
        *(f"{key} has another shape" for key in sorted(str(entry[0]) for entry in report["mismatched_keys"])),
    ]
    if problems:
        rest = len(problems) - _NUM_SHOWN
        more = f"; and {rest} more" if rest > 0 else ""
        raise ValueError(f"{where}: the weights do not fit {CONFIG_FILE}: {'; '.join(problems[:_NUM_SHOWN])}{more}")
    return model.eval()


def _check_labels(folder: Path, space: LabelSpace, where: str) -> None:
    """Checks that the weights were trained for the valid labels of the config, which they hold too."""
    from safetensors import safe_open

    file = WEIGHTS_FILES[0]
    if not (folder / file).is_file():
        file = (
            read_json(folder / WEIGHTS_FILES[1], f"{where}: {WEIGHTS_FILES[1]}").get("weight_map", {}).get(LABELS_KEY)
        )
    if file is None:
        return
    with safe_open(within(folder, file, where), "numpy") as weights:
        found = weights.get_tensor(LABELS_KEY) if LABELS_KEY in weights.keys() else space.percent  # noqa: SIM118
    if found.shape == space.percent.shape and (found == space.percent).all():
        return
    has = (
        "other blends"
        if found.shape == space.percent.shape
        else f"{found.shape[0]} valid labels of {found.shape[-1]} names"
    )
    raise ValueError(f"{where}: the weights belong to other labels: they have {has}, {CONFIG_FILE} has {space}")


def _load_processor(folder: Path, where: str) -> RankAwareFusionProcessor:
    try:
        return RankAwareFusionProcessor.from_pretrained(folder)
    except Exception as error:
        raise ValueError(f"{where}: {PROCESSOR_FILE} holds an invalid setting: {one_line(error)}") from None
