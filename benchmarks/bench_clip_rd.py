"""Speed and memory of CLIP-RD's loss and student as ratios against a fair baseline of the same run.

The baseline computes the loss as the released code does: twelve products, one per direction, with N x N matrices and
autograd. Repetitions of both sides are interleaved, and medians reported.

Rows: time and peak memory of the loss, forward and backward; a batch too large for the baseline's memory; two
processes against one on the same global batch; the student's vision tower against its teacher's; the memory of
retrieval.
"""

import argparse
import json
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from measuring import PeakMemory, apart, interleaved, make_parser
from torch.nn import functional as F

from hf_blemo.clip_evaluation.retrieval import retrieval_recall
from hf_blemo.clip_rd.losses_clip_rd import CLIP_RD_WEIGHTS, CLIPRDLoss

WIDTH = 512
MEBIBYTE = 2**20


def make_embeddings(num_pairs: int, width: int = WIDTH) -> list[torch.Tensor]:
    """Student image, student text (with gradients), teacher image, teacher text: four noisy views of one direction."""
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(num_pairs, width, generator=generator)
    views = [common + torch.randn(num_pairs, width, generator=generator) for _ in range(4)]
    return [view.requires_grad_(index < 2) for index, view in enumerate(views)]


class TwelveProducts(torch.nn.Module):
    """The baseline on one process: one formula after the other, as in the released code."""

    def __init__(self):
        super().__init__()
        self.cross_scale, self.image_scale, self.text_scale = (
            torch.nn.Parameter(torch.tensor(2.6593)) for _ in range(3)
        )

    def forward(self, student_image, student_text, teacher_image, teacher_text, scale, teacher_scale):
        student_image, student_text, teacher_image, teacher_text = (
            F.normalize(values, dim=-1) for values in (student_image, student_text, teacher_image, teacher_text)
        )
        labels = torch.arange(len(student_image))

        def divergence(found, target):
            return F.kl_div(found.log_softmax(1), target.detach().softmax(1), reduction="batchmean")

        per_image, per_text = scale * student_image @ student_text.T, scale * student_text @ student_image.T
        teacher_per_image = teacher_scale * teacher_image @ teacher_text.T
        teacher_per_text = teacher_scale * teacher_text @ teacher_image.T
        image_to_text = self.cross_scale * student_image @ teacher_text.T
        text_to_image = self.cross_scale * student_text @ teacher_image.T
        image_to_text_back = self.cross_scale * teacher_text @ student_image.T
        text_to_image_back = self.cross_scale * teacher_image @ student_text.T
        images, images_back = (
            self.image_scale * teacher_image @ student_image.T,
            self.image_scale * student_image @ teacher_image.T,
        )
        texts, texts_back = (
            self.text_scale * teacher_text @ student_text.T,
            self.text_scale * student_text @ teacher_text.T,
        )
        terms = {
            "task": (F.cross_entropy(per_image, labels) + F.cross_entropy(per_text, labels)) / 2,
            "fd": F.mse_loss(student_image, teacher_image) + F.mse_loss(student_text, teacher_text),
            "icl": (F.cross_entropy(image_to_text, labels) + F.cross_entropy(text_to_image, labels)) / 2,
            "hrd": (divergence(per_image, teacher_per_image) + divergence(per_text, teacher_per_text)) / 2,
            "vrd": (divergence(images, texts) + divergence(images_back, texts_back)) / 2,
            "vrd_image": (F.cross_entropy(images, labels) + F.cross_entropy(images_back, labels)) / 2,
            "vrd_text": (F.cross_entropy(texts, labels) + F.cross_entropy(texts_back, labels)) / 2,
            "xrd": (
                divergence(text_to_image, image_to_text)
                + divergence(image_to_text, text_to_image)
                + divergence(text_to_image_back, image_to_text_back)
                + divergence(image_to_text_back, text_to_image_back)
            )
            / 4,
        }
        return sum(CLIP_RD_WEIGHTS[name] * value for name, value in terms.items())


def step(loss: torch.nn.Module, embeddings: list[torch.Tensor]) -> float:
    """Run forward and backward once and return the loss."""
    value = loss(*embeddings, 14.0, 20.0)
    value = value if isinstance(value, torch.Tensor) else value.loss
    value.backward()
    for values in embeddings[:2]:
        values.grad = None
    return value.item()


def bench_loss_time(num_pairs: int, rounds: int) -> None:
    embeddings = make_embeddings(num_pairs)
    sides = {type(loss): partial(step, loss, embeddings) for loss in (CLIPRDLoss(WIDTH), TwelveProducts())}
    times, values = interleaved(sides, rounds)
    [[one, *_], [other, *_]], (ours, baseline) = values.values(), times.values()
    assert abs(one - other) < 1e-4 * abs(other), f"the two losses disagree: {one} and {other}"
    threads = torch.get_num_threads()
    print(
        f"loss, N = {num_pairs:,}, d = {WIDTH}, {threads} threads: {ours:.2f} s, twelve products {baseline:.2f} s, "
        f"ratio {ours / baseline:.3f}",
        flush=True,
    )


def peak_above_inputs(side: str, num_pairs: int) -> int:
    """Peak growth of this fresh process's resident memory above its inputs, in bytes."""
    embeddings = make_embeddings(num_pairs)
    if side == "retrieval":
        images, texts = embeddings[2:]

        def run(count: int) -> None:
            retrieval_recall(images[:count], texts[:count], range(count))
    else:
        loss = CLIPRDLoss(WIDTH) if side == "ours" else TwelveProducts()

        def run(count: int) -> None:
            step(loss, embeddings if count == num_pairs else make_embeddings(count))

    # Libraries load code and start threads on first use; exclude that memory.
    run(16)
    with PeakMemory() as memory:
        run(num_pairs)
    return memory.peak


def peak_apart(side: str, num_pairs: int) -> dict:
    """The same of a process of its own, with its seconds."""
    # Return freed memory at once, so that the peak measures the arrays and not the allocator's cache.
    environment = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    return apart(__file__, "--peak", side, "--pairs", num_pairs, **environment)


def bench_loss_memory(num_pairs: int) -> None:
    ours, baseline = (peak_apart(side, num_pairs)["bytes"] for side in ("ours", "dense"))
    print(
        f"loss, N = {num_pairs:,}, peak above the inputs: {ours / MEBIBYTE:,.0f} MiB, twelve products "
        f"{baseline / MEBIBYTE:,.0f} MiB, ratio {ours / baseline:.3f}",
        flush=True,
    )


def bench_large_batch(num_pairs: int) -> None:
    found = peak_apart("ours", num_pairs)
    print(
        f"loss, N = {num_pairs:,}: {found['seconds']:.1f} s, peak above the inputs "
        f"{found['bytes'] / MEBIBYTE:,.0f} MiB; "
        f"twelve products would take {159 * num_pairs**2 / 2**30:,.0f} GiB",
        flush=True,
    )


def bench_retrieval(num_pairs: int) -> None:
    found = peak_apart("retrieval", num_pairs)
    print(
        f"retrieval, {num_pairs:,} x {num_pairs:,} at width {WIDTH}: peak above the embeddings "
        f"{found['bytes'] / MEBIBYTE:,.0f} MiB; one full matrix {4 * num_pairs**2 / 2**30:.1f} GiB",
        flush=True,
    )


def run_process(rank: int, world: int, num_pairs: int, rounds: int, folder: str) -> None:
    """Run one of the processes that share a batch; the first one writes the median time of a step."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=world)
    share = slice(rank * num_pairs // world, (rank + 1) * num_pairs // world)
    embeddings = [values.detach()[share].clone() for values in make_embeddings(num_pairs)]
    for values in embeddings[:2]:
        values.requires_grad_()
    loss, seconds = CLIPRDLoss(WIDTH), []
    step(loss, embeddings)
    for _ in range(rounds):
        torch.distributed.barrier()
        start = time.perf_counter()
        step(loss, embeddings)
        seconds.append(time.perf_counter() - start)
    if rank == 0:
        Path(folder, "seconds.json").write_text(json.dumps(statistics.median(seconds)))
    torch.distributed.destroy_process_group()


def bench_processes(num_pairs: int, rounds: int) -> None:
    seconds = {}
    for world in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            arguments = (world, num_pairs, rounds, folder)
            torch.multiprocessing.spawn(run_process, args=arguments, nprocs=world)
            seconds[world] = json.loads(Path(folder, "seconds.json").read_text())
    print(
        f"loss, global N = {num_pairs:,}, one thread per process: two processes {seconds[2]:.2f} s, one "
        f"{seconds[1]:.2f} s, ratio {seconds[2] / seconds[1]:.3f}",
        flush=True,
    )


def bench_towers(batch_size: int, rounds: int) -> None:
    from hf_blemo import CLIPRDConfig, CLIPRDModel

    images = torch.randn(batch_size, 3, 224, 224)
    models = {name: CLIPRDModel(CLIPRDConfig.from_preset(name)).eval() for name in ("vit-t-16", "vit-b-16")}
    with torch.inference_mode():
        sides = {name: partial(model.get_image_features, images) for name, model in models.items()}
        student, teacher = (batch_size / seconds for seconds in interleaved(sides, rounds)[0].values())
    print(
        f"vision tower, {batch_size} images: ViT-T/16 {student:.0f} images/s, ViT-B/16 {teacher:.0f} images/s, "
        f"{student / teacher:.1f} times",
        flush=True,
    )


if __name__ == "__main__":
    parser = make_parser(__doc__, pairs=(4096, "pairs per batch"), rounds=(3, "repetitions of each side"))
    parser.add_argument("--peak", choices=("ours", "dense", "retrieval"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        started = time.perf_counter()
        grown = peak_above_inputs(options.peak, options.pairs)
        print(json.dumps({"bytes": grown, "seconds": time.perf_counter() - started}))
    else:
        bench_loss_time(options.pairs, options.rounds)
        bench_loss_memory(options.pairs)
        bench_large_batch(4 * options.pairs)
        bench_processes(options.pairs, options.rounds)
        bench_towers(32, options.rounds)
        bench_retrieval(30_000)
