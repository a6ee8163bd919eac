"""A callback for distillation with transformers' Trainer."""

from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_blemo.clip_rd.distillation_clip_rd import CLIPRDDistiller


class DistillationCallback(TrainerCallback):
    """Keeps a [`CLIPRDDistiller`] in step with Trainer, and saves its student as a loadable folder.

    Sets the step, which drives the weight schedule, before every step and after a resume; clamps the scales after
    every step. At every save, and at the end, the student goes into the folder `student` of the checkpoint, or of the
    output folder.

    Args:
        processor: saved beside the student so that the folder is complete: a `PairProcessor` or `CLIPProcessor`.
    """

    def __init__(self, processor: Any = None):
        self.processor = processor

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Sets the step."""
        _distiller(kwargs).set_step(state.global_step)

    # Checks the model before the first batch is read.
    on_train_begin = on_step_begin

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Sets the number of steps taken, which a checkpoint keeps, and clamps the scales."""
        _distiller(kwargs).set_step(state.global_step)
        _distiller(kwargs).clamp_scales()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Saves the student into the checkpoint."""
        checkpoint = Path(str(args.output_dir), f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
        self._save(_distiller(kwargs), state, checkpoint)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Saves the student into the output folder."""
        self._save(_distiller(kwargs), state, Path(str(args.output_dir)))

    def _save(self, distiller: CLIPRDDistiller, state: TrainerState, folder: Path) -> None:
        if state.is_world_process_zero:
            distiller.student.save_pretrained(folder / "student")
            if self.processor is not None:
                self.processor.save_pretrained(folder / "student")


def _distiller(arguments: dict[str, Any]) -> CLIPRDDistiller:
    model: Any = arguments["model"]
    if not isinstance(model, CLIPRDDistiller):
        raise ValueError(f"DistillationCallback: expected a CLIPRDDistiller, found a {type(model).__name__}")
    return model
