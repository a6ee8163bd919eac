"""Reports what models of the Hub and of folders give: called with the package, and run as a program without it.

As a program it reads a list of [function, arguments, keyword arguments] and prints what each call returns.
"""

import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from transformers import AutoConfig, AutoModel, AutoProcessor, pipeline

AUTO_CLASSES = {
    "rank_aware_fusion": ("AutoModel",),
    "clip_rd": ("AutoModel", "AutoModelForZeroShotImageClassification"),
}
PICTURE = Image.new("RGB", (20, 30), (200, 10, 30))
LABELS = ["red", "something blue", "night"]


def tensors_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter and buffer by its name."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def fingerprints(model: torch.nn.Module) -> dict[str, str]:
    """Name -> digest of every parameter and buffer."""
    return {
        name: hashlib.sha256(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
        for name, value in tensors_of(model).items()
    }


def clips() -> list[dict[str, np.ndarray]]:
    """Three clips for the tiny fusion, one of them without its face."""
    generator = np.random.default_rng(0)
    rows = [{"face": generator.normal(size=(3 + n, 6)), "voice": generator.normal(size=(2 + n, 4))} for n in range(3)]
    del rows[1]["face"]
    return rows


def outputs(model: torch.nn.Module, processor: Any) -> dict[str, Any]:
    """Every output for fixed inputs, and for a fusion its blends."""
    fusion = hasattr(processor, "post_process_blends")
    batch = (
        processor(clips()) if fusion else processor(text=LABELS, images=[PICTURE], padding=True, return_tensors="pt")
    )
    with torch.no_grad():
        output = model(**batch)
    blends = {"blends": processor.post_process_blends(output)} if fusion else {}
    return {**{name: value.tolist() for name, value in output.items() if torch.is_tensor(value)}, **blends}


def loaded(name: str, family: str, **options: Any) -> dict[str, Any]:
    """What every way of loading a model gives, and loading it again once it is saved by its own code."""
    config = AutoConfig.from_pretrained(name, **options)
    processor = AutoProcessor.from_pretrained(name, **options)
    model = AutoModel.from_pretrained(name, config=config, **options)
    half = tensors_of(AutoModel.from_pretrained(name, dtype=torch.bfloat16, **options))
    tensors = {
        "config": model,
        "device_map": AutoModel.from_pretrained(name, device_map="auto", **options),
        "sharded": AutoModel.from_pretrained(f"{name}-sharded", **options),
    }
    for auto_class in AUTO_CLASSES[family]:
        tensors[auto_class] = getattr(transformers, auto_class).from_pretrained(name, **options)
    with tempfile.TemporaryDirectory() as again:
        model.save_pretrained(again)
        processor.save_pretrained(again)
        tensors["again"] = AutoModel.from_pretrained(again, **options)
        assert outputs(tensors["again"], AutoProcessor.from_pretrained(again, **options)) == outputs(model, processor)
        written = {
            name: json.loads((Path(again) / name).read_text()) for name in ("config.json", "processor_config.json")
        }
    return {
        "tensors": {way: fingerprints(found) for way, found in tensors.items()},
        "half": [
            key
            for key, value in tensors_of(model).items()
            if not torch.equal(value.to(torch.bfloat16) if value.is_floating_point() else value, half[key])
        ],
        "outputs": outputs(model, processor),
        "written": written,
        "processor": type(processor).__name__,
        "modules": [type(one).__module__ for one in (config, *tensors.values())],
        "training": model.training,
    }


def revisions(name: str, commits: list[str], **options: Any) -> list[dict[str, str]]:
    """Fingerprints of a model at each commit; its processor loads, too."""
    found = []
    for commit in commits:
        AutoProcessor.from_pretrained(name, revision=commit, **options)
        found.append(fingerprints(AutoModel.from_pretrained(name, revision=commit, **options)))
    return found


def folder(path: str, **options: Any) -> list[Any]:
    """Classes of the processor and model of a folder, and the model's fingerprints."""
    processor = AutoProcessor.from_pretrained(path, **options)
    model = AutoModel.from_pretrained(path, **options)
    return [type(processor).__name__, type(model).__name__, fingerprints(model)]


def adapted(family: str, **options: Any) -> dict[str, Any]:
    """Outputs of a base, of its adapter loaded in two ways, and of both merged."""
    from peft import PeftModel

    def load(kind: str) -> torch.nn.Module:
        return AutoModel.from_pretrained(f"you/{kind}-{family}", **options).eval()

    processor = AutoProcessor.from_pretrained(f"you/merged-{family}", **options)
    models = {"base": load("base"), "merged": load("merged"), "auto": load("adapter")}
    models["adapter"] = PeftModel.from_pretrained(load("base"), f"you/adapter-{family}").eval()
    key = "joint_probabilities" if family == "rank_aware_fusion" else "logits_per_image"
    return {name: np.ravel(outputs(model, processor)[key]).tolist() for name, model in models.items()}


def piped(fusion: str, student: str, **options: Any) -> dict[str, Any]:
    """What the pipelines of both families give, and those of the fusion's saved again."""
    recognise = pipeline("blended-emotion-recognition", model=fusion, **options)
    with tempfile.TemporaryDirectory() as again:
        recognise.model.save_pretrained(again)
        recognise.processor.save_pretrained(again)
        saved = pipeline("blended-emotion-recognition", model=again, **options)(clips(), batch_size=3)
    embed = pipeline("image-feature-extraction", model=student, **options)
    classify = pipeline("zero-shot-image-classification", model=student, **options)
    return {
        "blends": recognise(clips(), batch_size=2),
        "again": saved,
        "embedding": embed(PICTURE),
        "scores": classify([PICTURE, PICTURE.rotate(90)], candidate_labels=LABELS, batch_size=2),
        "single": classify(PICTURE, candidate_labels=["red"]),
        "module": type(recognise).__module__,
    }


def refused(name: str, **options: Any) -> str:
    """The message with which a pipeline is refused."""
    try:
        pipeline("blended-emotion-recognition", model=name, **options)
    except ValueError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    results = [globals()[call](*given, **named) for call, given, named in json.loads(sys.argv[1])]
    # On a line of its own: transformers asks questions without ending theirs.
    print(f"\n{json.dumps(results)}")
