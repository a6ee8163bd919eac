"""Adding an encoder to a trained fusion: only its projection is trained."""

import copy
from typing import Any

import torch

from hf_blemo.rank_aware_fusion.configuration_rank_aware_fusion import RankAwareFusionConfig
from hf_blemo.rank_aware_fusion.modeling_rank_aware_fusion import RankAwareFusionModel
from hf_blemo.rank_aware_fusion.processing_rank_aware_fusion import RankAwareFusionProcessor

# An encoder that is not selected yet gets no gradient from the fusion: its projection learns from the encoder's own
# loss, and the gate's loss then raises the encoder's weight where it is good.
_LOSS_WEIGHTS = {"encoder_loss_weight": 0.1, "gate_loss_weight": 0.1}


def add_encoder(
    model: RankAwareFusionModel,
    processor: RankAwareFusionProcessor,
    name: str,
    options: dict[str, Any],
    **settings: Any,
) -> tuple[RankAwareFusionModel, RankAwareFusionProcessor]:
    """Add an encoder to a trained fusion and leave only the new encoder's own parts to train.

    On clips without the new encoder the predictions stay the same (nearly so where the gate reads the experts, whose
    words count by the number of encoders). The new encoder starts with a random projection, an expert that says
    nothing, the mean of the other encoders' embeddings in the gate, the mean of their columns in a concatenation, and
    the last place in a static ranking. A fusion that uses all its encoders still uses all. Save, load and publish the
    result like any other model.

    Args:
        model: of any gate and fusion; not changed.
        processor: of the model; not changed.
        name: of the new encoder.
        options: an entry of `config.encoders`: `feature_size`, `modality`, `pooling`, ...
        settings: changes of the config; `encoder_loss_weight` and `gate_loss_weight` become 0.1 where they are 0,
            because an encoder that is not selected learns only from these losses.

    Returns:
        Model and processor, the new encoder last. Only the new projection, its expert and the weights of its pooling
        require gradients. Fit its standardisation by `fit_feature_statistics(..., encoders=[name])`.

    Raises:
        ValueError: the name exists, or the options or settings are not valid.
    """
    if name in model.config.encoders:
        raise ValueError(f"encoder {name!r} exists already among {', '.join(model.config.encoders)}")
    grown = RankAwareFusionModel(_grown_config(model.config, name, options, settings))
    old = model.state_dict()
    new = grown.state_dict()
    number = len(model.config.encoders)
    with torch.no_grad():
        for key, values in new.items():
            if key in old:
                values.copy_(_grown(key, old[key], values, number))
    module: torch.nn.Module = grown
    module.to(dtype=model.dtype, device=model.device)
    grown.requires_grad_(False)
    grown.projections[number].requires_grad_(True)
    grown.poolings[number].requires_grad_(True)
    if grown.experts is not None:
        grown.experts.matrices[number].requires_grad_(True)
    more = copy.deepcopy(processor)
    more.encoders = dict(grown.config.encoders)
    more.encoder_order = list(grown.config.encoders)
    return grown.train(model.training), more


def _grown_config(
    config: RankAwareFusionConfig, name: str, options: dict[str, Any], settings: dict[str, Any]
) -> RankAwareFusionConfig:
    known = {key: value for key, value in config.to_dict().items() if key in type(config).__annotations__}
    number = len(config.encoders)
    raised = {key: value for key, value in _LOSS_WEIGHTS.items() if not known[key]}
    return RankAwareFusionConfig(
        **{
            **known,
            **raised,
            "id2label": config.id2label,
            "encoders": {**config.encoders, name: options},
            "encoder_order": [*config.encoders, name],
            "top_n": number + 1 if config.top_n >= number and config.gate == "uniform" else config.top_n,
            **settings,
        }
    )


def _grown(key: str, old: torch.Tensor, new: torch.Tensor, number: int) -> torch.Tensor:
    """Gives a tensor of the old model its shape in the new one."""
    if old.shape == new.shape:
        return old
    if key == "gate.static_scores":
        return torch.cat([old, old.min(0, keepdim=True).values - 1])
    if key in ("gate.encoder_embedding", "gate.reading"):
        return torch.cat([old, old.mean(0, keepdim=True)])
    if key == "fusion.linear.weight":
        # (H, E * H): the encoders side by side.
        return torch.cat([old, old.unflatten(1, (number, -1)).mean(1)], 1)
    # One more rank, where there were fewer encoders than ranks.
    return torch.cat([old, old[-1:].expand(len(new) - len(old), *old.shape[1:])])
