"""Runs a program as one of several processes, and fails it where a wrapped model outlives the processes' group.

`python watched_processes.py PROGRAM ARGUMENTS...`; why none may: see `hf_blemo.programs.processes.together`.
"""

import gc
import runpy
import sys
from typing import Any

import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel


def watch(destroy: Any) -> Any:
    """The function that destroys a group, refusing where a wrapped model is alive."""

    def watched(*arguments: Any, **options: Any) -> None:
        alive = [value for value in gc.get_objects() if isinstance(value, DistributedDataParallel)]
        assert not alive, f"outlives the group of its processes: {alive[0].module}"
        destroy(*arguments, **options)
        print("the group has ended")

    return watched


if __name__ == "__main__":
    dist.destroy_process_group = watch(dist.destroy_process_group)
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
