"""Predictions: equal to calling processor and model by hand, averaged over models, and clear about unusable input."""

import json
import logging
import re
import shutil

import huggingface_hub
import numpy as np
import pytest
import torch
from labelled_models import LABELS, make_labelled
from safetensors.torch import load_file, save_file
from tiny_models import shaken_fusion

from hf_blemo import RankAwareFusionProcessor, blemore, feature_sets
from hf_blemo.feature_sets.layout import Clip, dataset_features, dataset_of
from hf_blemo.prediction.fusion import load_fusion, predict_blends
from hf_blemo.rank_aware_fusion.label_space_rank_aware_fusion import LabelSpace
from hf_blemo.rank_aware_fusion.pipeline_rank_aware_fusion import result_of_row

ENCODERS = {
    "wavlm": {"feature_size": 5, "modality": "audio", "pooling": "attention"},
    "imagebind": {"feature_size": 4, "pooling": "statistics"},
    "videomae": {"feature_size": 3},
}
CONFIG, PROCESSOR, WEIGHTS = "config.json", "processor_config.json", "model.safetensors"
WIDTHS = {"wavlm": 5, "imagebind": 4, "videomae": 3}
NAMES = ["A1_ang_int1_ver1", "test_0001", "my clip.mov", "A1_mix_ang_hap_30_70_ver1", "A2_neu_sit1_ver1"]


def make_member(seed=0, encoders=ENCODERS, **settings):
    model, _ = shaken_fusion(0.5, seed, encoders, dropout=0.5, **settings)
    return model, RankAwareFusionProcessor(model.config.encoders)


def make_dataset(names=NAMES, widths=WIDTHS, missing=((1, "wavlm"), (4, "videomae"))):
    generator = np.random.default_rng(0)
    features = dataset_features({name: (width, "float32") for name, width in widths.items()})
    clips = []
    for row, name in enumerate(names):
        arrays = {
            encoder: generator.standard_normal((1 + row, width)).astype(np.float32)
            for encoder, width in widths.items()
            if (row, encoder) not in missing
        }
        clips.append(Clip(name, arrays, np.full(6, -100.0), -1))
    return dataset_of(clips, features)


def rows(results, name="probabilities"):
    """(N, D) of N results."""
    return np.array([list(result[name].values()) for result in results])


def blends(results):
    return [result["blend"] for result in results]


def refused(message, *arguments, **options):
    with pytest.raises(ValueError, match=message):
        next(predict_blends(*arguments, **options))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "fusion"
    for part in make_member():
        part.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "fusion")


def test_one_model_predicts_as_processor_and_model_do_by_hand(monkeypatch):
    model, processor = make_member()
    dataset = make_dataset()
    with torch.no_grad():
        expected = model(**processor(feature_sets.read_features(dataset)))
    read, sizes = feature_sets.read_features, []
    monkeypatch.setattr(
        feature_sets, "read_features", lambda data, indices: sizes.append(len(indices)) or read(data, indices)
    )
    # Labels and folds are not needed, and features are read batch by batch.
    features = dataset.select_columns(["clip", "features"])
    found = list(predict_blends([(model, processor)], features, batch_size=2, top_labels=36))
    assert sizes == [2, 2, 1]
    assert [result["clip"] for result in found] == NAMES
    assert list(found[0]["encoder_weights"]) == list(ENCODERS)
    for name in ("probabilities", "encoder_weights"):
        np.testing.assert_allclose(rows(found, name), expected[name].numpy(), atol=1e-6)
    joint = [[label["probability"] for label in result["labels"]] for result in found]
    np.testing.assert_allclose(joint, expected["joint_probabilities"].sort(descending=True).values, atol=1e-6)
    for result, selected in zip(found, expected["selected_encoders"].tolist(), strict=True):
        assert result["selected_encoders"] == [list(ENCODERS)[place] for place in selected if place >= 0]
    assert blends(found) == processor.post_process_blends(expected)
    assert np.ptp(rows(found), axis=0).max() > 0.05
    assert found[1]["encoder_weights"]["wavlm"] == 0 and found[4]["encoder_weights"]["videomae"] == 0
    assert "wavlm" not in found[1]["selected_encoders"] and "videomae" not in found[4]["selected_encoders"]


def test_several_models_predict_by_their_mean():
    members = [make_member(seed) for seed in (1, 2, 3)]
    members[0][1].decoding, members[0][1].alpha, members[0][1].beta = "thresholds", 0.25, 0.05
    dataset = make_dataset()
    alone = [list(predict_blends([member], dataset)) for member in members]
    found = list(predict_blends(members, dataset, batch_size=3))
    for name in ("probabilities", "presence", "salience", "encoder_weights"):
        np.testing.assert_allclose(rows(found, name), np.mean([rows(one, name) for one in alone], axis=0), atol=1e-6)
    assert [clip["selected_encoders"] for clip in found] == [clip["selected_encoders"] for clip in alone[0]]
    assert blends(found) == blemore.decode_thresholds(rows(found), 0.25, 0.05)


def test_decoding_of_the_call_wins_and_a_model_in_training_stays_so_without_dropout():
    member, dataset = make_member(encoder_dropout=0.5), make_dataset()
    expected = list(predict_blends([member], dataset))
    found = list(predict_blends([member], dataset, decoding="thresholds", alpha=0.3, beta=0.01))
    assert blends(found) == blemore.decode_thresholds(rows(found), 0.3, 0.01) != blends(expected)
    assert member[1].decoding == "expected_score"
    member[0].train()
    assert list(predict_blends([member], dataset)) == expected and member[0].training
    refused("batch_size must be at least 1, found 0", [member], dataset, batch_size=0)


def test_encoders_of_one_side_alone_are_named_in_a_warning(caplog):
    some = make_member(encoders={name: ENCODERS[name] for name in ("videomae", "wavlm")})
    for member, data, weights, message in (
        (some, make_dataset(), ["videomae", "wavlm"], "ignored these .* does not know: imagebind"),
        (make_member(), make_dataset(widths={"videomae": 3}, missing=()), list(ENCODERS), "lacks: wavlm, imagebind"),
    ):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "hf_blemo"):
            found = list(predict_blends([member], data))
        assert [list(clip["encoder_weights"]) for clip in found] == [weights] * 5
        [record] = caplog.records
        assert re.search(f"{message}$", record.getMessage())
    assert rows(found, "encoder_weights").tolist() == [[0, 0, 1]] * 5


def test_unusable_data_is_refused_by_name():
    member = make_member()
    for dataset, message in (
        (make_dataset(widths={"hubert": 3}), "found the encoders hubert in the data, expected some of wavlm"),
        (make_dataset(widths={"wavlm": 4, "videomae": 3}), "A1_ang_int1_ver1, encoder 'wavlm': expected shape"),
        (make_dataset(names=["a", "b", "a"]), "clip 'a' comes more than once"),
        (make_dataset().select([]), "without clips"),
        (make_dataset().remove_columns("clip"), "found the columns features, labels, fold, expected 'clip'"),
    ):
        refused(message, [member], dataset)


def test_a_clip_without_features_has_an_error_and_the_others_are_predicted():
    member = make_member()
    for batch_size in (1, 64):
        found = list(predict_blends([member], make_dataset(widths={"wavlm": 5, "hubert": 3}), batch_size=batch_size))
        assert [clip["clip"] for clip in found] == NAMES and ["error" in clip for clip in found] == [0, 1, 0, 0, 0]
        assert found[1]["error"].startswith("test_0001: has no features of any encoder, expected some of wavlm")


def test_models_that_cannot_be_averaged_are_refused():
    dataset = make_dataset()
    for encoders, message in (
        (dict(reversed(ENCODERS.items())), "has its encoders in the order videomae, imagebind, wavlm"),
        ({"wavlm": ENCODERS["wavlm"]}, "cannot be averaged with the first: found the encoders wavlm, expected ima"),
        ({**ENCODERS, "videomae": {"feature_size": 6}}, ".* encoder 'videomae': found 6, expected 3"),
    ):
        refused(f"model 2 of 2 {message}", [make_member(), make_member(encoders=encoders)], dataset)
    refused("found no model", [], dataset)
    for settings, message in (
        ({"id2label": dict(enumerate("abcdef"))}, "the names differ: model 2 of 2 has 6 names .a, b, c, d"),
        ({"blend_percents": [[60, 40]]}, "the blends differ: model 2 of 2 .* blends of 60/40"),
    ):
        message += ".*, the first has 6 names .ang, disg"
        refused(message, [make_member(), make_member(**settings)], dataset)


def test_a_loaded_model_predicts_as_the_saved_one(saved, capsys):
    model, processor = load_fusion(saved)
    assert not model.training
    dataset = make_dataset()
    assert list(predict_blends([(model, processor)], dataset)) == list(predict_blends([make_member()], dataset))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", LABELS)
def test_models_of_other_labels_are_loaded_averaged_and_say_their_own_names(name, tmp_path):
    for part in make_labelled(name):
        part.save_pretrained(tmp_path)
    model, processor = load_fusion(tmp_path)
    names, space = list(LABELS[name]["id2label"].values()), processor.label_space
    dataset = make_dataset(widths={"face": 6, "voice": 4}, missing=())
    members = [(model, processor), make_labelled(name, seed=1)]
    alone = [list(predict_blends([member], dataset)) for member in members]
    assert alone[0] == list(predict_blends([make_labelled(name)], dataset))
    found = list(predict_blends(members, dataset, top_labels=len(space)))
    for kind in ("probabilities", "presence", "salience"):
        assert all(list(result[kind]) == names for result in found)
        np.testing.assert_allclose(rows(found, kind), np.mean([rows(one, kind) for one in alone], 0), atol=1e-6)
    valid = [space.blend(index) for index in range(len(space))]
    for result in found:
        shares = {part["emotion"]: part["salience"] for part in result["blend"]}
        best = [name for name in shares if shares[name] == max(shares.values())]
        assert result["top"] == max(best, key=result["probabilities"].get)
        assert sorted(map(str, valid)) == sorted(str(label["blend"]) for label in result["labels"])
        if name == "soft":
            assert list(shares) == names and sum(shares.values()) == pytest.approx(100, abs=1e-3)
        else:
            assert result["blend"] in valid
    with pytest.raises(ValueError, match=f"top_labels must be from 1 to {len(space)}, found"):
        list(predict_blends(members, dataset, top_labels=len(space) + 1))


def test_the_top_name_of_an_even_blend_is_the_more_probable_one():
    values = {name: torch.tensor([[0.2, 0.3, 0.5]]) for name in ("probabilities", "presence", "salience")}
    values |= {"encoder_weights": torch.ones(1, 1), "selected_encoders": torch.zeros(1, 1, dtype=torch.long)}
    space = LabelSpace("abc", [(50, 50)])
    for blend, top in (
        ([("a", 50.0), ("b", 50.0)], "b"),
        ([("a", 70.0), ("b", 30.0)], "a"),
        ([("a", 40.0), ("b", 20.0), ("c", 40.0)], "c"),
    ):
        parts = [{"emotion": name, "salience": salience} for name, salience in blend]
        assert result_of_row(values, 0, parts, ["e"], space)["top"] == top


def edit(name, **changes):
    def damage(folder):
        (folder / name).write_text(json.dumps({**json.loads((folder / name).read_text()), **changes}))

    return damage


def write(name, content=b""):
    return lambda folder: (folder / name).write_bytes(content)


def remove(name):
    return lambda folder: (folder / name).unlink()


def change_first_weight(other=None):
    def damage(folder):
        weights = load_file(folder / WEIGHTS)
        first = min(weights)
        changed = {key: value for key, value in {**weights, first: other}.items() if value is not None}
        save_file(changed, folder / WEIGHTS, {"format": "pt"})

    return damage


def replace_weights_by_pickle(folder):
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def other_processor(encoders):
    return lambda folder: RankAwareFusionProcessor(encoders).save_pretrained(folder)


OTHER = {"id2label": {0: "a", 1: "b"}, "blend_percents": [], "unblended": []}
TURNED = dict(enumerate(("disg", "ang", "fea", "hap", "sad", "neu")))
WIDER = {**ENCODERS, "wavlm": {"feature_size": 9}}
DAMAGES = {
    "no config": (remove(CONFIG), "found no config.json"),
    "no processor": (remove(PROCESSOR), "expected processor_config.json"),
    "pickle": (replace_weights_by_pickle, "expected model.safetensors"),
    "no JSON": (write(CONFIG, b"{"), "config.json: expected JSON, found"),
    "JSON list": (write(CONFIG, b"[]"), "expected a JSON object, found list"),
    "other family": (edit(CONFIG, model_type="bert"), "found model_type 'bert'"),
    "bad type": (edit(CONFIG, top_n="x"), "config.json holds an invalid setting: .* 'top_n' expected int"),
    "bad value": (edit(CONFIG, top_n=0), "top_n must be at least 1"),
    "bad encoder": (edit(CONFIG, encoders={"wavlm": {}}), "config.json holds an invalid setting"),
    "bad decoding": (edit(PROCESSOR, decoding="x"), "decoding 'x'"),
    "other processor": (write(PROCESSOR, b"{}"), "found no 'encoders'"),
    "fewer encoders": (other_processor({"wavlm": ENCODERS["wavlm"]}), "different models: found the encoders wavlm, e"),
    "other width": (other_processor(WIDER), "different models: encoder 'wavlm': found .*9.*expected .*5"),
    "other names": (edit(PROCESSOR, **OTHER), "models: the names differ: processor_config.json has 2 names .a, b., s"),
    "other order": (edit(PROCESSOR, id2label=TURNED), "the order of the names differs: processor_config.json has"),
    "other blends": (edit(PROCESSOR, blend_percents=[[60, 40]]), "the blends differ: processor_config.json has"),
    "no names": (edit(PROCESSOR, id2label={}), "processor_config.json holds an invalid setting: .*id2label must map"),
    "no such name": (edit(CONFIG, unblended=["x"]), "config.json holds an invalid setting: .*unblended has 'x'"),
    "other kind": (edit(PROCESSOR, label_kind="soft"), "has the label_kind 'soft', config.json has 'valid'"),
    "weights of other blends": (
        edit(CONFIG, blend_percents=[[30, 70], [50, 50], [70, 30]]),
        "the weights belong to other labels: they have other blends, config.json has 6 names",
    ),
    "weights of other names": (
        edit(CONFIG, **OTHER, label2id={"a": 0, "b": 1}),
        "the weights belong to other labels: they have 36 valid labels of 6 names, config.json has 2 names .a, b., s",
    ),
    "weight missing": (change_first_weight(), "do not fit config.json: .* is missing"),
    "weight's shape": (change_first_weight(torch.zeros(2, 3, 4)), "do not fit config.json: .* has another shape"),
    "garbage": (write(WEIGHTS, b"garbage"), "the weights are damaged"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES.keys())
def test_unusable_folders_are_refused_by_name(folder, damage, message, capsys):
    damage(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=f"(?s){message}") as error:
        load_fusion(folder)
    assert str(error.value).startswith(f"{folder}: ")
    assert capsys.readouterr().err == ""


def test_paths_that_are_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone: not a file, folder or Hub id"):
        load_fusion(tmp_path / "gone")
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="found a file, expected the folder of a model"):
        load_fusion(tmp_path / "file")
    with pytest.raises(ValueError, match="a folder has no revisions, found revision 'main'"):
        load_fusion(tmp_path, revision="main")


def test_a_repository_that_cannot_be_reached_is_one_clear_error(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="owner/name, revision v1: .* the Hub cannot be reached"):
        load_fusion("owner/name", revision="v1")


def test_a_repository_is_read_at_one_commit_and_weights_only_of_a_fusion_model(folder, monkeypatch):
    commit = folder.rename(folder.with_name("0123abc"))
    calls = []

    def snapshot(repo_id, revision, allow_patterns):
        calls.append((repo_id, revision, any("safetensors" in pattern for pattern in allow_patterns)))
        return str(commit)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    model, _ = load_fusion("owner/name", revision="v1")
    assert list(model.config.encoders) == list(ENCODERS)
    assert calls == [("owner/name", "v1", False), ("owner/name", "0123abc", True)]
    edit(CONFIG, model_type="bert")(commit)
    with pytest.raises(ValueError, match="owner/name: found model_type 'bert'"):
        load_fusion("owner/name")
    assert calls[2:] == [("owner/name", None, False)]
