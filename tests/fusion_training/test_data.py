"""From the settings of a run to its data set and to the config of its models."""

import numpy as np
import pytest

from hf_blemo import feature_sets
from hf_blemo.fusion_training.data import load_data, model_config, with_unlabelled
from hf_blemo.fusion_training.settings import FusionSettings
from hf_blemo.rank_aware_fusion.label_space_rank_aware_fusion import LabelSpace


def test_synthetic_data_takes_its_settings():
    data, other = (load_data("synthetic", {"num_clips": 20, "seed": seed}) for seed in (3, 4))
    assert len(data) == 20 and other["clip"] != data["clip"]
    with pytest.raises(ValueError, match="synthetic: unknown setting 'num_clip'"):
        load_data("synthetic", {"num_clip": 20})


def test_a_data_set_on_the_hub_keeps_its_names_in_their_order_and_their_kind(hub, make_data):
    from hf_blemo.hub import push_features

    names = ["neu", "sad", "hap", "fea", "disg", "ang"]
    data = make_data(12)
    push_features(feature_sets.with_label_space(data, LabelSpace(names), "soft"), "you/votes")
    found = load_data("you/votes", {})
    assert feature_sets.label_space(found) == (LabelSpace(names), "soft") and found["labels"] == data["labels"]
    config = model_config(found, FusionSettings(data="you/votes"))
    assert list(config.id2label.values()) == names and config.blend_percents == [] and config.label_kind == "soft"


@pytest.mark.parametrize("source", ["gone", "./gone/data", "/gone/data", "a/b/c"])
def test_a_source_that_is_nothing_is_named(source):
    with pytest.raises(FileNotFoundError, match=f"data '{source}': not a file, folder or Hub id"):
        load_data(source, {})


def test_modalities_are_known_by_name(make_data):
    known = {
        "audio": ["WavLM_large", "HuBERT_large", "voice", "eGeMAPS", "speech_rate"],
        "audiovisual": ["HiCMAE", "hicmae_kl_100"],
    }
    known["video"] = ["ImageBind", "VideoMAEv2", "OpenFace_3", "clip", "face", "context"]
    known["text"] = ["roberta-base", "transcript", "subtitle_text"]
    widths = {name: 2 for names in known.values() for name in names}
    config = model_config(make_data(4, widths=widths), FusionSettings("synthetic"))
    for modality, names in known.items():
        assert {config.encoders[name]["modality"] for name in names} == {modality}


def test_the_config_follows_data_and_settings(make_data):
    # Options of an encoder win over the defaults of the run.
    own = {"modality": "audiovisual", "pooling": "attention"}
    run = {"pooling": "statistics", "transform": "log_softmax"}
    model = {"top_n": 1, "hidden_size": 12, "gate": "uniform"}
    settings = FusionSettings(
        "synthetic", encoders=["noise", "voice"], encoder_options={"voice": own}, model=model, **run
    )
    config = model_config(make_data(4), settings)
    assert list(config.encoders) == ["noise", "voice"]
    expected = {"noise": {"feature_size": 2, "modality": "video", **run}, "voice": {"feature_size": 4, **run, **own}}
    assert config.encoders == expected
    assert (config.top_n, config.hidden_size, config.gate) == (1, 12, "uniform")
    unknown = "unknown encoder 'clip': the data has voice, face, noise"
    for changes, message in (
        ({"encoders": ["voice", "clip"]}, unknown),
        ({"encoder_options": {"clip": {}}}, unknown),
        *(
            ({"model": {key: 1}}, f"model: unknown setting '{key}'")
            for key in ("hidden_sise", "encoders", "encoder_order", "torch_dtype")
        ),
    ):
        with pytest.raises(ValueError, match=message):
            model_config(make_data(4), FusionSettings("synthetic", **changes))


COLOURS = LabelSpace(["red", "green", "blue"])


def test_names_number_and_kind_of_labels_come_from_the_data(make_data):
    blends = LabelSpace(["a", "b", "c", "d"], [[60, 40], [50, 30, 20]], ["d"])
    for space, kind in ((COLOURS, "valid"), (COLOURS, "soft"), (blends, "valid"), (blends, "soft")):
        config = model_config(make_data(6, space=space, kind=kind), FusionSettings("synthetic"))
        assert config.label_space == space and config.label_kind == kind
    named = FusionSettings(
        "synthetic", model={"id2label": {"0": "red", "1": "green", "2": "blue"}, "presence_share": 0.2}
    )
    assert model_config(make_data(6, space=COLOURS), named).presence_share == 0.2


@pytest.mark.parametrize(
    ("model", "kind", "message"),
    [
        (
            {"id2label": {0: "red", 1: "blue", 2: "green"}},
            "valid",
            "order of the names differs: .*blue, green.*green, blue",
        ),
        (
            {"id2label": {0: "red", 1: "blue"}},
            "valid",
            r"names differ: the setting model.id2label has 2 names \(red, blue",
        ),
        ({"blend_percents": [[50, 50]]}, "valid", "blends differ: the setting model .*50/50.*the data .*single"),
        ({"num_labels": 4}, "valid", "num_labels is 4, but id2label has the 3 names red, green, blue"),
    ],
)
def test_settings_that_name_other_labels_than_the_data_are_one_error(make_data, model, kind, message):
    with pytest.raises(ValueError, match=message):
        model_config(make_data(6, space=COLOURS, kind=kind), FusionSettings("synthetic", model=model))


def test_unlabelled_rows_may_have_any_labels_or_none(make_data):
    source = make_data(6, space=COLOURS, kind="soft")
    for target in (make_data(4), make_data(4).remove_columns(["labels", "fold"])):
        both = with_unlabelled(source, target)
        assert feature_sets.label_space(both) == (COLOURS, "soft")
        assert np.asarray(both["labels"])[6:].tolist() == [[-100.0] * 3] * 4


def test_unlabelled_rows_follow_without_labels_and_folds(make_data):
    source, target = make_data(8), make_data(5, seed=1)
    both = with_unlabelled(source, target)
    assert both.column_names == ["clip", "features", "labels", "fold"]
    assert both.features == source.features
    assert both["clip"] == [*source["clip"], *target["clip"]]
    assert both["fold"] == [*source["fold"], *[-1] * 5]
    np.testing.assert_array_equal(np.asarray(both["labels"])[8:], np.full((5, 6), -100.0))
    np.testing.assert_array_equal(np.asarray(both["labels"])[:8], np.asarray(source["labels"]))
    expected = feature_sets.read_features(target)
    for row, sample in enumerate(feature_sets.read_features(both, range(8, 13))):
        for name in ("voice", "face", "noise"):
            np.testing.assert_array_equal(sample[name], expected[row][name])


def test_a_target_may_lack_an_encoder_and_have_its_own_order_and_columns(make_data):
    target = make_data(5, widths={"noise": 2, "voice": 4}).add_column("domain", [1] * 5)
    both = with_unlabelled(make_data(8), target)
    assert set(feature_sets.read_features(both, [9])[0]) == {"noise", "voice"}
    np.testing.assert_array_equal(
        feature_sets.read_features(both, [9])[0]["voice"], feature_sets.read_features(target, [1])[0]["voice"]
    )
