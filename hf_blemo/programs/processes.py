"""The end of a run on one process or several."""

import gc

from accelerate import Accelerator


def end_training(accelerator: Accelerator) -> None:
    """End trackers and processes. Drop every reference to a prepared model first, or DDP can deadlock.

    A `DistributedDataParallel` model that outlives its process group holds the last reference to the group. Freeing
    it can hang in torch 2.13 with gloo: the freeing thread holds Python's lock while it waits for the group's threads,
    which need that lock to free their tensors.

    Args:
        accelerator: of the run.

    Source: this project's choice.
    """
    if accelerator.num_processes > 1:
        accelerator.free_memory()
        # Wrapped models are parts of reference cycles.
        gc.collect()
    accelerator.end_training()
