"""Run by test_processes.py, which calls `work` in its own process and runs this file on two."""

import json
import sys
from pathlib import Path


def work(folder: str) -> None:
    """Cross-validates what `folder` describes, resuming on the way; leaves what came out beside it."""
    import datasets
    import torch
    from accelerate import Accelerator

    from hf_blemo.fusion_training.cross_validation import cross_validate
    from hf_blemo.fusion_training.data import model_config
    from hf_blemo.fusion_training.feature_store import FeatureStore
    from hf_blemo.fusion_training.settings import FusionSettings

    accelerator, found = Accelerator(), {}
    number = accelerator.num_processes
    data = datasets.load_from_disk(f"{folder}/data")
    for name, values in json.loads(Path(folder, "settings.json").read_text()).items():
        store = FeatureStore(data, model_config(data, FusionSettings(**values)), progress=False)
        for changes in ({"num_epochs": 1}, {"num_epochs": 3, "resume": True}):
            settings = FusionSettings(**{**values, "checkpoint_every": 1, **changes})
            results, rows = cross_validate(accelerator, store, settings, Path(folder, f"checkpoints_{number}", name))
        found[f"{name}/losses"] = torch.tensor([row["train_loss"] for row in rows])
        for (seed, fold), choice in results.choices.items():
            found[f"{name}/{seed}/{fold}/epoch"] = torch.tensor(choice.epoch)
            for key, value in choice.scored.items():
                found[f"{name}/{seed}/{fold}/{key}"] = torch.from_numpy(value)
    torch.save(found, f"{folder}/process_{accelerator.process_index}_of_{number}.pt")
    accelerator.end_training()


if __name__ == "__main__":
    work(sys.argv[1])
