"""A tiny distillation: `python losses_on_processes.py FOLDER WORLD` is one of the processes that share its batch; RANK
says which."""

import gc
import os
import sys
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hf_blemo.clip_rd.distillation_clip_rd import CLIPRDDistiller, cached_backward
from hf_blemo.clip_rd.losses_clip_rd import CLIPRDLoss

CASES = (
    "plain",
    "unequal",
    "accumulated",
    "cached",
    "cached, unequal",
    "equal widths",
    "duplicates",
    "cached, duplicates",
    "teachers",
    "cached, teachers",
)
BROKEN = ("NaN", "rows", "gradient", "no teacher", "weights", "input", "chunks", "ids")
NUM_PAIRS = 12
WIDTHS = (5, 6)


class TinyClip(nn.Module):
    """Two linear towers with the three names of a CLIP."""

    def __init__(self, seed: int, width: int):
        super().__init__()
        torch.manual_seed(seed)
        self.image, self.text = nn.Linear(7, width), nn.Linear(8, width)
        self.dropout = nn.Dropout(0.2)
        self.logit_scale = nn.Parameter(torch.tensor(2.0))

    def get_image_features(self, pixel_values):
        return self.dropout(self.image(pixel_values).tanh())

    def get_text_features(self, input_ids, attention_mask=None):
        return self.text(input_ids).tanh()


def make_distiller(dropout: float = 0.0, widths: tuple[int, int] = WIDTHS, **options) -> CLIPRDDistiller:
    student, teacher = TinyClip(0, widths[0]), TinyClip(1, widths[1])
    student.dropout.p = dropout
    torch.manual_seed(2)
    return CLIPRDDistiller(student, teacher, CLIPRDLoss(*widths, tile_size=4, scales="exponentiated"), **options)


def make_taught_by_two() -> CLIPRDDistiller:
    """The student of `make_distiller` with a second teacher, narrower than itself and with a scale of its own."""
    plain, second = make_distiller(), TinyClip(4, 4)
    second.logit_scale.data.fill_(3.0)
    torch.manual_seed(2)
    loss = CLIPRDLoss(WIDTHS[0], [WIDTHS[1], 4], tile_size=4, scales="exponentiated")
    return CLIPRDDistiller(plain.student, [plain.teacher, second], loss)


def make_batch(num_pairs: int = NUM_PAIRS) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        "pixel_values": torch.randn(num_pairs, 7, generator=generator),
        "input_ids": torch.randn(num_pairs, 8, generator=generator),
    }


def share_of(batch: dict[str, torch.Tensor], sizes: list[int], rank: int) -> dict[str, torch.Tensor]:
    return {name: values.split(sizes)[rank].clone() for name, values in batch.items()}


def sizes_of(case: str, world: int) -> list[int]:
    if case.endswith("unequal"):
        return {1: [12], 2: [9, 3], 4: [5, 0, 6, 1]}[world]
    return [NUM_PAIRS // world] * world


def work(case: str, world: int, rank: int) -> dict[str, torch.Tensor]:
    """Loss, terms and parameter gradients of one global batch, or of two under accumulation."""
    make = make_taught_by_two if case.endswith("teachers") else make_distiller
    distiller = make_distiller(widths=(6, 6)) if case == "equal widths" else make()
    model = distiller if world == 1 else DistributedDataParallel(distiller)
    sizes = sizes_of(case, world)
    if case == "accumulated":
        # The second micro-batch is the first one in reverse: other pairs per process, the same over all.
        batches = [make_batch(), {name: values.flip(0) for name, values in make_batch().items()}]
        with nullcontext() if world == 1 else model.no_sync():
            (model(share_of(batches[0], sizes, rank)).loss / 2).backward()
        terms = model(share_of(batches[1], sizes, rank))
        (terms.loss / 2).backward()
    else:
        batch = make_batch()
        if case.endswith("duplicates"):
            numbers = torch.arange(NUM_PAIRS)
            batch |= {"image_ids": numbers % 5, "text_ids": numbers // 3 % 3}
        if case.endswith("teachers"):
            # The second one's own pixels and tokens.
            batch |= {f"teacher_2_{name}": values + 0.3 for name, values in batch.items()}
        batch = share_of(batch, sizes, rank)
    if case.startswith("cached"):
        terms = cached_backward(model, batch, 2)
    elif case != "accumulated":
        terms = model(batch)
        terms.loss.backward()
    found = {f"term/{name}": value.detach() for name, value in terms.items()}
    for name, parameter in distiller.named_parameters():
        found[f"gradient/{name}"] = parameter.grad
    return found


def break_one(case: str) -> torch.Tensor:
    """The last process has something wrong: what each process says, as bytes."""
    broken = dist.get_rank() == dist.get_world_size() - 1
    loss, distiller, batch = CLIPRDLoss(6, tile_size=4), make_distiller(), make_batch(4)
    values = [torch.randn(4, 6) for _ in range(4)]
    try:
        if case in ("input", "chunks"):
            if broken:
                del batch["input_ids"]
            if case == "input":
                distiller(batch)
            else:
                cached_backward(distiller, batch, 2)
        else:
            if broken and case == "NaN":
                values[0][1, 2] = float("nan")
            elif broken and case == "rows":
                values[1] = values[1][:-1]
            elif broken and case == "gradient":
                values[3].requires_grad_()
            elif broken and case == "weights":
                loss.set_weights({"task": 1.0})
            elif broken and case == "no teacher":
                values[2] = None
            loss(*values, 14.0, 20.0, torch.arange(4) if broken and case == "ids" else None)
    except ValueError as error:
        return torch.tensor(list(str(error).encode()))
    raise AssertionError("no error")


if __name__ == "__main__":
    folder, world, rank = Path(sys.argv[1]), int(sys.argv[2]), int(os.environ.get("RANK", 0))
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=world)
        assert dist.get_world_size() == world
    found = {f"{case}/{name}": value for case in CASES for name, value in work(case, world, rank).items()}
    if world > 1:
        found |= {case: break_one(case) for case in BROKEN}
        # No wrapped model may outlive the group of its processes; see `hf_blemo.programs.processes.together`.
        gc.collect()
        dist.destroy_process_group()
    torch.save(found, folder / f"{rank}_of_{world}.pt")
