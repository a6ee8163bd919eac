"""Where features come from is kept beside them, and becomes part of what is trained on them."""

import json
import logging

import numpy as np
import pytest

from hf_blemo.blemore.dataset_writing import write_dataset
from hf_blemo.blemore.features import Clip, dataset_features
from hf_blemo.fusion_training.data import load_data, model_config
from hf_blemo.fusion_training.settings import FusionSettings
from hf_blemo.hub.encoder_models import read_provenance

ENTRIES = {
    "listener": {
        "feature_size": 4, "modality": "audio", "model_id": "you/listener", "revision": "a" * 40,
        "extraction": {"layer": 3},
    },
    "given": {"feature_size": 3},
}  # fmt: skip


@pytest.fixture
def made(tmp_path):
    """A data set of three clips with two encoders."""
    types = {"listener": (4, "float32"), "given": (3, "float32")}
    rows = {name: np.ones((2, width), np.float32) for name, (width, _) in types.items()}
    folder = tmp_path / "made"
    write_dataset(folder, dataset_features(types), 3, lambda row: Clip(f"c{row}", rows, np.full(6, -100.0), -1), {})
    return folder


def write_provenance(folder, entries):
    (folder / "encoders.json").write_text(json.dumps(entries))


def options_of(folder, **settings):
    settings = FusionSettings(data=str(folder), **settings)
    return model_config(load_data(settings.data, {}), settings).encoders


def test_what_was_written_is_read_and_other_keys_are_not(tmp_path):
    write_provenance(tmp_path, {**ENTRIES, "given": {"feature_size": 3, "note": "mine"}})
    assert read_provenance(str(tmp_path)) == ENTRIES
    assert list(read_provenance(str(tmp_path))) == ["listener", "given"]


def test_there_may_be_none(tmp_path):
    table = tmp_path / "table.npz"
    table.write_bytes(b"")
    # Nothing of these is looked for on the Hub, which is out of reach.
    for source in (str(tmp_path), str(table), "synthetic", "gone", "./a/b", "/no/where", "owner/name"):
        assert read_provenance(source) == {}, source


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "encoders.json: expected JSON"),
        ("[]", "encoders.json: expected a JSON object, found list"),
        ('{"a": 3}', "encoders.json: encoder 'a': expected an object, found int"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, content, message):
    (tmp_path / "encoders.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_provenance(str(tmp_path))


def test_a_model_learns_where_its_features_come_from(made):
    assert "model_id" not in options_of(made)["listener"] and options_of(made)["listener"]["modality"] == "video"
    write_provenance(made, ENTRIES)
    options = options_of(made, pooling="attention")
    assert options["listener"] == {**ENTRIES["listener"], "pooling": "attention", "transform": "none"}
    assert options["given"]["modality"] == "video" and "model_id" not in options["given"]
    # What the settings say of an encoder wins.
    changed = options_of(made, encoder_options={"listener": {"modality": "video", "revision": "v2"}})
    assert (changed["listener"]["modality"], changed["listener"]["revision"]) == ("video", "v2")
    assert changed["listener"]["model_id"] == "you/listener"


def test_what_is_said_of_features_of_another_width_is_not_believed(made, caplog):
    write_provenance(
        made, {"listener": {**ENTRIES["listener"], "feature_size": 28}, "other": {"model_id": "you/other"}}
    )
    with caplog.at_level(logging.WARNING):
        options = options_of(made)
    assert "encoders.json says that encoder 'listener' is 28 wide, the data that it is 4" in caplog.text
    assert options["listener"]["feature_size"] == 4 and "model_id" not in options["listener"]
    assert list(options) == ["listener", "given"]


def test_values_that_make_no_sense_are_refused_with_the_encoder_s_name(made):
    (made / "encoders.json").write_text(json.dumps({"listener": {"modality": "smell"}}))
    settings = FusionSettings(data=str(made))
    with pytest.raises(ValueError, match="listener.*smell"):
        model_config(load_data(settings.data, {}), settings)
