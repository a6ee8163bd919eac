"""The results of a distillation beside the student: metrics, plots and the card."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from hf_blemo.clip_rd.distillation_clip_rd import CLIPRDDistiller
from hf_blemo.clip_rd_training.batches import PairBatches
from hf_blemo.clip_rd_training.plots import plot_distillation
from hf_blemo.files import write_json
from hf_blemo.hub import write_card

SHOWN_PAIRS = 48


class SimilarityMaps:
    """Image-text similarities of some pairs of the first batch, for the current student and the teacher."""

    def __init__(self, distiller: CLIPRDDistiller, batches: PairBatches):
        self.distiller = distiller
        self.batch, _ = next(iter(batches))
        self.batch = {name: values[:SHOWN_PAIRS] for name, values in self.batch.items()}

    @torch.no_grad()
    def now(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the cosines (n, n) of images (rows) and texts: the student's and the teacher's."""
        training = self.distiller.training
        self.distiller.eval()
        device = self.distiller.step.device
        embeds = self.distiller({name: values.to(device) for name, values in self.batch.items()}, return_loss=False)
        self.distiller.train(training)
        image, text, *teacher = (functional.normalize(values.double(), dim=-1).cpu() for values in embeds)
        return (image @ text.T).numpy(), (teacher[0] @ teacher[1].T).numpy()


def write_results(
    output: Path, metrics: dict[str, Any], maps: tuple[np.ndarray, np.ndarray, np.ndarray] | None
) -> None:
    """Writes `metrics.json`, the plots and the card.

    Args:
        output: the student's folder.
        metrics: of the run.
        maps: similarities of the teacher, of the student before and after; None without a teacher.
    """
    write_json({output / "metrics.json": metrics})
    plot_distillation(metrics, maps, output / "plots")
    write_card(output, metrics)
