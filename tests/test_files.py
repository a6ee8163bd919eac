"""Files and folders that appear whole or not at all."""

import errno
import json
import os
import stat
from pathlib import Path

import pytest
from transformers import AutoConfig

from hf_blemo import CLIPRDConfig
from hf_blemo.files import limited, read_json, replace_folder, whole_file, within, write_json, write_text
from hf_blemo.loading import load_part


def test_json_is_read_back_and_what_is_not_an_object_is_refused(tmp_path):
    path = tmp_path / "made" / "a.json"
    write_json({path: {"values": [1, (float("nan"), 0.5)], "name": "ü"}})
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == {"values": [1, [None, 0.5]], "name": "ü"}
    assert read_json(path)["name"] == "ü"
    for text, found in (
        ("[1]", "here: expected a JSON object, found list"),
        ("{", "here: expected JSON, found: "),
        ('{"a": 1, "a": 2}', "key 'a' comes more than once"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=found):
            read_json(path, "here")


@pytest.mark.parametrize(
    "name", ["..", ".", "", "../x", "a/../b", "a//b", "/x", "C:\\x", "..\\x", "a\0", "a\n", "\x1b[2J", 1], ids=ascii
)
def test_a_name_from_elsewhere_leads_out_of_no_folder(name, tmp_path):
    assert within(tmp_path, "a b..ü/.c") == tmp_path / "a b..ü" / ".c"
    with pytest.raises(ValueError, match="here: found the name .*, expected one inside the folder"):
        within(tmp_path, name, "here")


def test_no_file_appears_where_one_cannot_be_written(tmp_path):
    (tmp_path / "a.json").write_text("{}\n")
    with pytest.raises(TypeError):
        write_json({tmp_path / "a.json": {"new": 1}, tmp_path / "b.json": object()})
    with pytest.raises(RuntimeError), whole_file(tmp_path / "c.txt") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    with pytest.raises(OSError, match="No space left") as error, whole_file(tmp_path / "a.json") as temporary:
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device", str(temporary))
    assert error.value.filename == str(tmp_path / "a.json"), "the hidden name means nothing to anybody"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"] and (tmp_path / "a.json").read_text() == "{}\n"


def test_only_files_that_this_package_made_are_replaced(tmp_path):
    """Whatever lies beside, links, modes, long names, and what is no file."""
    (tmp_path / "elsewhere").mkdir()
    real, link, longest = tmp_path / "elsewhere" / "real", tmp_path / "link", tmp_path / ("n" * 255)
    link.symlink_to(real)
    longest.write_text("old")
    longest.chmod(0o600)
    for path in (link, link, longest, Path("/dev/null")):
        write_text(path, "new\n")
    assert link.is_symlink() and real.read_text() == longest.read_text() == "new\n"
    assert stat.S_IMODE(longest.stat().st_mode) == 0o600 and Path("/dev/null").is_char_device()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_text(pipe, "seen")
    assert os.read(reader, 10) == b"seen" and pipe.is_fifo()
    os.close(reader)
    with pytest.raises(IsADirectoryError) as error:
        write_text(tmp_path / "elsewhere", "new")
    assert error.value.filename == str(tmp_path / "elsewhere")
    assert {path.name for path in tmp_path.iterdir()} == {"elsewhere", "link", longest.name, "pipe"}


def test_a_folder_is_replaced_only_by_one_that_can_take_its_place(tmp_path):
    output, made, real = tmp_path / "output", tmp_path / "made", tmp_path / "real"
    neighbours = {tmp_path / "output.replaced", tmp_path / ".output.replaced", tmp_path / "output.partial"}
    for path in neighbours:
        path.mkdir()
        (path / "thesis.txt").touch()
    for number in range(3):
        if number == 2:
            output.rename(real)
            output.symlink_to(real)
        made.mkdir()
        (made / str(number)).touch()
        replace_folder(made, output)
        assert [path.name for path in output.iterdir()] == [str(number)]
    assert output.is_symlink() and output.resolve() == real
    with pytest.raises(FileNotFoundError):
        replace_folder(made, output)
    assert set(tmp_path.iterdir()) == {output, real, *neighbours} and all(any(path.iterdir()) for path in neighbours)


def test_a_folder_that_cannot_be_moved_leaves_the_old_one(tmp_path, monkeypatch):
    output, made, rename = tmp_path / "output", tmp_path / "made", os.rename
    for folder in (output, made):
        folder.mkdir()
        (folder / folder.name).touch()
    monkeypatch.setattr(os, "rename", lambda old, new: rename(old, new) if old != made else (1 / 0))
    with pytest.raises(ZeroDivisionError):
        replace_folder(made, output)
    assert sorted(tmp_path.rglob("*")) == [made, made / "made", output, output / "output"]


def test_a_config_names_no_more_labels_than_any_model_has(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "wav2vec2", "num_labels": 100_000_000}))
    with pytest.raises(
        ValueError, match=r"encoder: config.json: found num_labels 100,000,000, expected at most 100,000"
    ):
        load_part(AutoConfig, str(tmp_path), "encoder")
    with pytest.raises(ValueError, match="num_labels: found 100000000, expected none or at most 1000"):
        CLIPRDConfig(num_labels=100_000_000)
    for changes, message in (
        ({"labels": 7}, "limits: unknown setting 'labels'"),
        ({"max_labels": 0}, "max_labels is 0"),
    ):
        with pytest.raises(ValueError, match=message), limited(changes):
            pass
