"""Export models to ONNX: a fusion as one graph, a student as one graph per tower, and both quantised."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.export import Dim
from torch.nn import functional

from hf_blemo.clip_rd.modeling_clip_rd import CLIPRDModel
from hf_blemo.errors import check_extra
from hf_blemo.feature_sets.label_spaces import space_entry
from hf_blemo.files import write_json
from hf_blemo.programs.onnx_graphs import OPSET, exported_program, quantized, write_graph
from hf_blemo.rank_aware_fusion.modeling_rank_aware_fusion import RankAwareFusionModel

_FUSION_OUTPUTS = (
    "probabilities",
    "joint_probabilities",
    "presence_logits",
    "salience_logits",
    "encoder_weights",
    "selected_encoders",
)


def export_onnx(model: Any, folder: str | Path, int8: bool = False, processor: Any = None) -> list[Path]:
    """Write a model as ONNX, with a description of inputs and outputs.

    A fusion becomes `model.onnx`: inputs `features.ENCODER` (B, T, D) float32 and `feature_mask.ENCODER` (B, T) bool,
    all of them; a mask that is false throughout a row marks the encoder as absent there. Its labels (`names`,
    `blend_percents`, `unblended`, `label_kind`) stand in `onnx.json` and, as JSON, in the file's metadata. A student
    becomes `image_model.onnx`: `pixel_values` (B, 3, H, W) float32 -> `image_embeds` (B, D), and `text_model.onnx`:
    `input_ids`, `attention_mask` (B, L) int64 -> `text_embeds` (B, D), embeddings of length 1; `onnx.json` has these
    names and shapes, the scale of the cosines (`logit_scale`) and the most tokens of a text (`max_length`). B, T and L
    are free.

    Args:
        model: a [`RankAwareFusionModel`] or a [`CLIPRDModel`]; exported in float32 and evaluation mode.
        folder: created if missing.
        int8: whether to write each file once more as `NAME_int8.onnx`, its matrix products quantised dynamically:
            weights when it is written, activations when it runs.
        processor: of a student, to be saved beside the files: `tokenizer.json`, which pads and cuts texts as the text
            tower needs it, and `processor_config.json`.

    Returns:
        The ONNX files, those in int8 last.

    Raises:
        MissingExtraError: the extra `onnx` is not installed.
        ValueError: a model of another family.

    Source: the quantiser is onnxruntime's.
    """
    check_extra("onnx")
    if not isinstance(model, RankAwareFusionModel | CLIPRDModel):
        raise ValueError(f"expected a RankAwareFusionModel or a CLIPRDModel, found {type(model).__name__}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    exported: Any = copy.deepcopy(model)
    exported.eval().float()
    description: dict[str, Any]
    if isinstance(model, RankAwareFusionModel):
        names = list(model.config.encoders)
        inputs = [f"{kind}.{name}" for kind in ("features", "feature_mask") for name in names]
        paths = [folder / "model.onnx"]
        labels = space_entry(model.config.label_space, model.config.label_kind)
        write_graph(_fusion_program(exported), paths[0], inputs, _FUSION_OUTPUTS, labels)
        description = {"inputs": inputs, "outputs": list(_FUSION_OUTPUTS), "encoders": names, **labels}
    else:
        programs = _tower_programs(exported)
        paths = [folder / "image_model.onnx", folder / "text_model.onnx"]
        write_graph(programs["image"], paths[0], ["pixel_values"], ["image_embeds"])
        write_graph(programs["text"], paths[1], ["input_ids", "attention_mask"], ["text_embeds"])
        shape = [*programs["image"].example_inputs[0][0].shape[1:]]
        embeds, tokens = ["batch", model.config.projection_dim], ["batch", "length"]
        description = {
            "files": {
                "image_model.onnx": {"pixel_values": ["batch", *shape], "image_embeds": embeds},
                "text_model.onnx": {"input_ids": tokens, "attention_mask": tokens, "text_embeds": embeds},
            },
            "logit_scale": exported.logit_scale.exp().item(),
            "max_length": getattr(model.config.text_config, "max_position_embeddings", None),
        }
    if processor is not None:
        processor.save_pretrained(folder)
        _set_up_tokenizer(folder / "tokenizer.json", processor)
    write_json({folder / "onnx.json": {"model_type": model.config.model_type, "opset": OPSET, **description}})
    return paths + [quantized(path) for path in paths if int8]


def _set_up_tokenizer(path: Path, processor: Any) -> None:
    """Writes padding and truncation into the file, where transformers keeps them for itself."""
    if not path.is_file():
        return
    from tokenizers import Tokenizer

    tokenizer, own = Tokenizer.from_file(str(path)), processor.tokenizer
    if processor.max_length is not None:
        tokenizer.enable_truncation(processor.max_length)
    length = processor.max_length if processor.padding == "max_length" else None
    tokenizer.enable_padding(pad_id=own.pad_token_id, pad_token=own.pad_token, length=length)
    tokenizer.save(str(path))


def onnx_inputs(batch: Mapping[str, Any], encoders: Mapping[str, Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Turn a batch of a fusion's processor into inputs of the fusion's graph.

    The graph takes all encoders; the processor has no entry for an encoder that no clip of the batch has.

    Args:
        batch: `features` and `feature_mask`, encoder -> (B, T, D) and (B, T).
        encoders: of the model's config, name -> options with `feature_size`.

    Returns:
        Name of the input -> array; an encoder without an entry becomes one step of zeros, masked everywhere.

    Raises:
        ValueError: no encoder of the model has an entry.
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


class _FusionGraph(nn.Module):
    """A fusion with plain tensors as inputs: the features of every encoder, then their masks."""

    def __init__(self, model: RankAwareFusionModel):
        super().__init__()
        self.model = model
        self.names = list(model.config.encoders)

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """`_FUSION_OUTPUTS` of (B, T, D) features and (B, T) bool masks."""
        count = len(self.names)
        features = dict(zip(self.names, inputs[:count], strict=True))
        masks = dict(zip(self.names, inputs[count:], strict=True))
        output = self.model(features=features, feature_mask=masks)
        return tuple(output[name] for name in _FUSION_OUTPUTS)


class _TowerGraph(nn.Module):
    """The `image` or `text` side of a student."""

    def __init__(self, model: CLIPRDModel, side: str):
        super().__init__()
        self.model, self.side = model, side

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W), or (B, L) int64 tokens and mask -> (B, D) of length 1."""
        return functional.normalize(getattr(self.model, f"get_{self.side}_features")(*inputs), dim=-1)


def _fusion_program(model: RankAwareFusionModel) -> torch.export.ExportedProgram:
    """`torch.export` of a fusion in float32, for any number of clips of any length."""
    encoders = model.config.encoders.values()
    # Lengths of their own, so that the exporter takes none for another's or for the batch.
    features = [torch.zeros(3, 5 + place, options["feature_size"]) for place, options in enumerate(encoders)]
    masks = [torch.ones(values.shape[:2], dtype=torch.bool) for values in features]
    axes = tuple({0: Dim.DYNAMIC, 1: Dim.DYNAMIC} for _ in (*features, *masks))
    return exported_program(_FusionGraph(model).eval(), (*features, *masks), (axes,))


def _tower_programs(model: CLIPRDModel) -> dict[str, torch.export.ExportedProgram]:
    """`torch.export` of both towers of a student in float32, for any number of images, and of texts of any length."""
    config: Any = model.config
    size = getattr(config.vision_config, "image_size", 224)
    height, width = (size, size) if isinstance(size, int) else size
    pixels = torch.zeros(3, getattr(config.vision_config, "num_channels", 3), height, width)
    tokens = torch.full((3, 7), int(getattr(config.text_config, "eos_token_id", None) or 0))
    both = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
    # The plain formula: the exporter does not know the memory layout of a fused one's windows, as in Swin.
    towers: Any = (model.vision_model, model.text_model)
    for tower in towers:
        tower.set_attn_implementation("eager")
    image, text = (_TowerGraph(model, side).eval() for side in ("image", "text"))
    return {
        "image": exported_program(image, (pixels,), (({0: Dim.DYNAMIC},),)),
        "text": exported_program(text, (tokens, torch.ones_like(tokens)), ((both, both),)),
    }
