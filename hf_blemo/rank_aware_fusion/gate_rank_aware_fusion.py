"""The encoders of a sample, each for itself: latents, what its expert says, and how much the gate gives it."""

from collections.abc import Sequence

import torch
from torch import nn

from .configuration_rank_aware_fusion import RankAwareFusionConfig


class RankAwareFusionProjection(nn.Module):
    """Projects one pooled encoder into the shared latent space.

    Without a norm, here and in the fusion: the length of a latent shows how sure its encoder is, and a norm would hide
    that (measured on the real out-of-fold logits).
    """

    def __init__(self, name: str, config: RankAwareFusionConfig):
        super().__init__()
        self.linear = nn.Linear(config.pooled_size(name), config.hidden_size)
        self.bends = config.latent_activation == "gelu"
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        latent = self.linear(pooled.to(self.linear.weight.dtype))
        return self.dropout(nn.functional.gelu(latent) if self.bends else latent)


class RankAwareFusionExperts(nn.Module):
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


class RankAwareFusionGate(nn.Module):
    """Scores the encoders of each sample; the scores order the encoders and their softmax weighs them.

    `attention` is a scaled dot product of one query per sample (a learned vector plus, with `gate_context`, a map of
    the sample's mean latent) with the encoders' keys and embeddings.
    """

    static_scores: torch.Tensor

    def __init__(self, config: RankAwareFusionConfig):
        super().__init__()
        self.kind, self.noise = config.gate, float(config.gate_noise)
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
        self, latents: torch.Tensor, present: torch.Tensor, said: torch.Tensor | None, prior: torch.Tensor | None
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
        scores = scores.masked_fill(~present, torch.finfo(scores.dtype).min)
        order = scores.sort(dim=-1, descending=True, stable=True).indices
        if self.kind == "static":
            scores = torch.where(present, scores.new_zeros(()), scores)
        return scores.softmax(-1) * present, order
