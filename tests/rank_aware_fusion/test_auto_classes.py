"""Loading a saved folder in a fresh process, with the package and from the folder's own code without it."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from fresh_processes import run_python

import hf_blemo
from hf_blemo import RankAwareFusionProcessor

PACKAGE_FOLDER = Path(hf_blemo.__file__).resolve().parents[1]

# Loads each folder named, runs it on the clips, writes what came out and saves model and processor again.
PROGRAM = """
import json, sys
from pathlib import Path
import numpy as np
import torch
from transformers import AutoConfig, AutoModel, AutoProcessor

work, options, *folders = Path(sys.argv[1]), json.loads(sys.argv[2]), *sys.argv[3:]
with np.load(work / "clips.npz", allow_pickle=False) as arrays:
    samples = {}
    for name in arrays:
        row, encoder = name.split(" ", 1)
        samples.setdefault(int(row), {})[encoder] = arrays[name]
reports = []
for folder in folders:
    config = AutoConfig.from_pretrained(work / folder, **options)
    model = AutoModel.from_pretrained(work / folder, **options)
    processor = AutoProcessor.from_pretrained(work / folder, **options)
    output = model(**processor([samples[row] for row in sorted(samples)]))
    np.savez(work / f"{folder}.npz", **{name: value.detach().numpy() for name, value in output.items()})
    reports.append({
        "modules": [type(one).__module__ for one in (config, model, processor)],
        "package": "hf_blemo" in sys.modules,
        "training": model.training,
        "blends": processor.post_process_blends(output),
        "encoders": list(config.encoders),
    })
    model.save_pretrained(work / f"{folder}_again")
    processor.save_pretrained(work / f"{folder}_again")
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


def run_program(work: Path, folders: list[str], installed: bool) -> list[dict]:
    """Runs the program in another process and folder and returns what it reports of each folder."""
    code = ("import hf_blemo" if installed else BLOCKER) + PROGRAM
    environment = {**os.environ, "HF_HOME": str(work / "hf_home"), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(PACKAGE_FOLDER) if installed else ""
    elsewhere = work / "elsewhere"
    elsewhere.mkdir()
    options = json.dumps({} if installed else {"trust_remote_code": True})
    process = run_python(["-c", code, str(work), options, *folders], cwd=elsewhere, env=environment)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.strip().splitlines()[-1])


@pytest.fixture
def work(tmp_path, make_model, make_samples, encoders):
    """A folder with a saved model and its processor in `saved`, a file of clips, and what they give here."""
    model = make_model(domain_adaptation="adversarial", top_n=3)
    processor = RankAwareFusionProcessor(encoders, decoding="thresholds", alpha=0.12, beta=0.2)
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    samples = make_samples(4, {1: ["clip"], 3: ["wavlm.large", "action units"]})
    arrays = {f"{row} {name}": steps for row, sample in enumerate(samples) for name, steps in sample.items()}
    np.savez(tmp_path / "clips.npz", **arrays)
    output = model(**processor(samples))
    return tmp_path, output, processor.post_process_blends(output)


def assert_same_results(work: Path, folder: str, report: dict, output, blends, encoders) -> None:
    assert report["blends"] == blends and report["encoders"] == list(encoders) and report["training"] is False
    with np.load(work / f"{folder}.npz", allow_pickle=False) as found:
        assert list(found) == list(output)
        for name in output:
            torch.testing.assert_close(torch.from_numpy(found[name]), output[name].detach(), rtol=1e-6, atol=1e-7)


def test_auto_classes_with_the_package_in_a_fresh_process(work, encoders):
    work, output, blends = work
    (report,) = run_program(work, ["saved"], installed=True)
    assert all(module.startswith("hf_blemo.rank_aware_fusion.") for module in report["modules"])
    assert_same_results(work, "saved", report, output, blends, encoders)


def test_code_of_the_folder_without_the_package_and_saved_again_by_it(work, encoders):
    work, output, blends = work
    folders = ["saved", "saved_again"]
    for folder, report in zip(folders, run_program(work, folders, installed=False), strict=True):
        assert report["package"] is False
        assert all(module.startswith("transformers_modules.") for module in report["modules"])
        assert_same_results(work, folder, report, output, blends, encoders)
    for name in ("config.json", "processor_config.json"):
        assert json.loads((work / "saved" / name).read_text()) == json.loads((work / "saved_again" / name).read_text())


def test_saved_folder_holds_all_the_code_of_the_family_and_nothing_of_the_package(work):
    folder = work[0] / "saved"
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
