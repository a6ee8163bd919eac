"""Features of a data set as the trainer needs them: pooled once where pooling has no weights, else read on demand."""

from collections.abc import Sequence

import datasets
import numpy as np
import torch

from hf_blemo import blemore
from hf_blemo.programs.progress import Progress
from hf_blemo.rank_aware_fusion.configuration_rank_aware_fusion import RankAwareFusionConfig
from hf_blemo.rank_aware_fusion.modeling_rank_aware_fusion import RankAwareFusionModel
from hf_blemo.rank_aware_fusion.pooling_rank_aware_fusion import RankAwareFusionPooling
from hf_blemo.rank_aware_fusion.processing_rank_aware_fusion import (
    RankAwareFusionBatch,
    RankAwareFusionProcessor,
)

ROWS_AT_ONCE = 64


class FeatureStore:
    """Rows of a data set, checked once.

    `mean` and `statistics` pooling have no weights: those encoders are pooled while the data set is read, kept in
    memory as (N, P) and fed to the model as pooled vectors. Encoders with `attention` pooling stay memory-mapped.

    Args:
        dataset: columns `clip`, `features` and, where present, `labels` and `fold`.
        config: the model's config; encoders of the data set that it does not name are left out.
        align_folds: whether the pooled features of each fold are shifted and scaled to the mean and deviation of all
            rows, for out-of-fold predictions of another model.
        progress: whether to show a progress bar.

    Raises:
        ValueError: a row the processor refuses; the message names the clip. `align_folds` with attention pooling.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        config: RankAwareFusionConfig,
        align_folds: bool = False,
        progress: bool = True,
    ):
        self.dataset = dataset
        self.clips: list[str] = list(dataset["clip"])
        self.config = config
        self.processor = RankAwareFusionProcessor(config.encoders)
        self.poolings = {name: RankAwareFusionPooling(options) for name, options in config.encoders.items()}
        num_rows = len(dataset)
        self.pooled: dict[str, torch.Tensor] = {}
        self.present = {name: torch.zeros(num_rows, dtype=torch.bool) for name in config.encoders}
        # Of encoders read on demand: sum, sum of squares and number of steps per row, from which the statistics of any
        # part follow.
        self._sums: dict[str, torch.Tensor] = {}
        for name, options in config.encoders.items():
            size = self.poolings[name].output_size
            if options["pooling"] == "attention":
                self._sums[name] = torch.zeros(3, num_rows, size, dtype=torch.float64)
            else:
                self.pooled[name] = torch.zeros(num_rows, size)
        labels = dataset["labels"] if "labels" in dataset.column_names else [None] * num_rows
        self.labels = torch.full((num_rows, 6), -100.0)
        bar = Progress("reading features", "clip", num_rows, shown=progress)
        for start in range(0, num_rows, ROWS_AT_ONCE):
            rows = list(range(start, min(start + ROWS_AT_ONCE, num_rows)))
            batch = self._process(rows, [labels[row] for row in rows])
            self.labels[rows] = batch["labels"]
            for name, values in batch["features"].items():
                mask = batch["feature_mask"][name]
                pooled = self.poolings[name].pool(values, mask)
                self.present[name][rows] = mask.any(1)
                if name in self.pooled:
                    self.pooled[name][rows] = pooled
                    continue
                pooled = torch.where(mask.unsqueeze(-1), pooled, pooled.new_zeros(())).double()
                count = mask.sum(1, keepdim=True).double().expand(-1, pooled.shape[-1])
                self._sums[name][:, rows] = torch.stack([pooled.sum(1), pooled.square().sum(1), count])
            bar.update(len(rows))
        bar.close()
        if align_folds:
            self._align_folds()

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def folds(self) -> np.ndarray:
        """(N,) fold of each row; -1 where the data set has none."""
        if "fold" not in self.dataset.column_names:
            return np.full(len(self), -1)
        return np.array([-1 if fold is None else fold for fold in self.dataset["fold"]])

    def vectors(self, name: str) -> torch.Tensor:
        """(N, P) one vector per row: the pooled features, or the mean over time of an encoder pooled by attention."""
        if name in self.pooled:
            return self.pooled[name]
        total, _, count = self._sums[name]
        return (total / count.clamp_min(1)).float()

    def _align_folds(self) -> None:
        """Gives the features of every fold the mean and deviation of all rows.

        Out-of-fold predictions of another model come from a different network in every fold, each with its own scale
        and offset: a shift between folds that a stacked model should not learn, and that the features alone tell. No
        label is read, but the moments of a scored fold are those of its own clips (transductive, as AdaBN is).
        Features of a single network need none of this.
        """
        for name in self.config.encoders:
            if name not in self.pooled:
                raise ValueError(f"align_folds aligns pooled vectors; encoder {name!r} has attention pooling")
            values, present = self.pooled[name], self.present[name]
            overall_mean, overall_std = values[present].mean(0), values[present].std(0)
            for fold in np.unique(self.folds):
                rows = torch.from_numpy(self.folds == fold) & present
                if rows.sum() > 1:
                    part = values[rows]
                    values[rows] = (part - part.mean(0)) / part.std(0).clamp_min(1e-6) * overall_std + overall_mean

    def _process(
        self, rows: Sequence[int], labels: Sequence | None = None, names: Sequence[str] | None = None
    ) -> RankAwareFusionBatch:
        """Checks and pads some rows, or some encoders of them; a row that has none of them has none present."""
        names = list(self.config.encoders) if names is None else names
        samples, hidden = [], []
        for position, sample in enumerate(blemore.read_features(self.dataset, rows)):
            known = {name: values for name, values in sample.items() if name in names}
            if sample and not known:
                known = {names[0]: np.zeros((1, self.config.encoders[names[0]]["feature_size"]), np.float32)}
                hidden.append(position)
            samples.append(known)
        batch = self.processor(samples, labels=labels, clips=[self.clips[row] for row in rows])
        for mask in batch["feature_mask"].values():
            mask[hidden] = False
        return batch

    def statistics(self, rows: np.ndarray) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Mean and deviation of every encoder over some rows.

        Args:
            rows: (R,) row numbers; the training part alone.

        Returns:
            Encoder name -> mean (P,) and standard deviation (P,); 0 and 1 for an encoder that no row has.
        """
        result = {}
        for name in self.config.encoders:
            if name in self.pooled:
                values = self.pooled[name][rows][self.present[name][rows]].double()
                if len(values):
                    result[name] = (values.mean(0).float(), values.std(0, correction=0).float())
                else:
                    result[name] = (torch.zeros(values.shape[1]), torch.ones(values.shape[1]))
                continue
            total, squares, count = self._sums[name][:, torch.from_numpy(rows)].sum(1)
            mean = total / count.clamp_min(1)
            std = (squares / count.clamp_min(1) - mean.square()).clamp_min(0).sqrt()
            result[name] = (mean.float(), torch.where(count > 0, std, torch.ones_like(std)).float())
        return result

    def batch(self, rows: np.ndarray, device: torch.device, labels: bool = True) -> dict:
        """Model inputs for some rows.

        Args:
            rows: row numbers of any shape; the tensors get that shape in place of the batch axis.
            device: where they go.
            labels: whether to include them.

        Returns:
            `features`, `feature_mask` and `labels` for the model.
        """
        flat = torch.from_numpy(rows.reshape(-1))
        features, feature_mask = {}, {}
        for name, values in self.pooled.items():
            features[name] = values[flat]
            feature_mask[name] = self.present[name][flat].unsqueeze(1)
        if self._sums:
            read = self._process(flat.tolist(), names=list(self._sums))
            for name in read["features"]:
                features[name], feature_mask[name] = read["features"][name], read["feature_mask"][name]
        batch: dict = {"features": features, "feature_mask": feature_mask}
        if labels:
            batch["labels"] = self.labels[flat]

        def place(value):
            if isinstance(value, dict):
                return {name: place(entry) for name, entry in value.items()}
            return value.unflatten(0, rows.shape).to(device, non_blocking=True)

        return place(batch)


def fit_feature_statistics(
    model: RankAwareFusionModel,
    dataset: datasets.Dataset,
    encoders: Sequence[str] | None = None,
    progress: bool = False,
) -> None:
    """Fit what a model standardises its features with, as the programs of this package do before they train.

    To be called once, before training in a loop of one's own or under Trainer; the statistics are part of the model.

    Args:
        model: of one's own training.
        dataset: the training part alone: columns `clip` and `features`, and `labels`, whose unlabelled rows are not
            counted unless there are no others.
        encoders: which ones; all by default.
        progress: whether to show a progress bar.

    Raises:
        ValueError: a row the processor refuses; the message names the clip.
    """
    store = FeatureStore(dataset, model.config, progress=progress)
    labelled = ~(store.labels == -100).all(1)
    rows = np.flatnonzero(labelled.numpy()) if labelled.any() else np.arange(len(store))
    for name, (mean, std) in store.statistics(rows).items():
        if encoders is None or name in encoders:
            model.set_feature_statistics(name, mean, std)
