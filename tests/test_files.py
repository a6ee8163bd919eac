"""Files and folders that appear whole or not at all."""

import json

import pytest

from hf_blemo.files import read_json, replace_folder, whole_file, within, write_json


def test_json_is_read_back_and_what_is_not_an_object_is_refused(tmp_path):
    path = tmp_path / "made" / "a.json"
    write_json({path: {"values": [1, (float("nan"), 0.5)], "name": "ü"}})
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == {"values": [1, [None, 0.5]], "name": "ü"}
    assert read_json(path)["name"] == "ü"
    for text, found in (("[1]", "here: expected a JSON object, found list"), ("{", "here: expected JSON, found: ")):
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
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"] and (tmp_path / "a.json").read_text() == "{}\n"


def test_a_folder_is_replaced_only_by_one_that_can_take_its_place(tmp_path):
    output, made = tmp_path / "output", tmp_path / "made"
    for number in range(2):
        made.mkdir()
        (made / str(number)).touch()
        replace_folder(made, output)
        assert [path.name for path in output.iterdir()] == [str(number)]
    with pytest.raises(FileNotFoundError):
        replace_folder(made, output)
    assert [path.name for path in tmp_path.rglob("*")] == ["output", "1"]
