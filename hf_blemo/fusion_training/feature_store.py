"""Features of a data set as the trainer needs them: pooled once where pooling has no weights, else read on demand."""

from collections.abc import Sequence

import datasets
import numpy as np
import torch
from transformers import BatchFeature

from hf_blemo import blemore, feature_sets
from hf_blemo.errors import check_once
from hf_blemo.feature_sets.folds import check_classes
from hf_blemo.fusion_training.judging import Judge
from hf_blemo.fusion_training.novelty import BEYOND, NUM_DIRECTIONS, fit_novelty
from hf_blemo.programs.fingerprints import fingerprint
from hf_blemo.programs.progress import Progress
from hf_blemo.rank_aware_fusion.configuration_rank_aware_fusion import RankAwareFusionConfig
from hf_blemo.rank_aware_fusion.label_space_rank_aware_fusion import UNLABELLED, same_space
from hf_blemo.rank_aware_fusion.modeling_rank_aware_fusion import RankAwareFusionModel
from hf_blemo.rank_aware_fusion.pooling_rank_aware_fusion import RankAwareFusionPooling, squashed
from hf_blemo.rank_aware_fusion.processing_rank_aware_fusion import RankAwareFusionProcessor

_ROWS_AT_ONCE = 64
_FOLDS_NEEDED = {"honest": 3, "published_style": 2}


class FeatureStore:
    """Rows of a data set, checked once.

    `mean` and `statistics` pooling have no weights: those encoders are pooled while the data set is read, kept in
    memory as (N, P) and fed to the model as pooled vectors. Encoders with `attention` pooling stay memory-mapped.

    Args:
        dataset: columns `clip`, `features` and, where present, `labels` and `fold`. Where no row has a label, its
            labels may be those of other names.
        config: the model's config; encoders of the data set that it does not name are left out.
        align_folds: whether the pooled features of each fold are shifted and scaled to the mean and deviation of all
            rows, for out-of-fold predictions of another model.

    Raises:
        ValueError: the labels are not those of the config; a row the processor refuses, and the message names the
            clip; `align_folds` with attention pooling.
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
        self.judge = Judge.of(config)
        self.processor = RankAwareFusionProcessor.from_config(config)
        self.poolings = {
            name: RankAwareFusionPooling(options, config.squash) for name, options in config.encoders.items()
        }
        num_rows = len(dataset)
        self.pooled: dict[str, torch.Tensor] = {}
        self.present = {name: torch.zeros(num_rows, dtype=torch.bool) for name in config.encoders}
        # Encoders read on demand have sum, sum of squares and number of steps per row: enough for the statistics of
        # any rows.
        self._sums: dict[str, torch.Tensor] = {}
        # Deviation over time of encoders whose pooling leaves it out, and whether a row has two steps.
        self._spread: dict[str, torch.Tensor] = {}
        self._moves = {name: torch.zeros(num_rows, dtype=torch.bool) for name in config.encoders}
        for name, options in config.encoders.items():
            size = self.poolings[name].output_size
            if options["pooling"] == "attention":
                self._sums[name] = torch.zeros(3, num_rows, size, dtype=torch.float64)
            else:
                self.pooled[name] = torch.zeros(num_rows, size)
            if options["pooling"] == "mean":
                self._spread[name] = torch.zeros(num_rows, size)
        columns = dataset.column_names
        groups = dataset["group"][:] if "group" in columns else [None] * num_rows
        names = sorted({group for group in groups if group is not None})
        places = {name: number for number, name in enumerate(names)}
        # Number of each row's group, -1 without one.
        self.groups = np.array([-1 if group is None else places[group] for group in groups])
        folds = dataset["fold"][:] if "fold" in columns else [None] * num_rows
        self.folds = np.array([-1 if fold is None else fold for fold in folds])
        # Clips that may share moments: those of one group and fold, since another fold may be held out.
        self._cells = np.unique(self.groups * (self.folds.max(initial=0) + 2) + self.folds, return_inverse=True)[1]
        labels = self._labels_of(dataset)
        self.labels = torch.full((num_rows, len(self.judge.space.names)), UNLABELLED)
        bar = Progress("reading features", "clip", num_rows, shown=progress)
        content = []
        for start in range(0, num_rows, _ROWS_AT_ONCE):
            rows = list(range(start, min(start + _ROWS_AT_ONCE, num_rows)))
            batch = self._process(rows, [labels[row] for row in rows])
            self.labels[rows] = batch["labels"]
            for name, values in batch["features"].items():
                mask = batch["feature_mask"][name]
                content.append(fingerprint(values, mask))
                pooled = self.poolings[name].pool(values, mask)
                self.present[name][rows] = mask.any(1)
                self._moves[name][rows] = mask.sum(1) > 1
                if name in self._spread:
                    self._spread[name][rows] = self.poolings[name].moments(values, mask)[1]
                if name in self.pooled:
                    self.pooled[name][rows] = pooled
                    continue
                pooled = torch.where(mask.unsqueeze(-1), pooled, pooled.new_zeros(())).double()
                count = mask.sum(1, keepdim=True).double().expand(-1, pooled.shape[-1])
                self._sums[name][:, rows] = torch.stack([pooled.sum(1), pooled.square().sum(1), count])
            bar.update(len(rows))
        bar.close()
        # What a run depends on, whatever the source is called: names and content of its rows in their order.
        self.fingerprint = {
            "clips": fingerprint(self.clips),
            "labels": fingerprint(self.labels),
            "folds": fingerprint(self.folds.tolist()),
            "groups": fingerprint(groups[:]),
            "features": fingerprint(content),
        }
        self.labelled = ~(self.labels == UNLABELLED).all(-1).numpy()
        if align_folds:
            self._align_folds()
        self._moments: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def __len__(self) -> int:
        return len(self.clips)

    def _labels_of(self, dataset: datasets.Dataset) -> Sequence:
        """A label of every row as the processor reads it; None where no row has one."""
        labels = dataset["labels"][:] if "labels" in dataset.column_names else []
        if all(label is None or (np.asarray(label) == UNLABELLED).all() for label in labels):
            return [None] * len(dataset)
        space, kind = feature_sets.label_space(dataset)
        same_space(space, self.judge.space, "the data", "the model")
        if kind == "soft" and self.judge.kind == "valid":
            raise ValueError(
                "the data has soft labels, but model.label_kind is 'valid': expected 'soft', or valid labels in the "
                "data"
            )
        return labels

    @property
    def blend_share(self) -> float:
        """Share of blends among the labelled rows, from 0 to 1."""
        labels = self.judge.nearest(self.labels.numpy()[self.labelled])
        return float(self.judge.space.is_blend[labels].mean())

    def labelled_rows(self, protocol: str) -> tuple[np.ndarray, np.ndarray]:
        """The rows with labels (R,) and their folds (R,), checked for all that a run of the protocol needs of them."""
        rows = np.flatnonzero(self.labelled)
        if len(rows) == 0:
            shown = ", ".join(self.clips[:2])
            raise ValueError(
                f"{len(self)} of {len(self)} clips carry no label, for instance {shown}: expected some to train on; "
                "`hf-blemo dataset build --label-column` reads them from a table"
            )
        # A clip in two folds would be scored by a model that has seen it.
        check_once("data set: clip", (blemore.clip_name(self.clips[row]) for row in rows))
        folds = self.folds[rows]
        names = np.unique(folds).tolist()
        if protocol != "none":
            if (folds < 0).any():
                clip = self.clips[rows[np.argmax(folds < 0)]]
                raise ValueError(
                    f"protocol {protocol!r} needs a fold for every labelled clip, found none for {clip}; "
                    "`hf-blemo dataset build DATA --output DIR --folds 5` deals folds, or train on all clips with "
                    "protocol none"
                )
            needed = _FOLDS_NEEDED[protocol]
            if len(names) < needed:
                raise ValueError(f"protocol {protocol!r} needs at least {needed} folds, found {len(names)}: {names}")
            if not self.judge.is_benchmark:
                check_classes(self.judge.space.names, self.labels.numpy()[rows], folds, "data set")
        if self.config.domain_adaptation != "none" and len(rows) == len(self):
            raise ValueError(f"domain_adaptation {self.config.domain_adaptation!r} needs unlabelled rows, found none")
        if self.config.gate == "static" and len(names) < 2:
            raise ValueError(f"gate 'static' ranks the encoders by cross-validation over folds, found {len(names)}")
        return rows, folds

    def vectors(self, name: str) -> torch.Tensor:
        """(N, P) one vector per row: the pooled features, or the mean over time of an encoder pooled by attention."""
        if name in self.pooled:
            return self.pooled[name]
        total, _, count = self._sums[name]
        return (total / count.clamp_min(1)).float()

    def moments(self, name: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Mean and standard deviation over time of each row, (N, D), and whether it has two steps, (N,)."""
        size, mean = self.config.encoders[name]["feature_size"], self.vectors(name)
        if name in self._sums:
            total, squares, count = self._sums[name]
            count = count.clamp_min(1)
            spread = (squares / count - (total / count).square()).clamp_min(0).sqrt().float()
        else:
            spread = self._spread[name] if name in self._spread else mean[:, size : 2 * size]
        return mean[:, :size], spread, self._moves[name]

    def fit_novelty(
        self, models: Sequence[RankAwareFusionModel], rows: np.ndarray, encoders: Sequence[str] | None = None
    ) -> None:
        """Tells models what clips are unlike those they were trained on, the rows (R,)."""
        for name in self.config.encoders if encoders is None else encoders:
            used = rows[self.present[name].numpy()[rows]]
            mean, spread, moves = (values[used] for values in self.moments(name))
            beyond = BEYOND / len(self.config.encoders)
            count = self.config.novelty_directions or NUM_DIRECTIONS
            novelty = fit_novelty(mean, spread, moves, self.folds[used], beyond, count)
            if novelty is not None:
                for model in models:
                    model.set_novelty(name, novelty)

    def _align_folds(self) -> None:
        """Gives the features of every fold the mean and deviation of all rows.

        Out-of-fold predictions of another model come from a different network in every fold, each with its own scale
        and offset, which a stacked model should not learn. No label is read, but a scored fold has the moments of its
        own clips (transductive, as AdaBN is).
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
    ) -> BatchFeature:
        """Checks and pads some rows, or some encoders of them; a row that has none of them has none present."""
        names = list(self.config.encoders) if names is None else names
        samples, hidden = [], []
        for position, sample in enumerate(feature_sets.read_features(self.dataset, rows)):
            known = {name: values for name, values in sample.items() if name in names}
            if sample and not known:
                known = {names[0]: np.zeros((1, self.config.encoders[names[0]]["feature_size"]), np.float32)}
                hidden.append(position)
            samples.append(known)
        batch = self.processor(samples, labels=labels, clips=[self.clips[row] for row in rows])
        for mask in batch["feature_mask"].values():
            mask[hidden] = False
        return batch

    def statistics(self, rows: np.ndarray) -> dict[str, list[torch.Tensor]]:
        """Mean, deviation and, where the config weights features by it, relevance of every encoder over some rows,
        each (P,).

        They are 0, 1 and 0 for an encoder that no row has. Rows without labels do not count for the relevance,
        which is 1 where no row has one. `rows` (R,) are those of the training part alone.
        """
        result = {}
        for name in self.config.encoders:
            if name in self.pooled:
                values = self.pooled[name][rows][self.present[name][rows]].double()
                mean, std = torch.zeros(values.shape[1]).double(), torch.ones(values.shape[1]).double()
                if len(values):
                    mean, std = values.mean(0), values.std(0, correction=0)
            else:
                total, squares, count = self._sums[name][:, torch.from_numpy(rows)].sum(1)
                mean = total / count.clamp_min(1)
                std = (squares / count.clamp_min(1) - mean.square()).clamp_min(0).sqrt()
                std = torch.where(count > 0, std, torch.ones_like(std))
            result[name] = [mean.float(), std.float()]
            if self.config.feature_weighting == "relevance":
                used = rows[self.present[name].numpy()[rows] & self.labelled[rows]]
                values = (self.vectors(name)[used].double() - mean) / torch.where(std > 1e-8, std, 1.0)
                values = squashed(values) if self.poolings[name].squash else values
                ratio = correlation_ratio(values, self.labels[used].double()).float()
                result[name].append(ratio if self.labelled[rows].any() else torch.ones_like(ratio))
        return result

    def _exchanged(self, name: str, rows: np.ndarray, others: np.ndarray) -> torch.Tensor:
        """Pooled features (R, P) of rows with the mean and deviation of the groups of other rows.

        A group's moments are those of its own labelled rows in the row's fold, without what lies more than four
        deviations from their mean.
        """
        if name not in self._moments:
            values, used = self.pooled[name], self.present[name].numpy() & self.labelled
            mean, std = torch.zeros(2, self._cells.max() + 1, values.shape[1]).unbind()
            for place in range(len(mean)):
                own = values[(self._cells == place) & used].double()
                if len(own) > 1:
                    centre, spread = own.mean(0), own.std(0)
                    own = own.clamp(centre - 4 * spread, centre + 4 * spread)
                    mean[place], std[place] = own.mean(0).float(), own.std(0).float()
            self._moments[name] = (mean, std)
        mean, std = self._moments[name]
        own_cell, other = (torch.from_numpy(self._cells[numbers]) for numbers in (rows, others))
        values = self.pooled[name][rows]
        moved = (values - mean[own_cell]) / std[own_cell] * std[other] + mean[other]
        # A feature that does not vary within a group has nothing to exchange there.
        varies = (std[own_cell] > 1e-8) & (std[other] > 1e-8)
        return torch.where(varies & (own_cell != other).unsqueeze(1), moved, values)

    def batch(
        self, rows: np.ndarray, device: torch.device, labels: bool = True, others: np.ndarray | None = None
    ) -> dict:
        """`features`, `feature_mask` and `labels` of some rows for the model.

        Args:
            rows: row numbers of any shape; the tensors get that shape in place of the batch axis.
            others: of the same shape, rows whose groups' mean and deviation the features take; a row itself where
                nothing changes.
        """
        flat = torch.from_numpy(rows.reshape(-1))
        features, feature_mask = {}, {}
        for name, values in self.pooled.items():
            features[name] = values[flat] if others is None else self._exchanged(name, rows.ravel(), others.ravel())
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

    @torch.inference_mode()
    def predict(
        self, models: Sequence[RankAwareFusionModel], rows: np.ndarray | None = None
    ) -> dict[str, torch.Tensor]:
        """`probabilities` (N, C) and `joint_probabilities` (N, L) of rows, all by default: float32, the mean over
        models, which are on the CPU and in evaluation mode."""
        names = ("probabilities", "joint_probabilities")
        parts: dict[str, list[torch.Tensor]] = {name: [] for name in names}
        rows = np.arange(len(self)) if rows is None else rows
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            batch = self.batch(rows[start : start + _ROWS_AT_ONCE], torch.device("cpu"), labels=False)
            outputs = [model(**batch) for model in models]
            for name in names:
                parts[name].append(torch.stack([output[name].float() for output in outputs]).mean(0))
        return {name: torch.cat(part) for name, part in parts.items()}


def correlation_ratio(values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Pearson's correlation ratio of features (R, P) with names, by shares (R, C): (P,) from 0 to 1, the root of the
    variance of a feature's means per name over its own."""
    if not len(values):
        return torch.zeros(values.shape[1])
    mass = labels.sum(0).clamp_min(1e-9)
    means = (labels.T @ values) / mass[:, None]
    between = (mass[:, None] / mass.sum() * (means - values.mean(0)).square()).sum(0)
    return (between / values.var(0, correction=0).clamp_min(1e-12)).clamp(0, 1).sqrt()


def fit_feature_statistics(
    model: RankAwareFusionModel,
    dataset: datasets.Dataset,
    encoders: Sequence[str] | None = None,
    progress: bool = False,
) -> None:
    """Fits the statistics by which a model standardises its features and knows clips that are unlike those it was
    trained on, as the programs of this package do.

    Call it once before your own training loop or Trainer; the statistics are saved with the model.

    Args:
        model: the model to be trained.
        dataset: the training part alone: columns `clip` and `features`, and optionally `labels`; unlabelled rows count
            only where no row is labelled.
        encoders: which encoders; all by default.
        progress: whether to show a progress bar.

    Raises:
        ValueError: a row the processor refuses; the message names the clip.
    """
    store = FeatureStore(dataset, model.config, progress=progress)
    rows = np.flatnonzero(store.labelled) if store.labelled.any() else np.arange(len(store))
    for name, statistics in store.statistics(rows).items():
        if encoders is None or name in encoders:
            model.set_feature_statistics(name, *statistics)
    store.fit_novelty([model], rows, encoders)
