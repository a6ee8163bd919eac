"""The cases of the tests of Trainer: a tiny model of each family, its rows, and its collator."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch
from tiny_models import make_student
from transformers import Trainer, TrainingArguments

from hf_blemo import CLIPRDDistiller, CLIPRDLoss, CLIPRDModel, RankAwareFusionConfig, RankAwareFusionModel
from hf_blemo.built_in import make_synthetic_blends, make_synthetic_pairs
from hf_blemo.rank_aware_fusion.processing_rank_aware_fusion import RankAwareFusionProcessor
from hf_blemo.trainer import BlendCollator, DistillationCallback, PairCollator, blemore_metrics, pair_columns

NUM_ROWS = 48


@dataclass
class Case:
    """One kind of model under Trainer.

    Args:
        make_model: an untrained model, the same on every call.
        dataset: rows as a user has them.
        collator: for them.
        options: of Trainer beside the usual.
    """

    make_model: Callable[[], torch.nn.Module]
    dataset: datasets.Dataset
    collator: Any
    options: dict[str, Any] = field(default_factory=dict)

    def trainer(
        self, folder: Path, model: torch.nn.Module | None = None, trainer_class: type = Trainer, **arguments: Any
    ) -> Trainer:
        """A plain Trainer of 32 rows that evaluates on the other 16."""
        settings = {
            "max_steps": 6, "per_device_train_batch_size": 8, "per_device_eval_batch_size": 6, "learning_rate": 3e-3,
            "logging_steps": 1, "save_strategy": "no", "use_cpu": True, "disable_tqdm": True, "max_grad_norm": 0.0,
            **arguments,
        }  # fmt: skip
        return trainer_class(
            model=self.make_model() if model is None else model,
            args=TrainingArguments(output_dir=str(folder), **settings),
            data_collator=self.collator,
            train_dataset=self.dataset.select(range(32)),
            eval_dataset=self.dataset.select(range(32, NUM_ROWS)),
            **self.options,
        )


def fusion_config(dataset: datasets.Dataset, **settings: Any) -> RankAwareFusionConfig:
    """A small fusion of all encoders of a data set, without anything random or of the batch."""
    from hf_blemo import feature_sets

    encoders = {name: {"feature_size": width} for name, width in feature_sets.encoder_widths(dataset).items()}
    settings = {"hidden_size": 8, "dropout": 0.0, "gate_balance_weight": 0.0, **settings}
    return RankAwareFusionConfig(encoders=encoders, **settings)


def fusion_case(**settings: Any) -> Case:
    """The fusion on built-in features."""
    dataset = make_synthetic_blends(num_clips=NUM_ROWS)
    config = fusion_config(dataset, **settings)

    def make_model() -> RankAwareFusionModel:
        torch.manual_seed(0)
        return RankAwareFusionModel(config)

    collator = BlendCollator(RankAwareFusionProcessor(config.encoders))
    return Case(make_model, dataset, collator, {"compute_metrics": blemore_metrics})


def pairs() -> datasets.Dataset:
    """Drawn scenes, in the columns that Trainer keeps."""
    return pair_columns(make_synthetic_pairs(num_pairs=NUM_ROWS, image_size=20))


def clip_rd_case() -> Case:
    """A student alone, by the contrastive loss."""

    def make_model() -> CLIPRDModel:
        return make_student(0)[0]

    return Case(make_model, pairs(), PairCollator(make_student(0)[1]))


def distillation_case() -> Case:
    """A student and its teacher, by all terms, one of which begins later."""

    def make_model() -> CLIPRDDistiller:
        torch.manual_seed(1)
        loss = CLIPRDLoss(12, 12, scales="exponentiated")
        schedule = {"xrd": [(0, 0.0), (4, 1.0)]}
        return CLIPRDDistiller(make_student(0)[0], make_student(1)[0], loss, weight_schedule=schedule)

    processor = make_student(0)[1]
    options = {"callbacks": [DistillationCallback(processor)]}
    return Case(make_model, pairs(), PairCollator(processor, processor), options)


CASES: dict[str, Callable[[], Case]] = {
    "fusion": fusion_case,
    "clip_rd": clip_rd_case,
    "distillation": distillation_case,
}
