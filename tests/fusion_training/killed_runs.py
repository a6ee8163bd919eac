"""Run by test_run.py: starts a run of training twice and kills it twice, in either phase, as a machine would."""

import json
import os
import signal
import sys
import time
from pathlib import Path

from hf_blemo.fusion_training.run import train_fusion
from hf_blemo.fusion_training.settings import FusionSettings


def kill_once_saved(settings: FusionSettings, phase: str) -> None:
    """Starts a run and kills it without warning once `phase` has a checkpoint and a further epoch is under way."""
    child = os.fork()
    if child == 0:
        train_fusion(settings)
        os._exit(0)
    folder = Path(settings.output_dir, "checkpoints", phase)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list(folder.glob("epoch_*")):
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
        sys.exit(f"the run ended by itself in phase {phase}: status {status}")


if __name__ == "__main__":
    values = json.loads(sys.argv[1])
    kill_once_saved(FusionSettings(**values), f"cross_validation_seed_{values['seeds'][0]}")
    kill_once_saved(FusionSettings(**{**values, "resume": True}), "final")
