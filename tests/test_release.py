"""What is released: the built wheel and source archive, and the wheel as it is used outside the checkout."""

import json
import os
import re
import site
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path
from urllib.request import urlopen

import pytest

import hf_blemo

REPOSITORY = Path(__file__).resolve().parents[1]


# The checkout is not on the path of the interpreter, and nothing asks for the Hub.
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
ENVIRONMENT |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def run(*command: object, cwd: Path) -> str:
    options = {"cwd": cwd, "env": ENVIRONMENT, "capture_output": True, "text": True, "timeout": 240}
    done = subprocess.run(list(map(str, command)), **options)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Folder of the source archive and of the wheel that is built from it alone."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, REPOSITORY, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def outside(built, tmp_path_factory):
    """An empty folder, and the programs of an environment with the wheel and the test environment's other packages."""
    root = tmp_path_factory.mktemp("outside")
    venv.create(root / "venv", with_pip=False)
    programs = root / "venv" / "bin"
    library = next((root / "venv").glob("lib/python*/site-packages"))
    # A folder that a .pth file names is searched, but its own .pth files, of editable installs, are not read.
    (library / "others.pth").write_text("\n".join(site.getsitepackages()))
    options = ("--no-deps", "--no-index", "--no-warn-script-location", "--quiet")
    wheel = next(built.glob("*.whl"))
    run(sys.executable, "-m", "pip", "--python", programs / "python", "install", *options, wheel, cwd=root)
    (root / "empty").mkdir()
    return root / "empty", programs


def test_archives_hold_what_they_should_and_the_readme_renders(built):
    version = hf_blemo.__version__
    wheel, archive = f"hf_blemo-{version}-py3-none-any.whl", f"hf_blemo-{version}.tar.gz"
    assert sorted(path.name for path in built.iterdir()) == [wheel, archive]
    run(sys.executable, "-m", "twine", "check", "--strict", built / wheel, built / archive, cwd=built)
    names = zipfile.ZipFile(built / wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"hf_blemo", f"hf_blemo-{version}.dist-info"}
    for needed in ("py.typed", "model_cards/rank_aware_fusion.md.jinja", "recipes/fusion_synthetic.yaml"):
        assert f"hf_blemo/{needed}" in names
    with tarfile.open(built / archive) as packed:
        sources = {name.partition("/")[2] for name in packed.getnames()} - {""}
    for needed in ("CHANGELOG.md", "LICENSE", "tests/test_release.py", "docs/clips.md", "training/train_fusion.py"):
        assert needed in sources
    assert not [name for name in sources if re.match(r"(out|runs|shared|\.ci)/|.*\.pyc$", name)]


def test_the_wheel_predicts_trains_reports_and_serves_outside_the_checkout(outside):
    folder, programs = outside
    command = programs / "hf-blemo"
    where = "import hf_blemo; print(hf_blemo.__file__)"
    assert run(programs / "python", "-c", where, cwd=folder).startswith(str(programs.parent))
    assert run(command, "--version", cwd=folder).split()[-1] == hf_blemo.__version__
    run(command, "predict", "--built-in", "--output", "clips.json", "clips.html", cwd=folder)
    assert len(json.loads((folder / "clips.json").read_text())["predictions"]) == 2
    assert "<html" in (folder / "clips.html").read_text()
    short = ("--num_epochs", "1", "--seeds", "0", "--protocol", "none")
    run(command, "train", "--config", "fusion_synthetic", *short, "--output_dir", "fusion", cwd=folder)
    assert (folder / "fusion" / "model.safetensors").is_file()
    assert "pipeline_tag" in (folder / "fusion" / "README.md").read_text()
    streams = {"stdout": subprocess.PIPE, "text": True}
    page = subprocess.Popen([command, "demo", "--built-in"], cwd=folder, env=ENVIRONMENT, **streams)
    try:
        address = next(found[0] for line in page.stdout if (found := re.search(r"http://127[.\d:]+", line)))
        assert "gradio" in urlopen(address, timeout=60).read().decode()
    finally:
        # Ctrl-C would be ignored where the tests run in the background of a shell.
        page.terminate()
        page.communicate(timeout=60)
    assert sorted(path.name for path in folder.iterdir()) == ["clips.html", "clips.json", "fusion"]
