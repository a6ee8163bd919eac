"""`hf-blemo recipes`, and `--config` with the name of one, in a folder with nothing else."""

import pytest
from command_line import refused, run
from fresh_processes import PACKAGE_FOLDER

from hf_blemo.programs import recipes as recipes_module
from hf_blemo.programs.recipes import find_settings, recipes


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_they_are_listed_shown_and_copied(capsys, empty_folder):
    code, out, _ = run(capsys, "recipes")
    rows = [line.split(maxsplit=2) for line in out.splitlines()]
    assert code == 0 and [name for name, _, _ in rows] == list(recipes()) and len(rows) > 10
    assert ["fusion_blemore", "train", "Rank-aware fusion of the pre-extracted BlEmoRE features."] in rows
    text = recipes()["fusion_table"].read_text()
    assert run(capsys, "recipes", "fusion_table") == (0, text, "")
    (empty_folder / "folder").mkdir()
    for output, path in (
        ("mine.yaml", "mine.yaml"),
        ("folder", "folder/fusion_table.yaml"),
        ("new", "new/fusion_table.yaml"),
    ):
        code, out, _ = run(capsys, "recipes", "fusion_table", "--output", output)
        assert code == 0 and out == f"{path}: change it, then run hf-blemo train --config {path}\n"
        assert (empty_folder / path).read_text() == text
    (empty_folder / "mine.yaml").write_text("mine")
    copy = ("recipes", "fusion_table", "--output", "mine.yaml")
    assert "mine.yaml: already exists; pass --overwrite" in refused(capsys, *copy)
    assert (empty_folder / "mine.yaml").read_text() == "mine"
    assert run(capsys, *copy, "--overwrite")[0] == 0 and (empty_folder / "mine.yaml").read_text() == text
    for options in (["--output", "x"], ["fusion_table", "--overwrite"]):
        assert "need" in refused(capsys, "recipes", *options)


def test_a_file_goes_before_a_recipe_of_its_name(empty_folder, capsys):
    recipe = recipes()["fusion_table"]
    assert find_settings("fusion_table") == find_settings("fusion_table.yaml") == recipe
    (empty_folder / "fusion_table.yaml").write_text("data: mine\n")
    assert str(find_settings("fusion_table.yaml")) == "fusion_table.yaml"
    line = refused(capsys, "train", "--config", "training/configs/fusion_table.yaml")
    assert line.endswith("a recipe of that name comes with the package: --config fusion_table\n")
    # What a recipe leaves to its user.
    line = refused(capsys, "train", "--config", "fusion_table")
    assert "pass --data or put it into a copy of the recipe (hf-blemo recipes fusion_table --output FILE.yaml)" in line


def test_the_wheel_puts_them_where_they_are_looked_for():
    inside, beside = (folder.relative_to(PACKAGE_FOLDER).as_posix() for folder in recipes_module._FOLDERS)
    text = (PACKAGE_FOLDER / "pyproject.toml").read_text()
    assert f'\n"{beside}" = "{inside}"\n' in text and f'"{beside}"]' in text


def test_an_installed_package_has_its_own_folder_of_them(empty_folder, monkeypatch):
    """The wheel puts them beside the modules; without both folders there are none."""
    monkeypatch.setattr(recipes_module, "_FOLDERS", (empty_folder / "recipes", empty_folder / "configs"))
    assert recipes() == {}
    for folder in ("configs", "recipes"):
        (empty_folder / folder).mkdir()
        (empty_folder / folder / "a.yaml").write_text(folder)
        assert recipes()["a"].read_text() == folder
