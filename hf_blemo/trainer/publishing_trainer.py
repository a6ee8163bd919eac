"""transformers' Trainer for models that go to the Hub."""

import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.modelcard import TrainingSummary
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_blemo.files import write_text
from hf_blemo.hub.card import CARD_FILE, FAMILIES, card_in, card_on_hub, merge_card, render_template
from hf_blemo.rank_aware_fusion.label_space_rank_aware_fusion import BLEMORE_SPACE

# Measures that Trainer's summary would spell as words.
_ABBREVIATIONS = ("Uar", "Nll", "Kl", "Mae")


class ModelCodeCallback(TrainerCallback):
    """Adds a model's own code to the pushes of a plain Trainer during training.

    Trainer copies only weights and config from a checkpoint; without the code beside them nobody who lacks this
    package could load such a push.
    """

    def on_push_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Copies the code of the newest checkpoint to where Trainer pushes from."""
        output = Path(str(args.output_dir))
        for path in (output / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}").glob("*.py"):
            shutil.copy(path, output / path.name)


class PublishingTrainer(Trainer):
    """A Trainer whose every push loads and whose card keeps manual edits.

    Each push holds the model's code. The card names task and results in its metadata; of the card on the Hub only the
    parts between this package's markers change.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.add_callback(ModelCodeCallback)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Writes README.md into the output folder: the last evaluation and hyper-parameters, around people's text.

        Args:
            args, kwargs: of Trainer's method.

        Raises:
            ValueError: the card on the Hub, or the one in the folder, has metadata that cannot be read.
        """
        if not self.is_world_process_zero():
            return
        path = Path(str(self.args.output_dir)) / CARD_FILE
        on_hub = card_on_hub(self.hub_model_id, token=self.args.hub_token) if self.hub_model_id is not None else None
        existing = card_in(path.parent) if on_hub is None else on_hub
        # Trainer knows base model, licence and tags.
        super().create_model_card(*args, **kwargs)
        metadata = ModelCard(path.read_text(encoding="utf-8")).data.to_dict()
        card = self._rendered_card(metadata, kwargs.get("model_name") or path.parent.name)
        write_text(path, merge_card(existing, card))

    def _rendered_card(self, metadata: dict[str, Any], name: str) -> str:
        summary = TrainingSummary.from_trainer(self, model_name=name)
        model: Any = self.accelerator.unwrap_model(self.model)
        family = FAMILIES.get(model.config.model_type)
        results = [
            (name.upper() if name in _ABBREVIATIONS else name, value)
            for name, value in (summary.eval_results or {}).items()
            if isinstance(value, float | int)
        ]
        metadata.pop("model-index", None)
        metadata.setdefault("library_name", "transformers")
        if family is not None:
            metadata["pipeline_tag"], tags = family.identity(model.config.to_dict())
            metadata["tags"] = list(dict.fromkeys([*(metadata.get("tags") or []), *tags]))
        if results:
            metadata |= {"model_name": name, "eval_results": [_result(metadata, *item) for item in results]}
        loadable = family is not None and self.processing_class is not None
        return render_template(
            "model",
            ModelCardData(**metadata),
            name=name,
            repo_id=self.hub_model_id if loadable else None,
            results=results,
            training=summary,
            labels=_labels(model.config),
        )


def _labels(config: Any) -> str | None:
    """What a fusion of other labels than BlEmoRE's predicts, for the card."""
    space = getattr(config, "label_space", BLEMORE_SPACE)
    if space == BLEMORE_SPACE:
        return None
    return f"{space}" + (", any distribution over them" if config.label_kind == "soft" else "")


def _result(metadata: dict[str, Any], name: str, value: float) -> EvalResult:
    """A result for the model index; Trainer does not know the name of the data."""
    return EvalResult(
        task_type=metadata.get("pipeline_tag", "other"),
        dataset_type="unknown",
        dataset_name="evaluation set of the training",
        metric_type=name.lower().replace(" ", "_"),
        metric_value=round(value, 6),
        metric_name=name,
    )
