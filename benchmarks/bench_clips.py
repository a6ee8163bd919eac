"""Clips to features: speed, memory and processes, as ratios against a fair baseline of the same run.

The baseline of the first row works like the official feature scripts: it decodes the whole clip first, processes every
frame separately, and loads the model anew for every batch of frames. Library, decoding threads and student are the
same, and so are the features (checked). It runs in float32, like those scripts, and in bfloat16. This package runs in
both, with frames resized by Pillow, like the baseline, and by torch. Both sides load their model inside the measured
time. Repetitions are interleaved, and medians reported.

The second row compares peak memory with that of decoding the whole clip first. Each side has its own process, and its
memory before the clip is subtracted. The third row compares two processes with one on the same clips, with one torch
thread each and without their start.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from measuring import PeakMemory, apart, interleaved, make_parser

MEBIBYTE = 2**20
ROWS = ("speed", "swap", "memory", "processes")


def write_clip(path: Path, seconds: float, width: int, height: int, rate: int, sound: bool = False) -> Path:
    """An H.264 clip with a moving picture, so that the decoder has work, and optionally a tone."""
    import av

    rows, columns = np.mgrid[:height, :width]
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=rate, options={"preset": "ultrafast", "crf": "23"})
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        audio = container.add_stream("aac", rate=16000, layout="mono") if sound else None
        for number in range(round(seconds * rate)):
            pixels = np.empty((height, width, 3), np.uint8)
            for channel, (across, down) in enumerate(((3, 1), (1, 2), (2, -1))):
                pixels[..., channel] = (rows * down + columns * across) // 4 + 5 * number
            for packet in video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                container.mux(packet)
        for packet in video.encode():
            container.mux(packet)
        if audio is not None:
            samples = 0.3 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * 16000)) / 16000)
            for start in range(0, len(samples), 1024):
                block = samples[None, start : start + 1024].astype(np.float32)
                frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="mono")
                frame.sample_rate, frame.pts, frame.time_base = 16000, start, Fraction(1, 16000)
                for packet in audio.encode(frame):
                    container.mux(packet)
            for packet in audio.encode():
                container.mux(packet)
    return path


def save_student(folder: Path, preset: str | None = "vit-t-16") -> Path:
    """A student with random weights, of a published shape or tiny, and its image processor."""
    import torch
    from transformers import CLIPImageProcessorPil

    from hf_blemo import CLIPRDConfig, CLIPRDModel

    torch.manual_seed(0)
    size = 224
    if preset is None:
        size = 32
        tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        config = CLIPRDConfig(
            vision_config={"model_type": "clip_vision_model", **tower, "image_size": size, "patch_size": 8},
            text_config={"model_type": "clip_text_model", **tower, "vocab_size": 100, "max_position_embeddings": 16},
            projection_dim=32,
        )
    else:
        config = CLIPRDConfig.from_preset(preset)
    CLIPRDModel(config).save_pretrained(folder)
    crop = {"height": size, "width": size}
    CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size=crop).save_pretrained(folder)
    return folder


def encode_officially(path: Path, student: Path, dtype: str, batch_size: int) -> np.ndarray:
    """The baseline: (T, D)."""
    import av
    import torch
    from transformers import AutoModel, CLIPImageProcessorPil

    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "AUTO"
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    features = []
    for start in range(0, len(frames), batch_size):
        model = AutoModel.from_pretrained(student, dtype=dtype).eval()
        processor = CLIPImageProcessorPil.from_pretrained(student)
        part = frames[start : start + batch_size]
        pixels = torch.cat([processor(images=frame, return_tensors="pt")["pixel_values"] for frame in part])
        with torch.inference_mode():
            features.append(model.get_image_features(pixels).float().numpy())
    return np.concatenate(features)


def encode_here(
    path: Path, student: Path, dtype: str, batch_size: int, image_backend: str, backend: str
) -> np.ndarray:
    """This package, on the way of its commands: (T, D)."""
    from hf_blemo.encoders import load_encoder
    from hf_blemo.extraction.extraction import encode_clips

    extraction = {"image_backend": image_backend}
    encoder = load_encoder(str(student), dtype=dtype, batch_size=batch_size, extraction=extraction, backend=backend)
    [clip] = encode_clips([path], {"student": encoder})
    return clip.features["student"]


def hd_clip(folder: Path, seconds: float) -> Path:
    """The 720p clip, written once for all rows."""
    path = folder / "hd.mp4"
    return path if path.is_file() else write_clip(path, seconds, 1280, 720, 30)


def bench_swap(folder: Path, seconds: float, rounds: int) -> None:
    """Replace the teacher with its student, both in the published shapes."""
    from hf_blemo.encoders import load_encoder

    clip = hd_clip(folder, seconds)
    presets = {"ViT-T/16": "vit-t-16", "ViT-B/16": "vit-b-16"}
    encoders = {name: load_encoder(str(save_student(folder / preset, preset))) for name, preset in presets.items()}
    sides = {name: partial(encoder.encode, clip) for name, encoder in encoders.items()}
    medians, _ = interleaved(sides, rounds, warm_up=0)
    print(
        f"student instead of teacher, decoding included: {medians['ViT-T/16']:.1f} s against "
        f"{medians['ViT-B/16']:.1f} s, ratio {medians['ViT-B/16'] / medians['ViT-T/16']:.2f}",
        flush=True,
    )


def bench_speed(folder: Path, seconds: float, batch_size: int, rounds: int) -> None:
    clip = hd_clip(folder, seconds)
    student = save_student(folder / "student")
    official = ("float32", "bfloat16")
    ours = [(dtype, resizing, "eager") for dtype in official for resizing in ("pil", "torchvision")]
    ours += [(dtype, "torchvision", "onnxruntime") for dtype in ("float32", "int8")]
    calls: dict[Any, Any] = {dtype: partial(encode_officially, clip, student, dtype, batch_size) for dtype in official}
    calls |= {side: partial(encode_here, clip, student, side[0], batch_size, *side[1:]) for side in ours}
    for side in ours[-2:]:
        # The first use exports the graph.
        calls[side]()
    times, runs = interleaved({side: partial(with_cost, call) for side, call in calls.items()}, rounds, warm_up=0)
    expected = runs["float32"][-1][0]
    costs = {side: 1e3 * statistics.median(cost for _, cost in found) / len(expected) for side, found in runs.items()}
    rates = {side: len(expected) / elapsed for side, elapsed in times.items()}
    best: dict[str, tuple[float, Any]] = {}
    for side in ours:
        dtype, resizing, backend = side
        features = runs[side][-1][0]
        difference = np.abs(features - expected).max() / np.abs(expected).max()
        most = 5e-2 if dtype != "float32" else 1e-4 if resizing == "pil" else 1e-3
        assert features.shape == expected.shape and difference < most, (side, difference)
        norms = np.linalg.norm(features, axis=1) * np.linalg.norm(expected, axis=1)
        cosine = ((features * expected).sum(1) / norms).min()
        for kind, is_met in (("features within 1e-4", difference <= 1e-4), ("cosine at least 0.99", cosine >= 0.99)):
            if is_met:
                best[kind] = max(best.get(kind, (0.0, None)), (rates[side], side))
        print(
            f"decode and student features, 720p, {dtype}, image_backend {resizing}, backend {backend}: "
            f"{rates[side]:.1f} frames/s against {rates['float32']:.1f} the official way (float32), ratio "
            f"{rates[side] / rates['float32']:.2f}; against {rates['bfloat16']:.1f} the official way in bfloat16, "
            f"ratio {rates[side] / rates['bfloat16']:.2f}; processor time {costs[side]:.1f} ms a frame against "
            f"{costs['float32']:.1f} and {costs['bfloat16']:.1f}; features differ by {difference:.0e} of the largest, "
            f"least cosine {cosine:.5f} ({len(features)} frames, batches of {batch_size})",
            flush=True,
        )
    for kind, (rate, side) in best.items():
        print(f"fastest with {kind}: {', '.join(side)}, ratio {rate / rates['float32']:.2f}", flush=True)


def with_cost(call: Callable[[], np.ndarray]) -> tuple[np.ndarray, float]:
    """What a call returns, and the seconds that it kept processors busy."""
    busy = time.process_time()
    return call(), time.process_time() - busy


def measure_memory(side: str, clip: str, student: str) -> None:
    """Print the peak memory above that before the clip, in bytes; runs in its own process."""
    if side == "hf_blemo":
        from hf_blemo.encoders import load_encoder

        encoder = load_encoder(student)
        with PeakMemory() as memory:
            rows = len(encoder.encode(clip).features)
    else:
        import av

        with PeakMemory() as memory, av.open(clip) as container:
            container.streams.video[0].thread_type = "AUTO"
            rows = len([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    print(json.dumps({"peak": memory.peak, "rows": rows}))


def bench_memory(folder: Path, minutes: float) -> None:
    clip = write_clip(folder / "long.mp4", 60 * minutes, 320, 240, 25)
    student = save_student(folder / "tiny", None)
    sides = ("the whole clip", "hf_blemo")
    found = {side: apart(__file__, "--measure_memory", side, clip, student) for side in sides}
    assert found["hf_blemo"]["rows"] == found["the whole clip"]["rows"]
    ours, whole = found["hf_blemo"]["peak"], found["the whole clip"]["peak"]
    print(
        f"peak memory, {minutes:g} minutes of 320 x 240 ({found['hf_blemo']['rows']} frames): "
        f"{ours / MEBIBYTE:.0f} MiB with every frame encoded against {whole / MEBIBYTE:.0f} MiB decoded first, "
        f"ratio {ours / whole:.3f}",
        flush=True,
    )


def measure_processes(clips: str, output: str, student: str) -> None:
    """Extract in every process; the first one prints the seconds without start and loading."""
    from hf_blemo.extraction.run import extract_features
    from hf_blemo.extraction.settings import ExtractionSettings

    # The backend of the student in training/configs/extract_blemore.yaml.
    encoder = {"model_id": student, "extraction": {"image_backend": "torchvision"}}
    settings = ExtractionSettings(data=clips, output_dir=output, encoders={"student": encoder})
    result = extract_features(settings, progress=False)
    if result:
        print(json.dumps({"seconds": result["seconds"], "clips": result["clips"]}))


def bench_processes(folder: Path, num_clips: int, seconds: float, rounds: int) -> None:
    clips = folder / "clips"
    clips.mkdir()
    for number in range(num_clips):
        write_clip(clips / f"clip_{number:02d}.mp4", seconds, 640, 360, 25, sound=True)
    student = save_student(folder / "short_student")
    times: dict[int, list[float]] = {1: [], 2: []}
    environment = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    for repetition in range(rounds):
        for world, values in times.items():
            launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"] if world == 2 else []
            output = folder / f"features_{world}_{repetition}"
            found = apart(*launcher, __file__, "--measure_processes", clips, output, student, **environment)
            assert found["clips"] == num_clips
            values.append(found["seconds"])
    one, two = (statistics.median(times[world]) for world in (1, 2))
    print(
        f"extraction of {num_clips} clips of {seconds:g} s: {two:.1f} s on two processes against {one:.1f} s on one, "
        f"ratio {one / two:.2f}",
        flush=True,
    )


def main() -> None:
    parser = make_parser(
        __doc__,
        seconds=(10.0, "length of the 720p clip"),
        batch_size=(32, "frames per batch"),
        minutes=(10.0, "length of the long clip"),
        num_clips=(32, "short clips"),
        clip_seconds=(2.0, "length of each short clip"),
        rounds=(3, "repetitions of each side"),
    )
    parser.add_argument("--only", choices=ROWS, nargs="+", default=ROWS, help="rows to measure")
    parser.add_argument("--measure_memory", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--measure_processes", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure_memory:
        return measure_memory(*arguments.measure_memory)
    if arguments.measure_processes:
        return measure_processes(*arguments.measure_processes)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "speed" in arguments.only:
            bench_speed(folder, arguments.seconds, arguments.batch_size, arguments.rounds)
        if "swap" in arguments.only:
            bench_swap(folder, arguments.seconds, arguments.rounds)
        if "memory" in arguments.only:
            bench_memory(folder, arguments.minutes)
        if "processes" in arguments.only:
            bench_processes(folder, arguments.num_clips, arguments.clip_seconds, arguments.rounds)


if __name__ == "__main__":
    main()
