"""Export to ONNX: a fusion as one graph, a student as one graph per tower, and their quantisation."""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.export import Dim
from torch.nn import functional

from hf_blemo.clip_rd.modeling_clip_rd import CLIPRDModel
from hf_blemo.errors import MissingExtraError
from hf_blemo.files import write_json
from hf_blemo.rank_aware_fusion.modeling_rank_aware_fusion import RankAwareFusionModel

OPSET = 18
FUSION_FILE = "model.onnx"
IMAGE_FILE, TEXT_FILE = "image_model.onnx", "text_model.onnx"
DESCRIPTION_FILE = "onnx.json"
FUSION_OUTPUTS = (
    "probabilities",
    "joint_probabilities",
    "presence_logits",
    "salience_logits",
    "encoder_weights",
    "selected_encoders",
)
QUANTIZED = "_int8"


class FusionGraph(nn.Module):
    """A fusion whose inputs are plain tensors: the features of every encoder, then their masks.

    Args:
        model: the fusion.
    """

    def __init__(self, model: RankAwareFusionModel):
        super().__init__()
        self.model = model
        self.names = list(model.config.encoders)

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """`FUSION_OUTPUTS` of (B, T, D) features and (B, T) bool masks."""
        count = len(self.names)
        features = dict(zip(self.names, inputs[:count], strict=True))
        masks = dict(zip(self.names, inputs[count:], strict=True))
        output = self.model(features=features, feature_mask=masks)
        return tuple(output[name] for name in FUSION_OUTPUTS)


class ImageGraph(nn.Module):
    """The image side of a student.

    Args:
        model: the student.
    """

    def __init__(self, model: CLIPRDModel):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> (B, D) of length 1."""
        return functional.normalize(self.model.get_image_features(pixel_values), dim=-1)


class TextGraph(nn.Module):
    """The text side of a student.

    Args:
        model: the student.
    """

    def __init__(self, model: CLIPRDModel):
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """(B, L) int64 tokens and mask -> (B, D) of length 1."""
        return functional.normalize(self.model.get_text_features(input_ids, attention_mask), dim=-1)


def fusion_program(model: RankAwareFusionModel) -> torch.export.ExportedProgram:
    """`torch.export` of a fusion, of any number of clips of any length.

    Args:
        model: in float32.

    Returns:
        The program of a [`FusionGraph`].

    Source: this project's choice.
    """
    graph = FusionGraph(model).eval()
    encoders = model.config.encoders.values()
    # Lengths of their own, so that none of them is taken for another's or for the batch.
    features = [torch.zeros(3, 5 + place, options["feature_size"]) for place, options in enumerate(encoders)]
    masks = [torch.ones(values.shape[:2], dtype=torch.bool) for values in features]
    axes = tuple({0: Dim.DYNAMIC, 1: Dim.DYNAMIC} for _ in (*features, *masks))
    return _exported(graph, (*features, *masks), (axes,))


def tower_programs(model: CLIPRDModel) -> dict[str, torch.export.ExportedProgram]:
    """`torch.export` of both towers of a student, of any number of images, and of texts of any length.

    Args:
        model: in float32.

    Returns:
        `image` and `text`, the programs of an [`ImageGraph`] and a [`TextGraph`].

    Source: this project's choice.
    """
    config: Any = model.config
    size = getattr(config.vision_config, "image_size", 224)
    height, width = (size, size) if isinstance(size, int) else size
    pixels = torch.zeros(3, getattr(config.vision_config, "num_channels", 3), height, width)
    tokens = torch.full((3, 7), int(getattr(config.text_config, "eos_token_id", None) or 0))
    both = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
    towers: Any = (model.vision_model, model.text_model)
    attentions = [tower.config._attn_implementation for tower in towers]
    try:
        # The plain formula: the exporter does not know how windows of a fused one lie in memory, as Swin's.
        for tower in towers:
            tower.set_attn_implementation("eager")
        return {
            "image": _exported(ImageGraph(model).eval(), (pixels,), ({0: Dim.DYNAMIC},)),
            "text": _exported(TextGraph(model).eval(), (tokens, torch.ones_like(tokens)), (both, both)),
        }
    finally:
        for tower, attention in zip(towers, attentions, strict=True):
            tower.set_attn_implementation(attention)


def export_onnx(model: Any, folder: str | Path) -> list[Path]:
    """Write a model as ONNX, with a description of inputs and outputs.

    A fusion becomes `model.onnx`: inputs `features.ENCODER` (B, T, D) float32 and `feature_mask.ENCODER` (B, T) bool,
    all of them; a mask that is false throughout a row marks the encoder as absent there. A student becomes
    `image_model.onnx` (`pixel_values` -> `image_embeds`) and `text_model.onnx` (`input_ids`, `attention_mask` ->
    `text_embeds`), embeddings of length 1; `onnx.json` has the scale of their cosines. Batch and time are free.

    Args:
        model: a [`RankAwareFusionModel`] or a [`CLIPRDModel`]; exported in float32 and evaluation mode.
        folder: made where it is missing.

    Returns:
        The ONNX files.

    Raises:
        MissingExtraError: the extra `onnx` is not installed.
        ValueError: a model of another family.

    Source: this project's choice.
    """
    check_extra()
    folder = Path(folder)
    training, dtype = getattr(model, "training", False), getattr(model, "dtype", torch.float32)
    if not isinstance(model, RankAwareFusionModel | CLIPRDModel):
        raise ValueError(f"expected a RankAwareFusionModel or a CLIPRDModel, found {type(model).__name__}")
    module: nn.Module = model
    folder.mkdir(parents=True, exist_ok=True)
    description: dict[str, Any]
    try:
        module.eval().float()
        if isinstance(model, RankAwareFusionModel):
            names = list(model.config.encoders)
            inputs = [f"{kind}.{name}" for kind in ("features", "feature_mask") for name in names]
            paths = [folder / FUSION_FILE]
            _write(fusion_program(model), paths[0], inputs, FUSION_OUTPUTS)
            description = {"inputs": inputs, "outputs": list(FUSION_OUTPUTS), "encoders": names}
        else:
            programs = tower_programs(model)
            description = {"logit_scale": model.logit_scale.exp().item()}
            paths = [folder / IMAGE_FILE, folder / TEXT_FILE]
            _write(programs["image"], paths[0], ["pixel_values"], ["image_embeds"])
            _write(programs["text"], paths[1], ["input_ids", "attention_mask"], ["text_embeds"])
    finally:
        module.to(dtype).train(training)
    write_json({folder / DESCRIPTION_FILE: {"model_type": model.config.model_type, "opset": OPSET, **description}})
    return paths


def onnx_inputs(batch: Mapping[str, Any], encoders: Mapping[str, Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """What the graph of a fusion takes, of what the processor of the model gives.

    The processor has no entry for an encoder that no clip of a batch has, and the graph takes all of them.

    Args:
        batch: `features` and `feature_mask`, encoder -> (B, T, D) and (B, T).
        encoders: of the model's config, name -> options with `feature_size`.

    Returns:
        Name of the input -> array; an encoder without an entry is one step of zeros that is masked everywhere.

    Raises:
        ValueError: no encoder of the model has an entry.

    Source: this project's choice.
    """
    features, masks = batch["features"], batch["feature_mask"]
    known = [name for name in encoders if name in features]
    if not known:
        raise ValueError(f"found features of {', '.join(features) or 'no encoder'}, expected of {', '.join(encoders)}")
    size = len(features[known[0]])
    inputs: dict[str, np.ndarray] = {}
    for name, options in encoders.items():
        if name in features:
            values, mask = np.asarray(features[name], np.float32), np.asarray(masks[name], bool)
        else:
            values, mask = np.zeros((size, 1, options["feature_size"]), np.float32), np.zeros((size, 1), bool)
        inputs |= {f"features.{name}": values, f"feature_mask.{name}": mask}
    return inputs


def quantize_onnx(path: str | Path, output: str | Path | None = None) -> Path:
    """Quantise the matrix products of an ONNX file to int8, dynamically: weights now, activations when it runs.

    Args:
        path: of a float32 model.
        output: of the quantised one; beside it with `_int8` in its name by default.

    Returns:
        Its path.

    Raises:
        MissingExtraError: the extra `onnx` is not installed.
        FileNotFoundError: there is no such file.

    Source: this project's choice; the quantiser is onnxruntime's.
    """
    check_extra()
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, expected an ONNX model")
    output = path.with_name(f"{path.stem}{QUANTIZED}{path.suffix}") if output is None else Path(output)
    graph = onnx.load(path)
    # Shapes that the exporter noted stand in the way of the quantiser's own.
    del graph.graph.value_info[:]
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        # Convolutions have no fast dynamic kernel.
        quantize_dynamic(graph, output, op_types_to_quantize=["MatMul", "Gemm"], weight_type=QuantType.QInt8)
    finally:
        logger.setLevel(level)
    return output


def check_extra() -> None:
    """Refuses to begin without the packages of the extra.

    Raises:
        MissingExtraError: one of them is missing; the message names it.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(f"ONNX needs {error.name}: pip install hf_blemo[onnx]") from error


def _exported(graph: nn.Module, inputs: tuple[torch.Tensor, ...], shapes: Any) -> torch.export.ExportedProgram:
    device = next(graph.parameters()).device
    with torch.no_grad(), _quiet():
        return torch.export.export(graph, tuple(value.to(device) for value in inputs), dynamic_shapes=shapes)


def _write(
    program: torch.export.ExportedProgram, path: Path, input_names: Sequence[str], output_names: Sequence[str]
) -> None:
    with _quiet():
        torch.onnx.export(
            program,
            (),
            str(path),
            input_names=list(input_names),
            output_names=list(output_names),
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
            custom_translation_table={torch.ops.aten.sort.stable: _stable_sort},
        )


def _stable_sort(values: Any, stable: bool = True, dim: int = -1, descending: bool = False) -> Any:
    """torch's stable sort, which the exporter does not know, as TopK of everything: ties keep their order there."""
    from onnxscript import opset18

    op: Any = opset18
    size = op.Reshape(op.Gather(op.Shape(values), op.Constant(value_ints=[dim])), op.Constant(value_ints=[1]))
    return op.TopK(values, size, axis=dim, largest=int(descending), sorted=1)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what torch's exporter says about its own workings off the terminal."""
    names = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
