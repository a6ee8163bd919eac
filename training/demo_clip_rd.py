"""Distils a CLIP on drawn images in minutes: trains a teacher, stores its embeddings, distils, evaluates, reloads.

Example:
    python training/demo_clip_rd.py --output_dir out/demo
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from hf_blemo.errors import one_line_errors
from hf_blemo.programs.settings import parse_settings, read_settings

ROOT = Path(__file__).resolve().parent
CONFIG = str(ROOT / "configs" / "clip_rd_synthetic.yaml")
TEACHER = ("student_config.vision_config.hidden_size", "student_config.text_config.hidden_size")
SCENES = 300
TASKS = {"drawn": {"kind": "synthetic", "options": {"images": SCENES}}}


@dataclass
class DemoSettings:
    """The settings of `training/demo_clip_rd.py`.

    Args:
        output_dir: output folder; the files of an earlier demo are replaced.
        num_pairs: number of training pairs.
        teacher_steps: training steps of the teacher.
        student_steps: training steps of each student.
    """

    output_dir: str = "out/demo"
    num_pairs: int = 5000
    teacher_steps: int = 300
    student_steps: int = 150


def main() -> None:
    settings = parse_settings(DemoSettings, description=__doc__)
    # On the CPU wherever it runs: two processes need two devices otherwise.
    os.environ["ACCELERATE_USE_CPU"] = "true"
    output = Path(settings.output_dir)
    names = ("clip_teacher", "clip_alone", "clip_student", "clip_student_of_two")
    teacher, alone, student, of_two = (output / name for name in names)
    store = output / "clip_teacher_store"
    data = ("--synthetic.num_pairs", str(settings.num_pairs))
    steps = (*data, "--num_steps", str(settings.student_steps))
    # float64, because float32 rounding differs between one and two processes and grows with every step of Adam.
    distil = (*steps, "--teacher_store", str(store), "--dtype", "float64")
    evaluated = ("--evaluation", json.dumps(TASKS), "--evaluate_every", "75")

    _say(1, "Train a tiny teacher on drawn images, on two processes")
    wider = [argument for name in TEACHER for argument in (f"--{name}", "64")]
    _wait(_distil(teacher, 2, *wider, *data, "--num_steps", str(settings.teacher_steps)))
    _say(2, "Store its embeddings of all pairs once for all students")
    shutil.rmtree(store, ignore_errors=True)
    _embed("--output_dir", str(store), "--teachers.tiny", str(teacher), "--data", "synthetic", *data)
    _say(3, "Side by side: train a student a quarter of its size without the teacher, and distil one from the store")
    _wait(_distil(alone, 1, *steps), _distil(student, 1, *distil, *evaluated))
    _say(4, "Distil it again, on two processes")
    _wait(_distil(of_two, 2, *distil))
    _compare_weights(student, of_two)
    _say(5, f"Load them with AutoModel and evaluate them on {SCENES} unseen scenes")
    _evaluate([teacher, alone, student])
    _say(6, "Load the student and classify a new picture zero-shot")
    _classify(student, output / "clip_scene.png")
    _say(7, "List the files that `hf-blemo publish` would upload")
    _show_published(student)


def _say(number: int, what: str) -> None:
    print(f"\n{number}. {what}" if number > 1 else f"{number}. {what}", flush=True)


def _embed(*arguments: str) -> None:
    from hf_blemo.clip_rd_training.embedding import embed
    from hf_blemo.clip_rd_training.settings import EmbeddingSettings

    made = embed(read_settings(EmbeddingSettings, arguments))
    print(f"{made['pairs']} pairs, {made['rows']} rows in {made['shards']} shards")


def _distil(folder: Path, num_processes: int, *arguments: str) -> subprocess.Popen:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(num_processes)]
    command = [sys.executable, *(launcher if num_processes > 1 else []), str(ROOT / "distill_clip_rd.py")]
    command += ["--config", CONFIG, "--output_dir", str(folder), "--overwrite", "true", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _wait(*programs: subprocess.Popen) -> None:
    for program in programs:
        said, _ = program.communicate()
        print(said, end="", flush=True)
    for program in programs:
        if program.returncode:
            raise SystemExit(program.returncode)


def _compare_weights(one: Path, two: Path) -> None:
    from safetensors.torch import load_file

    first, second = (load_file(folder / "model.safetensors") for folder in (one, two))
    difference = max((first[name] - second[name]).abs().max().item() for name in first)
    print(f"Largest difference between the {len(first)} weight tensors of both students: {difference:.1e}")
    if difference > 1e-6:
        raise SystemExit("the students trained on one and on two processes differ by more than rounding")


def _evaluate(folders: list[Path]) -> None:
    from hf_blemo.clip_evaluation.evaluator import ClipEvaluator
    from hf_blemo.clip_evaluation.tasks import make_tasks
    from hf_blemo.pairs.clip_models import load_clip
    from hf_blemo.programs.tables import table

    evaluator = ClipEvaluator(make_tasks(TASKS))
    rows = []
    for folder in folders:
        clip = load_clip(str(folder))
        found = evaluator.evaluate(clip.model, clip.processor)
        values = (
            found["zero_shot"]["top_1"],
            found["held_out_zero_shot"]["top_1"],
            found["retrieval"]["image_to_text_r@1"],
            found["retrieval"]["text_to_image_r@1"],
        )
        rows.append([folder.name, f"{clip.model.num_parameters():,}", *(f"{value:.3f}" for value in values)])
    header = ["model", "parameters", "zero-shot", "never drawn", "image to text R@1", "text to image R@1"]
    print(table(header, rows))
    print("zero-shot: shape and colour among all 36; never drawn: combinations of the two absent from training")


def _classify(folder: Path, picture: Path) -> None:
    from transformers import pipeline

    from hf_blemo.built_in import COLOURS, caption_of, draw_scene

    def words(colour: str) -> tuple[str, ...]:
        return "ring", colour, "large", "plain", "centre", "one", "white"

    draw_scene(*words("green")).save(picture)
    captions = [caption_of(*words(colour)) for colour in COLOURS]
    classify = pipeline("zero-shot-image-classification", model=str(folder), device="cpu")
    print(picture)
    for found in classify(str(picture), candidate_labels=captions, hypothesis_template="{}"):
        print(f"  {found['score']:.3f}  {found['label']}")


def _show_published(folder: Path) -> None:
    from hf_blemo.hub import files_to_publish

    print(f"{folder}: {', '.join(map(str, files_to_publish(folder)))}")


if __name__ == "__main__":
    with one_line_errors():
        main()
