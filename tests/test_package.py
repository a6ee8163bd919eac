"""The front door: a light import, lazy names, and registration with the auto classes in any order of imports."""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import fresh_processes
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tiny_models import save_tiny_model

import hf_blemo
from hf_blemo._registration import AutoClassRegistrar
from hf_blemo.errors import MissingExtraError, check_extra

REPOSITORY = Path(__file__).resolve().parents[1]


# --- Importing the package ---


def test_import_is_fast_and_loads_neither_torch_nor_transformers():
    code = (
        "import sys, time; start = time.perf_counter(); import hf_blemo; dir(hf_blemo); "
        "print(time.perf_counter() - start, *sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    # The fastest of three: a busy machine slows one start, not the package.
    command = [sys.executable, "-c", code]
    runs = [subprocess.check_output(command, cwd=REPOSITORY, text=True, timeout=60).split() for _ in range(3)]
    assert [run[1:] for run in runs] == [[], [], []]
    assert min(float(run[0]) for run in runs) < 0.1


def test_every_public_name_loads_and_is_listed():
    assert set(hf_blemo.__all__) <= set(dir(hf_blemo))
    for name in hf_blemo.__all__:
        value = getattr(hf_blemo, name)
        if isinstance(value, type):
            assert value.__name__ == name
    assert hf_blemo.blemore.__name__ == "hf_blemo.blemore"
    with pytest.raises(AttributeError, match="module 'hf_blemo' has no attribute 'RankAwareFusion'"):
        _ = hf_blemo.RankAwareFusion


# --- What is to be installed ---


def test_the_lowest_versions_that_are_tested_are_those_that_are_declared():
    """Without extras that pull in torchvision or are licensed for research only, and what only developers use."""
    declared = {}
    for line in importlib.metadata.requires("hf_blemo") or []:
        requirement = Requirement(line)
        extra = re.search(r"extra == .(\w+)", str(requirement.marker))
        if canonicalize_name(requirement.name) != "hf-blemo" and (
            extra is None or extra[1] not in {"dev", "openclip", "opensmile", "sets", "timm"}
        ):
            [bound] = requirement.specifier
            declared.setdefault(canonicalize_name(requirement.name), set()).add(bound.version)
    pinned = {}
    for line in (REPOSITORY / "constraints-lowest.txt").read_text().splitlines():
        if not line.startswith("#"):
            [pin] = (requirement := Requirement(line)).specifier
            pinned.setdefault(canonicalize_name(requirement.name), set()).add(pin.version)
    assert pinned == declared


def test_texts_say_only_how_to_get_what_can_be_had():
    wanted = [Requirement(line) for line in importlib.metadata.requires("hf_blemo")]
    bounds = {canonicalize_name(need.name): str(need.specifier) for need in wanted}
    stated = []
    for folder in ("hf_blemo", "model_cards", "docs", "training", "README.md", "CONTRIBUTING.md"):
        for path in (REPOSITORY / folder, *(REPOSITORY / folder).rglob("*.*")):
            if path.suffix in (".py", ".md", ".jinja", ".ipynb"):
                text = path.read_text()
                # The package is on no index yet.
                assert not re.search(r"pip3? install [^\n`]*\bhf.blemo(?![/.\w])", text), path
                stated += re.findall(r'pip install \\?"([a-z_-]+)(>=[\d.]+)\\?"', text)
    assert stated and {name: bound for name, bound in stated if bounds[canonicalize_name(name)] != bound} == {}


@pytest.mark.parametrize(
    ("found", "line"),
    [
        (["torch>=2", 'av>=9,<10; extra == "media"', 'gradio>=6; extra == "demo"'], 'pip install "av<10,>=9"'),
        # A folder on the path without metadata.
        (None, 'pip install "av"'),
    ],
)
def test_a_missing_extra_names_its_packages_with_the_bounds_of_the_metadata(found, line, monkeypatch):
    def requires(name):
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(importlib.metadata, "requires", requires)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtraError) as error:
        check_extra("media", "'a.mp4'")
    assert str(error.value) == f"'a.mp4' needs av: {line}"


# --- Registration with transformers ---

IMPORTS = {
    "package first": "import hf_blemo; from transformers import AutoConfig, AutoModel, AutoProcessor",
    "auto classes first": "from transformers import AutoConfig, AutoModel, AutoProcessor; import hf_blemo",
    "model module first": "import hf_blemo.rank_aware_fusion.modeling_rank_aware_fusion; "
    "from transformers import pipeline, AutoConfig, AutoModel, AutoProcessor",
}


@pytest.mark.parametrize("imports", IMPORTS.values(), ids=IMPORTS.keys())
def test_auto_classes_load_the_family_in_any_order_of_imports(imports, tmp_path):
    code = (
        f"import sys; {imports}; "
        "loaded = [auto.from_pretrained(sys.argv[1]) for auto in (AutoConfig, AutoModel, AutoProcessor)]; "
        "print(*[type(one).__module__ + '.' + type(one).__name__ for one in loaded])"
    )
    save_tiny_model("rank_aware_fusion", tmp_path)
    done = fresh_processes.run_python(["-c", code, tmp_path], cwd=REPOSITORY, bare=True)
    folder = "hf_blemo.rank_aware_fusion"
    assert done.stdout.split() == [
        f"{folder}.{kind}_rank_aware_fusion.RankAwareFusion{name}"
        for kind, name in (("configuration", "Config"), ("modeling", "Model"), ("processing", "Processor"))
    ]


def test_a_config_loaded_before_any_model_leaves_the_model_registered(tmp_path):
    """Loading the config imports CLIP's, which imports the auto classes in its middle."""
    save_tiny_model("clip_rd", tmp_path / "student")
    save_tiny_model("rank_aware_fusion", tmp_path / "fusion")
    code = """
import hf_blemo, transformers
config = transformers.AutoConfig.from_pretrained("student")
model = transformers.AutoModel.from_pretrained("student")
recognise = transformers.pipeline("blended-emotion-recognition", model="fusion")
print(*[type(found).__module__ for found in (config, model, recognise)])
"""
    done = fresh_processes.run_python(["-c", code], cwd=tmp_path, bare=True)
    assert done.stdout.split() == [
        "hf_blemo.clip_rd.configuration_clip_rd", "hf_blemo.clip_rd.modeling_clip_rd",
        "hf_blemo.prediction.clip_pipeline",
    ]  # fmt: skip


# --- The mechanism, on a stand-in for transformers that imports in microseconds ---

AUTO_SOURCE = """
class {name}:
    registered = []

    @classmethod
    def register(cls, key, value, exist_ok):
        assert exist_ok
        if (key, value) not in cls.registered:
            cls.registered.append((key, value))
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """The folder of modules auto_config, auto_model, family_config and family_model, and a registrar not installed."""
    (tmp_path / "auto_config.py").write_text(AUTO_SOURCE.format(name="AutoConfig"))
    (tmp_path / "auto_model.py").write_text("import auto_config\n" + AUTO_SOURCE.format(name="AutoModel"))
    (tmp_path / "family_config.py").write_text("class FamilyConfig: ...\n")
    (tmp_path / "family_model.py").write_text("from family_config import FamilyConfig\nclass FamilyModel: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    names = ("auto_config", "auto_model", "family_config", "family_model")
    registrar = AutoClassRegistrar(
        {"family": {"AutoConfig": "FamilyConfig", "AutoModel": "FamilyModel"}},
        {"FamilyConfig": "family_config", "FamilyModel": "family_model"},
        {"AutoConfig": "auto_config", "AutoModel": "auto_model"},
    )
    yield tmp_path, registrar
    for name in names:
        sys.modules.pop(name, None)


def assert_registered() -> None:
    """Each auto class has the family's class, once, under its own kind of key."""
    loaded = sys.modules
    config, model = loaded["family_config"].FamilyConfig, loaded["family_model"].FamilyModel
    assert loaded["auto_config"].AutoConfig.registered == [("family", config)]
    assert loaded["auto_model"].AutoModel.registered == [(config, model)]


@pytest.mark.parametrize(
    "order",
    [
        ("install", "auto_model"),
        ("auto_model", "install"),
        ("auto_config", "install", "auto_model"),
        ("install", "family_model", "auto_model"),
        ("family_model", "auto_model", "install"),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("source", ["", "from auto_model import AutoModel\n"], ids=["apart", "family imports auto"])
def test_registration_in_any_order_of_imports(stand_in, order, source):
    folder, registrar = stand_in
    (folder / "family_model.py").write_text(
        f"from family_config import FamilyConfig\n{source}class FamilyModel: ...\n"
    )
    for step in order:
        if step == "install":
            registrar.install()
        else:
            __import__(step)
    assert_registered()


def test_the_family_is_imported_only_with_the_auto_class_that_needs_it(stand_in):
    _, registrar = stand_in
    registrar.install()
    assert not {"auto_config", "family_config"} & set(sys.modules)
    __import__("auto_config")
    assert "family_config" in sys.modules
    assert not {"auto_model", "family_model"} & set(sys.modules)


def test_awaited_modules_keep_their_own_loader(stand_in):
    folder, registrar = stand_in
    registrar.install()
    module = __import__("auto_config")
    assert module.__loader__ is module.__spec__.loader
    assert module.__loader__.get_filename("auto_config") == str(folder / "auto_config.py")
    assert type(module.__loader__) is type(sys.modules["family_config"].__loader__) is type(pytest.__loader__)


def test_an_error_in_the_family_is_raised_where_the_auto_class_is_imported(stand_in):
    folder, registrar = stand_in
    (folder / "family_model.py").write_text("raise RuntimeError('torch is broken')\n")
    registrar.install()
    with pytest.raises(RuntimeError, match="torch is broken"):
        __import__("auto_model")
    assert "auto_model" not in sys.modules
