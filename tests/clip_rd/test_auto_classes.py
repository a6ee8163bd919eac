"""Loading a saved student in a fresh process, with the package and from the folder's own code without it."""

import json
import os
from pathlib import Path

import pytest
import torch
from fresh_processes import run_python
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_models import save_tiny_model
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoConfig, AutoModel, AutoModelForZeroShotImageClassification, CLIPTokenizer, pipeline
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import hf_blemo
from hf_blemo import CLIPRDConfig, CLIPRDModel

PACKAGE_FOLDER = Path(hf_blemo.__file__).resolve().parents[1]
LABELS = ["a red square", "something blue and rather large", "night"]

# Loads each folder named by every auto class and by the pipeline, writes what came out and saves the model again.
PROGRAM = """
import json, sys
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForZeroShotImageClassification, pipeline

work, options, labels, *folders = Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3]), *sys.argv[4:]
batch = load_file(work / "batch.safetensors")
reports = []
for folder in folders:
    config = AutoConfig.from_pretrained(work / folder, **options)
    model = AutoModel.from_pretrained(work / folder, **options)
    zero_shot = AutoModelForZeroShotImageClassification.from_pretrained(work / folder, **options)
    classify = pipeline("zero-shot-image-classification", model=str(work / folder), **options)
    with torch.no_grad():
        output = model(**batch)
        assert torch.equal(zero_shot(**batch).logits_per_image, output.logits_per_image)
    save_file({name: value.contiguous() for name, value in output.items()}, work / f"{folder}.safetensors")
    reports.append({
        "modules": [type(one).__module__ for one in (config, model, zero_shot, classify.model)],
        "towers": [type(model.vision_model).__module__, type(model.text_model).__module__],
        "package": "hf_blemo" in sys.modules,
        "training": model.training,
        "scores": {row["label"]: row["score"] for row in classify(str(work / "image.png"), candidate_labels=labels)},
    })
    model.save_pretrained(work / f"{folder}_again")
    classify.tokenizer.save_pretrained(work / f"{folder}_again")
    classify.image_processor.save_pretrained(work / f"{folder}_again")
print(json.dumps(reports))
"""

# Makes the package unimportable, wherever it may be installed.
BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hf_blemo":
            raise ImportError("hf_blemo is not installed here")

sys.meta_path.insert(0, Blocker())
try:
    import hf_blemo
except ImportError:
    pass
else:
    sys.exit("hf_blemo could be imported")
"""


def run_program(work: Path, folders: list[str], installed: bool) -> tuple[list[dict], str]:
    """Runs the program in another process and folder; returns what it reports of each folder, and its stderr."""
    code = ("import hf_blemo" if installed else BLOCKER) + PROGRAM
    environment = {**os.environ, "HF_HOME": str(work / "hf_home"), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(PACKAGE_FOLDER) if installed else ""
    elsewhere = work / "elsewhere"
    elsewhere.mkdir()
    options = json.dumps({} if installed else {"trust_remote_code": True})
    process = run_python(
        ["-c", code, str(work), options, json.dumps(LABELS), *folders], cwd=elsewhere, env=environment
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.strip().splitlines()[-1]), process.stderr


def save_student(model: CLIPRDModel, folder: Path) -> None:
    """Saves a student with a tokenizer and an image processor of CLIP's kind."""
    model.save_pretrained(folder)
    symbols = sorted(ByteLevel.alphabet())
    tokens = [*symbols, *(f"{symbol}</w>" for symbol in symbols), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=80).save_pretrained(folder)
    size = model.config.vision_config.image_size
    processor = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    processor.save_pretrained(folder)


@pytest.fixture(params=["clip", "swin"])
def work(request, tmp_path, make_model, make_batch):
    """A folder with a student in `saved`, a batch and an image; what the student gives of the batch; its scores."""
    model, batch = make_model(request.param), make_batch(3)
    save_student(model, tmp_path / "saved")
    save_file(batch, tmp_path / "batch.safetensors")
    image = Image.new("RGB", (90, 70), (220, 40, 30))
    image.save(tmp_path / "image.png")
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "saved")
    processor = CLIPImageProcessorPil.from_pretrained(tmp_path / "saved")
    with torch.no_grad():
        output = model(**batch)
        texts = tokenizer([f"This is a photo of {label}." for label in LABELS], padding=True, return_tensors="pt")
        images = processor(images=[image], return_tensors="pt")
        scores = model(**texts, **images).logits_per_image[0].softmax(0).tolist()
    assert max(scores) - min(scores) > 1e-3
    return tmp_path, output, dict(zip(LABELS, scores, strict=True))


def assert_same_results(work: Path, folder: str, report: dict, output, scores) -> None:
    assert report["scores"] == pytest.approx(scores, rel=1e-4) and report["training"] is False
    assert all(module.startswith("transformers.models.") for module in report["towers"])
    found = load_file(work / f"{folder}.safetensors")
    assert set(found) == set(output)
    for name in output:
        torch.testing.assert_close(found[name], output[name], rtol=1e-5, atol=1e-6)


def test_auto_classes_and_pipeline_with_the_package_in_a_fresh_process(work):
    work, output, scores = work
    (report,), errors = run_program(work, ["saved"], installed=True)
    assert all(module.startswith("hf_blemo.clip_rd.") for module in report["modules"])
    assert "not supported" not in errors
    assert_same_results(work, "saved", report, output, scores)


def test_code_of_the_folder_without_the_package_and_saved_again_by_it(work):
    work, output, scores = work
    folders = ["saved", "saved_again"]
    reports, errors = run_program(work, folders, installed=False)
    assert "not supported" not in errors
    for folder, report in zip(folders, reports, strict=True):
        assert report["package"] is False
        assert all(module.startswith("transformers_modules.") for module in report["modules"])
        assert_same_results(work, folder, report, output, scores)
    first, again = (json.loads((work / folder / "config.json").read_text()) for folder in folders)
    # Transformers writes the towers' dtype, too, once they have been loaded.
    for config in (first, again):
        for tower in ("vision_config", "text_config"):
            config[tower].pop("dtype", None)
    assert first == again


def test_saved_folder_holds_the_code_of_the_model_alone(make_model, tmp_path):
    make_model().save_pretrained(tmp_path)
    family = PACKAGE_FOLDER / "hf_blemo" / "clip_rd"
    names = ("configuration_clip_rd.py", "gathering_clip_rd.py", "modeling_clip_rd.py")
    sources = {name: (family / name).read_text() for name in names}
    assert {path.name: path.read_text() for path in tmp_path.glob("*.py")} == sources
    for name, text in sources.items():
        assert "import hf_blemo" not in text and "from hf_blemo" not in text, name
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == {
        "AutoConfig": "configuration_clip_rd.CLIPRDConfig",
        "AutoModel": "modeling_clip_rd.CLIPRDModel",
        "AutoModelForZeroShotImageClassification": "modeling_clip_rd.CLIPRDModel",
    }


def test_auto_classes_here_load_and_make_the_model(make_model, make_config, tmp_path):
    make_model("mobilevit", "bert").save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is CLIPRDConfig
    for auto_class in (AutoModel, AutoModelForZeroShotImageClassification):
        assert type(auto_class.from_pretrained(tmp_path)) is CLIPRDModel
        assert type(auto_class.from_config(make_config())) is CLIPRDModel


def test_pipeline_takes_one_label_and_many_images(make_model, tmp_path):
    save_student(make_model(), tmp_path)
    classify = pipeline("zero-shot-image-classification", model=str(tmp_path))
    images = [Image.new("RGB", (80, 60), color) for color in ((255, 0, 0), (0, 0, 255))]
    (single,) = classify(images[0], candidate_labels=["red"])
    assert single == {"label": "red", "score": 1.0}
    rows = classify(images, candidate_labels=LABELS, batch_size=2)
    assert [sorted(row["label"] for row in result) for result in rows] == [sorted(LABELS)] * 2
    assert rows[0] != rows[1]


def test_a_config_loaded_before_any_model_leaves_the_model_registered(tmp_path):
    # Loading the config imports CLIP's, which imports the auto classes in its middle.
    save_tiny_model("clip_rd", tmp_path / "student")
    program = f"""
import hf_blemo, transformers
config = transformers.AutoConfig.from_pretrained({str(tmp_path / "student")!r})
model = transformers.AutoModel.from_pretrained({str(tmp_path / "student")!r})
print(type(config).__module__, type(model).__module__)
"""
    done = run_python(["-c", program], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(PACKAGE_FOLDER)})
    assert done.stdout.split() == ["hf_blemo.clip_rd.configuration_clip_rd", "hf_blemo.clip_rd.modeling_clip_rd"]
