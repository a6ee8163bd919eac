"""Distillation on drawn images, in minutes: a tiny teacher, its student on one process and on two, both the same.

Example:
    python training/demo_clip_rd.py --output_dir out/demo
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from hf_blemo.settings import parse_settings, run_command

ROOT = Path(__file__).resolve().parent
CONFIG = str(ROOT / "configs" / "clip_rd_synthetic.yaml")
TEACHER = ("student_config.vision_config.hidden_size", "student_config.text_config.hidden_size")
FRESH_PAIRS = 200


@dataclass
class DemoSettings:
    """What `training/demo_clip_rd.py` reads.

    Args:
        output_dir: where everything goes; what an earlier demo left there is replaced.
        teacher_steps: how long the teacher is trained.
        student_steps: how long each student is.
    """

    output_dir: str = "out/demo"
    teacher_steps: int = 300
    student_steps: int = 100


def main() -> None:
    settings = parse_settings(DemoSettings, description=__doc__)
    output = Path(settings.output_dir)
    folders = {name: output / name for name in ("clip_teacher", "clip_alone", "clip_student", "clip_student_of_two")}
    steps = ("--num_steps", str(settings.student_steps))
    # In float64: rounding in float32, which differs between one and two processes, grows with every step of Adam.
    distil = (*steps, "--teacher", str(folders["clip_teacher"]), "--dtype", "float64")

    print("1. Train a tiny teacher on drawn images", flush=True)
    wider = [argument for name in TEACHER for argument in (f"--{name}", "64")]
    _train(folders["clip_teacher"], 1, *wider, "--num_steps", str(settings.teacher_steps))
    print("\n2. Train a smaller student without it, and distil one from it", flush=True)
    _train(folders["clip_alone"], 1, *steps)
    _train(folders["clip_student"], 1, *distil)
    print("\n3. Distil it once more, on two processes", flush=True)
    _train(folders["clip_student_of_two"], 2, *distil)
    _compare_weights(folders["clip_student"], folders["clip_student_of_two"])
    print(
        f"\n4. Load them with AutoModel and find the captions of {FRESH_PAIRS} new images among each other", flush=True
    )
    _find_captions(list(folders.values())[:3])


def _train(folder: Path, num_processes: int, *arguments: str) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(num_processes)]
    program = [str(ROOT / "distill_clip_rd.py"), "--config", CONFIG, "--output_dir", str(folder), *arguments]
    command = [sys.executable, *(launcher if num_processes > 1 else []), *program]
    # On the CPU wherever it runs: two processes need two devices otherwise.
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, env=environment, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)


def _compare_weights(one: Path, two: Path) -> None:
    from safetensors.torch import load_file

    first, second = (load_file(folder / "model.safetensors") for folder in (one, two))
    difference = max((first[name] - second[name]).abs().max().item() for name in first)
    print(f"Largest difference between the {len(first)} weight tensors of both students: {difference:.1e}")
    if difference > 1e-6:
        raise SystemExit("the students of one and of two processes differ by more than rounding")


def _find_captions(folders: list[Path]) -> None:
    import torch
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    from hf_blemo.data.synthetic_pairs import make_synthetic_pairs
    from hf_blemo.evaluation.retrieval import retrieval_recall
    from hf_blemo.text_tables import table

    pairs = make_synthetic_pairs(2 * FRESH_PAIRS, seed=12345)
    # Each caption once: of two equal ones neither would be wrong.
    first = {caption: row for row, caption in reversed(list(enumerate(pairs["caption"])))}
    pairs = pairs.select(sorted(first.values())[:FRESH_PAIRS])
    rows = []
    for folder in folders:
        model = AutoModel.from_pretrained(folder, dtype="float32").eval()
        images = AutoImageProcessor.from_pretrained(folder)(images=list(pairs["image"]), return_tensors="pt")
        texts = AutoTokenizer.from_pretrained(folder)(list(pairs["caption"]), padding=True, return_tensors="pt")
        with torch.inference_mode():
            out = model(pixel_values=images["pixel_values"], **texts)
        found = retrieval_recall(out.image_embeds, out.text_embeds, range(len(pairs)))
        rows.append([folder.name, f"{model.num_parameters():,}", *(f"{value:.3f}" for value in found.values())])
    header = ["model", "parameters", *(f"{side} R@{top}" for side in ("image to text", "back") for top in (1, 5, 10))]
    print(table(header, rows))


if __name__ == "__main__":
    run_command(main)
