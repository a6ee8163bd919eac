"""What ONNX and int8 cost in accuracy and save in time and size, on the built-in benchmarks.

A fusion and a small student are trained briefly on built-in data, and evaluated on unseen clips and pictures with
PyTorch, with onnxruntime in float32 and with onnxruntime in int8. Each uses one thread. Timings are interleaved, and
medians reported.
"""

import contextlib
import io
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import torch
import yaml
from measuring import interleaved, make_parser
from torch import nn

from hf_blemo import blemore, feature_sets
from hf_blemo.built_in import make_synthetic_blends
from hf_blemo.clip_evaluation.built_in_tasks import synthetic_tasks
from hf_blemo.clip_evaluation.evaluator import ClipEvaluator
from hf_blemo.clip_rd_training.run import distill
from hf_blemo.clip_rd_training.settings import DistillationSettings
from hf_blemo.fusion_training.run import train_fusion
from hf_blemo.fusion_training.settings import FusionSettings
from hf_blemo.hub import export_onnx
from hf_blemo.pairs.clip_models import load_clip
from hf_blemo.prediction.fusion import load_fusion

CONFIG = Path(__file__).resolve().parents[1] / "training" / "configs" / "clip_rd_synthetic.yaml"


def make_session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


class OnnxStudent(nn.Module):
    """The two ONNX files of a student behind the methods of a CLIP."""

    def __init__(self, image: Path, text: Path):
        super().__init__()
        self.image, self.text = make_session(image), make_session(text)
        self.unused = nn.Parameter(torch.zeros(()))

    def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.image.run(None, {"pixel_values": pixel_values.numpy()})[0])

    def get_text_features(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        feed = {"input_ids": input_ids.numpy(), "attention_mask": attention_mask.numpy()}
        return torch.from_numpy(self.text.run(None, feed)[0])


def mebibytes(*paths: Path) -> float:
    return sum(path.stat().st_size for path in paths) / 2**20


def bench_fusion(folder: Path, num_clips: int, rounds: int) -> None:
    settings = FusionSettings("synthetic", output_dir=str(folder), seeds=[0], protocol="none", num_epochs=12)
    with contextlib.redirect_stderr(io.StringIO()):
        train_fusion(settings)
        model, processor = load_fusion(folder)
        path, small = export_onnx(model, folder / "onnx", int8=True)
    test = make_synthetic_blends(num_clips=num_clips, seed=1)
    batch = processor(feature_sets.read_features(test))
    names = list(model.config.encoders)
    feed = {f"features.{name}": batch["features"][name].numpy() for name in names}
    feed |= {f"feature_mask.{name}": batch["feature_mask"][name].numpy() for name in names}
    sessions = {"onnx float32": make_session(path), "onnx int8": make_session(small)}

    def by_torch() -> np.ndarray:
        with torch.inference_mode():
            return model(**batch).joint_probabilities.numpy()

    sides = {"PyTorch": by_torch}
    for name, session in sessions.items():
        sides[name] = lambda session=session: session.run(["joint_probabilities"], feed)[0]
    labels = np.array(test["labels"][:])
    times, found = interleaved(sides, rounds)
    sizes = {
        "PyTorch": mebibytes(folder / "model.safetensors"),
        "onnx float32": mebibytes(path),
        "onnx int8": mebibytes(small),
    }
    for name, [joint, *_] in found.items():
        score = blemore.score(blemore.decode_expected_score(joint), labels)
        print(
            f"fusion, {name}: Score {score:.4f} on {num_clips} clips, largest difference of a probability "
            f"{np.abs(joint - found['PyTorch'][0]).max():.1e}, {times[name] / num_clips * 1e6:.0f} us per clip, "
            f"{sizes[name]:.2f} MiB",
            flush=True,
        )


def bench_student(folder: Path, num_steps: int, images: int, rounds: int) -> None:
    values = yaml.safe_load(CONFIG.read_text()) | {"weights": {"task": 1.0}, "weight_schedule": {}}
    settings = DistillationSettings(
        **values | {"output_dir": str(folder), "num_steps": num_steps, "learning_rate": 2e-3}
    )
    with contextlib.redirect_stderr(io.StringIO()):
        distill(settings)
        clip = load_clip(str(folder))
        files = export_onnx(clip.model, folder / "onnx", int8=True)
    paths, small = files[:2], files[2:]
    evaluator = ClipEvaluator(synthetic_tasks(images=images))
    models = {"PyTorch": clip.model, "onnx float32": OnnxStudent(*paths), "onnx int8": OnnxStudent(*small)}
    pixels = torch.randn(64, 3, 32, 32)
    with torch.inference_mode():
        sides = {name: partial(model.get_image_features, pixel_values=pixels) for name, model in models.items()}
        times, _ = interleaved(sides, rounds)
    sizes = {
        "PyTorch": mebibytes(folder / "model.safetensors"),
        "onnx float32": mebibytes(*paths),
        "onnx int8": mebibytes(*small),
    }
    for name, model in models.items():
        found = evaluator.evaluate(model, clip.processor)
        print(
            f"student, {name}: zero-shot {found['zero_shot']['top_1']:.4f}, held out "
            f"{found['held_out_zero_shot']['top_1']:.4f}, image to text R@1 "
            f"{found['retrieval']['image_to_text_r@1']:.4f}, {times[name] / 64 * 1e6:.0f} us per image, "
            f"{sizes[name]:.2f} MiB",
            flush=True,
        )


def main() -> None:
    arguments = make_parser(
        __doc__,
        num_clips=(1000, "clips of the fusion"),
        num_steps=(600, "steps of the student's training"),
        images=(500, "images of each of the student's tasks"),
        rounds=(15, "repetitions of each side"),
    ).parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        bench_fusion(Path(folder) / "fusion", arguments.num_clips, arguments.rounds)
        bench_student(Path(folder) / "student", arguments.num_steps, arguments.images, arguments.rounds)


if __name__ == "__main__":
    main()
