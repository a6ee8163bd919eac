"""A student cut out of its teacher: some of its layers, and of these the most important heads and channels."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from hf_blemo.clip_rd.configuration_clip_rd import CLIPRDConfig
from hf_blemo.clip_rd.modeling_clip_rd import CLIPRDModel
from hf_blemo.errors import check_known

SIZES = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
_TOWERS = {"vision": "clip_vision_model", "text": "clip_text_model"}
PROJECTIONS = {"vision": "visual_projection", "text": "text_projection"}


class _Importance:
    """How much each channel, head dimension and neuron of a tower matters.

    Args:
        tower: of CLIP's shape.
        activations: mean absolute output of each module in `_watched`, by its name; none ranks by weights alone.
    """

    def __init__(self, tower: Any, activations: Mapping[str, torch.Tensor]):
        self.tower, self.activations = tower, activations

    def channels(self) -> torch.Tensor:
        """Of the residual stream, (width,)."""
        found = [values for name, values in self.activations.items() if name.endswith(("out_proj", "fc2"))]
        if not found:
            found = [
                writer.weight.norm(dim=1)
                for layer in self.tower.encoder.layers
                for writer in (layer.self_attn.out_proj, layer.mlp.fc2)
            ]
        # Layers whose outputs are large do not drown the others.
        return torch.stack([values / values.mean() for values in found]).mean(0)

    def attention(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the dimensions of queries with keys and of values with outputs, (heads, head_dim) each."""
        attention = self.tower.encoder.layers[number].self_attn
        query, key, value = (
            self._of(f"encoder.layers.{number}.self_attn.{name}_proj", getattr(attention, f"{name}_proj"))
            for name in "qkv"
        )
        out = attention.out_proj.weight.norm(dim=0)
        return tuple(product.view(attention.num_heads, -1) for product in (query * key, value * out))  # type: ignore

    def neurons(self, number: int) -> torch.Tensor:
        """Of the hidden layer of the feed-forward part, (intermediate_size,)."""
        mlp = self.tower.encoder.layers[number].mlp
        return self._of(f"encoder.layers.{number}.mlp.activation_fn", mlp.fc1) * mlp.fc2.weight.norm(dim=0)

    def _of(self, name: str, layer: nn.Linear) -> torch.Tensor:
        return self.activations[name] if name in self.activations else layer.weight.norm(dim=1)


def inherit(
    teacher: Any, config: Mapping[str, Any], batches: Iterable[Mapping[str, torch.Tensor]] | None = None
) -> tuple[CLIPRDModel, dict[str, Any]]:
    """Cuts a student out of a teacher.

    Layers are evenly spaced, the first and the last among them. Of each, the heads, the dimensions within heads and
    the neurons that matter most are kept, and of the whole tower the channels, which embeddings, norms and projections
    follow.

    Args:
        teacher: an image-text model of CLIP's own shape, such as `CLIPModel`.
        config: `vision_config` and `text_config`, each with those of `SIZES` that are smaller than the teacher's.
        batches: inputs of the teacher; importance is then the mean absolute activation over them, else the norm of
            weights.

    Returns:
        The student, and what it inherited: side -> `layers` (numbers, from 0), and for each other size kept and whole.

    Source: the idea of TinyCLIP (arXiv 2309.12314), manual and automatic inheritance; the scores are ours.
    """
    check_known("student_config", config, ("vision_config", "text_config"))
    towers: dict[str, Any] = {side: getattr(teacher, f"{side}_model", None) for side in _TOWERS}
    configs: dict[str, Any] = {}
    for side, kind in _TOWERS.items():
        found = getattr(getattr(towers[side], "config", None), "model_type", type(towers[side]).__name__)
        if found != kind:
            raise ValueError(
                f"student 'inherit': expected a teacher with a {side} tower of CLIP's shape, found {found}"
            )
        configs[side] = _smaller(side, towers[side].config, dict(config.get(f"{side}_config") or {}))
    width = len(getattr(teacher, PROJECTIONS["text"]).weight)
    student = CLIPRDModel(
        CLIPRDConfig(vision_config=configs["vision"], text_config=configs["text"], projection_dim=width)
    )
    activations = _activations(towers, teacher, batches) if batches is not None else {side: {} for side in towers}
    inherited = {}
    with torch.no_grad():
        student.logit_scale.copy_(teacher.logit_scale)
        for side, tower in towers.items():
            own = getattr(student, f"{side}_model")
            channels, inherited[side] = _cut(own, tower, _Importance(tower, activations[side]))
            projection = PROJECTIONS[side]
            getattr(student, projection).weight.copy_(getattr(teacher, projection).weight[:, channels])
    return student, inherited


def _smaller(side: str, config: Any, sizes: dict[str, Any]) -> dict[str, Any]:
    check_known(f"student_config.{side}_config", sizes, SIZES)
    for name, size in sizes.items():
        whole = getattr(config, name)
        if not isinstance(size, int) or not 1 <= size <= whole:
            raise ValueError(
                f"student_config.{side}_config.{name}: expected a whole number from 1 to the teacher's {whole}, "
                f"found {size!r}"
            )
    made = {**config.to_dict(), **sizes}
    if made["hidden_size"] % made["num_attention_heads"]:
        raise ValueError(
            f"student_config.{side}_config: hidden_size {made['hidden_size']} is not a multiple of "
            f"num_attention_heads {made['num_attention_heads']}"
        )
    head, whole = (sizes_["hidden_size"] // sizes_["num_attention_heads"] for sizes_ in (made, config.to_dict()))
    if head > whole:
        raise ValueError(
            f"student_config.{side}_config: heads of {head} dimensions (hidden_size / num_attention_heads), the "
            f"teacher's have {whole}: take more heads"
        )
    return made


def _cut(own: Any, tower: Any, importance: _Importance) -> tuple[torch.Tensor, dict[str, Any]]:
    """Fills a smaller tower; returns the channels it keeps, and what it inherited."""
    config = own.config
    channels = _best(importance.channels(), config.hidden_size)
    for name, parameter in own.named_parameters():
        if ".layers." not in name:
            source = tower.get_parameter(name)
            # A patch embedding has its channels first, all others last.
            parameter.copy_(source[channels] if source.dim() == 4 else source[..., channels])
    numbers = torch.linspace(0, len(tower.encoder.layers) - 1, config.num_hidden_layers).round().int().tolist()
    heads, head = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    for layer, number in zip(own.encoder.layers, numbers, strict=True):
        source = tower.encoder.layers[number]
        matching, mixing = importance.attention(number)
        kept = _best((matching.sum(1) / matching.sum()) + (mixing.sum(1) / mixing.sum()), heads)
        whole = matching.shape[1]
        rows = [
            torch.cat([index * whole + _best(scores[index], head) for index in kept.tolist()])
            for scores in (matching, mixing)
        ]
        neurons = _best(importance.neurons(number), config.intermediate_size)
        # Attention divides by the root of the head's dimensions.
        factors = {"q": (head / whole) ** 0.5}
        for name, index in (("q", rows[0]), ("k", rows[0]), ("v", rows[1])):
            _copy(layer.self_attn, source.self_attn, f"{name}_proj", index, channels, factors.get(name, 1.0))
        _copy(layer.self_attn, source.self_attn, "out_proj", channels, rows[1])
        _copy(layer.mlp, source.mlp, "fc1", neurons, channels)
        _copy(layer.mlp, source.mlp, "fc2", channels, neurons)
        for name in ("layer_norm1", "layer_norm2"):
            for part in ("weight", "bias"):
                getattr(getattr(layer, name), part).copy_(getattr(getattr(source, name), part)[channels])
    return channels, {
        "layers": numbers,
        **{name: [getattr(config, name), getattr(tower.config, name)] for name in SIZES[1:]},
    }


def _copy(own: Any, source: Any, name: str, rows: torch.Tensor, columns: torch.Tensor, factor: float = 1.0) -> None:
    mine, theirs = getattr(own, name), getattr(source, name)
    mine.weight.copy_(theirs.weight[rows][:, columns] * factor)
    mine.bias.copy_(theirs.bias[rows] * factor)


def _best(scores: torch.Tensor, count: int) -> torch.Tensor:
    """The places of the highest scores, in their own order; the first of equal ones."""
    return scores.sort(descending=True, stable=True).indices[:count].sort().values


@torch.no_grad()
def _activations(
    towers: Mapping[str, Any], teacher: Any, batches: Iterable[Mapping[str, torch.Tensor]]
) -> dict[str, dict[str, torch.Tensor]]:
    """Mean absolute outputs of the modules that scores read: side -> name of the module -> (width,)."""
    sums: dict[str, dict[str, torch.Tensor]] = {side: {} for side in towers}

    def watch(side: str, name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: torch.Tensor) -> None:
            sums[side][name] = sums[side].get(name, 0) + output.abs().flatten(0, -2).mean(0)

        return hook

    ends = ("q_proj", "k_proj", "v_proj", "out_proj", "activation_fn", "fc2")
    hooks = [
        module.register_forward_hook(watch(side, name))
        for side, tower in towers.items()
        for name, module in tower.named_modules()
        if ".layers." in name and name.endswith(ends)
    ]
    try:
        for batch in batches:
            teacher.get_image_features(pixel_values=batch["pixel_values"])
            teacher.get_text_features(input_ids=batch["input_ids"], attention_mask=batch.get("attention_mask"))
    finally:
        for hook in hooks:
            hook.remove()
    return sums
