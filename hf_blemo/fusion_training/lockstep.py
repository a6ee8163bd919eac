"""The training loop: all models of a run in lockstep, on any number of processes."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from transformers import set_seed

from hf_blemo.fusion_training.feature_store import FeatureStore
from hf_blemo.fusion_training.settings import ExperimentSettings
from hf_blemo.programs.progress import Progress
from hf_blemo.rank_aware_fusion.configuration_rank_aware_fusion import RankAwareFusionConfig
from hf_blemo.rank_aware_fusion.modeling_rank_aware_fusion import RankAwareFusionModel

PREDICTED = ("joint_probabilities", "probabilities", "encoder_weights", "selected_encoders")
_LABELLED, _UNLABELLED, _EXCHANGED = 0, 1, 2
_Batch = dict[str, dict[str, torch.Tensor] | torch.Tensor]


@dataclass(frozen=True)
class Member:
    """One model of the run.

    Args:
        seed: of its initial weights and the order of its rows.
        held_out: folds it is not trained on: none (final model), one (scored model) or two (inner model).
    """

    seed: int
    held_out: tuple[int, ...]

    def __str__(self) -> str:
        held_out = " and ".join(map(str, self.held_out))
        return f"seed {self.seed}, " + (f"without fold {held_out}" if held_out else "final model")

    def training_rows(self, folds: np.ndarray, labelled: np.ndarray) -> np.ndarray:
        """Row numbers it is trained on, of the labelled ones."""
        return np.flatnonzero(labelled & ~np.isin(folds, self.held_out))


class _StackedModels(nn.Module):
    """M models of one config with a leading axis on every parameter and buffer, run by `torch.vmap`.

    Folds and seeds of a small model differ in their data and initial weights only; stacked they cost one pass of
    batched matrix products instead of M small passes. Adam works element by element, so the models stay independent.
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
        # A tuple keeps it from being a submodule: functional_call replaces its weights.
        self._template = (nn.Module.to(copy.deepcopy(models[0]), "meta"),)

    def train(self, mode: bool = True) -> "_StackedModels":
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
        self, batch: _Batch, shared: bool = False, subset: Sequence[int] | None = None
    ) -> dict[str, torch.Tensor]:
        """Runs every model, or some of them, on batches with a leading axis or on one shared batch without it."""
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
        """Copies the weights and buffers of one of the models into `model`."""
        state = dict(zip(self.parameter_names, self.stacked, strict=True)) | self.stacked_buffers()
        model.load_state_dict({name: value[index].detach().cpu() for name, value in state.items()})
        return model


def _initial_model(
    config: RankAwareFusionConfig,
    seed: int,
    statistics: dict[str, list[torch.Tensor]],
    static_scores: dict[str, float] | None,
) -> RankAwareFusionModel:
    """An untrained model with the given statistics; its weights depend only on the seed."""
    set_seed(seed)
    model = RankAwareFusionModel(config)
    for name, values in statistics.items():
        model.set_feature_statistics(name, *values)
    if static_scores is not None:
        model.set_static_scores(static_scores)
    return model


class Lockstep:
    """Members of one config, their optimizer and their place in the training.

    Args:
        store: the labelled data, with the unlabelled rows of a domain adaptation at its end; its config is that of all
            members.
        static_scores: per member, encoder name -> validation score, for `gate="static"`.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        members: Sequence[Member],
        store: FeatureStore,
        settings: ExperimentSettings,
        static_scores: Sequence[dict[str, float]] | None = None,
    ):
        config = store.config
        self.accelerator = accelerator
        self.members = list(members)
        self.store = store
        self.settings = settings
        self.epoch = 0
        adapts = config.domain_adaptation != "none"
        for name in ("batch_size", "unlabelled_batch_size") if adapts else ("batch_size",):
            if getattr(settings, name) % accelerator.num_processes:
                raise ValueError(
                    f"{name} {getattr(settings, name)} is not a multiple of the {accelerator.num_processes} processes"
                )
        if settings.exchange_groups and (store.groups[store.labelled] < 0).any():
            raise ValueError("exchange_groups needs a group for every labelled clip: a column `group` of the data")
        self.unlabelled_rows = np.flatnonzero(~store.labelled)
        self.rows = [member.training_rows(store.folds, store.labelled) for member in self.members]
        for member, rows in zip(self.members, self.rows, strict=True):
            if len(rows) == 0:
                raise ValueError(f"no labelled rows to train on without folds {member.held_out}")
        self.unlabelled_batch_size = settings.unlabelled_batch_size if adapts else 0
        statistics = {rows.tobytes(): store.statistics(rows) for rows in self.rows}
        ranking: Sequence[dict[str, float] | None] = static_scores or [None] * len(self.members)
        models = [
            _initial_model(config, member.seed, statistics[rows.tobytes()], scores)
            for member, rows, scores in zip(self.members, self.rows, ranking, strict=True)
        ]
        stacked = _StackedModels(models)
        optimizer = torch.optim.AdamW(
            stacked.optimizer_groups(settings.weight_decay), lr=settings.learning_rate, betas=(0.9, 0.98)
        )
        self.steps_per_epoch = max(1, -(-max(map(len, self.rows)) // settings.batch_size))
        self.model, self.optimizer = accelerator.prepare(stacked, optimizer)
        set_seed(settings.seeds[0] * 1000 + accelerator.process_index)

    @property
    def stacked(self) -> _StackedModels:
        """The stacked models without the wrapper of distributed training."""
        return self.accelerator.unwrap_model(self.model)

    def _learning_rate(self, step: int) -> float:
        """Linear warm-up over the first epoch, then constant or cosine over `num_epochs`."""
        warm = min(1.0, (step + 1) / self.steps_per_epoch)
        if self.settings.schedule == "constant":
            return self.settings.learning_rate * warm
        progress = step / (self.steps_per_epoch * self.settings.num_epochs)
        return self.settings.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))

    def _batch_rows(self, step: int) -> tuple[np.ndarray, np.ndarray | None]:
        """(M, rows of this process), labelled first; and the rows whose groups' moments they take, if any do."""
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        columns, others = [], []
        for purpose, size in ((_LABELLED, self.settings.batch_size), (_UNLABELLED, self.unlabelled_batch_size)):
            if size:
                part = [
                    _row_stream(
                        member.seed, purpose, rows if purpose == _LABELLED else self.unlabelled_rows, step * size, size
                    )
                    for member, rows in zip(self.members, self.rows, strict=True)
                ]
                rows = np.stack(part)
                other = rows
                if purpose == _LABELLED and self.settings.exchange_groups:
                    draws = [
                        np.random.default_rng([member.seed, _EXCHANGED, step]).random(size) for member in self.members
                    ]
                    other = np.where(np.stack(draws) < self.settings.exchange_groups, np.roll(rows, 1, 1), rows)
                columns.append(rows[:, rank::world])
                others.append(other[:, rank::world])
        return np.concatenate(columns, 1), np.concatenate(others, 1) if self.settings.exchange_groups else None

    def train_epoch(self, bar: Progress) -> np.ndarray:
        """One pass over the largest member's rows; returns the mean loss (M,) of its steps.

        Raises:
            ValueError: a member diverged; the message names its seed and folds, and the step.
        """
        self.model.train()
        per_step = []
        total = torch.zeros(len(self.members), device=self.accelerator.device)
        for step in range(self.epoch * self.steps_per_epoch, (self.epoch + 1) * self.steps_per_epoch):
            rows, others = self._batch_rows(step)
            batch = self.store.batch(rows, self.accelerator.device, others=others)
            for group in self.optimizer.param_groups:
                group["lr"] = self._learning_rate(step)
            losses = self.model(batch)["loss"]
            self.accelerator.backward(losses.sum())
            if self.settings.max_grad_norm > 0:
                self.accelerator.unscale_gradients()
                self.stacked.clip_gradients(self.settings.max_grad_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
            total += losses.detach().float()
            per_step.append(losses.detach())
            bar.update(1)
        mean = self.accelerator.reduce(total, "mean") / self.steps_per_epoch
        self._check_finite(mean, per_step)
        self.epoch += 1
        return mean.cpu().numpy()

    def _check_finite(self, mean: torch.Tensor, per_step: Sequence[torch.Tensor]) -> None:
        """Refuses losses or weights that are not finite; only at the end of an epoch, since looking waits for the
        device."""
        extremes = [end for value in self.stacked.stacked for end in value.detach().view(len(mean), -1).aminmax(dim=1)]
        bad = torch.stack([mean, *extremes]).isfinite().all(0).logical_not()
        if not bad.any():
            return
        index = int(bad.int().argmax())
        # The last step, if every loss was finite. Another process may have seen it first.
        lost = [not losses[index].isfinite() for losses in per_step[:-1]] + [True]
        step = self.accelerator.gather(torch.tensor([lost.index(True)], device=mean.device)).min()
        raise ValueError(
            f"{self.members[index]}: the training diverged: loss or weights are not finite at step "
            f"{self.epoch * self.steps_per_epoch + int(step) + 1} (epoch {self.epoch + 1}); a smaller learning_rate "
            "or features of smaller numbers may help"
        )

    @torch.no_grad()
    def predict(self, rows: np.ndarray, subset: Sequence[int] | None = None) -> dict[str, np.ndarray]:
        """Predictions of every member, or of a subset by number, for the same rows (R,); refuses what is not finite.

        Returns:
            `joint_probabilities` (M, R, L), `probabilities` (M, R, C), `encoder_weights` (M, R, E),
            `selected_encoders` (M, R, top_n).
        """
        stacked = self.stacked
        stacked.eval()
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        size = self.settings.evaluation_batch_size
        collected: dict[str, list[np.ndarray]] = {name: [] for name in PREDICTED}
        for start in range(0, len(rows), size * world):
            chunk = rows[start : start + size * world]
            padded = np.resize(chunk, -(-len(chunk) // world) * world)
            with self.accelerator.autocast():
                batch = self.store.batch(padded[rank::world], self.accelerator.device, labels=False)
                output = stacked(batch, shared=True, subset=subset)
            for name in PREDICTED:
                values = self.accelerator.gather(output[name].transpose(0, 1).contiguous())
                # Gathered process after process, while rows were dealt out in turn.
                values = values.unflatten(0, (world, -1)).transpose(0, 1).flatten(0, 1)[: len(chunk)]
                values = values.transpose(0, 1)
                collected[name].append((values.float() if values.is_floating_point() else values).cpu().numpy())
        found = {name: np.concatenate(parts, 1) for name, parts in collected.items()}
        finite = np.isfinite(found["joint_probabilities"]).all(2) & np.isfinite(found["probabilities"]).all(2)
        if not finite.all():
            index, row = np.argwhere(~finite)[0]
            member = self.members[index if subset is None else subset[index]]
            raise ValueError(f"{member}: the probabilities of {self.store.clips[rows[row]]} are not finite numbers")
        return found

    def predict_held_out(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """As [`predict`], but zeros where a member was trained on the row."""
        folds = self.store.folds[rows]
        collected: dict[str, np.ndarray] = {}
        for fold in np.unique(folds):
            subset = [index for index, member in enumerate(self.members) if fold in member.held_out]
            where = np.flatnonzero(folds == fold)
            for name, values in self.predict(rows[where], subset).items():
                shape = (len(self.members), len(rows), *values.shape[2:])
                target = collected.setdefault(name, np.zeros(shape, values.dtype))
                target[np.array(subset)[:, None], where] = values
        return collected

    def model_of(self, index: int) -> RankAwareFusionModel:
        """A copy of one member in its current state, on the CPU, in evaluation mode."""
        return self.stacked.unstack(index, RankAwareFusionModel(self.store.config)).eval()


def _row_stream(seed: int, purpose: int, rows: np.ndarray, start: int, count: int) -> np.ndarray:
    """A stretch of an endless sequence of shuffled passes; the same for a resumed run and for more processes."""
    passes = range(start // len(rows), (start + count - 1) // len(rows) + 1)
    shuffled = [np.random.default_rng([seed, purpose, number]).permutation(rows) for number in passes]
    offset = start - passes[0] * len(rows)
    return np.concatenate(shuffled)[offset : offset + count]
