"""The training loop: all members of a run in lockstep, on any number of processes."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from accelerate import Accelerator
from transformers import set_seed

from hf_blemo.fusion_training.feature_store import FeatureStore
from hf_blemo.fusion_training.protocol import Member, row_stream
from hf_blemo.fusion_training.settings import ExperimentSettings
from hf_blemo.fusion_training.stacked_models import StackedModels
from hf_blemo.programs.progress import Progress
from hf_blemo.rank_aware_fusion.configuration_rank_aware_fusion import RankAwareFusionConfig
from hf_blemo.rank_aware_fusion.modeling_rank_aware_fusion import RankAwareFusionModel

PREDICTED = ("joint_probabilities", "probabilities", "encoder_weights", "selected_encoders")
LABELLED, UNLABELLED = 0, 1


def initial_model(
    config: RankAwareFusionConfig,
    seed: int,
    statistics: dict[str, tuple[torch.Tensor, torch.Tensor]],
    static_scores: dict[str, float] | None,
) -> RankAwareFusionModel:
    """An untrained model whose weights depend on the seed alone, standardising with the given statistics."""
    set_seed(seed)
    model = RankAwareFusionModel(config)
    for name, (mean, std) in statistics.items():
        model.set_feature_statistics(name, mean, std)
    if static_scores is not None:
        model.set_static_scores(static_scores)
    return model


class Lockstep:
    """Members of one config, their optimizer and their place in the training.

    Args:
        accelerator: of this run; every process sees its own columns of every member's batch.
        config: of all members.
        members: what each is trained on.
        store: the labelled data, with the unlabelled rows of a domain adaptation at its end.
        settings: of the run.
        static_scores: per member, encoder name -> validation score, for `gate="static"`.

    Raises:
        ValueError: a member without training rows, or a batch that the processes cannot share evenly.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        config: RankAwareFusionConfig,
        members: Sequence[Member],
        store: FeatureStore,
        settings: ExperimentSettings,
        static_scores: Sequence[dict[str, float]] | None = None,
    ):
        self.accelerator = accelerator
        self.config = config
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
        labelled = ~(store.labels == -100).all(-1).numpy()
        self.unlabelled_rows = np.flatnonzero(~labelled)
        self.rows = [member.training_rows(store.folds, labelled) for member in self.members]
        for member, rows in zip(self.members, self.rows, strict=True):
            if len(rows) == 0:
                raise ValueError(f"no labelled rows to train on without folds {member.held_out}")
        if adapts and len(self.unlabelled_rows) == 0:
            raise ValueError(f"domain_adaptation {config.domain_adaptation!r} needs unlabelled rows, found none")
        self.unlabelled_batch_size = settings.unlabelled_batch_size if adapts else 0
        statistics = {rows.tobytes(): store.statistics(rows) for rows in self.rows}
        ranking: Sequence[dict[str, float] | None] = static_scores or [None] * len(self.members)
        models = [
            initial_model(config, member.seed, statistics[rows.tobytes()], scores)
            for member, rows, scores in zip(self.members, self.rows, ranking, strict=True)
        ]
        stacked = StackedModels(models)
        optimizer = torch.optim.AdamW(
            stacked.optimizer_groups(settings.weight_decay), lr=settings.learning_rate, betas=(0.9, 0.98)
        )
        self.steps_per_epoch = max(1, -(-max(map(len, self.rows)) // settings.batch_size))
        self.model, self.optimizer = accelerator.prepare(stacked, optimizer)
        set_seed(settings.seeds[0] * 1000 + accelerator.process_index)

    @property
    def stacked(self) -> StackedModels:
        """The stacked models without the wrapper of distributed training."""
        return self.accelerator.unwrap_model(self.model)

    def _learning_rate(self, step: int) -> float:
        """Linear warm-up over the first epoch, then constant or cosine over `num_epochs`."""
        warm = min(1.0, (step + 1) / self.steps_per_epoch)
        if self.settings.schedule == "constant":
            return self.settings.learning_rate * warm
        progress = step / (self.steps_per_epoch * self.settings.num_epochs)
        return self.settings.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))

    def _batch_rows(self, step: int) -> np.ndarray:
        """(M, rows of this process), labelled first."""
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        columns = []
        for purpose, size in ((LABELLED, self.settings.batch_size), (UNLABELLED, self.unlabelled_batch_size)):
            if size:
                part = [
                    row_stream(
                        member.seed, purpose, rows if purpose == LABELLED else self.unlabelled_rows, step * size, size
                    )
                    for member, rows in zip(self.members, self.rows, strict=True)
                ]
                columns.append(np.stack(part)[:, rank::world])
        return np.concatenate(columns, 1)

    def train_epoch(self, bar: Progress) -> np.ndarray:
        """One pass over the largest member's rows.

        Returns:
            (M,) mean loss of the steps.
        """
        self.model.train()
        total = torch.zeros(len(self.members), device=self.accelerator.device)
        for step in range(self.epoch * self.steps_per_epoch, (self.epoch + 1) * self.steps_per_epoch):
            batch = self.store.batch(self._batch_rows(step), self.accelerator.device)
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
            bar.update(1)
        self.epoch += 1
        mean = self.accelerator.reduce(total, "mean") / self.steps_per_epoch
        return mean.cpu().numpy()

    @torch.no_grad()
    def predict(self, rows: np.ndarray, subset: Sequence[int] | None = None) -> dict[str, np.ndarray]:
        """Predictions of every member, or of some, for the same rows.

        Args:
            rows: (R,) row numbers of the store.
            subset: which members; M is then their number.

        Returns:
            `joint_probabilities` (M, R, 36), `probabilities` (M, R, 6), `encoder_weights` (M, R, E),
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
        return {name: np.concatenate(parts, 1) for name, parts in collected.items()}

    def predict_held_out(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Predictions of every member for those of the rows that it was not trained on.

        Args:
            rows: (R,) row numbers of the store.

        Returns:
            As [`predict`]; zeros where a member was trained on the row.
        """
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
        """A copy of one member as it stands, on the CPU, in evaluation mode."""
        return self.stacked.unstack(index, RankAwareFusionModel(self.config)).eval()
