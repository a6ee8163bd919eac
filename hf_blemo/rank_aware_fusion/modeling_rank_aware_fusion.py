"""PyTorch model of rank-aware selective fusion."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput, can_return_tuple

from .checked_weights_rank_aware_fusion import CheckedWeights
from .configuration_rank_aware_fusion import MODALITIES, RankAwareFusionConfig, label_names
from .domain_adaptation_rank_aware_fusion import RankAwareFusionDomainAdaptation
from .gate_rank_aware_fusion import RankAwareFusionExperts, RankAwareFusionGate, RankAwareFusionProjection
from .heads_rank_aware_fusion import RankAwareFusionHeads, RankAwareFusionJoin
from .label_space_rank_aware_fusion import EMOTIONS
from .novelty_rank_aware_fusion import RankAwareFusionNovelty
from .pooling_rank_aware_fusion import RankAwareFusionPooling

IGNORED_LABEL = -100
# Weights that belong to the names of the labels.
_OF_NAMES = ("experts.", "heads.presence.", "heads.salience.", "heads.joint_bias", "heads.interaction.")


def _names_of(checkpoint_files: Any) -> list[str]:
    """Names of the labels of the config beside a checkpoint's files; none where there is no such config."""
    config = Path(checkpoint_files[0]).with_name("config.json") if checkpoint_files else None
    if config is None or not config.is_file():
        return []
    entries = json.loads(config.read_text(encoding="utf-8"))
    is_own = entries.get("model_type") == RankAwareFusionConfig.model_type
    return label_names(entries.get("id2label") or dict(enumerate(EMOTIONS))) if is_own else []


def _changes_names(checkpoint_files: Any, config: RankAwareFusionConfig, may_change: bool) -> bool:
    """Whether number or order of the names differ from the checkpoint's; a RuntimeError where they may not."""
    found, given = _names_of(checkpoint_files), config.label_space.names
    changes = bool(found) and (
        len(found) != len(given) or any(n in found and found.index(n) != p for p, n in enumerate(given))
    )
    if changes and not may_change:
        raise RuntimeError(
            f"found the {len(given)} names {', '.join(given)} in the config, but the checkpoint has the "
            f"{len(found)} names {', '.join(found)}, expected its number and order; ignore_mismatched_sizes=True "
            "starts the heads anew"
        )
    return changes


def _fitted(state_dict: dict[str, torch.Tensor], model: Any) -> dict[str, torch.Tensor]:
    """A checkpoint's weights without those that start anew: ranks that both have keep theirs, further ranks are copies
    of the last, and the labels are the config's."""
    fitted = {name: values for name, values in state_dict.items() if not name.startswith(model._started_anew)}
    for name, own in model.state_dict().items():
        if name.startswith("fusion.rank_") and name in fitted:
            ranks = fitted[name]
            further = ranks[-1:].expand(max(0, len(own) - len(ranks)), *ranks.shape[1:])
            fitted[name] = torch.cat([ranks[: len(own)], further])
    if "heads.label_percent" in fitted:
        fitted["heads.label_percent"] = torch.tensor(model.config.label_space.percent)
    return fitted


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
        novelty: (B, E), outside training and where the model knows: how far a sample lies from the training clips by
            each encoder; above 1 it is unlike them, 0 for encoders that are absent or know nothing.
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
    novelty: torch.Tensor | None = None

    def __getitem__(self, key: Any) -> Any:
        # The smoothing of labels of transformers' Trainer looks for them.
        if key == "logits":
            raise ValueError(
                "a fusion has no logits of one class: leave label_smoothing_factor at 0; smoothed labels are soft "
                "labels (label_kind='soft')"
            )
        return super().__getitem__(key)


class RankAwareFusionPreTrainedModel(CheckedWeights):
    """Weight initialisation and the flags of the family."""

    config_class = RankAwareFusionConfig
    config: RankAwareFusionConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = False
    _no_split_modules = ["RankAwareFusionProjection", "RankAwareFusionJoin", "RankAwareFusionHeads"]
    # Trainer then counts the labels of a whole step, over its batches and processes.
    accepts_loss_kwargs = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, RankAwareFusionPooling):
            init.zeros_(module.feature_mean)
            init.ones_(module.feature_std)
            if module.weighted:
                init.ones_(module.feature_relevance)
        elif isinstance(module, RankAwareFusionNovelty):
            for name, values in module.named_buffers():
                (init.ones_ if name in ("floor", "scale") else init.zeros_)(values)
        elif isinstance(module, RankAwareFusionExperts):
            for values in module.parameters():
                init.zeros_(values)
        elif isinstance(module, RankAwareFusionGate):
            if module.kind == "static":
                init.zeros_(module.static_scores)
            if module.kind == "attention":
                init.normal_(module.query, std=self.config.initializer_range)
                init.normal_(module.encoder_embedding, std=self.config.initializer_range)
                if module.reading is not None:
                    init.xavier_uniform_(module.reading)
                # Near zero, so that the gate starts uniform and leaves that only where it pays.
                for linear in (module.key, module.context):
                    if linear is not None:
                        init.normal_(linear.weight, std=self.config.initializer_range)
        elif isinstance(module, RankAwareFusionJoin) and module.kind == "rank_aware":
            init.ones_(module.rank_scale)
            init.normal_(module.rank_embedding, std=self.config.initializer_range)
            if hasattr(module, "rank_weight"):
                init.ones_(module.rank_weight)
        elif isinstance(module, RankAwareFusionHeads):
            init.constant_(module.exponent_logit, torch.tensor(module.initial_exponent).logit().item())
            if module.blends:
                init.zeros_(module.joint_scale)
                init.zeros_(module.joint_bias)
            init.copy_(module.label_percent, torch.tensor(self.config.label_space.percent))
            if module.interaction is not None:
                init.zeros_(module.interaction.weight)

    @staticmethod
    def _load_pretrained_model(
        model: Any, state_dict: Any, checkpoint_files: Any, load_config: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Fits a checkpoint to a config that was changed at load.

        A name may be exchanged for another; other numbers or places of names need `ignore_mismatched_sizes`, with
        which what depends on them starts anew."""
        changes = _changes_names(checkpoint_files, model.config, load_config.ignore_mismatched_sizes)
        if state_dict is None and checkpoint_files and all(str(f).endswith(".safetensors") for f in checkpoint_files):
            state_dict = {name: values for file in checkpoint_files for name, values in load_file(file).items()}
        if state_dict is not None:
            model._started_anew = _OF_NAMES if changes else ()
            state_dict = _fitted(state_dict, model)
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
        config: Any = self.config
        earlier = vars(config).get("custom_pipelines")
        config.custom_pipelines = {TASK: {"impl": implementation, "pt": ["AutoModel"], "type": "multimodal"}}
        try:
            super().save_pretrained(save_directory, *args, **kwargs)
        finally:
            if earlier is None:
                del config.custom_pipelines
            else:
                config.custom_pipelines = earlier


class RankAwareFusionModel(RankAwareFusionPreTrainedModel):
    """Predicts labels from the features of many encoders, fusing the top-n of each sample in rank order.

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
        weighted = config.feature_weighting == "relevance"
        self.poolings = nn.ModuleList(
            RankAwareFusionPooling(config.encoders[name], config.squash, weighted) for name in self.encoder_names
        )
        self.input_dropout = nn.Dropout(config.input_dropout)
        self.projections = nn.ModuleList(RankAwareFusionProjection(name, config) for name in self.encoder_names)
        self.experts = RankAwareFusionExperts(config) if config.experts else None
        self.gate = RankAwareFusionGate(config)
        self.fusion = RankAwareFusionJoin(config)
        self.heads = RankAwareFusionHeads(config)
        self.discriminators = RankAwareFusionDomainAdaptation(config)
        self.novelty: nn.ModuleList | None = None
        if config.novelty_directions:
            self._make_novelty()
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

    def set_feature_statistics(
        self, name: str, mean: torch.Tensor, std: torch.Tensor, relevance: torch.Tensor | None = None
    ) -> None:
        """Sets what encoder `name` is standardised and weighted with; fit it only on the training part.

        Args:
            name: an encoder of the config.
            mean, std: (P,), P the pooled width (`config.pooled_size(name)`); a deviation of zero becomes 1.
            relevance: (P,), of each standardised and squashed feature, for `feature_weighting="relevance"`: its
                correlation ratio with the labels, the root of the variance of its means per name over its variance.
        """
        if name not in self.encoder_names:
            raise ValueError(f"unknown encoder {name!r}: this model has {', '.join(self.encoder_names)}")
        size = self.config.pooled_size(name)
        for kind, values in {"a mean": mean, "a deviation": std, "relevance": relevance}.items():
            if values is not None and values.shape != (size,):
                raise ValueError(f"encoder {name!r}: expected {kind} of shape ({size},), found {tuple(values.shape)}")
        pooling = cast(RankAwareFusionPooling, self.poolings[self.encoder_names.index(name)])
        with torch.no_grad():
            pooling.feature_mean.copy_(mean)
            pooling.feature_std.copy_(torch.where(std > 1e-8, std, torch.ones_like(std)))
            if pooling.weighted and relevance is not None:
                pooling.feature_relevance.copy_(relevance)

    def _make_novelty(self) -> None:
        sizes = [options["feature_size"] for options in self.config.encoders.values()]
        count = self.config.novelty_directions
        self.novelty = nn.ModuleList(RankAwareFusionNovelty(size, count) for size in sizes).to(self.device)

    def set_novelty(self, name: str, novelty: RankAwareFusionNovelty) -> None:
        """Sets by what the model knows clips that are unlike those it was trained on; it is saved with the model.

        Args:
            name: an encoder of the config.
            novelty: of this encoder, with as many directions as those of the others.
        """
        if name not in self.encoder_names:
            raise ValueError(f"unknown encoder {name!r}: this model has {', '.join(self.encoder_names)}")
        if self.novelty is None:
            self.config.novelty_directions = novelty.num_directions
            self._make_novelty()
        own = cast(nn.ModuleList, self.novelty)[self.encoder_names.index(name)]
        for key, values in own.named_buffers():
            given = novelty.get_buffer(key)
            if given.shape != values.shape:
                raise ValueError(
                    f"encoder {name!r}: expected {key} of shape {tuple(values.shape)}, found {tuple(given.shape)}"
                )
            values.copy_(given)

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
    ) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor | None]:
        """Features of each encoder (B, P), standardised; presence and novelty (B, E). One that the batch lacks is
        absent."""
        for name in (*features, *(feature_mask or ())):
            if name not in self.encoder_names:
                raise ValueError(f"unknown encoder {name!r}: this model has {', '.join(self.encoder_names)}")
        if not features:
            raise ValueError(f"features is empty: expected some of {', '.join(self.encoder_names)}")
        batch_size = next(iter(features.values())).shape[0]
        pooled, present = [], []
        novelty: list[torch.Tensor] = []
        for name, pooling in zip(self.encoder_names, self.poolings, strict=True):
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
                given = (feature_mask or {}).get(name)
                mask = values.new_ones(shape, dtype=torch.bool) if given is None else given.bool()
                if mask.shape != shape:
                    raise ValueError(
                        f"encoder {name!r}: feature_mask has shape {tuple(mask.shape)}, expected {tuple(shape)}"
                    )
            pooled.append(self.input_dropout(pooling(values, mask)))
            present.append(mask.any(1))
            if self.novelty is not None and not self.training:
                measure, found = self.novelty[len(novelty)], cast(RankAwareFusionPooling, pooling)
                novelty.append(measure(*found.moments(values, mask)) * present[-1])
        return pooled, torch.stack(present, 1), torch.stack(novelty, 1) if novelty else None

    def _log_prior(self) -> torch.Tensor | None:
        """Logarithm of the weights that the gate starts from, (E,); None where they are equal."""
        if self.config.gate_prior == "uniform":
            return None
        return torch.stack([cast(RankAwareFusionPooling, pooling).relevance for pooling in self.poolings]).log()

    def _drop_encoders(self, present: torch.Tensor) -> torch.Tensor:
        """Hides encoders at random in training; a sample that would lose all encoders keeps them."""
        columns_of = {"encoder": list(range(len(self.encoder_names))), "modality": self.modality_indices}
        for kind, columns in columns_of.items():
            if (rate := getattr(self.config, f"{kind}_dropout")) > 0:
                draws = torch.rand(present.shape[0], max(columns) + 1, device=present.device)
                kept = present & (draws >= rate)[:, columns]
                present = torch.where(kept.any(-1, keepdim=True), kept, present)
        return present

    def _predicted(
        self, latents: torch.Tensor, said: torch.Tensor | None, indices: torch.Tensor, weights: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Fused features (..., H) and what the heads make of them and of the experts; all given in rank order."""
        fused = self.fusion(latents, indices, weights)
        if said is None or self.experts is None:
            return fused, self.heads(fused)
        return fused, self.heads(fused, self.fusion.join(said, weights) + self.experts.scale * self.experts.bias)

    def _encoder_losses(self, latents: torch.Tensor, said: torch.Tensor | None, labels: torch.Tensor) -> torch.Tensor:
        """Joint loss of each encoder alone at the first rank, (B, E), as if all others were absent."""
        batch_size, num_encoders, _ = latents.shape
        indices = torch.arange(num_encoders, device=latents.device).view(1, -1, 1).expand(batch_size, -1, -1)
        weights = latents.new_ones(batch_size, num_encoders, 1)
        said = None if said is None else said.unsqueeze(2)
        _, heads = self._predicted(latents.unsqueeze(2), said, indices, weights)
        return self.heads.losses(heads, labels.unsqueeze(1).expand(-1, num_encoders, -1))["joint"]

    def _loss(
        self,
        heads: dict[str, torch.Tensor],
        latents: torch.Tensor,
        said: torch.Tensor | None,
        present: torch.Tensor,
        weights: torch.Tensor,
        fused: torch.Tensor,
        labels: torch.Tensor,
        num_items: Any = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Weighted sum of all losses, and the unweighted domain adaptation loss."""
        config = self.config
        labels = labels.float()
        labelled = ~(labels == IGNORED_LABEL).all(-1)
        evaluates = num_items is not None and not self.training
        whole: Any = labelled.sum().clamp_min(1)
        part: Any = 1.0
        if evaluates:
            # Trainer multiplies by the number of processes, and takes the mean over all rows of an evaluation.
            processes = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
            whole, part = len(labels) * processes, 1 / processes
        elif num_items is not None:
            whole = (torch.as_tensor(num_items, device=labels.device) / labels.shape[-1]).clamp_min(1)
            part = labelled.sum() / whole
        rows = labelled.float() / whole
        labels = torch.where(labelled.unsqueeze(-1), labels, self.heads.label_percent.float()[0] / 100)
        terms = self.heads.losses(heads, labels)
        loss = sum(getattr(config, f"{name}_loss_weight") * (rows * term).sum() for name, term in terms.items())
        attends = config.gate == "attention"
        if attends and config.gate_balance_weight > 0 and len(self.encoder_names) > 1 and not evaluates:
            # Only over labelled rows, like every other term; an encoder that they all lack cannot be balanced.
            count = (present & labelled.unsqueeze(-1)).sum(0)
            share = (weights * labelled.unsqueeze(-1)).sum(0) / count.clamp_min(1)
            seen = (count > 0).float() / (count > 0).sum().clamp_min(1)
            mean = (seen * share).sum()
            balance = (seen * (share - mean).square()).sum() / mean.square().clamp_min(1e-12)
            loss = loss + part * (config.gate_balance_weight * balance)
        if config.encoder_loss_weight > 0:
            alone = self._encoder_losses(latents, said, labels)
            usable = present.float() / present.sum(-1, keepdim=True).clamp_min(1)
            loss = loss + config.encoder_loss_weight * (rows.unsqueeze(-1) * usable * alone).sum()
            if attends and config.gate_loss_weight > 0:
                target = (-alone.detach()).masked_fill(~present, torch.finfo(alone.dtype).min).softmax(-1) * present
                divergence = torch.special.xlogy(target, target) - target * weights.clamp_min(1e-12).log()
                loss = loss + config.gate_loss_weight * (rows * divergence.sum(-1)).sum()
        if attends and config.gate_prior_weight > 0:
            prior = self._log_prior()
            start = torch.zeros_like(weights) if prior is None else prior.expand_as(weights)
            start = start.masked_fill(~present, torch.finfo(start.dtype).min).log_softmax(-1)
            divergence = (start.exp() * (start - weights.clamp_min(1e-12).log()) * present).sum(-1)
            loss = loss + config.gate_prior_weight * (rows * divergence).sum()
        if self.experts is not None and config.expert_penalty > 0:
            loss = loss + part * (config.expert_penalty * self.experts.penalty())
        adaptation = self.discriminators(fused, latents, present, labelled)
        if not evaluates:
            loss = loss + part * (config.domain_adaptation_weight * adaptation)
        return loss, adaptation

    @can_return_tuple
    def forward(
        self,
        features: dict[str, torch.Tensor],
        feature_mask: dict[str, torch.Tensor] | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: Any = None,
    ) -> RankAwareFusionOutput:
        """Predicts the blends of a batch.

        Args:
            features: encoder name -> (B, T, D) steps of that encoder, padded, or (B, P) already pooled vectors.
                Encoders may be missing.
            feature_mask: encoder name -> (B, T) bool, true at valid steps ((B, 1) for pooled vectors); a row without
                one marks the encoder as absent in that sample. Without an entry all steps are valid.
            labels: (B, C) soft labels; a row of -100 is unlabelled and takes part in domain adaptation only.
            num_items_in_batch: number of shares in the labels of a whole step, as transformers' Trainer counts them.
                The loss in training is then this batch's part of the mean over the labelled rows of that step, in
                whatever batches and processes they come; what is of a batch and no row (balance, penalty, domain
                adaptation) counts by this batch's part of these rows. In evaluation it is the mean over all rows, 0
                where unlabelled, without balance and adaptation, so that Trainer's mean does not depend on the size of
                a batch.

        Returns:
            [`RankAwareFusionOutput`].

        Raises:
            ValueError: an encoder the config does not name, or features of another shape than the config's.
        """
        pooled, present, novelty = self._pooled(features, feature_mask)
        latents = torch.stack([project(values) for project, values in zip(self.projections, pooled, strict=True)], 1)
        said = None if self.experts is None else self.experts(pooled)
        if self.training:
            present = self._drop_encoders(present)
        weights, order = self.gate(latents, present, said, self._log_prior())
        num_ranks = self.fusion.num_ranks
        selected = order[:, :num_ranks]
        used = present.gather(1, selected)
        selected_weights = weights.gather(1, selected) * used
        selected_weights = selected_weights / selected_weights.sum(-1, keepdim=True).clamp_min(1e-12)
        chosen = latents.gather(1, selected.unsqueeze(-1).expand(-1, -1, latents.shape[-1]))
        words = None if said is None else said.gather(1, selected.unsqueeze(-1).expand(-1, -1, said.shape[-1]))
        fused, heads = self._predicted(chosen, words, selected, selected_weights)
        loss = adaptation = None
        if labels is not None:
            loss, adaptation = self._loss(heads, latents, said, present, weights, fused, labels, num_items_in_batch)
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
            novelty=novelty,
        )


RankAwareFusionModel.register_for_auto_class("AutoModel")
