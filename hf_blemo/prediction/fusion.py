"""Predictions of trained fusion models for the clips of a data set."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm.auto import tqdm

from hf_blemo import blemore
from hf_blemo.files import read_json
from hf_blemo.loading import download_errors, local_path, quiet_loading
from hf_blemo.rank_aware_fusion.configuration_rank_aware_fusion import RankAwareFusionConfig
from hf_blemo.rank_aware_fusion.decoding_rank_aware_fusion import output_probabilities
from hf_blemo.rank_aware_fusion.modeling_rank_aware_fusion import RankAwareFusionModel
from hf_blemo.rank_aware_fusion.processing_rank_aware_fusion import RankAwareFusionProcessor

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

FusionMember = tuple[RankAwareFusionModel, RankAwareFusionProcessor]

CONFIG_FILE = "config.json"
PROCESSOR_FILE = "processor_config.json"
WEIGHTS_FILES = ("model.safetensors", "model.safetensors.index.json")

_NUM_SHOWN = 3


@dataclass
class FusionPredictions:
    """What one fusion model, or the mean of several, predicts for N clips.

    Args:
        clips: N names, as the data set has them.
        encoders: E names, the order of the columns of `encoder_weights`.
        probabilities: (N, 6) float32 in the order of `blemore.EMOTIONS`.
        presence, salience: (N, 6) float32, what each head says alone.
        joint_probabilities: (N, 36) float32 over `blemore.LABELS`.
        encoder_weights: (N, E) float32, 0 for an encoder that a clip lacks.
        selected_encoders: (N, top_n) columns of `encoder_weights` by rank, -1 where fewer are present; those of the
            first model, as a selection has no mean.
        blends: N lists of {"emotion": str, "salience": per cent}.
    """

    clips: list[str]
    encoders: list[str]
    probabilities: np.ndarray
    presence: np.ndarray
    salience: np.ndarray
    joint_probabilities: np.ndarray
    encoder_weights: np.ndarray
    selected_encoders: np.ndarray
    blends: list[list[dict[str, str | float]]]

    def results(self) -> list[dict[str, Any]]:
        """One dictionary per clip, as [`BlendedEmotionRecognitionPipeline`] gives them."""
        from hf_blemo.rank_aware_fusion.pipeline_rank_aware_fusion import result_of_row

        names = (
            "probabilities",
            "presence",
            "salience",
            "joint_probabilities",
            "encoder_weights",
            "selected_encoders",
        )
        values = {name: torch.from_numpy(getattr(self, name)) for name in names}
        return [
            {"clip": clip, **result_of_row(values, row, self.blends[row], self.encoders)}
            for row, clip in enumerate(self.clips)
        ]


def load_fusion(folder_or_repo: str | Path, revision: str | None = None) -> FusionMember:
    """Loads a fusion model and its processor.

    Args:
        folder_or_repo: a folder with both, or the id of a Hub repository (`owner/name`).
        revision: branch, tag or commit of the repository; its main branch by default.

    Returns:
        The model, in evaluation mode, and the processor.

    Raises:
        FileNotFoundError: there is no such folder or repository, or a file is missing from it.
        ValueError: it holds another kind of model, a file is damaged, or model and processor name different encoders;
            or a `revision` is given for a folder.

    Source: this project's choice.
    """
    where = str(folder_or_repo)
    folder = local_path(where, revision=revision)
    if folder is not None:
        _check_files(folder, where)
    else:
        folder = _download(where, revision)
    if not any((folder / name).is_file() for name in WEIGHTS_FILES):
        raise FileNotFoundError(f"{where}: found no weights, expected {WEIGHTS_FILES[0]}")
    _check_shards(folder, where)
    model = _load_model(folder, where)
    processor = _load_processor(folder, where)
    if processor.encoders != model.config.encoders:
        raise ValueError(
            f"{where}: {PROCESSOR_FILE} and {CONFIG_FILE} belong to different models: "
            f"{_first_difference(processor.encoders, model.config.encoders)}"
        )
    return model, processor


def predict_blends(
    models: Sequence[FusionMember],
    dataset: "datasets.Dataset",
    batch_size: int = 64,
    device: str | torch.device | None = None,
    progress: bool = True,
    decoding: str | None = None,
    alpha: float | None = None,
    beta: float | None = None,
) -> FusionPredictions:
    """Predicts the blends of every clip of a data set; several models predict by the mean of their probabilities.

    Features are read batch by batch, so a data set of any length needs the memory of one batch. Encoders that the
    models do not know are left out, with a warning; so is a warning given for encoders that the data set lacks.

    Args:
        models: models with their processors, all with the same encoders; the first processor checks and decodes.
        dataset: columns `clip` and `features`; labels and folds are not read.
        batch_size: clips at once.
        device: where the models are moved; each stays where it is by default.
        progress: whether to show a progress bar.
        decoding, alpha, beta: override the first processor's own.

    Returns:
        The predictions, clips in the order of the data set.

    Raises:
        ValueError: there is no model or clip, a clip comes twice, the models have different encoders, the data set has
            none of them, or the processor refuses a clip's features; the message names the clip.

    Source: this project's choice.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, found {batch_size}")
    encoders = common_encoders(models)
    clips = _clips(dataset)
    _warn_of_difference(list(blemore.encoder_widths(dataset)), encoders)
    processor = models[0][1]
    modules: list[Any] = [model for model, _ in models]
    modes = [module.training for module in modules]
    parts: list[dict[str, torch.Tensor]] = []
    try:
        for module in modules:
            module.eval()
            if device is not None:
                module.to(device)
        with tqdm(total=len(clips), desc="predicting", unit="clip", disable=not progress) as bar:
            for start in range(0, len(clips), batch_size):
                rows = range(start, min(start + batch_size, len(clips)))
                samples = [
                    {name: values for name, values in sample.items() if name in encoders}
                    for sample in blemore.read_features(dataset, rows)
                ]
                batch = processor(samples, clips=[clips[row] for row in rows])
                parts.append(mean_outputs(modules, batch))
                bar.update(len(rows))
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.train(mode)
    outputs = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return FusionPredictions(
        clips=clips,
        encoders=encoders,
        blends=processor.post_process_blends(outputs, decoding=decoding, alpha=alpha, beta=beta),
        **{name: values.numpy() for name, values in outputs.items()},
    )


@torch.inference_mode()
def mean_outputs(models: Sequence[RankAwareFusionModel], batch: Any) -> dict[str, torch.Tensor]:
    """What one model, or the mean of several, says of a batch.

    Args:
        models: with the same encoders, in evaluation mode.
        batch: of a processor.

    Returns:
        On the CPU, float32: `probabilities`, `presence` and `salience` (B, 6), `joint_probabilities` (B, 36),
        `encoder_weights` (B, E); `selected_encoders` (B, top_n) of the first model.
    """
    outputs = [model(**batch.to(model.device)) for model in models]
    parts = [output_probabilities(output) for output in outputs]
    means = {name: torch.stack([part[name].cpu() for part in parts]).mean(0) for name in parts[0]}
    return {**means, "selected_encoders": outputs[0]["selected_encoders"].cpu()}


def common_encoders(models: Sequence[FusionMember]) -> list[str]:
    """Names of the encoders that all of some models have.

    Args:
        models: at least one.

    Raises:
        ValueError: there is none, or they have different encoders.
    """
    if not models:
        raise ValueError("found no model, expected at least one")
    first = models[0][0].config.encoders
    for number, (model, _) in enumerate(models[1:], start=2):
        encoders = model.config.encoders
        sizes, expected = ({n: e["feature_size"] for n, e in entries.items()} for entries in (encoders, first))
        if sizes != expected:
            raise ValueError(
                f"model {number} of {len(models)} cannot be averaged with the first: "
                f"{_first_difference(sizes, expected)}"
            )
        if list(encoders) != list(first):
            raise ValueError(
                f"model {number} of {len(models)} has its encoders in the order {', '.join(encoders)}, expected "
                f"{', '.join(first)} as in the first"
            )
    return list(first)


def _clips(dataset: "datasets.Dataset") -> list[str]:
    if "clip" not in dataset.column_names:
        raise ValueError(f"found the columns {', '.join(dataset.column_names)}, expected 'clip' and 'features'")
    clips = list(dataset["clip"])
    if not clips:
        raise ValueError("found a data set without clips, expected at least one")
    seen: set[str] = set()
    for clip in clips:
        if clip in seen:
            raise ValueError(f"clip {clip!r} comes more than once in the data set, expected each clip once")
        seen.add(clip)
    return clips


def _warn_of_difference(found: Sequence[str], known: Sequence[str]) -> None:
    ignored = [name for name in found if name not in known]
    absent = [name for name in known if name not in found]
    if len(ignored) == len(found):
        raise ValueError(f"found the encoders {', '.join(found)} in the data, expected some of {', '.join(known)}")
    if ignored:
        logger.warning("ignored, as the model does not know these encoders of the data: %s", ", ".join(ignored))
    if absent:
        logger.warning("predicting without these encoders, which the data lacks: %s", ", ".join(absent))


def _first_difference(found: dict[str, Any], expected: dict[str, Any]) -> str:
    if set(found) != set(expected):
        return f"found the encoders {', '.join(sorted(found))}, expected {', '.join(sorted(expected))}"
    name = next(name for name in expected if found[name] != expected[name])
    return f"encoder {name!r}: found {found[name]}, expected {expected[name]}"


def _download(repo_id: str, revision: str | None) -> Path:
    """Fetches the files of one commit; the weights only after the settings proved to be a fusion model's."""
    from huggingface_hub import snapshot_download

    where = repo_id if revision is None else f"{repo_id}, revision {revision}"
    settings = [CONFIG_FILE, PROCESSOR_FILE]
    with download_errors(where):
        folder = Path(snapshot_download(repo_id, revision=revision, allow_patterns=settings))
    _check_files(folder, where)
    # The folder of a snapshot is named after its commit: a push in between cannot mix two versions.
    patterns = [*settings, "model*.safetensors", WEIGHTS_FILES[1]]
    with download_errors(where):
        return Path(snapshot_download(repo_id, revision=folder.name, allow_patterns=patterns))


def _check_files(folder: Path, where: str) -> None:
    """Checks that settings of a fusion model and of its processor are there, before anything heavy is loaded."""
    if not folder.is_dir():
        raise NotADirectoryError(f"{where}: found a file, expected the folder of a model")
    if not (folder / CONFIG_FILE).is_file():
        raise FileNotFoundError(f"{where}: found no {CONFIG_FILE}, expected a model of rank-aware fusion")
    model_type = read_json(folder / CONFIG_FILE, f"{where}: {CONFIG_FILE}").get("model_type")
    if model_type != RankAwareFusionConfig.model_type:
        raise ValueError(
            f"{where}: found model_type {model_type!r} in {CONFIG_FILE}, expected {RankAwareFusionConfig.model_type!r}"
        )
    if not (folder / PROCESSOR_FILE).is_file():
        raise FileNotFoundError(
            f"{where}: found a model without its processor, expected {PROCESSOR_FILE} beside {CONFIG_FILE}"
        )
    if not isinstance(read_json(folder / PROCESSOR_FILE, f"{where}: {PROCESSOR_FILE}").get("encoders"), dict):
        raise ValueError(f"{where}: found no 'encoders' in {PROCESSOR_FILE}, expected the processor of this model")


def _check_shards(folder: Path, where: str) -> None:
    """Checks that every file that the index of the weights names is there."""
    index = folder / WEIGHTS_FILES[1]
    if (folder / WEIGHTS_FILES[0]).is_file() or not index.is_file():
        return
    for name in sorted(set(read_json(index, f"{where}: {index.name}").get("weight_map", {}).values())):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{where}: found no {name}, which {index.name} names among the weights")


def _load_model(folder: Path, where: str) -> RankAwareFusionModel:
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    try:
        config = RankAwareFusionConfig.from_pretrained(folder)
    except (StrictDataclassError, ValueError) as error:
        raise ValueError(f"{where}: {CONFIG_FILE} holds an invalid setting: {error}") from None
    try:
        with quiet_loading():
            loaded: Any = RankAwareFusionModel.from_pretrained(
                folder, config=config, use_safetensors=True, ignore_mismatched_sizes=True, output_loading_info=True
            )
    except SafetensorError as error:
        raise ValueError(f"{where}: the weights are damaged ({error}), expected safetensors") from None
    model, report = loaded
    # transformers fills what a checkpoint lacks with random numbers, which would pass for predictions.
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


def _load_processor(folder: Path, where: str) -> RankAwareFusionProcessor:
    try:
        return RankAwareFusionProcessor.from_pretrained(folder)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {PROCESSOR_FILE} holds an invalid setting: {error}") from None
