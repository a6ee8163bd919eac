"""The end of a run on one process or several."""

import gc

from accelerate import Accelerator


def end_training(accelerator: Accelerator) -> None:
    """Ends trackers and processes; the caller may hold no prepared model any more, since those go first.

    Where one of `DistributedDataParallel` outlives the group of its
    processes, it is the last to hold the group, and torch (2.13, gloo) can wait for ever when it is freed: the thread
    that frees it waits for those of the group, with Python's lock, which these need to free their tensors.

    Args:
        accelerator: of the run.

    Source: this project's choice.
    """
    if accelerator.num_processes > 1:
        accelerator.free_memory()
        # Wrapped models are parts of reference cycles.
        gc.collect()
    accelerator.end_training()
