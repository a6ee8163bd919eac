"""What an accelerator makes of CLIP-RD: numbers, the loss, a distillation step, reading pictures, encoders.

Needs torch, transformers and Pillow alone, and PyAV for its clips: `PYTHONPATH=. python benchmarks/bench_gpu.py
[--json FILE]`, some minutes on one accelerator. Without one it says so and ends. Ratios are within this run; seconds
are medians.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hf_blemo import CLIPRDConfig, CLIPRDDistiller, CLIPRDLoss, CLIPRDModel

WIDTH = 512
# Pairs of the recipe: 12.9 million, 32 times.
RECIPE_PAIRS = 413e6
CLIP_SECONDS, NUM_CLIPS = 10, 16
ROWS: list[dict[str, Any]] = []


def row(what: str, **values: float | str | None) -> None:
    """Prints a row and keeps it."""
    ROWS.append({"what": what, **values})
    shown = "  ".join(
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}" for name, value in values.items()
    )
    print(f"  {what:<62} {shown}", flush=True)


def seconds_of(call: Callable[[], Any], repeats: int = 5, warm: int = 3) -> float:
    """Median time of a call on the device."""
    for _ in range(warm):
        call()
    found = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
        found.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(found)


def peak_of(call: Callable[[], Any]) -> float:
    """Largest memory of a call above what was there before, in GiB."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**30


def waits_of(call: Callable[[], Any]) -> int:
    """How often a call waits for the device."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(entry.message) for entry in found)


def make_embeddings(num_pairs: int, closeness: float = 1.0) -> list[torch.Tensor]:
    """Student image and text, teacher image and text: four noisy views of one direction."""
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(num_pairs, WIDTH, generator=generator)
    return [(shared + closeness * torch.randn(num_pairs, WIDTH, generator=generator)).cuda() for _ in range(4)]


def loss_and_gradient(loss: CLIPRDLoss, parts: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    image, text = (part.detach().requires_grad_() for part in parts[:2])
    scale = torch.full((), 50.0, device="cuda", dtype=parts[0].dtype, requires_grad=True)
    found = loss(image, text, parts[2], parts[3], scale, torch.full((), 100.0, device="cuda"))
    found.loss.backward()
    return found.loss.detach(), torch.cat([image.grad.flatten(), text.grad.flatten()]).double()


def bench_numbers() -> None:
    """Errors against float64."""
    for closeness in (1.0, 0.1):
        parts = make_embeddings(2048, closeness)
        value, gradient = loss_and_gradient(
            CLIPRDLoss(WIDTH, dense=True).double().cuda(), [part.double() for part in parts]
        )
        for precision in ("exact", "fast"):
            found, moved = loss_and_gradient(CLIPRDLoss(WIDTH, precision=precision).cuda(), parts)
            row(
                f"errors, N = 2,048, closeness {closeness}, {precision}",
                value=float(abs(found / value - 1)),
                gradient=float((moved - gradient).norm() / gradient.norm()),
            )


def bench_loss() -> None:
    """Time and memory of the loss, forward and backward, over its bare products."""
    for num_pairs in (1024, 4096, 16384, 32768):
        parts = make_embeddings(num_pairs)
        bare = 18 * seconds_of(partial(multiply, parts[0].half(), parts[1].half()))
        for precision in ("exact", "fast"):
            call = partial(loss_and_gradient, CLIPRDLoss(WIDTH, precision=precision).cuda(), parts)
            elapsed = seconds_of(call)
            row(
                f"loss, N = {num_pairs:,}, {precision}",
                ms=1e3 * elapsed,
                over_18_bare_products_of_16_bits=elapsed / bare,
                peak_GiB=peak_of(call),
                waits=waits_of(call),
            )


def multiply(left: torch.Tensor, right: torch.Tensor, rows: int = 4096) -> None:
    """One product of all rows with all, some rows at a time."""
    for part in left.split(rows):
        part @ right.T


def bench_step() -> None:
    """Steps of the recipe, with the teacher live or stored, compiled or not."""
    for compiled in (False, True):
        for live in (True, False):
            measure_step(1024, 20, live, compiled)
            torch.cuda.empty_cache()


def measure_step(size: int, length: int, live: bool, compiled: bool) -> None:
    """A step of the recipe on images of 224 x 224: ViT-T/16 from ViT-B/16, AdamW, bfloat16."""
    from transformers import CLIPConfig, CLIPModel

    text = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8}
    vision = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    config = CLIPConfig(text_config=text, vision_config={**vision, "patch_size": 16}, projection_dim=WIDTH)
    torch.manual_seed(0)
    batch = {
        "pixel_values": torch.randn(size, 3, 224, 224, device="cuda"),
        "input_ids": torch.randint(1, 49000, (size, length), device="cuda"),
        "attention_mask": torch.ones(size, length, dtype=torch.long, device="cuda"),
    }
    batch["input_ids"][:, -1] = 49407
    if not live:
        batch |= {f"teacher_{side}_embeds": torch.randn(size, WIDTH, device="cuda") for side in ("image", "text")}
    student = CLIPRDModel(CLIPRDConfig.from_preset("vit-t-16"))
    teacher, scale = (CLIPModel(config), None) if live else (None, 100.0)
    distiller = CLIPRDDistiller(student, teacher, CLIPRDLoss(WIDTH), teacher_logit_scale=scale).cuda().train()
    if compiled:
        distiller.compile_towers()
    optimizer = torch.optim.AdamW(distiller.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            terms = distiller(batch)
        terms.loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    start = time.perf_counter()
    step()
    torch.cuda.synchronize()
    first = time.perf_counter() - start
    elapsed = seconds_of(step)
    row(
        f"step, {size:,} pairs, teacher {'live' if live else 'stored'}, {'compiled' if compiled else 'as it is'}",
        ms=1e3 * elapsed,
        pairs_per_s=size / elapsed,
        hours_of_the_recipe=RECIPE_PAIRS * elapsed / size / 3600,
        peak_GiB=peak_of(step),
        waits=waits_of(step),
        first_step_s=first,
    )


def bench_pictures() -> None:
    """Random crops of JPEGs of 640 x 480, by one core and by all."""
    import numpy as np
    from bench_images import make_photograph, read_reduced

    from hf_blemo.pairs.images import Augmentation

    generator = np.random.default_rng(0)
    photographs = [make_photograph(generator, (640, 480)) for _ in range(8)]
    crops = [Augmentation().crop_of((640, 480), generator) for _ in photographs]
    for workers in sorted({1, os.cpu_count() or 1}):
        end = time.perf_counter() + 3

        def read(_: int, end: float = end) -> int:
            count = 0
            while time.perf_counter() < end:
                read_reduced(photographs[count % len(photographs)], crops[count % len(photographs)], 224)
                count += 1
            return count

        with ThreadPoolExecutor(workers) as pool:
            row(f"crops of JPEGs read by {workers} threads", per_s=sum(pool.map(read, range(workers))) / 3)


def bench_encoders() -> None:
    """Networks of encoders with random weights, in batches that are ready: what decoding has to keep up with."""
    from transformers import CLIPVisionConfig, CLIPVisionModel, WavLMConfig, WavLMModel

    wide = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    layers = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
    base = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
    image, sound = CLIPVisionModel(CLIPVisionConfig(**base, patch_size=16)), WavLMModel(WavLMConfig(**wide, **layers))
    for name, model, inputs, unit, count in (
        ("ViT-B/16, 128 frames", image, torch.randn(128, 3, 224, 224), "frames_per_s", 128),
        ("WavLM-large, 8 windows of 10 s", sound, torch.randn(8, 160_000), "seconds_of_sound_per_s", 80),
    ):
        for dtype in (torch.float32, torch.bfloat16):
            with torch.inference_mode():
                elapsed = seconds_of(partial(model.to("cuda", dtype).eval(), inputs.to("cuda", dtype)), 3, 2)
            row(f"encoder {name}, {str(dtype)[6:]}", **{unit: count / elapsed})


def bench_clips() -> None:
    """Clips through decoder and network, as the commands take them, and how much of that time the device waits."""
    from importlib.util import find_spec

    if find_spec("av") is None:
        print("  clips: PyAV is not installed, left out")
        return
    from bench_clips import write_clip
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        CLIPVisionModel,
        Wav2Vec2FeatureExtractor,
        WavLMConfig,
        WavLMModel,
    )

    from hf_blemo.encoders import load_encoder
    from hf_blemo.extraction.clip_sources import MediaClip
    from hf_blemo.extraction.extraction import encode_clips

    base = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
    wide = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    layers = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind, parts in {
            "ViT-B/16": (CLIPVisionModel(CLIPVisionConfig(**base, patch_size=16)), CLIPImageProcessorPil()),
            "WavLM-large": (WavLMModel(WavLMConfig(**wide, **layers)), extractor),
        }.items():
            for part in parts:
                part.save_pretrained(folder / kind)
        path = write_clip(folder / "clip.mp4", CLIP_SECONDS, 1280, 720, 30, sound=True)
        clips = [MediaClip(f"clip {number}", path) for number in range(NUM_CLIPS)]
        for kind, extraction, batch_size in (
            ("ViT-B/16", {"image_backend": "torchvision"}, 128),
            ("WavLM-large", {}, None),
        ):
            for dtype in ("float32", "bfloat16"):
                encoder = load_encoder(
                    str(folder / kind), extraction=extraction, dtype=dtype, batch_size=batch_size, device="cuda"
                )
                spans: list[tuple[Any, Any]] = []
                encoder.execute = partial(between_events, encoder.execute, spans)
                start = time.perf_counter()
                rows = sum(
                    len(values) for clip in encode_clips(clips, {kind: encoder}) for values in clip.features.values()
                )
                torch.cuda.synchronize()
                elapsed = time.perf_counter() - start
                busy = sum(begin.elapsed_time(end) for begin, end in spans) / 1e3
                row(
                    f"clips of 720p with sound through {kind}, {dtype}",
                    rows_per_s=rows / elapsed,
                    seconds_of_clips_per_s=CLIP_SECONDS * NUM_CLIPS / elapsed,
                    share_of_waiting=1 - busy / elapsed,
                )


def between_events(call: Callable[..., Any], spans: list[tuple[Any, Any]], **inputs: Any) -> Any:
    """Runs a network, and keeps when the device began and ended."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    found = call(**inputs)
    end.record()
    spans.append((begin, end))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the rows")
    parser.add_argument("--only", nargs="*", default=["numbers", "loss", "step", "pictures", "encoders", "clips"])
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no accelerator: nothing to measure here")
        return
    import transformers

    device = torch.cuda.get_device_name()
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "python": sys.version.split()[0]}
    print(f"{device}; {', '.join(f'{name} {version}' for name, version in versions.items())}")
    for name in options.only:
        start = time.perf_counter()
        globals()[f"bench_{name}"]()
        torch.cuda.empty_cache()
        print(f"  ({name}: {time.perf_counter() - start:.0f} s)", flush=True)
    if options.json:
        options.json.write_text(json.dumps({"device": device, **versions, "rows": ROWS}, indent=1))


if __name__ == "__main__":
    main()
