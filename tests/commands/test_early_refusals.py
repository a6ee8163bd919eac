"""What is wrong with paths, names and options is said before anything large is imported."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hf_blemo import RankAwareFusionConfig, RankAwareFusionModel, RankAwareFusionProcessor
from hf_blemo.clip_rd.configuration_clip_rd import PRESETS
from hf_blemo.clip_rd_training.settings import CUSTOM, STUDENTS

REPOSITORY = Path(__file__).resolve().parents[2]
NOWHERE = "not a file, folder or Hub id"
# Runs commands one after the other, none of which may import what takes long.
PROGRAM = """
import contextlib, io, json, sys
LARGE = {"torch", "transformers", "datasets", "accelerate", "pandas", "scipy", "matplotlib", "peft"}

class Guard:
    def find_spec(self, name, path=None, target=None):
        assert name.partition(".")[0] not in LARGE, f"{name} is imported"

from hf_blemo import cli
sys.meta_path.insert(0, Guard())
results = []
for arguments in json.load(sys.stdin):
    printed = io.StringIO()
    with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = cli.main(arguments)
        except AssertionError as error:
            code = str(error)
    # Whether these are installed may be asked.
    results.append([code, printed.getvalue(), *{"gradio", "onnx"} & set(sys.modules)])
print(json.dumps(results))
"""
# Arguments, and a part of the line that is printed.
CASES = {
    "predict gone.mp4 --model nomodel": f"nomodel: {NOWHERE}",
    "predict gone.mp4 --model model": "could not read the clip: gone.mp4: no such file",
    "predict gone.mp4 --model clip": "found model_type 'clip' in config.json, expected 'rank_aware_fusion'",
    "predict --model model --features gone": "gone: no such file or folder, expected features",
    "predict --model model --features table.npz --alpha 0.2": "--alpha is for --decoding thresholds",
    "predict --model model --features table.npz --output x.txt": "expected the suffix .json",
    "predict --model model lost --features table.npz": "lost: found no weights, expected model.safetensors",
    "predict table.npz --model local": "encoder 'wavlm': nowhere: not a file",
    "predict table.npz --model local --person 2": "person: found no encoder of the model that looks at faces",
    "demo --model nomodel": f"nomodel: {NOWHERE}",
    "demo --model model --port 70000": "port 70000: cannot serve there",
    "demo --model model --example gone.mp4": "--example gone.mp4: no such file",
    "dataset build gone --output x": "gone: no such file or folder",
    "dataset build table.npz --output x --encoders hubert": "expected 'hubert' among them",
    "dataset build table.npz --output model": "already exists",
    "dataset build table.npz --output x --push-to-hub mine": "found mine, expected owner/name",
    "dataset info gone": "gone: no such file or folder",
    "evaluate --predictions gone.json": "gone.json: no such file",
    "evaluate --predictions gone.json --labels gone": "gone: no such file or folder, expected features",
    "evaluate --model nomodel --benchmark synthetic": f"'nomodel': {NOWHERE}",
    "evaluate --model clip --retrieval gone": f"data 'gone': {NOWHERE}",
    "evaluate --model clip --retrieval table.npz": "found a file '.npz', expected one of .parquet",
    "evaluate --model clip --zero-shot . --classes gone.json": "classes 'gone.json': neither a JSON file nor",
    "submit --predictions gone.json --output x.zip": "gone.json: no such file",
    "publish gone": "gone: expected a folder with a model",
    "publish model --repo mine": "found mine, expected owner/name",
    "export nomodel --output x": f"'nomodel': {NOWHERE}",
    "export lost --output x": "lost: found no weights",
    "features gone --output x --model model": f"gone: {NOWHERE}",
    "features empty --output x --model model": "empty: found no clip",
    "features clips --output x --model nomodel": f"'nomodel': {NOWHERE}",
    "features clips --output x --encoder a=nowhere": f"encoder 'a': nowhere: {NOWHERE}",
    "features clips --output model --encoder a=clip": "already exists",
    "train --data gone": f"'gone': {NOWHERE}",
    "train --data empty": "found no encoder",
    "train --data table.npz --test_data gone": f"'gone': {NOWHERE}",
    "train --data table.npz --output_dir model": "holds an earlier run",
    "ablate --data gone": f"'gone': {NOWHERE}",
    "ablate-encoders --config encoders_synthetic --data gone": f"gone: {NOWHERE}",
    "distill --data gone": f"'gone': {NOWHERE}",
    "distill --data synthetic --teacher nomodel": f"teacher 'nomodel': {NOWHERE}",
    "distill --data synthetic --teacher_store empty": "found no store.json there",
    "distill --data synthetic --student vit-x": f"student 'vit-x': {NOWHERE}",
    "distill --data synthetic --synthetic.num_pair 3": "nearest known one is 'num_pairs'",
    "distill --data synthetic --evaluation.a.kid 1": "unknown setting 'kid'",
    "embed --data synthetic --teachers.a nomodel": f"'nomodel': {NOWHERE}",
    "compare --config clip_rd_comparison --teacher nomodel": f"'nomodel': {NOWHERE}",
}


@pytest.fixture(scope="module")
def refusals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("refusals")
    np.savez(folder / "table.npz", clip=np.array(["A1_ang_int1_ver1"]), wavlm=np.ones((1, 3)))
    config = RankAwareFusionConfig(encoders={"wavlm": {"feature_size": 3}}, top_n=1, hidden_size=8)
    for name in ("model", "lost", "local"):
        RankAwareFusionModel(config).save_pretrained(folder / name)
        RankAwareFusionProcessor(config.encoders).save_pretrained(folder / name)
    (folder / "lost" / "model.safetensors").unlink()
    for file in ("config.json", "processor_config.json"):
        content = json.loads((folder / "local" / file).read_text())
        content["encoders"]["wavlm"]["model_id"] = "nowhere"
        (folder / "local" / file).write_text(json.dumps(content))
    for name in ("empty", "clips", "clip"):
        (folder / name).mkdir()
    (folder / "clips" / "a.mp4").write_bytes(b"no clip")
    (folder / "clip" / "config.json").write_text(json.dumps({"model_type": "clip"}))
    arguments = json.dumps([words.split() for words in CASES])
    environment = {"PYTHONPATH": str(REPOSITORY), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], input=arguments, cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    left = {path.name for path in folder.iterdir()}
    assert left == {"table.npz", "model", "lost", "local", "empty", "clips", "clip"}
    return dict(zip(CASES, json.loads(done.stdout.splitlines()[-1]), strict=True))


@pytest.mark.parametrize("words", CASES)
def test_nothing_large_is_imported_before_a_refusal(refusals, words):
    code, printed, *imported = refusals[words]
    assert code == 2 and CASES[words] in printed, (code, printed)
    assert not imported
    assert printed.count("\n") == 1 and printed.startswith("hf-blemo ")


def test_presets_are_known_without_the_class_of_their_config():
    assert set(STUDENTS) == {*PRESETS, CUSTOM}
