"""Predictions of raw paths: they are those of the clips' features, as a whole and moment by moment."""

import logging

import numpy as np
import pytest
from tiny_extraction import BROKEN, CLIPS, make_fusion

from hf_blemo.extraction.decoding import ClipFeatures
from hf_blemo.extraction.extraction import encode_clips
from hf_blemo.feature_sets.layout import Clip, dataset_features
from hf_blemo.feature_sets.writing import write_dataset
from hf_blemo.prediction import clips as clip_prediction
from hf_blemo.prediction.clips import Windows, fusion_encoders, predict_clips
from hf_blemo.prediction.fusion import predict_blends, results

NO_TIMELINE = Windows(seconds=0)


@pytest.fixture(scope="module")
def encoders(member):
    return fusion_encoders([member])


def predictions_of(samples, members, folder, **options):
    """What [`predict_blends`] says of features, by clip."""
    types = {"student": (12, "float32"), "hubert": (16, "float32")}

    def read(row):
        name, features = list(samples.items())[row]
        return Clip(name, {encoder: features.get(encoder) for encoder in types}, np.full(6, -100.0), -1)

    data = write_dataset(folder, dataset_features(types), len(samples), read, {})
    return {result["clip"]: result for result in predict_blends(members, data, **options)}


def assert_same_result(found, expected):
    for name in ("blend", "selected_encoders"):
        assert found[name] == expected[name], name
    for name in ("probabilities", "presence", "salience", "encoder_weights"):
        assert found[name] == pytest.approx(expected[name], abs=1e-5), name


def test_a_clip_is_predicted_as_its_features_are(paths, member, encoders, tmp_path):
    features = {clip.name: clip.features for clip in encode_clips(paths, encoders)}
    expected = predictions_of(features, [member], tmp_path / "data")
    results = list(predict_clips(paths, [member], encoders))
    assert [result["clip"] for result in results] == list(CLIPS)
    for result in results:
        assert_same_result(result, expected[result["clip"]])
        assert "timeline" not in result and "labels" not in result and result["notes"] == []
        assert 0.9 < result["duration"] < 1.8
    # The third has no sound.
    assert results[2]["encoder_weights"]["hubert"] == 0 and results[2]["selected_encoders"] == ["student"]


def test_several_models_a_decoding_and_labels_as_asked(paths, member, entries, encoders, tmp_path):
    members = [member, make_fusion(entries, seed=1)]
    features = {clip.name: clip.features for clip in encode_clips(paths[:1], encoders)}
    options = {"decoding": "thresholds", "alpha": 0.05, "beta": 0.5, "top_labels": 3}
    expected = predictions_of(features, members, tmp_path / "data", **options)
    [found] = predict_clips(paths[:1], members, encoders, **options)
    assert_same_result(found, expected[CLIPS[0]])
    assert found["labels"] == expected[CLIPS[0]]["labels"] and len(found["labels"]) == 3
    [alone] = predict_clips(paths[:1], members[1:], encoders)
    assert found["probabilities"] != alone["probabilities"] and "labels" not in alone
    with pytest.raises(ValueError, match="cannot be averaged with the first"):
        next(predict_clips(paths, [member, make_fusion({"student": entries["student"]})], encoders))
    with pytest.raises(ValueError, match="unknown setting 'gamma', expected decoding, alpha, beta, blend_s"):
        next(predict_clips(paths, [member], encoders, gamma=1))


def test_a_clip_that_cannot_be_read_is_a_result_too(paths, member, encoders, tmp_path, monkeypatch):
    broken = paths[0].with_name(f"{BROKEN}.mp4")
    results = list(predict_clips([broken, paths[0], tmp_path / "gone.mp4"], [member], encoders))
    assert [sorted(result) for result in (results[0], results[2])] == [["clip", "error"]] * 2
    assert results[0]["clip"] == BROKEN and str(broken) in results[0]["error"]
    assert "gone.mp4: no such file" in results[2]["error"]
    assert results[1]["clip"] == CLIPS[0] and results[1]["blend"]
    assert not any("\n" in result.get("error", "") for result in results)

    monkeypatch.setattr(encoders["student"], "forward", lambda pieces: [np.full((1, 12), np.nan)] * len(pieces))
    [spoiled] = predict_clips(paths[:1], [member], encoders)
    assert spoiled["error"].startswith(f"{CLIPS[0]}: encoder 'student' gave NaN or infinity")


def test_spans_of_windows():
    assert Windows().spans(30.0) == [] and Windows(0, longer_than=0).spans(100.0) == []
    assert Windows().spans(31.0)[-1] == (28.0, 31.0)
    for seconds, hop, duration, spans in (
        (4.0, None, 8.0, [(0, 4), (2, 6), (4, 8)]),
        (4.0, None, 8.5, [(0, 4), (2, 6), (4, 8), (6, 8.5)]),
        (4.0, 4.0, 8.0, [(0, 4), (4, 8)]),
        (4.0, None, 3.0, [(0, 3)]),
        # With gaps between windows, none begins after the end.
        (1.0, 5.0, 11.0, [(0, 1), (5, 6), (10, 11)]),
        (1.0, 5.0, 9.5, [(0, 1), (5, 6)]),
    ):
        assert Windows(seconds, hop, longer_than=0).spans(duration) == spans
    assert len(Windows(0.3, 0.1, longer_than=0).spans(0.9)) == 7


def test_unusable_lengths_are_refused():
    for values, message in (
        ({"seconds": -1}, "window must be a number of seconds, .* found -1"),
        ({"seconds": float("nan")}, "window must be"),
        ({"seconds": float("inf")}, "window must be"),
        ({"hop": 0}, "hop must be a positive number of seconds, found 0"),
        ({"hop": float("inf")}, "hop must be"),
    ):
        with pytest.raises(ValueError, match=message):
            Windows(**values)


def made_clip(**rows):
    """Features, which are others in each row, at given times."""
    generator = np.random.default_rng(0)
    times = {name: np.array(found, np.float64) for name, found in rows.items()}
    widths = {"student": 12, "hubert": 16}
    shapes = {name: (len(found), widths[name]) for name, found in times.items()}
    features = {name: generator.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    return ClipFeatures("long", features, times, duration=40.0)


def timeline_of(clip, member, encoders, monkeypatch, windows=None):
    """Timeline of ready-made features, and what each of its windows is of: encoder -> rows."""
    used = []
    monkeypatch.setattr(clip_prediction, "encode_clips", lambda *_: iter([clip]))
    monkeypatch.setattr(clip_prediction, "results", lambda samples, *more, **options: (
        used.extend(samples) or results(samples, *more, **options)
    ))  # fmt: skip
    [result] = predict_clips([None], [member], encoders, windows)
    # The first sample is the whole clip.
    assert {name: len(values) for name, values in used[0].items()} == {n: len(v) for n, v in clip.features.items()}
    places = {name: {row.tobytes(): place for place, row in enumerate(rows)} for name, rows in clip.features.items()}
    rows = [{name: [places[name][row.tobytes()] for row in found] for name, found in one.items()} for one in used[1:]]
    return result, rows


def test_windows_hold_the_rows_that_begin_in_them(member, encoders, monkeypatch, tmp_path):
    # A row every half second of picture, and one every 5 seconds of sound, which ends after 30.
    clip = made_clip(student=np.arange(80) / 2, hubert=np.arange(6) * 5.0)
    result, rows = timeline_of(clip, member, encoders, monkeypatch)
    spans = [(entry["start"], entry["end"]) for entry in result["timeline"]]
    assert spans == [(2.0 * number, 2.0 * number + 4) for number in range(19)]
    assert rows[1]["student"] == list(range(4, 12)) and rows[18]["student"] == list(range(72, 80))
    # From 6 to 10 no stretch of sound begins, but the second lasts throughout.
    sound = [row.get("hubert") for row in rows]
    assert sound[0] == [0] and sound[2:5] == [[1], [1], [2]] and sound[14:] == [[5], None, None, None, None]
    # A window is predicted as a clip of its rows is, without the encoders that it lacks.
    for number in (1, 18):
        sample = {name: clip.features[name][places] for name, places in rows[number].items()}
        expected = predictions_of({"window": sample}, [member], tmp_path / str(number))["window"]
        assert_same_result(result["timeline"][number], expected)
    assert result["timeline"][18]["encoder_weights"]["hubert"] == 0
    assert "clip" not in result["timeline"][0] and result["duration"] == 40.0


def test_windows_without_anything_to_look_at_are_left_out(member, encoders, monkeypatch):
    # Sound begins after 10 seconds; between its rows at 12 and 30 seconds it holds on to the one before.
    clip = made_clip(hubert=[10.0, 11.0, 12.0, 30.0, 31.0])
    result, rows = timeline_of(clip, member, encoders, monkeypatch, Windows(2.0, hop=2.0))
    assert [entry["start"] for entry in result["timeline"]] == [10.0, *np.arange(12.0, 32.0, 2.0)]
    assert [places["hubert"] for places in rows] == [[0, 1], *[[2]] * 9, [3, 4]]


def test_many_windows_are_predicted_in_parts(member, encoders, monkeypatch):
    clip = made_clip(student=np.arange(400) / 10)
    result, rows = timeline_of(clip, member, encoders, monkeypatch, Windows(0.2, hop=0.2))
    assert len(result["timeline"]) == 200 and rows[150]["student"] == [300, 301]
    _, none = timeline_of(clip, member, encoders, monkeypatch, NO_TIMELINE)
    assert none == []


def test_encoders_come_from_the_config(entries, caplog):
    some = make_fusion({"student": entries["student"], "hubert": {}})
    with caplog.at_level(logging.WARNING):
        assert list(fusion_encoders([some])) == ["student"]
        words = {"modality": "text", "model_id": "owner/sentences"}
        assert list(fusion_encoders([make_fusion({"student": entries["student"], "hubert": words})])) == ["student"]
    assert "predicting without encoders whose model the config does not name: hubert" in caplog.text
    assert "predicting without encoders of text: hubert" in caplog.text
    none = make_fusion({"student": {}, "hubert": {}})
    with pytest.raises(ValueError, match=r"names no model for any of its encoders \(student, hubert\), so clips c"):
        fusion_encoders([none])


def test_clips_are_predicted_as_they_are_asked_for(paths, member, encoders):
    stream = iter(paths * 10)
    found = predict_clips(stream, [member], encoders, num_threads=1)
    assert next(found)["clip"] == CLIPS[0] and next(stream)
    found.close()
