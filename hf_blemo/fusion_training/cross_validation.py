"""Cross-validation and final training of one config, with checkpoints."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from hf_blemo.files import read_json, write_json
from hf_blemo.fusion_training.feature_store import FeatureStore
from hf_blemo.fusion_training.lockstep import Lockstep, Member
from hf_blemo.fusion_training.results import CrossValidationResults
from hf_blemo.fusion_training.selection import Selection
from hf_blemo.fusion_training.settings import ExperimentSettings
from hf_blemo.programs.checkpoints import Checkpoints
from hf_blemo.programs.progress import Progress
from hf_blemo.rank_aware_fusion.modeling_rank_aware_fusion import RankAwareFusionModel

_NUMBERS_FILE, _TENSORS_FILE = "cross_validation.json", "cross_validation.safetensors"
_RIDGE = 10.0


def cross_validate(
    accelerator: Accelerator,
    store: FeatureStore,
    settings: ExperimentSettings,
    checkpoint_folder: Path | None = None,
    log: Callable[[dict[str, float], int], None] | None = None,
    description: str = "cross-validation",
) -> tuple[CrossValidationResults, list[dict[str, Any]]]:
    """Cross-validates one config over the folds of the data and the seeds of the settings.

    Args:
        store: the data and the config of every model; rows without labels take part in domain adaptation alone.
        log: called with mean losses and scores after every epoch.

    Returns:
        The results, and the rows of the learning curves (`seed`, `fold`, `epoch`, `train_loss`, `selected` and what
        [`Selection.update`] reports).
    """
    labelled, folds = store.labelled_rows(settings.protocol)
    labels = store.labels.numpy()[labelled].astype(np.float64)
    per_group = settings.seeds_at_once or len(settings.seeds)
    groups = [settings.seeds[start : start + per_group] for start in range(0, len(settings.seeds), per_group)]
    selections, rows = [], []
    for group in groups:
        selection = Selection(
            settings.protocol, folds, labels, group, settings.selection_metric, settings.decoding, settings.patience,
            store.judge,
        )  # fmt: skip
        members = selection.members
        lockstep = Lockstep(accelerator, members, store, settings, _static_scores(members, store))
        history: list[dict[str, Any]] = []
        folder = checkpoint_folder and checkpoint_folder / f"cross_validation_seed_{group[0]}"
        checkpoints = Checkpoints(accelerator, folder, settings.checkpoint_every)

        def finished(lockstep: Lockstep = lockstep, selection: Selection = selection) -> bool:
            stale = (
                settings.patience and lockstep.epoch and selection.stale_epochs(lockstep.epoch) >= settings.patience
            )
            return lockstep.epoch >= settings.num_epochs or bool(stale)

        with _kept_in_checkpoints(accelerator, selection, history):
            if settings.resume:
                lockstep.epoch = checkpoints.restore(settings.num_epochs)
            bar = _bar(accelerator, lockstep, f"{description}, {len(members)} models", settings.num_epochs)
            while not finished():
                losses = lockstep.train_epoch(bar)
                report = selection.update(lockstep.epoch, lockstep.predict_held_out(labelled))
                for (seed, fold), values in report.items():
                    loss = float(losses[selection.position[seed, (fold,)]])
                    history.append({"seed": seed, "fold": fold, "epoch": lockstep.epoch, "train_loss": loss, **values})
                means = {"train_loss": float(losses.mean())}
                for name in next(iter(report.values())):
                    means[name] = float(np.mean([values[name] for values in report.values()]))
                bar.update(0, epoch=lockstep.epoch, **{name: f"{value:.3f}" for name, value in means.items()})
                if log is not None:
                    # Groups of seeds run one after the other: each has its own steps, so each its own curves.
                    prefix = f"seeds_from_{group[0]}/" if len(groups) > 1 else ""
                    log({prefix + name: value for name, value in means.items()}, lockstep.epoch)
                checkpoints.save(lockstep.epoch, last=finished())
            bar.close()
        accelerator.free_memory()
        selections.append(selection)
        rows += history
    chosen = {(seed, fold): choice.epoch for selection in selections for seed, fold, choice in selection}
    rows = [{**row, "selected": chosen[row["seed"], row["fold"]] == row["epoch"]} for row in rows]
    return CrossValidationResults(selections, [store.clips[row] for row in labelled]), rows


def train_on_all(
    accelerator: Accelerator,
    store: FeatureStore,
    settings: ExperimentSettings,
    num_epochs: int,
    checkpoint_folder: Path | None = None,
    on_save: Callable[[int, RankAwareFusionModel], None] | None = None,
) -> list[RankAwareFusionModel]:
    """Trains one model per seed on all labelled rows; returns them in the order of the seeds, on the CPU.

    `on_save` is called on the first process after every checkpoint but the last, with the epoch and the first
    seed's model.
    """
    members = [Member(seed, ()) for seed in settings.seeds]
    lockstep = Lockstep(accelerator, members, store, settings, _static_scores(members, store))
    checkpoints = Checkpoints(
        accelerator, checkpoint_folder and checkpoint_folder / "final", settings.checkpoint_every
    )
    if settings.resume:
        lockstep.epoch = checkpoints.restore(num_epochs)
    bar = _bar(accelerator, lockstep, f"final training, {len(members)} models", num_epochs)
    while lockstep.epoch < num_epochs:
        losses = lockstep.train_epoch(bar)
        bar.update(0, epoch=lockstep.epoch, train_loss=f"{losses.mean():.3f}")
        last = lockstep.epoch == num_epochs
        checkpoints.save(lockstep.epoch, last)
        if on_save is not None and checkpoints.due(lockstep.epoch, last) and not last and accelerator.is_main_process:
            # Making a model draws random numbers, which must not change the training.
            with torch.random.fork_rng():
                model = lockstep.model_of(0)
            on_save(lockstep.epoch, model)
    bar.close()
    models = [lockstep.model_of(index) for index in range(len(members))]
    accelerator.free_memory()
    return models


def _bar(accelerator: Accelerator, lockstep: Lockstep, description: str, num_epochs: int) -> Progress:
    steps = lockstep.steps_per_epoch
    return Progress(description, "step", num_epochs * steps, lockstep.epoch * steps, accelerator.is_main_process)


@contextmanager
def _kept_in_checkpoints(accelerator: Accelerator, selection: Selection, rows: list[dict[str, Any]]) -> Iterator[None]:
    """Saves and restores the choices so far and the rows of the learning curves with every checkpoint."""

    def save(models: Any, weights: Any, folder: str) -> None:
        if accelerator.is_main_process:
            numbers, tensors = selection.state()
            save_file(tensors, Path(folder, _TENSORS_FILE))
            write_json({Path(folder, _NUMBERS_FILE): {"selection": numbers, "rows": rows}})

    def restore(models: Any, folder: str) -> None:
        state = read_json(Path(folder, _NUMBERS_FILE))
        selection.load_state(state["selection"], load_file(Path(folder, _TENSORS_FILE)))
        rows[:] = state["rows"]

    hooks = [accelerator.register_save_state_pre_hook(save), accelerator.register_load_state_pre_hook(restore)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _static_scores(members: Sequence[Member], store: FeatureStore) -> list[dict[str, float]] | None:
    if store.config.gate != "static":
        return None
    scores: dict[tuple[int, ...], dict[str, float]] = {}
    for member in members:
        if member.held_out not in scores:
            scores[member.held_out] = _probe_scores(store, member.training_rows(store.folds, store.labelled))
    return [scores[member.held_out] for member in members]


def _probe_scores(store: FeatureStore, rows: np.ndarray) -> dict[str, float]:
    """Explained variance of every encoder alone, at most 1, by cross-validation inside the training rows of one model.

    A ridge regression from the standardised vectors to the soft labels; nothing outside the rows is read.
    """
    folds = store.folds[rows]
    labels = store.labels[rows]
    scores = {}
    for name in store.config.encoders:
        values = store.vectors(name)[rows]
        present = store.present[name][rows]
        explained = []
        for fold in np.unique(folds):
            held_out = torch.from_numpy(folds == fold)
            train, test = ~held_out & present, held_out & present
            if train.sum() < 2 or test.sum() < 2:
                continue
            mean, std = values[train].mean(0), values[train].std(0).clamp_min(1e-6)
            inputs, others = (values[train] - mean) / std, (values[test] - mean) / std
            centre = labels[train].mean(0)
            # The dual form: wide features cost the number of rows, not the width.
            kernel = inputs @ inputs.T + _RIDGE * torch.eye(len(inputs))
            predicted = others @ (inputs.T @ torch.linalg.solve(kernel, labels[train] - centre)) + centre
            residual = (labels[test] - predicted).square().sum()
            explained.append(float(1 - residual / (labels[test] - centre).square().sum().clamp_min(1e-12)))
        scores[name] = float(np.mean(explained)) if explained else -1.0
    return scores
