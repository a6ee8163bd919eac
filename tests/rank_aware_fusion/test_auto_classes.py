"""Loading a saved folder in a fresh process, with the package and from the folder's own code without it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import hf_blemo
from hf_blemo import RankAwareFusionProcessor

PACKAGE_FOLDER = Path(hf_blemo.__file__).resolve().parents[1]

# Loads argv[1], runs it on argv[2], writes what came out to argv[3] and saves model and processor again to argv[4].
PROGRAM = """
import json, sys
from pathlib import Path
import numpy as np
import torch
from transformers import AutoConfig, AutoModel, AutoProcessor

folder, clips, result, again, options = *map(Path, sys.argv[1:5]), json.loads(sys.argv[5])
config = AutoConfig.from_pretrained(folder, **options)
model = AutoModel.from_pretrained(folder, **options)
processor = AutoProcessor.from_pretrained(folder, **options)
with np.load(clips, allow_pickle=False) as arrays:
    samples = {}
    for name in arrays:
        row, encoder = name.split(" ", 1)
        samples.setdefault(int(row), {})[encoder] = arrays[name]
output = model(**processor([samples[row] for row in sorted(samples)]))
np.savez(result, **{name: value.detach().numpy() for name, value in output.items()})
print(json.dumps({
    "modules": [type(one).__module__ for one in (config, model, processor)],
    "package": "hf_blemo" in sys.modules,
    "training": model.training,
    "blends": processor.post_process_blends(output),
    "encoders": list(config.encoders),
}))
if again != Path("."):
    model.save_pretrained(again)
    processor.save_pretrained(again)
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


def run_program(folder: Path, clips: Path, result: Path, again: Path | str, tmp_path: Path, installed: bool) -> dict:
    """Runs the program in another process and folder and returns what it reports."""
    code = ("import hf_blemo" if installed else BLOCKER) + PROGRAM
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf_home"), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(PACKAGE_FOLDER) if installed else ""
    work = tmp_path / "elsewhere"
    work.mkdir(exist_ok=True)
    options = json.dumps({} if installed else {"trust_remote_code": True})
    process = subprocess.run(
        [sys.executable, "-P", "-c", code, *map(str, (folder, clips, result, again)), options]
        if sys.version_info >= (3, 11)
        else [sys.executable, "-c", code, *map(str, (folder, clips, result, again)), options],
        cwd=work, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.strip().splitlines()[-1])


@pytest.fixture
def saved(make_model, make_samples, encoders, tmp_path):
    """A folder with model and processor, a file of clips, and what the model gives for them in this process."""
    model = make_model(domain_adaptation="adversarial", top_n=3)
    processor = RankAwareFusionProcessor(encoders, decoding="thresholds", alpha=0.12, beta=0.2)
    folder = tmp_path / "saved"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    samples = make_samples(4, {1: ["clip"], 3: ["wavlm.large", "action units"]})
    arrays = {f"{row} {name}": steps for row, sample in enumerate(samples) for name, steps in sample.items()}
    # A file of names that hold "/" and spaces, as the encoders' do.
    clips = tmp_path / "clips.npz"
    np.savez(clips, **arrays)
    output = model(**processor(samples))
    return folder, clips, output, processor.post_process_blends(output), list(model.config.encoders)


def assert_same(result: Path, output) -> None:
    with np.load(result, allow_pickle=False) as found:
        assert set(found) == set(output)
        for name in output:
            torch.testing.assert_close(torch.from_numpy(found[name]), output[name].detach(), rtol=1e-6, atol=1e-7)


def test_auto_classes_with_the_package_in_a_fresh_process(saved, tmp_path):
    folder, clips, output, blends, encoders = saved
    report = run_program(folder, clips, tmp_path / "result.npz", ".", tmp_path, installed=True)
    assert all(module.startswith("hf_blemo.rank_aware_fusion.") for module in report["modules"])
    assert report["blends"] == blends and report["encoders"] == encoders and report["training"] is False
    assert_same(tmp_path / "result.npz", output)


def test_code_of_the_folder_without_the_package_and_saved_again_by_it(saved, tmp_path):
    folder, clips, output, blends, encoders = saved
    again = tmp_path / "again"
    for number, source in enumerate((folder, again)):
        result = tmp_path / f"result_{number}.npz"
        report = run_program(source, clips, result, again if number == 0 else ".", tmp_path, installed=False)
        assert report["package"] is False
        assert all(module.startswith("transformers_modules.") for module in report["modules"])
        assert report["blends"] == blends and report["encoders"] == encoders and report["training"] is False
        assert_same(result, output)


def test_saved_folder_holds_all_the_code_of_the_family_and_nothing_of_the_package(saved):
    folder = saved[0]
    family = PACKAGE_FOLDER / "hf_blemo" / "rank_aware_fusion"
    sources = {path.name: path.read_text() for path in family.glob("*.py") if path.name != "__init__.py"}
    assert {path.name: path.read_text() for path in folder.glob("*.py")} == sources
    for name, text in sources.items():
        assert "import hf_blemo" not in text and "from hf_blemo" not in text, name
    auto_map = json.loads((folder / "config.json").read_text())["auto_map"]
    assert auto_map == {
        "AutoConfig": "configuration_rank_aware_fusion.RankAwareFusionConfig",
        "AutoModel": "modeling_rank_aware_fusion.RankAwareFusionModel",
    }
    processor = json.loads((folder / "processor_config.json").read_text())
    assert processor["auto_map"] == {"AutoProcessor": "processing_rank_aware_fusion.RankAwareFusionProcessor"}
