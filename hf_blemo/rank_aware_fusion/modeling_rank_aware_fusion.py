"""PyTorch model of rank-aware selective fusion."""

from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput, can_return_tuple

from .configuration_rank_aware_fusion import MODALITIES, RankAwareFusionConfig
from .domain_adaptation_rank_aware_fusion import RankAwareFusionDomainAdaptation
from .label_space_rank_aware_fusion import LabelSpace
from .pooling_rank_aware_fusion import RankAwareFusionPooling

IGNORED_LABEL = -100


def _label_percent(space: LabelSpace) -> torch.Tensor:
    """The valid labels, (L, C): integers stay exact where the model is cast to a lower precision."""
    return torch.tensor(space.percent)


@dataclass
class RankAwareFusionOutput(ModelOutput):
    """What [`RankAwareFusionModel`] returns; B samples, E encoders in the order of `config.encoders`,
    C names and L valid labels in the order of `config.label_space`.

    Args:
        loss: scalar, when `labels` were given.
        probabilities: (B, C), the fused probabilities of the names, summing to 1.
        presence_logits: (B, C).
        salience_logits: (B, C).
        joint_probabilities: (B, L), over the valid labels.
        encoder_weights: (B, E), the gate's softmax over the encoders that are present.
        selected_encoders: (B, top_n) int64, the fused encoders in rank order; -1 where fewer are present.
        fused_features: (B, H), input of the heads and the domain adaptation.
        domain_adaptation_loss: scalar, unweighted; zero without unlabelled rows or with `domain_adaptation="none"`.
    """

    loss: torch.Tensor | None = None
    probabilities: torch.Tensor | None = None
    presence_logits: torch.Tensor | None = None
    salience_logits: torch.Tensor | None = None
    joint_probabilities: torch.Tensor | None = None
    encoder_weights: torch.Tensor | None = None
    selected_encoders: torch.Tensor | None = None
    fused_features: torch.Tensor | None = None
    domain_adaptation_loss: torch.Tensor | None = None

    def __getitem__(self, key: Any) -> Any:
        # The smoothing of labels of transformers' Trainer looks for them.
        if key == "logits":
            raise ValueError(
                "a fusion has no logits of one class: leave label_smoothing_factor at 0; smoothed labels are soft "
                "labels (label_kind='soft')"
            )
        return super().__getitem__(key)


class _Projection(nn.Module):
    """Projects one pooled encoder into the shared latent space.

    Without a norm, here and in the fusion: the length of a latent shows how sure its encoder is, and a norm would hide
    that (measured on the real out-of-fold logits).
    """

    def __init__(self, input_size: int, config: RankAwareFusionConfig):
        super().__init__()
        self.linear = nn.Linear(input_size, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        pooled = pooled.to(self.linear.weight.dtype)
        return self.dropout(nn.functional.gelu(self.linear(pooled)))


class _Gate(nn.Module):
    """Scores the encoders of each sample; the scores order the encoders and their softmax weighs them.

    `attention` is a scaled dot product of one query per sample (a learned vector plus, with `gate_context`, a map of
    the sample's mean latent) with the encoders' keys and embeddings.
    """

    static_scores: torch.Tensor

    def __init__(self, config: RankAwareFusionConfig):
        super().__init__()
        self.kind = config.gate
        self.noise = float(config.gate_noise)
        num_encoders, size = len(config.encoders), config.hidden_size
        if self.kind == "static":
            self.register_buffer("static_scores", torch.zeros(num_encoders))
        if self.kind == "attention":
            self.query = nn.Parameter(torch.zeros(size))
            self.encoder_embedding = nn.Parameter(torch.zeros(num_encoders, size))
            # A bias would add the same to every encoder's score.
            self.key = nn.Linear(size, size, bias=False)
            self.context = nn.Linear(size, size) if config.gate_context else None

    def forward(self, latents: torch.Tensor, present: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights (B, E), zero for absent encoders; order (B, E) from the most to the least important, absent last."""
        if self.kind == "attention":
            keys = self.key(latents) + self.encoder_embedding
            query = self.query.expand(latents.shape[0], -1)
            if self.context is not None:
                count = present.sum(-1, keepdim=True).clamp_min(1)
                query = query + self.context((latents * present.unsqueeze(-1)).sum(1) / count)
            scores = (keys * query.unsqueeze(1)).sum(-1).float() / latents.shape[-1] ** 0.5
            if self.training and self.noise > 0:
                scores = scores + self.noise * torch.randn_like(scores)
        elif self.kind == "static":
            # Only ranks: the selected encoders have equal weights, as usual for a fixed selection.
            scores = self.static_scores.float().expand(latents.shape[0], -1)
        else:
            scores = present.float()
        lowest = torch.finfo(scores.dtype).min
        scores = scores.masked_fill(~present, lowest)
        order = scores.sort(dim=-1, descending=True, stable=True).indices
        if self.kind == "static":
            scores = torch.where(present, scores.new_zeros(()), scores)
        return scores.softmax(-1) * present, order


class _Fusion(nn.Module):
    """Joins the latents of the selected encoders into one vector.

    `rank_aware`: each rank scales the latent that stands there by a vector of its own and adds its embedding, then the
    weighted sum over the ranks is mapped on. Untrained ranks are alike, so the method starts as the weighted sum and
    training decides how far the order matters.
    """

    def __init__(self, config: RankAwareFusionConfig):
        super().__init__()
        self.kind = config.fusion
        self.num_encoders = len(config.encoders)
        size = config.hidden_size
        self.num_ranks = min(config.top_n, self.num_encoders)
        places = self.num_encoders if self.kind == "concatenation" else 1
        if self.kind == "rank_aware":
            self.rank_scale = nn.Parameter(torch.ones(self.num_ranks, size))
            self.rank_embedding = nn.Parameter(torch.zeros(self.num_ranks, size))
        self.linear = nn.Linear(places * size, size)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, latents: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """(..., R, H) latents in rank order, (..., R) encoder numbers and weights, 0 at unused ranks -> (..., H)."""
        if self.kind == "concatenation":
            # Relative weights, 1 where all are equal: the input's scale does not depend on how many are fused.
            relative = weights * (weights > 0).sum(-1, keepdim=True)
            placed = relative.unsqueeze(-1) * latents
            places = nn.functional.one_hot(indices, self.num_encoders).to(placed.dtype)
            joined = (places.mT @ placed).flatten(-2)
        else:
            if self.kind == "rank_aware":
                num_ranks = latents.shape[-2]
                latents = latents * self.rank_scale[:num_ranks] + self.rank_embedding[:num_ranks]
            joined = (weights.unsqueeze(-1) * latents).sum(-2)
        return self.dropout(nn.functional.gelu(self.linear(joined.to(self.linear.weight.dtype))))


class _Heads(nn.Module):
    """Presence and salience heads, their fusion as probabilities and the joint distribution over valid labels."""

    exponent_logit: torch.Tensor
    label_percent: torch.Tensor

    def __init__(self, config: RankAwareFusionConfig):
        super().__init__()
        self.kind = config.head_fusion
        self.presence_share = float(config.presence_share)
        space = config.label_space
        self.num_names, self.num_labels = len(space.names), len(space)
        # Any distribution over names that do not blend is one over the valid labels; with blends there is no such one.
        self.soft = config.label_kind == "soft" and self.num_labels == self.num_names
        self.presence = nn.Linear(config.hidden_size, self.num_names)
        self.salience = nn.Linear(config.hidden_size, self.num_names)
        self.initial_exponent = float(config.head_exponent)
        exponent = torch.tensor(0.0)
        if config.learn_head_exponent and self.kind == "geometric":
            self.exponent_logit = nn.Parameter(exponent)
        else:
            self.register_buffer("exponent_logit", exponent)
        self.joint_scale = nn.Parameter(torch.zeros(2))
        self.joint_bias = nn.Parameter(torch.zeros(self.num_labels))
        self.interaction = None
        if config.joint_interaction:
            self.interaction = nn.Linear(config.hidden_size, self.num_labels, bias=False)
        self.register_buffer("label_percent", _label_percent(space))

    def forward(self, fused: torch.Tensor) -> dict[str, torch.Tensor]:
        """Predicts from fused features (..., H), in float32.

        The energy of a label is the log-likelihood of its set under the presence head, minus the divergence of the
        label from the salience distribution.
        """
        presence = self.presence(fused).float()
        salience = self.salience(fused).float()
        log_present = nn.functional.logsigmoid(presence)
        log_absent = nn.functional.logsigmoid(-presence)
        log_salience = salience.log_softmax(-1)
        labels = self.label_percent.float() / 100
        sets = (labels > 0).float()
        energy = self.joint_bias.float().expand(*fused.shape[:-1], self.num_labels)
        presence_scale, salience_scale = self.joint_scale.float().exp()
        if self.kind != "salience":
            energy = energy + presence_scale * (log_present @ sets.T + log_absent @ (1 - sets).T)
        if self.kind != "presence":
            entropy = -torch.special.xlogy(labels, labels).sum(-1)
            energy = energy + salience_scale * (log_salience @ labels.T + entropy)
        if self.interaction is not None:
            energy = energy + self.interaction(fused).float()
        exponent = self.exponent_logit.float().sigmoid()
        mixed = {
            "geometric": lambda: exponent * log_present + (1 - exponent) * log_salience,
            "presence": lambda: log_present,
            "salience": lambda: log_salience,
        }[self.kind]()
        return {
            "presence_logits": presence,
            "salience_logits": salience,
            "log_probabilities": mixed.log_softmax(-1),
            "log_joint": energy.log_softmax(-1),
        }

    def losses(self, heads: dict[str, torch.Tensor], labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Unweighted, of each row: mean binary cross-entropy of the names, KL divergences of both distributions from
        the soft label, and the negative log-likelihood of the nearest valid label: its expectation under the soft
        label where `label_kind` is `soft` and nothing blends."""
        present = (labels > self.presence_share).float()
        entropy = torch.special.xlogy(labels, labels).sum(-1)
        nearest = (labels.unsqueeze(-2) - self.label_percent.float() / 100).abs().sum(-1).argmin(-1)
        joint = -(labels * heads["log_joint"]).sum(-1) if self.soft else _picked(heads["log_joint"], nearest)
        presence = nn.functional.binary_cross_entropy_with_logits(heads["presence_logits"], present, reduction="none")
        return {
            "presence": presence.mean(-1),
            "salience": entropy - (labels * heads["salience_logits"].log_softmax(-1)).sum(-1),
            "alignment": entropy - (labels * heads["log_probabilities"]).sum(-1),
            "joint": joint,
        }


def _picked(log_joint: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of labels (...) under (..., L)."""
    return -log_joint.gather(-1, labels.unsqueeze(-1)).squeeze(-1)


class RankAwareFusionPreTrainedModel(PreTrainedModel):
    """Weight initialisation and the flags of the family."""

    config_class = RankAwareFusionConfig
    config: RankAwareFusionConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = False
    _no_split_modules = ["_Projection", "_Fusion", "_Heads"]
    # forward takes no **kwargs; explicit because a loss normalised by the number of label elements would be wrong.
    accepts_loss_kwargs = False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, RankAwareFusionPooling):
            init.zeros_(module.feature_mean)
            init.ones_(module.feature_std)
        elif isinstance(module, _Gate):
            if module.kind == "static":
                init.zeros_(module.static_scores)
            if module.kind == "attention":
                init.normal_(module.query, std=self.config.initializer_range)
                init.normal_(module.encoder_embedding, std=self.config.initializer_range)
                # Near zero, so that the gate starts uniform and leaves that only where it pays.
                for linear in (module.key, module.context):
                    if linear is not None:
                        init.normal_(linear.weight, std=self.config.initializer_range)
        elif isinstance(module, _Fusion):
            if module.kind == "rank_aware":
                init.ones_(module.rank_scale)
                init.normal_(module.rank_embedding, std=self.config.initializer_range)
        elif isinstance(module, _Heads):
            init.constant_(module.exponent_logit, torch.tensor(module.initial_exponent).logit().item())
            init.zeros_(module.joint_scale)
            init.zeros_(module.joint_bias)
            init.copy_(module.label_percent, _label_percent(self.config.label_space))
            if module.interaction is not None:
                init.zeros_(module.interaction.weight)

    @staticmethod
    def _load_pretrained_model(
        model: Any, state_dict: Any, checkpoint_files: Any, load_config: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Fits a checkpoint to a config that was changed at load: ranks that both have keep their weights, further
        ranks start as copies of the last, and the labels are always the config's."""
        if state_dict is None and checkpoint_files and all(str(f).endswith(".safetensors") for f in checkpoint_files):
            state_dict = {name: values for file in checkpoint_files for name, values in load_file(file).items()}
        if state_dict is not None:
            state_dict, own = dict(state_dict), model.state_dict()
            for name in {"fusion.rank_scale", "fusion.rank_embedding"} & set(state_dict) & set(own):
                found, number = state_dict[name], len(own[name])
                state_dict[name] = torch.cat([found[:number], found[-1:].expand(max(0, number - len(found)), -1)])
            if "heads.label_percent" in state_dict:
                state_dict["heads.label_percent"] = _label_percent(model.config.label_space)
        return PreTrainedModel._load_pretrained_model(
            model, state_dict, checkpoint_files, load_config, *args, **kwargs
        )

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Saves weights, config and the code that loads them, and the pipeline, without this package.

        Args:
            save_directory: folder, created if missing.
            args, kwargs: as in transformers' `PreTrainedModel.save_pretrained`.
        """
        # Named here so that its file travels with this one.
        from .pipeline_rank_aware_fusion import TASK, BlendedEmotionRecognitionPipeline

        implementation = f"pipeline_rank_aware_fusion.{BlendedEmotionRecognitionPipeline.__name__}"
        earlier = getattr(self.config, "custom_pipelines", None)
        self.config.custom_pipelines = {TASK: {"impl": implementation, "pt": ["AutoModel"], "type": "multimodal"}}
        try:
            super().save_pretrained(save_directory, *args, **kwargs)
        finally:
            if earlier is None:
                del self.config.custom_pipelines
            else:
                self.config.custom_pipelines = earlier


class RankAwareFusionModel(RankAwareFusionPreTrainedModel):
    """Recognises blended emotions from the features of many encoders, fusing the top-n of each sample in rank order.

    Args:
        config: [`RankAwareFusionConfig`] with at least one encoder.

    Raises:
        ValueError: `config.encoders` is empty.

    Source: "Ordering Matters: Rank-Aware Selective Fusion for Blended Emotion Recognition", arXiv 2605.21417.
    """

    def __init__(self, config: RankAwareFusionConfig):
        super().__init__(config)
        # from_pretrained applies its keyword settings after the config was checked.
        config.validate()
        if not config.encoders:
            raise ValueError("config.encoders is empty: name at least one encoder with its feature_size")
        self.encoder_names = list(config.encoders)
        # By position, not by name: an encoder's name may hold characters that a module's name may not.
        self.poolings = nn.ModuleList(RankAwareFusionPooling(config.encoders[name]) for name in self.encoder_names)
        self.projections = nn.ModuleList(_Projection(config.pooled_size(name), config) for name in self.encoder_names)
        self.gate = _Gate(config)
        self.fusion = _Fusion(config)
        self.heads = _Heads(config)
        self.discriminators = RankAwareFusionDomainAdaptation(config)
        found = [options["modality"] for options in config.encoders.values()]
        modalities = list(dict.fromkeys((*MODALITIES, *found)))
        self.modality_indices = [modalities.index(modality) for modality in found]
        self.post_init()

    def train(self, mode: bool = True) -> Any:
        """Sets the mode; parts whose parameters are all frozen stay in evaluation mode, as for linear probing."""
        super().train(mode)
        for part in self.children():
            parameters = list(part.parameters())
            if parameters and not any(parameter.requires_grad for parameter in parameters):
                part.eval()
        return self

    def set_feature_statistics(self, name: str, mean: torch.Tensor, std: torch.Tensor) -> None:
        """Sets what encoder `name` is standardised with; fit it only on the training part.

        Args:
            name: an encoder of the config.
            mean, std: (P,), P the pooled width (`config.pooled_size(name)`); a deviation of zero becomes 1.
        """
        if name not in self.encoder_names:
            raise ValueError(f"unknown encoder {name!r}: this model has {', '.join(self.encoder_names)}")
        size = self.config.pooled_size(name)
        if mean.shape != (size,) or std.shape != (size,):
            raise ValueError(
                f"encoder {name!r}: expected statistics of shape ({size},), found {tuple(mean.shape)} and "
                f"{tuple(std.shape)}"
            )
        pooling = self.poolings[self.encoder_names.index(name)]
        assert isinstance(pooling, RankAwareFusionPooling)
        with torch.no_grad():
            pooling.feature_mean.copy_(mean)
            pooling.feature_std.copy_(torch.where(std > 1e-8, std, torch.ones_like(std)))

    def set_static_scores(self, scores: dict[str, float]) -> None:
        """Sets the ranking of `gate="static"`.

        Args:
            scores: encoder name -> validation score, the higher the more important.
        """
        if self.config.gate != "static":
            raise ValueError(f"static scores are used by gate='static', this model has gate={self.config.gate!r}")
        if set(scores) != set(self.encoder_names):
            raise ValueError(
                f"static scores of {', '.join(scores)}: expected one of each of {', '.join(self.encoder_names)}"
            )
        with torch.no_grad():
            self.gate.static_scores.copy_(torch.tensor([float(scores[name]) for name in self.encoder_names]))

    def _pooled(
        self, features: dict[str, torch.Tensor], feature_mask: dict[str, torch.Tensor] | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents (B, E, H) and presence (B, E); an encoder missing from the batch is absent in every sample."""
        for name in (*features, *(feature_mask or ())):
            if name not in self.encoder_names:
                raise ValueError(f"unknown encoder {name!r}: this model has {', '.join(self.encoder_names)}")
        if not features:
            raise ValueError(f"features is empty: expected some of {', '.join(self.encoder_names)}")
        batch_size = next(iter(features.values())).shape[0]
        latents, present = [], []
        for name, pooling, projection in zip(self.encoder_names, self.poolings, self.projections, strict=True):
            values = features.get(name)
            if values is None:
                # Projected like any other, since DDP needs every parameter in every step.
                values = torch.zeros(batch_size, self.config.pooled_size(name), device=self.device)
                mask = torch.zeros(batch_size, 1, dtype=torch.bool, device=self.device)
            else:
                feature_size, pooled_size = self.config.encoders[name]["feature_size"], self.config.pooled_size(name)
                size = pooled_size if values.dim() == 2 else feature_size
                if values.dim() not in (2, 3) or values.shape[0] != batch_size or values.shape[-1] != size:
                    raise ValueError(
                        f"encoder {name!r}: expected features of shape ({batch_size}, time, {feature_size}) or, "
                        f"pooled, ({batch_size}, {pooled_size}), found {tuple(values.shape)}"
                    )
                shape = (batch_size, values.shape[1] if values.dim() == 3 else 1)
                if feature_mask is not None and name in feature_mask:
                    mask = feature_mask[name].bool()
                else:
                    mask = torch.ones(shape, dtype=torch.bool, device=values.device)
                if mask.shape != shape:
                    raise ValueError(
                        f"encoder {name!r}: feature_mask has shape {tuple(mask.shape)}, expected {tuple(shape)}"
                    )
            latents.append(projection(pooling(values, mask)))
            present.append(mask.any(1))
        return torch.stack(latents, 1), torch.stack(present, 1)

    def _drop_encoders(self, present: torch.Tensor) -> torch.Tensor:
        """Hides encoders at random in training; a sample that would lose all encoders keeps them."""
        for rate, columns in (
            (self.config.encoder_dropout, list(range(len(self.encoder_names)))),
            (self.config.modality_dropout, self.modality_indices),
        ):
            if rate > 0:
                draws = torch.rand(present.shape[0], max(columns) + 1, device=present.device)
                kept = present & (draws >= rate)[:, columns]
                present = torch.where(kept.any(-1, keepdim=True), kept, present)
        return present

    def _encoder_losses(self, latents: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Joint loss of each encoder alone at the first rank, (B, E), as if all others were absent."""
        batch_size, num_encoders, _ = latents.shape
        indices = torch.arange(num_encoders, device=latents.device).view(1, -1, 1).expand(batch_size, -1, -1)
        weights = latents.new_ones(batch_size, num_encoders, 1)
        fused = self.fusion(latents.unsqueeze(2), indices, weights)
        return self.heads.losses(self.heads(fused), labels.unsqueeze(1).expand(-1, num_encoders, -1))["joint"]

    def _loss(
        self,
        heads: dict[str, torch.Tensor],
        latents: torch.Tensor,
        present: torch.Tensor,
        weights: torch.Tensor,
        fused: torch.Tensor,
        labels: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Weighted sum of all losses, and the unweighted domain adaptation loss."""
        config = self.config
        labels = labels.float()
        labelled = ~(labels == IGNORED_LABEL).all(-1)
        rows = labelled.float() / labelled.sum().clamp_min(1)
        labels = torch.where(labelled.unsqueeze(-1), labels, self.heads.label_percent.float()[0] / 100)
        terms = self.heads.losses(heads, labels)
        loss = sum(getattr(config, f"{name}_loss_weight") * (rows * term).sum() for name, term in terms.items())
        if config.gate == "attention" and config.gate_balance_weight > 0 and len(self.encoder_names) > 1:
            # Only over labelled rows, like every other term; an encoder that they all lack cannot be balanced.
            count = (present & labelled.unsqueeze(-1)).sum(0)
            share = (weights * labelled.unsqueeze(-1)).sum(0) / count.clamp_min(1)
            seen = (count > 0).float() / (count > 0).sum().clamp_min(1)
            mean = (seen * share).sum()
            balance = (seen * (share - mean).square()).sum() / mean.square().clamp_min(1e-12)
            loss = loss + config.gate_balance_weight * balance
        if config.encoder_loss_weight > 0:
            alone = self._encoder_losses(latents, labels)
            usable = present.float() / present.sum(-1, keepdim=True).clamp_min(1)
            loss = loss + config.encoder_loss_weight * (rows.unsqueeze(-1) * usable * alone).sum()
            if config.gate_loss_weight > 0 and config.gate == "attention":
                lowest = torch.finfo(alone.dtype).min
                target = (-alone.detach()).masked_fill(~present, lowest).softmax(-1) * present
                divergence = torch.special.xlogy(target, target) - target * weights.clamp_min(1e-12).log()
                loss = loss + config.gate_loss_weight * (rows * divergence.sum(-1)).sum()
        adaptation = self.discriminators(fused, latents, present, labelled)
        return loss + config.domain_adaptation_weight * adaptation, adaptation

    @can_return_tuple
    def forward(
        self,
        features: dict[str, torch.Tensor],
        feature_mask: dict[str, torch.Tensor] | None = None,
        labels: torch.Tensor | None = None,
    ) -> RankAwareFusionOutput:
        """Predicts the blends of a batch.

        Args:
            features: encoder name -> (B, T, D) steps of that encoder, padded, or (B, P) already pooled vectors.
                Encoders may be missing.
            feature_mask: encoder name -> (B, T) bool, true at valid steps ((B, 1) for pooled vectors); a row without
                one marks the encoder as absent in that sample. Without an entry all steps are valid.
            labels: (B, C) soft labels; a row of -100 is unlabelled and takes part in domain adaptation only.

        Returns:
            [`RankAwareFusionOutput`].

        Raises:
            ValueError: an encoder the config does not name, or features of another shape than the config's.
        """
        latents, present = self._pooled(features, feature_mask)
        if self.training:
            present = self._drop_encoders(present)
        weights, order = self.gate(latents, present)
        num_ranks = self.fusion.num_ranks
        selected = order[:, :num_ranks]
        used = present.gather(1, selected)
        selected_weights = weights.gather(1, selected) * used
        selected_weights = selected_weights / selected_weights.sum(-1, keepdim=True).clamp_min(1e-12)
        chosen = latents.gather(1, selected.unsqueeze(-1).expand(-1, -1, latents.shape[-1]))
        fused = self.fusion(chosen, selected, selected_weights)
        heads = self.heads(fused)
        loss = adaptation = None
        if labels is not None:
            loss, adaptation = self._loss(heads, latents, present, weights, fused, labels)
        missing = selected.new_full((selected.shape[0], self.config.top_n - num_ranks), -1)
        return RankAwareFusionOutput(
            loss=loss,
            probabilities=heads["log_probabilities"].exp(),
            presence_logits=heads["presence_logits"],
            salience_logits=heads["salience_logits"],
            joint_probabilities=heads["log_joint"].exp(),
            encoder_weights=weights,
            selected_encoders=torch.cat([torch.where(used, selected, -1), missing], -1),
            fused_features=fused,
            domain_adaptation_loss=adaptation,
        )


RankAwareFusionModel.register_for_auto_class("AutoModel")
