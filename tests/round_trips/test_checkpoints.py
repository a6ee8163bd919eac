"""Folders that a training leaves load without the package: Trainer's checkpoints, and a student as a plain CLIP."""

from tiny_models import MAKERS, fingerprints
from trainer_cases import CASES
from transformers import AutoModel, AutoProcessor

LOAD = """
import json, sys
import hashlib
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor, pipeline

folder = sys.argv[1]


def digests(model):
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {key: hashlib.sha256(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
            .hexdigest() for key, value in tensors.items()}


report = {}
for name in ("fusion", "clip_rd"):
    checkpoint = f"{folder}/{name}/checkpoint-2"
    processor = AutoProcessor.from_pretrained(checkpoint, trust_remote_code=True)
    model = AutoModel.from_pretrained(checkpoint, trust_remote_code=True)
    report[name] = [type(processor).__name__, digests(model)]
clip = AutoModel.from_pretrained(f"{folder}/clip")
report["clip"] = [type(clip).__name__, digests(clip)]
classify = pipeline("zero-shot-image-classification", model=f"{folder}/clip")
report["labels"] = [row["label"] for row in classify(Image.new("RGB", (20, 30)), candidate_labels=["a", "b"])]
print(json.dumps(report))
"""


def test_checkpoints_and_plain_clips_load_without_the_package(fresh_accelerate_state, on_hub, tmp_path):
    expected = {}
    for name in ("fusion", "clip_rd"):
        trainer = CASES[name]().trainer(tmp_path / name, max_steps=2, save_strategy="steps", save_steps=2)
        trainer.processing_class = MAKERS[trainer.model.config.model_type](0)[1]
        trainer.train()
        expected[name] = fingerprints(trainer.model)
    checkpoint = tmp_path / "clip_rd" / "checkpoint-2"
    plain = AutoModel.from_pretrained(checkpoint).to_clip()
    plain.save_pretrained(tmp_path / "clip")
    AutoProcessor.from_pretrained(checkpoint).save_pretrained(tmp_path / "clip")

    report = on_hub(LOAD, tmp_path, installed=False)
    assert report["fusion"] == ["RankAwareFusionProcessor", expected["fusion"]]
    assert report["clip_rd"] == ["CLIPProcessor", expected["clip_rd"]]
    assert report["clip"] == ["CLIPModel", fingerprints(plain)]
    assert sorted(report["labels"]) == ["a", "b"]
