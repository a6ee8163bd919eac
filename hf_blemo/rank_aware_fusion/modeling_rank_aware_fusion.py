"""PyTorch model of rank-aware selective fusion."""

import json
from collections.abc import Sequence
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
from .label_space_rank_aware_fusion import EMOTIONS, LabelSpace
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
        self.bends = config.latent_activation == "gelu"
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        latent = self.linear(pooled.to(self.linear.weight.dtype))
        return self.dropout(nn.functional.gelu(latent) if self.bends else latent)


class _Experts(nn.Module):
    """What each encoder says alone: logits of both heads, linear in its features.

    The matrices are kept divided by a constant: a learning rate that suits the latents then suits the experts too,
    since Adam's steps do not depend on the scale of a gradient.
    """

    scale = 32.0

    def __init__(self, config: RankAwareFusionConfig):
        super().__init__()
        sizes, outputs = map(config.pooled_size, config.encoders), 2 * len(config.label_space.names)
        self.matrices = nn.ParameterList(nn.Parameter(torch.zeros(size, outputs)) for size in sizes)
        # Of the joined logits; the heads' own biases would be slower than the experts.
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """Standardised features of each encoder, (B, P) -> (B, E, 2 C)."""
        said = [
            values.to(matrix.dtype) @ matrix * (self.scale / len(matrix) ** 0.5)
            for values, matrix in zip(inputs, self.matrices, strict=True)
        ]
        return torch.stack(said, 1)

    def penalty(self) -> torch.Tensor:
        """Half the squared norm of all matrices."""
        return torch.stack([(self.scale * matrix.float()).square().sum() for matrix in self.matrices]).sum() / 2


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
            self.reads_latents, self.reading = config.gate_reads != "experts", None
            if config.gate_reads != "latents":
                self.reading = nn.Parameter(torch.zeros(num_encoders, len(config.label_space.names) + 2, size))

    def _words(self, said: torch.Tensor) -> torch.Tensor:
        """What the gate reads of the experts, (B, E, C + 2): probabilities, their entropy and the highest."""
        # The gate judges the experts and does not teach them.
        salience = said.detach()[..., said.shape[-1] // 2 :].float() * said.shape[1]
        log_probabilities = salience.log_softmax(-1)
        probabilities = log_probabilities.exp()
        entropy = -(probabilities * log_probabilities).sum(-1, keepdim=True)
        words = torch.cat([probabilities, entropy, probabilities.amax(-1, keepdim=True)], -1)
        return words.to(self.encoder_embedding.dtype)

    def _scores(self, latents: torch.Tensor, present: torch.Tensor, said: torch.Tensor | None) -> torch.Tensor:
        """Products (B, E) of each sample's query with the keys of its encoders."""
        # What is read of an encoder is its words (B, E, C + 2) times `reading`. Context and keys are linear in that,
        # so it is made for no sample.
        reading = self.reading
        words = None if reading is None or said is None else self._words(said)
        keys = self.key(latents) + self.encoder_embedding if self.reads_latents else self.encoder_embedding
        query = self.query.expand(latents.shape[0], -1)
        if self.context is not None:
            seen = [(latents * present.unsqueeze(-1)).sum(1)] if self.reads_latents else []
            if reading is not None and words is not None:
                seen.append((words * present.unsqueeze(-1)).flatten(1) @ reading.flatten(0, 1))
            query = query + self.context(sum(seen) / present.sum(-1, keepdim=True).clamp_min(1))
        scores = (keys * query.unsqueeze(1)).sum(-1) if self.reads_latents else query @ keys.T
        if reading is not None and words is not None:
            # Cloned, as rounding would depend on where a loaded file happens to lie in memory.
            of_words = query @ self.key(reading.clone()).flatten(0, 1).T
            scores = scores + (words * of_words.unflatten(-1, words.shape[1:])).sum(-1)
        return scores

    def forward(
        self,
        latents: torch.Tensor,
        present: torch.Tensor,
        said: torch.Tensor | None = None,
        prior: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights (B, E), zero for absent encoders; order (B, E) from the most to the least important, absent last.

        `said` (B, E, 2 C) is what the experts say, `prior` (E,) the logarithm of the weights to start from.
        """
        if self.kind == "attention":
            scores = self._scores(latents, present, said).float() / latents.shape[-1] ** 0.5
            if self.training and self.noise > 0:
                scores = scores + self.noise * torch.randn_like(scores)
        elif self.kind == "static":
            # Only ranks: the selected encoders have equal weights, as usual for a fixed selection.
            scores = self.static_scores.float().expand(latents.shape[0], -1)
        else:
            scores = present.float()
        if prior is not None and self.kind != "static":
            scores = scores + prior
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
        self.has_places = self.kind == "concatenation" or config.fusion_maps == "encoder"
        places = self.num_encoders if self.has_places else 1
        if self.kind == "rank_aware":
            self.rank_scale = nn.Parameter(torch.ones(self.num_ranks, size))
            self.rank_embedding = nn.Parameter(torch.zeros(self.num_ranks, size))
            if config.experts:
                self.rank_weight = nn.Parameter(torch.ones(self.num_ranks))
        self.linear = nn.Linear(places * size, size)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, latents: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """(..., R, H) latents in rank order, (..., R) encoder numbers and weights, 0 at unused ranks -> (..., H)."""
        if self.kind == "rank_aware":
            num_ranks = latents.shape[-2]
            latents = latents * self.rank_scale[:num_ranks] + self.rank_embedding[:num_ranks]
        if self.has_places:
            placed = _relative(weights).unsqueeze(-1) * latents
            places = nn.functional.one_hot(indices, self.num_encoders).to(placed.dtype)
            joined = (places.mT @ placed).flatten(-2)
        else:
            joined = (weights.unsqueeze(-1) * latents).sum(-2)
        return self.dropout(nn.functional.gelu(self.linear(joined.to(self.linear.weight.dtype))))

    def join(self, said: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """(..., R, 2 C) logits of experts in rank order and their weights -> (..., 2 C)."""
        relative = _relative(weights)
        if self.kind == "rank_aware":
            relative = relative * self.rank_weight[: said.shape[-2]]
        return (relative.unsqueeze(-1) * said).sum(-2)


def _relative(weights: torch.Tensor) -> torch.Tensor:
    """Weights that are 1 where all are equal: the scale of a sum does not depend on how many are fused."""
    return weights * (weights > 0).sum(-1, keepdim=True)


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
        self.blends = self.num_labels > self.num_names
        self.interaction = None
        if self.blends:
            self.joint_scale = nn.Parameter(torch.zeros(2))
            self.joint_bias = nn.Parameter(torch.zeros(self.num_labels))
            if config.joint_interaction:
                self.interaction = nn.Linear(config.hidden_size, self.num_labels, bias=False)
        self.register_buffer("label_percent", _label_percent(space))

    def forward(self, fused: torch.Tensor, said: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Predicts from fused features (..., H) and the joined logits of experts (..., 2 C), in float32.

        The energy of a label is the log-likelihood of its set under the presence head, minus the divergence of the
        label from the salience distribution. Where nothing blends the labels are the names, and so are the
        probabilities of both.
        """
        presence = self.presence(fused).float()
        salience = self.salience(fused).float()
        if said is not None:
            presence = presence + said[..., : self.num_names].float()
            salience = salience + said[..., self.num_names :].float()
        log_present = nn.functional.logsigmoid(presence)
        log_absent = nn.functional.logsigmoid(-presence)
        log_salience = salience.log_softmax(-1)
        exponent = self.exponent_logit.float().sigmoid()
        mixed = {
            "geometric": lambda: exponent * log_present + (1 - exponent) * log_salience,
            "presence": lambda: log_present,
            "salience": lambda: log_salience,
        }[self.kind]()
        log_probabilities = mixed.log_softmax(-1)
        log_joint = log_probabilities
        if self.blends:
            log_joint = self._energy(fused, log_present, log_absent, log_salience).log_softmax(-1)
        return {
            "presence_logits": presence,
            "salience_logits": salience,
            "log_probabilities": log_probabilities,
            "log_joint": log_joint,
        }

    def _energy(
        self, fused: torch.Tensor, log_present: torch.Tensor, log_absent: torch.Tensor, log_salience: torch.Tensor
    ) -> torch.Tensor:
        """Unnormalised log-probabilities of the valid labels, (..., L)."""
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
        return energy

    def losses(self, heads: dict[str, torch.Tensor], labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Unweighted, of each row: mean binary cross-entropy of the names, KL divergences of both distributions from
        the soft label, and the negative log-likelihood of the nearest valid label: its expectation under the soft
        label where `label_kind` is `soft` and nothing blends."""
        present = (labels > self.presence_share).float()
        entropy = torch.special.xlogy(labels, labels).sum(-1)
        # As `LabelSpace.nearest`.
        nearest = ((labels * 1e5).round().unsqueeze(-2) - self.label_percent * 1000).abs().sum(-1).argmin(-1)
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


class RankAwareFusionPreTrainedModel(CheckedWeights):
    """Weight initialisation and the flags of the family."""

    config_class = RankAwareFusionConfig
    config: RankAwareFusionConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = False
    _no_split_modules = ["_Projection", "_Fusion", "_Heads"]
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
        elif isinstance(module, _Experts):
            for matrix in module.matrices:
                init.zeros_(matrix)
            init.zeros_(module.bias)
        elif isinstance(module, _Gate):
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
        elif isinstance(module, _Fusion):
            if module.kind == "rank_aware":
                init.ones_(module.rank_scale)
                init.normal_(module.rank_embedding, std=self.config.initializer_range)
                if hasattr(module, "rank_weight"):
                    init.ones_(module.rank_weight)
        elif isinstance(module, _Heads):
            init.constant_(module.exponent_logit, torch.tensor(module.initial_exponent).logit().item())
            if module.blends:
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
        ranks start as copies of the last, and the labels are always the config's.

        A name may be exchanged for another; other numbers or places of names need `ignore_mismatched_sizes`, with
        which what depends on them starts anew."""
        found, given = _names_of(checkpoint_files), model.config.label_space.names
        moved = found and (
            len(found) != len(given) or any(n in found and found.index(n) != p for p, n in enumerate(given))
        )
        if moved and not load_config.ignore_mismatched_sizes:
            raise RuntimeError(
                f"found the {len(given)} names {', '.join(given)} in the config, but the checkpoint has the "
                f"{len(found)} names {', '.join(found)}, expected its number and order; ignore_mismatched_sizes=True "
                "starts the heads anew"
            )
        if state_dict is None and checkpoint_files and all(str(f).endswith(".safetensors") for f in checkpoint_files):
            state_dict = {name: values for file in checkpoint_files for name, values in load_file(file).items()}
        if state_dict is not None:
            state_dict, own = dict(state_dict), model.state_dict()
            for name in {name for name in own if name.startswith("fusion.rank_")} & set(state_dict):
                found, number = state_dict[name], len(own[name])
                further = found[-1:].expand(max(0, number - len(found)), *found.shape[1:])
                state_dict[name] = torch.cat([found[:number], further])
            if moved:
                model._started_anew = _OF_NAMES
                state_dict = {name: value for name, value in state_dict.items() if not name.startswith(_OF_NAMES)}
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
        self.projections = nn.ModuleList(_Projection(config.pooled_size(name), config) for name in self.encoder_names)
        self.experts = _Experts(config) if config.experts else None
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
        if mean.shape != (size,) or std.shape != (size,):
            raise ValueError(
                f"encoder {name!r}: expected statistics of shape ({size},), found {tuple(mean.shape)} and "
                f"{tuple(std.shape)}"
            )
        if relevance is not None and relevance.shape != (size,):
            raise ValueError(
                f"encoder {name!r}: expected relevance of shape ({size},), found {tuple(relevance.shape)}"
            )
        pooling = self.poolings[self.encoder_names.index(name)]
        assert isinstance(pooling, RankAwareFusionPooling)
        with torch.no_grad():
            pooling.feature_mean.copy_(mean)
            pooling.feature_std.copy_(torch.where(std > 1e-8, std, torch.ones_like(std)))
            if pooling.weighted and relevance is not None:
                pooling.feature_relevance.copy_(relevance)

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
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Features of each encoder (B, P), standardised, and presence (B, E); one that the batch lacks is absent."""
        for name in (*features, *(feature_mask or ())):
            if name not in self.encoder_names:
                raise ValueError(f"unknown encoder {name!r}: this model has {', '.join(self.encoder_names)}")
        if not features:
            raise ValueError(f"features is empty: expected some of {', '.join(self.encoder_names)}")
        batch_size = next(iter(features.values())).shape[0]
        pooled, present = [], []
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
                if feature_mask is not None and name in feature_mask:
                    mask = feature_mask[name].bool()
                else:
                    mask = torch.ones(shape, dtype=torch.bool, device=values.device)
                if mask.shape != shape:
                    raise ValueError(
                        f"encoder {name!r}: feature_mask has shape {tuple(mask.shape)}, expected {tuple(shape)}"
                    )
            pooled.append(self.input_dropout(pooling(values, mask)))
            present.append(mask.any(1))
        return pooled, torch.stack(present, 1)

    def _log_prior(self) -> torch.Tensor | None:
        """Logarithm of the weights that the gate starts from, (E,); None where they are equal."""
        if self.config.gate_prior == "uniform":
            return None
        return torch.stack([cast(RankAwareFusionPooling, pooling).relevance for pooling in self.poolings]).log()

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

    def _joined(self, said: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """(..., R, 2 C) logits of experts in rank order and their weights -> (..., 2 C), the experts' bias added."""
        assert self.experts is not None
        return self.fusion.join(said, weights) + self.experts.scale * self.experts.bias

    def _encoder_losses(self, latents: torch.Tensor, said: torch.Tensor | None, labels: torch.Tensor) -> torch.Tensor:
        """Joint loss of each encoder alone at the first rank, (B, E), as if all others were absent."""
        batch_size, num_encoders, _ = latents.shape
        indices = torch.arange(num_encoders, device=latents.device).view(1, -1, 1).expand(batch_size, -1, -1)
        weights = latents.new_ones(batch_size, num_encoders, 1)
        fused = self.fusion(latents.unsqueeze(2), indices, weights)
        joined = None if said is None else self._joined(said.unsqueeze(2), weights)
        return self.heads.losses(self.heads(fused, joined), labels.unsqueeze(1).expand(-1, num_encoders, -1))["joint"]

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
        balances = config.gate == "attention" and config.gate_balance_weight > 0 and len(self.encoder_names) > 1
        if balances and not evaluates:
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
            if config.gate_loss_weight > 0 and config.gate == "attention":
                lowest = torch.finfo(alone.dtype).min
                target = (-alone.detach()).masked_fill(~present, lowest).softmax(-1) * present
                divergence = torch.special.xlogy(target, target) - target * weights.clamp_min(1e-12).log()
                loss = loss + config.gate_loss_weight * (rows * divergence.sum(-1)).sum()
        if config.gate_prior_weight > 0 and config.gate == "attention":
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
        pooled, present = self._pooled(features, feature_mask)
        latents = torch.stack(
            [projection(values) for projection, values in zip(self.projections, pooled, strict=True)], 1
        )
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
        fused = self.fusion(chosen, selected, selected_weights)
        joined = None
        if said is not None:
            chosen = said.gather(1, selected.unsqueeze(-1).expand(-1, -1, said.shape[-1]))
            joined = self._joined(chosen, selected_weights)
        heads = self.heads(fused, joined)
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
        )


RankAwareFusionModel.register_for_auto_class("AutoModel")
