import json
import zipfile

import pytest

from hf_blemo import blemore
from hf_blemo.blemore import LABELS

TEST_CLIPS = [f"test_{number:04d}" for number in range(1, 595)]
PREDICTIONS = [LABELS[number % 36] for number in range(594)]


def test_a_whole_submission_passes_the_check(tmp_path):
    path = blemore.write_submission(tmp_path / "out" / "mine.zip", TEST_CLIPS, PREDICTIONS, strict=True)
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["submission_template.json"]
        document = json.loads(archive.read("submission_template.json"))
    assert list(document) == ["predictions"]
    assert document["predictions"]["test_0007.mov"] == LABELS[6]
    assert len(document["predictions"]) == 594
    assert blemore.check_submission(path) == []
    assert blemore.read_predictions(path) == dict(zip(TEST_CLIPS, PREDICTIONS, strict=True))
    assert [entry.name for entry in path.parent.iterdir()] == ["mine.zip"]


def test_equal_predictions_make_equal_files(tmp_path):
    for name in ("a.zip", "b.zip", "a.json", "b.json"):
        blemore.write_submission(tmp_path / name, TEST_CLIPS[:3], PREDICTIONS[:3])
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_json_form_takes_any_clips_and_writes_canonical_labels(tmp_path):
    prediction = [{"emotion": "sad", "salience": 70.3}, {"emotion": "hap", "salience": 30}]
    path = blemore.write_submission(tmp_path / "x.json", ["videos/A1_neu_sit1_ver1.mov"], [prediction])
    assert json.loads(path.read_text())["predictions"] == {"A1_neu_sit1_ver1.mov": LABELS[35]}
    assert blemore.read_predictions(path) == {"A1_neu_sit1_ver1": LABELS[35]}


def test_bad_predictions_are_refused_and_nothing_is_written(tmp_path):
    path = tmp_path / "x.zip"
    path.write_bytes(b"before")
    odd = [{"emotion": "hap", "salience": 60.0}, {"emotion": "sad", "salience": 40.0}]
    for name, clips, predictions, strict, message in (
        ("x.zip", TEST_CLIPS[:2], [LABELS[0], odd], False, "x.zip: clip 'test_0002': found the prediction .*60.0"),
        ("x.zip", ["test_0001", "test_0001.mov"], PREDICTIONS[:2], False, "found more than once: 'test_0001'$"),
        ("x.zip", TEST_CLIPS[:3], PREDICTIONS[:2], False, "3 clips and 2 predictions"),
        (
            "x.zip",
            TEST_CLIPS[:3],
            PREDICTIONS[:3],
            True,
            "x.zip: missing, 591 of .*: test_0004 to test_0594$",
        ),
        ("x.txt", TEST_CLIPS[:3], PREDICTIONS[:3], False, "'.txt', expected .zip or .json"),
    ):
        with pytest.raises(ValueError, match=message):
            blemore.write_submission(tmp_path / name, clips, predictions, strict=strict)
    assert path.read_bytes() == b"before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.zip"]


def write_json(path, pairs):
    path.write_text('{"predictions": {' + ", ".join(f'"{key}": {json.dumps(value)}' for key, value in pairs) + "}}")
    return path


def test_the_check_lists_every_problem(tmp_path):
    pairs = [(f"{clip}.mov", prediction) for clip, prediction in zip(TEST_CLIPS, PREDICTIONS, strict=True)]
    assert blemore.check_submission(write_json(tmp_path / "x.json", pairs)) == []
    pairs[1] = ("test_0002", PREDICTIONS[1])
    pairs[2] = ("test_0001.mov", PREDICTIONS[2])
    pairs[3] = ("test_0595.mov", PREDICTIONS[3])
    pairs[4] = ("test_0005.mov", [{"emotion": "neu", "salience": 50}, {"emotion": "sad", "salience": 50}])
    pairs[5] = ("test_0006.mov", "sad")
    problems = blemore.check_submission(write_json(tmp_path / "x.json", pairs))
    assert [problem.partition(", expected")[0] for problem in problems] == [
        "clip 'test_0002': expected the suffix .mov",
        "found more than once: 'test_0001'",
        "found no test clips: 'test_0595'",
        "missing, 2 of the 594 test clips: test_0003 to test_0004",
        f"clip 'test_0005.mov': found the prediction {pairs[4][1]}",
        "clip 'test_0006.mov': found the prediction 'sad'",
    ]
    with pytest.raises(ValueError, match="'test_0005.mov'"):
        blemore.read_predictions(tmp_path / "x.json")


def test_files_that_are_no_submission(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        blemore.check_submission(tmp_path / "absent.zip")
    broken = tmp_path / "broken.zip"
    broken.write_bytes(b"PK\x03\x04 cut")
    assert "damaged zip" in blemore.check_submission(broken)[0]
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("folder/submission_template.json", "{}")
    assert "no submission_template.json at the root" in blemore.check_submission(tmp_path / "other.zip")[0]
    for content in ("{", "[]", "{}", '{"predictions": []}'):
        (tmp_path / "x.json").write_text(content)
        assert len(blemore.check_submission(tmp_path / "x.json")) == 1
        with pytest.raises(ValueError, match=r"x\.json"):
            blemore.read_predictions(tmp_path / "x.json")
