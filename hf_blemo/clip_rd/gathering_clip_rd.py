"""Exchange between the processes of a training: the pairs of all of them are each other's negatives."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.nn import functional


def _collective(name: str, earlier_name: str) -> Any:
    """Returns a function of torch.distributed that torch 2.13 renamed."""
    return getattr(dist, name, None) or getattr(dist, earlier_name)


class OtherProcessError(ValueError):
    """Another process of the batch failed, which has an error of its own."""

    of_another_process = True


class Processes:
    """The processes that share a batch, or this one alone.

    Args:
        process_group: of torch.distributed; all processes by default.
    """

    def __init__(self, process_group: "dist.ProcessGroup | None" = None):
        self.active = dist.is_available() and dist.is_initialized()
        self.group = process_group
        self.size = dist.get_world_size(process_group) if self.active else 1
        self.rank = dist.get_rank(process_group) if self.active else 0

    def exchange(self, numbers: Sequence[int], device: torch.device) -> list[list[int]]:
        """The numbers of every process, in the order of the processes."""
        if self.size == 1:
            return [list(numbers)]
        mine = torch.tensor(numbers, device=device)
        everyone = torch.empty(self.size * len(numbers), dtype=mine.dtype, device=device)
        _collective("all_gather_single", "all_gather_into_tensor")(everyone, mine, group=self.group)
        return everyone.view(self.size, -1).tolist()

    def gather(self, values: torch.Tensor, rows: list[int]) -> torch.Tensor:
        """(n, k) of every process -> (N, k), in the order of the processes."""
        if self.size == 1:
            return values
        longest = max(rows)
        padded = functional.pad(values, (0, 0, 0, longest - len(values))).contiguous()
        everyone = padded.new_empty(self.size * longest, values.shape[1])
        _collective("all_gather_single", "all_gather_into_tensor")(everyone, padded, group=self.group)
        if min(rows) == longest:
            return everyone
        return torch.cat([part[:count] for part, count in zip(everyone.split(longest), rows, strict=True)])

    def scatter_sum(self, values: torch.Tensor, rows: list[int]) -> torch.Tensor:
        """(N, k) of every process -> the sum's rows (n, k) that belong to this one."""
        if min(rows) == max(rows):
            mine = values.new_empty(rows[self.rank], values.shape[1])
            _collective("reduce_scatter_single", "reduce_scatter_tensor")(mine, values, group=self.group)
            return mine
        dist.all_reduce(values, group=self.group)
        return values.split(rows)[self.rank]

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over the processes, in place."""
        if self.size > 1:
            dist.all_reduce(values, group=self.group)
        return values

    def merge_log_sums(self, values: torch.Tensor) -> torch.Tensor:
        """(K, N) log-sum-exps over each process's rows -> over all rows."""
        if self.size == 1:
            return values
        everyone = values.new_empty(self.size * values.shape[0], values.shape[1])
        _collective("all_gather_single", "all_gather_into_tensor")(everyone, values.contiguous(), group=self.group)
        return everyone.view(self.size, *values.shape).logsumexp(0)


class _GatherPairs(torch.autograd.Function):
    """Gathers rows; the gradient of a row is the sum over the processes, each of which computed a loss of all rows."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, processes: Processes, rows: list[int]) -> torch.Tensor:
        ctx.processes, ctx.rows = processes, rows
        return processes.gather(values, rows)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return ctx.processes.scatter_sum(gradient.contiguous(), ctx.rows), None, None


def gather_pairs(*embeddings: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Embeddings of the pairs of all processes, with gradients.

    If every process computes the same loss on the result, `DistributedDataParallel`, which averages gradients, gives
    those of one process with all pairs. A collective: every process has to call it.

    Args:
        embeddings: each (n, d), alike in n, dtype and device; n may differ between the processes.

    Returns:
        Each (N, d), in the order of the processes; with one process the arguments themselves.
    """
    processes = Processes()
    if processes.size == 1:
        return embeddings
    rows = [count for (count,) in processes.exchange([len(embeddings[0])], embeddings[0].device)]
    everyone = _GatherPairs.apply(torch.cat(embeddings, 1), processes, rows)
    return everyone.split([values.shape[1] for values in embeddings], 1)
