"""Run by test_processes.py, which calls `work` in its own process and runs this file on two."""

import json
import sys
from pathlib import Path


def work(folder: str) -> None:
    """Trains, predicts and cross-validates what `folder` describes; leaves what came out beside it."""
    import datasets
    import numpy as np
    import torch
    from accelerate import Accelerator

    from hf_blemo.fusion_training.cross_validation import cross_validate
    from hf_blemo.fusion_training.data import model_config
    from hf_blemo.fusion_training.feature_store import FeatureStore
    from hf_blemo.fusion_training.lockstep import Lockstep, Member
    from hf_blemo.fusion_training.settings import FusionSettings
    from hf_blemo.programs.progress import Progress

    accelerator = Accelerator()
    number = accelerator.num_processes
    data = datasets.load_from_disk(f"{folder}/data")
    found = {}
    for name, values in json.loads(Path(folder, "settings.json").read_text()).items():
        settings = FusionSettings(**values)
        store = FeatureStore(data, model_config(data, settings), progress=False)
        lockstep = Lockstep(accelerator, [Member(3, (0,)), Member(1, (1, 2))], store, settings)
        losses = [lockstep.train_epoch(Progress("test", "step", shown=False)) for _ in range(2)]
        found[f"{name}/losses"] = torch.from_numpy(np.array(losses))
        for index in range(2):
            for key, value in lockstep.model_of(index).state_dict().items():
                found[f"{name}/{index}/{key}"] = value
        for key, value in lockstep.predict_held_out(np.arange(31)).items():
            found[f"{name}/{key}"] = torch.from_numpy(value)
        accelerator.free_memory()

    for changes in ({"num_epochs": 2}, {"num_epochs": 4, "resume": True}):
        settings = FusionSettings(**{**values, "checkpoint_every": 1, **changes})
        checkpoints = Path(folder, f"checkpoints_{number}")
        results, _ = cross_validate(accelerator, store, settings, checkpoints)
    for (seed, fold), choice in results.choices.items():
        found[f"cross-validation/{seed}/{fold}/epoch"] = torch.tensor(choice.epoch)
        found[f"cross-validation/{seed}/{fold}/scored"] = torch.from_numpy(choice.scored["joint_probabilities"])
    torch.save(found, f"{folder}/process_{accelerator.process_index}_of_{number}.pt")
    accelerator.end_training()


if __name__ == "__main__":
    work(sys.argv[1])
