"""Many small models of one config trained in lockstep as one module."""

import copy
from collections.abc import Sequence

import torch
from torch import nn

from hf_blemo.rank_aware_fusion.modeling_rank_aware_fusion import RankAwareFusionModel

Batch = dict[str, dict[str, torch.Tensor] | torch.Tensor]


class StackedModels(nn.Module):
    """M models of one config with a leading axis on every parameter and buffer, run by `torch.vmap`.

    Folds and seeds of a small model differ in their data and initial weights only; stacked they cost one pass of
    batched matrix products instead of M small passes. Adam works element by element, so the models stay independent;
    gradients are clipped per model by [`clip_gradients`].

    Args:
        models: M models of the same config.
    """

    def __init__(self, models: Sequence[RankAwareFusionModel]):
        super().__init__()
        self.num_models = len(models)
        parameters, buffers = torch.func.stack_module_state(list(models))
        self.parameter_names = list(parameters)
        self.buffer_names = list(buffers)
        self.stacked = nn.ParameterList(nn.Parameter(value.detach().clone()) for value in parameters.values())
        for index, value in enumerate(buffers.values()):
            self.register_buffer(f"buffer_{index}", value.clone())
        # In a tuple, so that it is no submodule: its weights are placeholders that functional_call replaces.
        self._template = (nn.Module.to(copy.deepcopy(models[0]), "meta"),)

    def train(self, mode: bool = True) -> "StackedModels":
        self._template[0].train(mode)
        return super().train(mode)

    def stacked_buffers(self) -> dict[str, torch.Tensor]:
        """Name in the model -> buffer with a leading axis of M."""
        return {name: getattr(self, f"buffer_{index}") for index, name in enumerate(self.buffer_names)}

    def optimizer_groups(self, weight_decay: float) -> list[dict]:
        """Matrices decay; biases, norms, embeddings and scales do not."""
        decayed: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, value in zip(self.parameter_names, self.stacked, strict=True):
            (decayed if name.endswith(".weight") and value.dim() == 3 else others).append(value)
        return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]

    def forward(
        self, batch: Batch, shared: bool = False, subset: Sequence[int] | None = None
    ) -> dict[str, torch.Tensor]:
        """Runs every model, or some of them.

        Args:
            batch: keyword arguments of the model; tensors with a leading axis of M, or, with `shared`, without it,
                when every model sees the same rows.
            shared: whether all models see the same batch.
            subset: which models to run; M is then their number.

        Returns:
            The tensors of the model's output, each with a leading axis of M.
        """
        template = self._template[0]
        parameters: dict[str, torch.Tensor] = dict(zip(self.parameter_names, self.stacked, strict=True))
        buffers = self.stacked_buffers()
        if subset is not None:
            parameters = {name: value[subset] for name, value in parameters.items()}
            buffers = {name: value[subset] for name, value in buffers.items()}

        def run(parameters, buffers, batch):
            output = torch.func.functional_call(template, (parameters, buffers), kwargs=batch)
            return {name: value for name, value in output.items() if value is not None}

        in_dims = (0, 0, None if shared else 0)
        return torch.vmap(run, in_dims=in_dims, randomness="different")(parameters, buffers, batch)

    def clip_gradients(self, max_norm: float) -> None:
        """Clips the gradient of each model to `max_norm` on its own."""
        gradients = [value.grad for value in self.stacked if value.grad is not None]
        norm = sum(gradient.reshape(self.num_models, -1).square().sum(1) for gradient in gradients).sqrt()
        scale = (max_norm / norm.clamp_min(1e-12)).clamp_max(1.0)
        for gradient in gradients:
            gradient.mul_(scale.view(-1, *[1] * (gradient.dim() - 1)))

    def unstack(self, index: int, model: RankAwareFusionModel) -> RankAwareFusionModel:
        """Copies the weights and buffers of one of the models.

        Args:
            index: which one, 0 to M - 1.
            model: receives them; same config.

        Returns:
            `model`.
        """
        state = dict(zip(self.parameter_names, self.stacked, strict=True)) | self.stacked_buffers()
        model.load_state_dict({name: value[index].detach().cpu() for name, value in state.items()})
        return model
