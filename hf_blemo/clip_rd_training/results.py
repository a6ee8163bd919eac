"""What a distillation came to: similarities before and after, and a summary in lines."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from hf_blemo.clip_rd.distillation_clip_rd import CLIPRDDistiller
from hf_blemo.clip_rd_training.batches import PairBatches
from hf_blemo.clip_rd_training.teachers import embeddings_of
from hf_blemo.programs.progress import duration

SHOWN_PAIRS = 48
SHOWN_MEASURES = ("top_1", "image_to_text_r@1", "image_to_text_r@5", "text_to_image_r@1", "text_to_image_r@5")


class SimilarityMaps:
    """Image-text similarities of some pairs of the first batch, for the current student and the teacher."""

    def __init__(self, distiller: CLIPRDDistiller, batches: PairBatches):
        self.distiller = distiller
        self.batch, _ = next(iter(batches))
        self.batch = {name: values[:SHOWN_PAIRS] for name, values in self.batch.items()}

    def now(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the cosines (n, n) of images (rows) and texts: the student's, and the mean of the teachers'."""
        embeds = embeddings_of(self.distiller, self.batch)
        image, text, *teacher = (functional.normalize(values.double(), dim=-1).cpu() for values in embeds)
        theirs = [images @ texts.T for images, texts in zip(teacher[::2], teacher[1::2], strict=True)]
        return (image @ text.T).numpy(), torch.stack(theirs).mean(0).numpy()


def summary(metrics: Mapping[str, Any]) -> list[str]:
    """What a run came to, in lines: its terms at both ends, its pace, and what was measured."""
    lines = []
    for name in [name for name in metrics["history"][-1] if name != "step"]:
        # A scheduled term may begin later.
        rows = [row for row in metrics["history"] if name in row]
        shown = [f"{row[name]:10.4g} after {row['step']} steps" for row in (rows[0], rows[-1])]
        lines.append(f"{name:<13} {' '.join(shown)}")
    for teacher in metrics["teachers"]:
        if "scale" in teacher:
            lines.append(f"teacher {teacher['source']}: scale {teacher['scale']:.4g} ({teacher['scale_is']})")
    epochs = metrics["epochs"]
    passes = "" if epochs is None else f", {epochs:.3g} times the {metrics['data']['pairs']:,} pairs"
    size, pace = metrics["batch_size"], metrics["seconds_per_step"]
    # A run that was resumed after its last step trained none.
    speed = "" if pace is None else f"; {pace:.3g} s a step, {size / max(pace, 1e-9):,.3g} pairs a second"
    lines.append(f"{metrics['num_steps']:,} steps of {size:,} pairs{passes}{speed}")
    first = next((row for row in metrics["evaluations"] if row["step"] == 0), None)
    measured = {
        "teacher": metrics["teacher_evaluation"],
        "student before training": first,
        "student": metrics["evaluation"],
    }
    for whose, found in measured.items():
        for name, task in (found or {}).get("tasks", {}).items():
            shown = [f"{key.replace('_', ' ')} {task[key]:.1%}" for key in SHOWN_MEASURES if key in task]
            count = task.get("classes", task["images"])
            lines.append(f"{name}, {whose}: {', '.join(shown)} (guessing: {1 / count:.1%})")
    return [*lines, f"In all {duration(metrics['wall_seconds'])}"]
