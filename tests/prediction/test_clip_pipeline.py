"""The pipeline takes raw clips in every form, beside features, and loads the encoders that it needs once."""

import datasets
import numpy as np
import pytest
from tiny_extraction import BROKEN, CLIPS, save_fusion
from transformers import pipeline

import hf_blemo
from hf_blemo.extraction.clip_sources import MediaClip
from hf_blemo.extraction.extraction import encode_clips
from hf_blemo.prediction import clips as clip_prediction
from hf_blemo.prediction.clips import fusion_encoders, predict_clips

TASK = "blended-emotion-recognition"


@pytest.fixture(scope="module")
def recognise(entries, tmp_path_factory):
    return pipeline(TASK, model=str(save_fusion(tmp_path_factory.mktemp("fusion"), entries)))


@pytest.fixture(scope="module")
def expected(paths, member):
    """Results by the function beneath."""
    return list(predict_clips(paths, [member], fusion_encoders([member])))


def assert_same(found, expected, clip=None):
    assert found["clip"] == (clip or expected["clip"])
    assert set(found) == set(expected)
    for name in ("blend", "selected_encoders", "duration", "notes"):
        assert found[name] == expected[name], name
    for name in ("probabilities", "encoder_weights"):
        assert found[name] == pytest.approx(expected[name], abs=1e-5), name


def test_one_clip_in_every_form(recognise, paths, expected):
    content = paths[0].read_bytes()
    with paths[0].open("rb") as file:
        for clip, name in (
            (str(paths[0]), None),
            (paths[0], None),
            (paths[0].as_uri(), None),
            (content, "clip 0"),
            (file, None),
            (MediaClip("mine", paths[0], paths[0]), "mine"),
            ({"video": str(paths[0]), "audio": str(paths[0])}, None),
            ({"clip": "mine", "video": {"bytes": content, "path": None}}, "mine"),
            ({"clip": "mine", "audio": {"bytes": content, "path": "x.mp4"}}, "mine"),
        ):
            assert_same(recognise(clip), expected[0], name)


def test_many_clips_in_every_form(recognise, paths, expected, tmp_path):
    for path in paths:
        (tmp_path / path.name).symlink_to(path)
    for clips in (paths, tuple(map(str, paths)), tmp_path, str(tmp_path)):
        found = recognise(clips)
        assert isinstance(found, list)
        for one, two in zip(found, expected, strict=True):
            assert_same(one, two)
    # By number, where there is no name.
    assert [result["clip"] for result in recognise([paths[0], paths[1].read_bytes()])] == [CLIPS[0], "clip 1"]
    stream = recognise(clip for clip in paths)
    assert not isinstance(stream, list)
    assert_same(next(iter(stream)), expected[0])
    with pytest.raises(ValueError, match="found no clips, expected at least one"):
        recognise([])


def test_data_sets_with_columns_of_files(recognise, paths, expected):
    films = [{"path": str(paths[0]), "bytes": None}, {"path": None, "bytes": paths[1].read_bytes()}, None]
    data = datasets.Dataset.from_dict({"video": films, "label": [0, 1, 2]}).cast_column("video", datasets.Video())
    renamed = data.rename_column("video", "film")
    named = data.add_column("clip", ["a", "b", "c"])
    for source, names in (
        (data, [CLIPS[0], "clip 1", "clip 2"]),
        (renamed, [CLIPS[0], "clip 1", "clip 2"]),
        (named, ["a", "b", "c"]),
        (named.to_iterable_dataset(), ["a", "b", "c"]),
    ):
        found = list(recognise(source))
        assert_same(found[0], expected[0], names[0])
        assert_same(found[1], expected[1], names[1])
        assert found[2] == {"clip": names[2], "error": f"{names[2]}: found nothing in video, expected a clip"}
    with pytest.raises(ValueError, match="found the columns label, expected one of videos or of sound"):
        recognise(data.remove_columns("video"))


def test_features_and_clips_together(recognise, paths, expected):
    [clip] = encode_clips(paths[:1], recognise.encoders)
    row = {"clip": "features", "features": clip.features}
    found = recognise([row, clip.features, paths[1], paths[0], row])
    assert [result.get("clip") for result in found] == ["features", None, CLIPS[1], CLIPS[0], "features"]
    for number in (0, 1, 4):
        assert found[number]["probabilities"] == pytest.approx(expected[0]["probabilities"], abs=1e-5)
        assert "duration" not in found[number]
    assert_same(found[2], expected[1])
    assert_same(found[3], expected[0])


def test_encoders_may_have_the_names_of_columns():
    entries = {name: {"feature_size": 3} for name in ("video", "audio")}
    config = hf_blemo.RankAwareFusionConfig(encoders=entries, hidden_size=8)
    model = hf_blemo.RankAwareFusionModel(config).eval()
    recognise = pipeline(TASK, model=model, processor=hf_blemo.RankAwareFusionProcessor(config.encoders))
    found = recognise({"video": np.ones((2, 3)), "audio": [[1.0, 2.0, 3.0]]})
    assert set(found["encoder_weights"]) == {"video", "audio"} and "clip" not in found
    assert recognise({"video": np.ones((2, 3)), "audio": None})["encoder_weights"]["audio"] == 0


def test_a_clip_that_cannot_be_read(recognise, clip_folder, paths, tmp_path, expected):
    broken = clip_folder / f"{BROKEN}.mp4"
    for clip in (broken, str(broken), tmp_path / "gone.mp4", b"", {"clip": "none", "video": None}):
        with pytest.raises(ValueError) as error:
            recognise(clip)
        assert "\n" not in str(error.value) and "expected a" in str(error.value)
    found = recognise([broken, paths[0], {"clip": "none", "video": None}])
    assert found[0]["clip"] == BROKEN and set(found[0]) == {"clip", "error"} and str(broken) in found[0]["error"]
    assert_same(found[1], expected[0])
    assert found[2]["error"] == "none: found nothing in video, expected a clip"
    # What does not look like a clip is taken for a folder of features.
    with pytest.raises(FileNotFoundError, match="no such folder, expected one with files such as student.npy"):
        recognise(str(tmp_path / "gone"))


def test_windows_are_as_asked(recognise, paths, expected):
    found = recognise(paths[0], window=0.5, longer_than=0.5)
    assert [entry["start"] for entry in found["timeline"]][:3] == [0.0, 0.25, 0.5]
    assert len(recognise(paths[0], window=0.5, hop=0.5, longer_than=0.5)["timeline"]) == 2
    assert "timeline" not in recognise(paths[0], window=0, longer_than=0)
    assert_same(recognise(paths[0], window=None, hop=None, longer_than=None), expected[0])
    assert len(recognise(paths[0], top_labels=2)["labels"]) == 2
    with pytest.raises(ValueError, match="hop must be a positive number"):
        recognise(paths[0], hop=0)
    with pytest.raises(ValueError, match="unknown parameter 'windows', expected some of .*top_labels, window, hop, l"):
        recognise(paths[0], windows=3)
    always = pipeline(TASK, model=recognise.model, processor=recognise.processor, window=0.5, longer_than=0)
    assert len(always(paths[0])["timeline"]) == 3 and "timeline" not in always(paths[0], window=0)


def test_encoders_are_loaded_once_and_only_for_clips(entries, paths, tmp_path, monkeypatch):
    loaded, load = [], clip_prediction.load_encoders
    monkeypatch.setattr(clip_prediction, "load_encoders", lambda entries, **options: (
        loaded.append((list(entries), options)) or load(entries, **options)
    ))  # fmt: skip
    folder = str(save_fusion(tmp_path, entries))
    recognise = pipeline(TASK, model=folder, encoder_options={"dtype": "bfloat16"})
    recognise({"student": np.ones((2, 12))})
    assert loaded == []
    recognise(paths[0])
    recognise(paths[:2])
    [(names, options)] = loaded
    assert names == ["student", "hubert"] and options == {"device": recognise.device, "dtype": "bfloat16"}
    assert str(next(recognise.encoders["student"].model.parameters()).dtype) == "torch.bfloat16"


def test_what_it_saves_is_a_model_with_its_processor(recognise, paths, expected, tmp_path):
    recognise.save_pretrained(tmp_path)
    assert_same(pipeline(TASK, model=str(tmp_path))(paths[0]), expected[0])
