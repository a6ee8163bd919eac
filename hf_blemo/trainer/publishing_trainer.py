"""transformers' Trainer, whose pushes are loadable at every save and whose card keeps what people wrote."""

import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import CardData, EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.modelcard import TrainingSummary
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_blemo.hub.card import FAMILIES, merge_card

CARD_FILE = "README.md"


class ModelCodeCallback(TrainerCallback):
    """Adds a model's own code to what a plain Trainer pushes in the middle of a training.

    Trainer copies weights and config alone from a checkpoint; without the code beside them nobody who lacks this
    package could load such a push.

    Source: this project's choice.
    """

    def on_push_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Copies the code of the newest checkpoint to where Trainer pushes from."""
        output = Path(str(args.output_dir))
        for path in (output / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}").glob("*.py"):
            shutil.copy(path, output / path.name)


class PublishingTrainer(Trainer):
    """transformers' Trainer for models that go to the Hub.

    Its pushes hold the model's code at every save, and its card names task and results in the metadata and is merged
    with the one on the Hub, of which only the parts between the markers of this package change.

    Source: this project's choice.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.add_callback(ModelCodeCallback)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Writes README.md into the output folder: the last evaluation and hyper-parameters, around people's text.

        Args:
            args, kwargs: as of Trainer's method.

        Raises:
            ValueError: the card on the Hub, or the one in the folder, has metadata that is none.
        """
        if not self.is_world_process_zero():
            return
        path = Path(str(self.args.output_dir)) / CARD_FILE
        existing = self._existing_card(path)
        super().create_model_card(*args, **kwargs)
        card = trainer_card(self, ModelCard(path.read_text(encoding="utf-8")).data, kwargs.get("model_name"))
        if existing is not None:
            card = merge_card(existing, card)
        path.write_text(card, encoding="utf-8", newline="\n")

    def _existing_card(self, path: Path) -> str | None:
        """The card on the Hub, else the one in the folder."""
        if self.hub_model_id is not None:
            try:
                return ModelCard.load(self.hub_model_id, token=self.args.hub_token).content
            except (EntryNotFoundError, RepositoryNotFoundError):
                pass
        return path.read_text(encoding="utf-8") if path.is_file() else None


def trainer_card(trainer: Trainer, metadata: CardData, model_name: str | None = None) -> str:
    """Renders the card of what a Trainer trained.

    Args:
        trainer: after training or evaluation.
        metadata: that Trainer's own card has: base model, licence, tags.
        model_name: the heading; the name of the output folder by default.

    Returns:
        Metadata and text of a README.md; only what lies between markers is written anew by the next training.

    Source: this project's choice.
    """
    name = model_name or Path(str(trainer.args.output_dir)).name
    summary = TrainingSummary.from_trainer(trainer, model_name=name)
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    family = FAMILIES.get(model.config.model_type)
    results = {key: value for key, value in (summary.eval_results or {}).items() if isinstance(value, float | int)}
    header: dict[str, Any] = metadata.to_dict()
    header.pop("model-index", None)
    header["library_name"] = header.get("library_name", "transformers")
    if family is not None:
        header["pipeline_tag"] = family.PIPELINE_TAG
        header["tags"] = list(dict.fromkeys([*(header.get("tags") or []), *family.TAGS]))
    if results:
        header |= {"model_name": name, "eval_results": _index(family, results)}
    data = ModelCardData(**header)
    base = f" from [{summary.finetuned_from}](https://huggingface.co/{summary.finetuned_from})"
    lines = [
        f"---\n{data.to_yaml()}\n---",
        f"# {name}",
        "<!-- hf_blemo:begin summary -->",
        f"Trained by transformers' Trainer{base if summary.finetuned_from else ''}.",
        "<!-- hf_blemo:end summary -->",
        "## Description, intended uses and limits",
        "Not written yet: only you know what this model was trained on, what for, and where it fails.",
        "## Results",
        "<!-- hf_blemo:begin results -->",
        _table(["last evaluation", "value"], [[key, f"{value:.4f}"] for key, value in results.items()])
        if results
        else "Nothing was evaluated.",
        "<!-- hf_blemo:end results -->",
        "## Training",
        "<!-- hf_blemo:begin training -->",
        _table(["hyper-parameter", "value"], [[key, value] for key, value in (summary.hyperparameters or {}).items()]),
        *([_table(list(summary.eval_lines[-1]), [list(row.values()) for row in summary.eval_lines])]
          if summary.eval_lines else []),
        "<!-- hf_blemo:end training -->",
    ]  # fmt: skip
    return "\n\n".join(lines) + "\n"


def _index(family: Any, results: dict[str, float]) -> list[EvalResult]:
    """Results in the model index; Trainer does not know what the data is called."""
    task = family.PIPELINE_TAG if family is not None else "other"
    return [
        EvalResult(
            task_type=task, dataset_type="unknown", dataset_name="evaluation set of the training",
            metric_type=key.lower().replace(" ", "_"), metric_value=round(value, 6), metric_name=key,
        )
        for key, value in results.items()
    ]  # fmt: skip


def _table(head: list[str], rows: list[list[Any]]) -> str:
    cells = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(value) for value in row) + " |" for row in cells)


def _cell(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return " ".join(text.replace("|", "\\|").split())
