"""From the selected encoders in rank order to one vector, and from that to probabilities and their losses."""

import torch
from torch import nn

from .configuration_rank_aware_fusion import RankAwareFusionConfig


class RankAwareFusionJoin(nn.Module):
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


class RankAwareFusionHeads(nn.Module):
    """Presence and salience heads, their fusion as probabilities and the joint distribution over valid labels."""

    exponent_logit: torch.Tensor
    label_percent: torch.Tensor

    def __init__(self, config: RankAwareFusionConfig):
        super().__init__()
        self.kind = config.head_fusion
        self.presence_share = float(config.presence_share)
        space = config.label_space
        self.num_names, self.num_labels = len(space.names), len(space)
        self.blends = self.num_labels > self.num_names
        # Any distribution over names that do not blend is one over the valid labels; with blends there is no such one.
        self.soft = config.label_kind == "soft" and not self.blends
        self.presence = nn.Linear(config.hidden_size, self.num_names)
        self.salience = nn.Linear(config.hidden_size, self.num_names)
        self.initial_exponent = float(config.head_exponent)
        exponent = torch.tensor(0.0)
        if config.learn_head_exponent and self.kind == "geometric":
            self.exponent_logit = nn.Parameter(exponent)
        else:
            self.register_buffer("exponent_logit", exponent)
        self.interaction = None
        if self.blends:
            self.joint_scale = nn.Parameter(torch.zeros(2))
            self.joint_bias = nn.Parameter(torch.zeros(self.num_labels))
            if config.joint_interaction:
                self.interaction = nn.Linear(config.hidden_size, self.num_labels, bias=False)
        # The valid labels, (L, C): integers stay exact where the model is cast to a lower precision.
        self.register_buffer("label_percent", torch.tensor(space.percent))

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
        mixed = log_present if self.kind == "presence" else log_salience
        if self.kind == "geometric":
            exponent = self.exponent_logit.float().sigmoid()
            mixed = exponent * log_present + (1 - exponent) * log_salience
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
        log_joint = heads["log_joint"]
        picked = log_joint.gather(-1, nearest.unsqueeze(-1)).squeeze(-1)
        presence = nn.functional.binary_cross_entropy_with_logits(heads["presence_logits"], present, reduction="none")
        return {
            "presence": presence.mean(-1),
            "salience": entropy - (labels * heads["salience_logits"].log_softmax(-1)).sum(-1),
            "alignment": entropy - (labels * heads["log_probabilities"]).sum(-1),
            "joint": -((labels * log_joint).sum(-1) if self.soft else picked),
        }
