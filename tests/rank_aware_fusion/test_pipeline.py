"""The pipeline takes features in every form and says what the model says."""

import datasets
import numpy as np
import pytest
import torch
from fresh_processes import run_code
from sample_metrics import FUSION
from tiny_models import ENCODERS, make_fusion, save_tiny_model
from transformers import pipeline

from hf_blemo import (
    BlendedEmotionRecognitionPipeline,
    RankAwareFusionConfig,
    RankAwareFusionModel,
    RankAwareFusionProcessor,
    blemore,
    feature_sets,
)
from hf_blemo.built_in import make_synthetic_blends
from hf_blemo.hub.card import render_card

TASK = "blended-emotion-recognition"


@pytest.fixture(scope="module")
def clips():
    """Five clips of different lengths; each encoder lacks in one."""
    generator = np.random.default_rng(0)
    samples = []
    for number in range(5):
        sizes = {name: options["feature_size"] for name, options in ENCODERS.items()}
        samples.append({name: generator.normal(size=(3 + number, size)) for name, size in sizes.items()})
    del samples[1]["face"]
    samples[3]["voice"] = None
    return samples


REFUSED = "contains custom code which must be executed to correctly load the model"


@pytest.fixture(scope="module")
def recognise(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fusion")
    save_tiny_model("rank_aware_fusion", folder)
    return pipeline(TASK, model=str(folder))


def test_the_task_is_inferred_from_the_model(recognise, tmp_path):
    recognise.model.save_pretrained(tmp_path)
    recognise.processor.save_pretrained(tmp_path)
    for options in ({}, {"trust_remote_code": True}):
        found = pipeline(model=str(tmp_path), **options)
        assert (found.task, type(found)) == (TASK, BlendedEmotionRecognitionPipeline)
        assert type(found.processor) is RankAwareFusionProcessor
    assert "custom_pipelines" not in found.model.config.to_dict()


BY_ITSELF = """
import json, sys
folder, how = sys.argv[1:]
if how == "imported":
    import hf_blemo
from transformers import pipeline
try:
    found = pipeline(model=folder, **({"trust_remote_code": True} if how == "trusted" else {}))
    print(json.dumps([found.task, type(found).__module__.split(".")[0]]))
except ValueError as error:
    # After a question that nobody answered.
    print("\\n" + json.dumps(str(error)))
"""


@pytest.mark.parametrize("installed", [True, False])
def test_a_pipeline_of_a_folder_needs_the_import_or_trust_in_its_code(recognise, tmp_path, installed):
    recognise.model.save_pretrained(tmp_path / "model")
    recognise.processor.save_pretrained(tmp_path / "model")
    for how, expected in (("imported", [TASK, "hf_blemo"]), ("trusted", [TASK, "transformers_modules"]), ("", None)):
        if installed or how != "imported":
            found = run_code(tmp_path, BY_ITSELF, tmp_path / "model", how, installed=installed)
            if expected is None:
                # The card quotes this, since no code of a model can word it.
                assert REFUSED in found and REFUSED in render_card(FUSION) and "trust_remote_code=True" in found
            else:
                assert found == expected


@pytest.fixture(scope="module")
def expected(clips):
    """What model and processor give, one clip at a time."""
    model, processor = make_fusion()
    results = []
    for clip in clips:
        with torch.no_grad():
            output = model(**processor([clip]))
        results.append(
            {
                "blend": processor.post_process_blends(output)[0],
                "probabilities": dict(zip(blemore.EMOTIONS, output.probabilities[0].tolist(), strict=True)),
                "encoder_weights": dict(zip(ENCODERS, output.encoder_weights[0].tolist(), strict=True)),
                "selected_encoders": [list(ENCODERS)[place] for place in output.selected_encoders[0] if place >= 0],
            }
        )
    return results


def assert_same(found, expected, clip=None):
    assert found.get("clip") == clip
    for name in ("blend", "selected_encoders"):
        assert found[name] == expected[name]
    for name in ("probabilities", "encoder_weights"):
        assert found[name] == pytest.approx(expected[name], abs=1e-5)


def test_one_clip(recognise, clips, expected):
    assert_same(recognise(clips[0]), expected[0])
    assert_same(recognise({name: np.asarray(value).tolist() for name, value in clips[0].items()}), expected[0])
    assert_same(recognise({"clip": "A1", "features": clips[3], "labels": None}), expected[3], "A1")
    assert_same(recognise({"face": clips[0]["face"][0]}), recognise({"face": clips[0]["face"][:1]}))


def test_batches_go_through_the_model_at_once_and_give_what_clips_alone_give(recognise, clips, expected, monkeypatch):
    sizes = []
    forward = recognise.model.forward
    monkeypatch.setattr(
        recognise.model,
        "forward",
        lambda **batch: sizes.append(len(next(iter(batch["features"].values())))) or forward(**batch),
    )
    for options, batches in (({}, [1] * 5), ({"batch_size": 2}, [2, 2, 1])):
        sizes.clear()
        found = recognise(clips, **options)
        assert isinstance(found, list) and sizes == batches
        for one, two in zip(found, expected, strict=True):
            assert_same(one, two)


def test_streams_are_read_as_results_are_asked_for(recognise, clips, expected):
    read = []

    def stream():
        for number, clip in enumerate(clips):
            read.append(number)
            yield clip

    results = iter(recognise(stream(), batch_size=2))
    assert_same(next(results), expected[0])
    assert len(read) <= 2
    assert len(list(results)) == 4 and read == list(range(5))


def test_data_sets_are_taken_by_row():
    data = make_synthetic_blends(num_clips=6, missing=0.5)
    encoders = {name: {"feature_size": width} for name, width in feature_sets.encoder_widths(data).items()}
    model = RankAwareFusionModel(RankAwareFusionConfig(encoders=encoders)).eval()
    processor = RankAwareFusionProcessor(encoders)
    recognise = BlendedEmotionRecognitionPipeline(model=model, processor=processor, device="cpu")
    expected = recognise(feature_sets.read_features(data))
    for source in (data, data.to_iterable_dataset(), datasets.Dataset.from_list(data.to_list())):
        found = list(recognise(source, batch_size=4))
        assert [one["clip"] for one in found] == data["clip"][:]
        for one, two in zip(found, expected, strict=True):
            assert_same(one, two, one["clip"])


def test_folders_of_one_clip_and_of_many(recognise, clips, expected, tmp_path):
    for number, clip in enumerate(clips):
        for name, values in clip.items():
            if values is not None:
                for path in (
                    tmp_path / "by_clip" / f"c{number}" / f"{name}.npy",
                    tmp_path / "by_encoder" / name / f"c{number}.npy",
                ):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    np.save(path, values)
    (tmp_path / "by_clip" / "c0" / "thermal.npy").write_bytes(b"of an encoder that the model does not know")
    assert_same(recognise(str(tmp_path / "by_clip" / "c2")), expected[2], "c2")
    for form in ("by_clip", "by_encoder"):
        found = recognise(tmp_path / form, batch_size=3)
        assert [one["clip"] for one in found] == [f"c{number}" for number in range(5)]
        for one, two in zip(found, expected, strict=True):
            assert_same(one, two, one["clip"])
    found = recognise([tmp_path / "by_clip" / "c4", clips[0]], batch_size=2)
    assert_same(found[0], expected[4], "c4")
    assert_same(found[1], expected[0])


def test_decoding_and_labels_are_the_callers_choice(recognise, clips):
    output = recognise.model(**recognise.processor([clips[0]]))
    for options in ({"decoding": "expected_score"}, {"decoding": "thresholds", "alpha": 0.01, "beta": 0.0}):
        assert recognise(clips[0], **options)["blend"] == recognise.processor.post_process_blends(output, **options)[0]
    labels = recognise(clips[0], top_labels=36)["labels"]
    values = [label["probability"] for label in labels]
    assert values == sorted(values, reverse=True) and sum(values) == pytest.approx(1, abs=1e-5)
    places = blemore.prediction_label_indices([label["blend"] for label in labels])
    np.testing.assert_allclose(values, output.joint_probabilities[0].detach().numpy()[places], atol=1e-6)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], "found no clips, expected at least one"),
        ([{"face": np.zeros((2, 6))}, {"thermal": np.zeros((2, 6))}], "clip 1: unknown encoder 'thermal'"),
        ({"clip": "A7", "features": {"face": np.zeros((2, 5))}}, r"A7, encoder 'face': expected shape \(time, 6\)"),
        ({"face": np.full((2, 6), np.nan)}, "clip 0, encoder 'face': expected finite values"),
        ({"face": np.zeros((0, 6))}, "empty sequence"),
        ({}, "clip 0: no encoder is present"),
        (3, "clip 0: expected encoder -> array, or the folder of a clip, found int"),
    ],
)
def test_a_bad_clip_is_named(inputs, message, recognise):
    with pytest.raises(ValueError, match=message):
        recognise(inputs)


@pytest.mark.parametrize("broken", ["weights", "precision"])
def test_a_clip_without_finite_probabilities_is_named(broken, clips):
    model, processor = make_fusion()
    recognise = BlendedEmotionRecognitionPipeline(model=model, processor=processor, device="cpu")
    rows = [{"clip": f"A{number}", "features": dict(clip)} for number, clip in enumerate(clips[:2])]
    if broken == "weights":
        torch.nn.init.constant_(model.gate.query, torch.nan)
    else:
        model.half()
        rows[1]["features"] = {"face": np.full((2, 6), 3e38, np.float32)}
    with pytest.raises(ValueError, match=f"A{int(broken == 'precision')}: the model gives probabilities that are not"):
        recognise(rows, batch_size=2)


def test_bad_folders_are_named(recognise, tmp_path):
    with pytest.raises(FileNotFoundError, match="absent: no such folder, expected one with files such as face.npy"):
        recognise(str(tmp_path / "absent"))
    for name, array, message in (
        ("empty", None, "empty: found no features"),
        ("pickled", np.array([{"a": 1}], dtype=object), "face.npy: expected an array of numbers without pickled"),
        ("text", np.array(["a"]), "face.npy: expected numbers, found"),
    ):
        (tmp_path / name).mkdir()
        if array is not None:
            np.save(tmp_path / name / "face.npy", array, allow_pickle=True)
        with pytest.raises(ValueError, match=message):
            recognise(tmp_path / name)


def test_other_parameters_and_models_are_refused(recognise, clips, tmp_path):
    with pytest.raises(ValueError, match="unknown parameter 'topk', expected some of decoding, alpha"):
        recognise(clips[0], topk=3)
    with pytest.raises(ValueError, match="top_labels must be from 1 to 36, found 0"):
        recognise({"unknown": np.ones((1, 2))}, top_labels=0)
    save_tiny_model("clip_rd", tmp_path)
    with pytest.raises(ValueError, match="model of rank-aware fusion with its processor, found a CLIPRDModel"):
        pipeline(TASK, model=str(tmp_path))
