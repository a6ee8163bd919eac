"""The direction of imports: which room of the package may import which."""

import ast
import re
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from importlib.metadata import requires
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "hf_blemo"

# Room -> rooms that it imports, from the ground up. `__init__` and `cli` are files of the package's root.
_TABLE = {
    "_registration": "",
    "blemore": "",
    "clip_rd": "",
    "errors": "",
    "files": "errors",
    "rank_aware_fusion": "",
    "feature_sets": "blemore errors files rank_aware_fusion",
    "built_in": "_registration blemore errors feature_sets files",
    "loading": "errors files",
    "media": "errors files",
    "metrics": "_registration blemore rank_aware_fusion",
    "programs": "_registration errors files",
    "encoders": "_registration errors files loading media programs",
    "pairs": "_registration built_in clip_rd errors files loading programs",
    "clip_evaluation": "built_in clip_rd errors files pairs programs",
    "hub": "_registration blemore clip_rd errors feature_sets files loading programs rank_aware_fusion",
    "clip_rd_training": "built_in clip_evaluation clip_rd errors files hub loading pairs programs",
    "extraction": "blemore built_in encoders errors feature_sets files hub loading media programs rank_aware_fusion",
    "trainer": "clip_rd errors feature_sets files hub metrics pairs rank_aware_fusion",
    "prediction": "_registration blemore encoders errors extraction feature_sets files loading media "
    "rank_aware_fusion",
    "__init__": "_registration blemore clip_rd feature_sets prediction rank_aware_fusion",
    "commands": "blemore built_in clip_evaluation clip_rd encoders errors extraction feature_sets files hub loading "
    "media metrics pairs prediction programs rank_aware_fusion",
    "fusion_training": "_registration blemore built_in encoders errors extraction feature_sets files hub loading "
    "metrics programs rank_aware_fusion",
    "cli": "_registration clip_rd_training commands errors extraction files fusion_training programs",
}
MAY_IMPORT = {room: others.split() for room, others in _TABLE.items()}
# A floor stands above all that its rooms import; `training/` and `benchmarks/` stand above the package.
FLOORS, ROOMS = 8, 24


def _module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_module_of(path): path for path in PACKAGE.rglob("*.py")}


def _room(module: str) -> str:
    room = (module.split(".") + ["__init__"])[1]
    # `python -m hf_blemo` is the command.
    return "cli" if room == "__main__" else room


@cache
def _imports() -> frozenset[tuple[str, str]]:
    """(module, imported module) of the package's own imports, wherever in a file they stand."""
    found = set()
    for module, path in MODULES.items():
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
                source = ".".join([*above, *([node.module] if node.module else [])])
                names = [f"{source}.{alias.name}" for alias in node.names]
            else:
                continue
            for name in names:
                while name and name not in MODULES:
                    name = name.rpartition(".")[0]
                if name and name != module:
                    found.add((module, name))
    return frozenset(found)


def test_rooms_import_only_rooms_that_the_table_allows():
    arrows = {(_room(source), _room(target)): (source, target) for source, target in _imports()}
    wrong = [
        f"{source} imports {target}"
        for (room, other), (source, target) in arrows.items()
        if room != other and other not in MAY_IMPORT.get(room, ())
    ]
    assert not wrong, "; ".join(wrong)
    unused = [(room, other) for room, others in MAY_IMPORT.items() for other in others if (room, other) not in arrows]
    assert not unused, f"the table allows what no file does: {unused}"
    assert {_room(module) for module in MODULES} == set(MAY_IMPORT)


def test_rooms_and_files_import_no_circle():
    for edges in (_imports(), {(_room(a), _room(b)) for a, b in _imports() if _room(a) != _room(b)}):
        graph: dict[str, set[str]] = {}
        for source, target in edges:
            graph.setdefault(source, set()).add(target)
        TopologicalSorter(graph).prepare()


def test_no_file_imports_a_private_name_of_another():
    private = [
        f"{path.relative_to(PACKAGE)}: {alias.name}"
        for path in MODULES.values()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("hf_blemo"))
        for alias in node.names
        if alias.name.startswith("_") and not alias.name.startswith("__")
    ]
    assert not private


def test_nothing_is_pickled():
    loads = ("torch.load", "torch.save", "pickle.load", "allow_pickle=True")
    found = [path.name for path in MODULES.values() for call in loads if call in path.read_text(encoding="utf-8")]
    assert not found


def test_the_house_stays_low_and_small():
    @cache
    def floor(room: str) -> int:
        return 1 + max((floor(other) for other in MAY_IMPORT[room]), default=0)

    assert max(map(floor, MAY_IMPORT)) <= FLOORS and len(MAY_IMPORT) <= ROOMS


@pytest.mark.parametrize("room", ["rank_aware_fusion", "clip_rd", "blemore"])
def test_closed_rooms_import_nothing_of_the_package(room):
    assert {target for source, target in _imports() if _room(source) == room and _room(target) != room} == set()


def test_the_benchmark_and_the_package_load_nothing_heavy():
    heavy = {"torch", "transformers", "datasets", "pyarrow", "pandas", "matplotlib", "tqdm"}
    code = f"import sys, hf_blemo; from hf_blemo import blemore; print(*{heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == ""


WITHOUT_THE_REST = """
import importlib.machinery, sys
blocked = {blocked!r}
find = importlib.machinery.PathFinder.find_spec
def find_spec(name, *arguments):
    return None if name.partition(".")[0] in blocked else find(name, *arguments)
importlib.machinery.PathFinder.find_spec = staticmethod(find_spec)
import torch, hf_blemo
from transformers import CLIPModel
student = hf_blemo.CLIPRDModel(hf_blemo.CLIPRDConfig.from_preset("vit-t-16", projection_dim=8))
loss = hf_blemo.CLIPRDLoss(8)(*(torch.randn(4, 8, requires_grad=side < 2) for side in range(4)), 10.0, 20.0).loss
hf_blemo.CLIPRDDistiller(student, None, hf_blemo.CLIPRDLoss(8), teacher_logit_scale=20.0)
config = hf_blemo.RankAwareFusionConfig(encoders={{"a": {{"feature_size": 3}}}}, top_n=1, hidden_size=4)
fusion = hf_blemo.RankAwareFusionModel(config)({{"a": torch.randn(2, 1, 3)}})
assert loss.isfinite() and fusion.probabilities.isfinite().all()
assert not blocked & set(sys.modules), blocked & set(sys.modules)
"""


def test_both_families_work_with_torch_and_transformers_alone():
    """As on an accelerator's machine, which has little else."""
    needed = {"torch", "transformers", "numpy", "safetensors", "huggingface_hub"}
    modules = {"pillow": "PIL", "pyyaml": "yaml", "scikit-learn": "sklearn", "open_clip_torch": "open_clip"}
    # These two come with transformers itself.
    needed |= {"pyyaml", "tqdm", "filelock"}
    names = {re.split(r"[<>=;\[ ]", entry)[0] for entry in requires("hf_blemo") or ()} - needed - {"hf_blemo"}
    assert {"datasets", "accelerate", "pyarrow", "peft", "evaluate", "av"} <= names
    code = WITHOUT_THE_REST.format(blocked={modules.get(name, name) for name in names})
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
