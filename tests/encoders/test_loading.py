import json
import shutil

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from tiny_encoders import HIDDEN, MODELS, speech_extractor

from hf_blemo.encoders import load_encoder, load_encoders
from hf_blemo.encoders.encoder import EncoderMemoryError
from hf_blemo.encoders.image_encoder import ClipEncoder, ImageEncoder
from hf_blemo.encoders.spectrogram_encoder import SpectrogramEncoder
from hf_blemo.encoders.speech_encoder import SpeechEncoder
from hf_blemo.encoders.video_encoder import VideoEncoder

FAMILIES = {
    ClipEncoder: {"clip": 12, "student": 12, "siglip": 16},
    ImageEncoder: dict.fromkeys(("vit", "resnet", "dinov2", "vit_mae"), 16),
    VideoEncoder: dict.fromkeys(("videomae", "timesformer", "vivit"), 16),
    SpeechEncoder: dict.fromkeys(
        ("hubert", "hubert_base", "wavlm", "wav2vec2", "wav2vec2_conformer", "data2vec_audio"), 16
    ),
    SpectrogramEncoder: {"whisper": 16, "ast": 16, "clap": 12, "wav2vec2_bert": 16},
}
KINDS = [(name, family, size) for family, sizes in FAMILIES.items() for name, size in sizes.items()]


def test_every_tiny_model_has_a_family():
    assert {name for name, _, _ in KINDS} == set(MODELS)


@pytest.mark.parametrize(("name", "family", "size"), KINDS)
def test_families_and_widths(name, family, size, checkpoint):
    encoder = load_encoder(checkpoint(name), device="cpu")
    assert type(encoder) is family and encoder.feature_size == size
    assert encoder.source.options() == {"model_id": checkpoint(name)}
    assert not encoder.model.training and encoder.device == torch.device("cpu")
    assert encoder.model.dtype == torch.float32


def test_loading_says_nothing(checkpoint, capfd):
    load_encoder(checkpoint("vit"), device="cpu")
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def changed(checkpoint, tmp_path):
    """Gives a copy of a checkpoint that tests may damage."""

    def copy(name):
        shutil.copytree(checkpoint(name), tmp_path / name)
        return tmp_path / name

    return copy


def change_json(path, **entries):
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def one_line(caught):
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_checkpoint_that_lacks_weights_is_refused(changed):
    folder = changed("hubert")
    weights = load_file(folder / "model.safetensors")
    lacking = [name for name in weights if "layers.1.attention" in name]
    save_file(
        {name: values for name, values in weights.items() if name not in lacking},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(ValueError) as caught:
        load_encoder(str(folder), device="cpu")
    assert one_line(caught) == (
        f"{folder}: the checkpoint lacks {len(lacking)} weights, the first is {sorted(lacking)[0]}; expected all"
    )


def test_weights_that_nothing_needs_may_lack(changed):
    folder = changed("hubert")
    weights = load_file(folder / "model.safetensors")
    assert weights.pop("masked_spec_embed") is not None
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert load_encoder(str(folder), device="cpu").feature_size == 16

    folder = changed("clip")
    weights = load_file(folder / "model.safetensors")
    kept = {name: values for name, values in weights.items() if not name.startswith("text_model.")}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    assert load_encoder(str(folder), device="cpu").feature_size == 12


def test_weights_of_other_shapes_are_refused(changed):
    folder = changed("vit")
    change_json(folder / "config.json", hidden_size=8)
    with pytest.raises(ValueError, match="vit: AutoModel cannot be loaded: "):
        load_encoder(str(folder), device="cpu")


def test_damaged_weights_are_refused(changed):
    folder = changed("vit")
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:100])
    with pytest.raises(FileNotFoundError) as caught:
        load_encoder(str(folder), device="cpu")
    assert one_line(caught).startswith(f"{folder}: AutoModel found nothing to load: ")


@pytest.mark.parametrize(
    ("file", "part"),
    [
        ("config.json", "AutoConfig"),
        ("model.safetensors", "AutoModel"),
        ("preprocessor_config.json", "AutoImageProcessor"),
    ],
)
def test_a_folder_that_lacks_a_file_is_refused(file, part, changed):
    folder = changed("vit")
    (folder / file).unlink()
    with pytest.raises(FileNotFoundError) as caught:
        load_encoder(str(folder), device="cpu")
    assert one_line(caught).startswith(f"{folder}: {part} found nothing to load: ")


def test_pickled_weights_are_not_read(changed):
    folder = changed("vit")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="vit: AutoModel found nothing to load: .*model.safetensors"):
        load_encoder(str(folder), device="cpu")


def test_a_model_of_texts_is_refused(tmp_path):
    hf.BertModel(hf.BertConfig(**HIDDEN, vocab_size=20)).save_pretrained(tmp_path)
    with pytest.raises(ValueError) as caught:
        load_encoder(str(tmp_path), device="cpu")
    assert one_line(caught) == f"{tmp_path}: bert is not a model of images, videos or sound"


def test_a_model_that_needs_more_than_one_piece_is_refused(tmp_path):
    config = hf.SpeechT5Config(
        hidden_size=16, encoder_layers=1, encoder_ffn_dim=16, encoder_attention_heads=2, decoder_layers=1,
        decoder_ffn_dim=16, decoder_attention_heads=2, conv_dim=[8] * 7, num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2, vocab_size=20,
    )  # fmt: skip
    hf.SpeechT5ForSpeechToText(config).save_pretrained(tmp_path)
    speech_extractor(False).save_pretrained(tmp_path)
    with pytest.raises(ValueError) as caught:
        load_encoder(str(tmp_path), device="cpu")
    assert str(tmp_path) in one_line(caught)


@pytest.mark.parametrize(
    ("name", "extraction", "message"),
    [
        ("vit", {"layer": 2}, "vit has no option 'layer' of extraction, it has: frames_per_second"),
        ("hubert", {"frames_per_second": 5}, "hubert has no option 'frames_per_second' of extraction, it has: layer"),
        ("ast", {"layer": 1}, "has no option 'layer' of extraction, it has: none"),
        ("vit", {"frames_per_second": -5}, "frames_per_second must be a positive number or null, found -5"),
        ("videomae", {"frames_per_second": "all"}, "frames_per_second must be a positive number or null, found 'all'"),
        ("hubert", {"layer": 3}, "layer must be from 0 to 2 or null, found 3"),
        ("hubert", "layer", "extraction must be options by name, found 'layer'"),
    ],
)
def test_options_that_make_no_sense_are_refused(name, extraction, message, checkpoint):
    with pytest.raises(ValueError) as caught:
        load_encoder(checkpoint(name), extraction=extraction, device="cpu")
    assert one_line(caught).startswith(f"{checkpoint(name)}: ") and message in one_line(caught)


def test_options_stay_with_the_encoder(checkpoint):
    encoder = load_encoder(checkpoint("vit"), extraction={"frames_per_second": 5}, dtype="bfloat16", device="cpu")
    assert encoder.source.options() == {"model_id": checkpoint("vit"), "extraction": {"frames_per_second": 5}}
    assert encoder.model.dtype == torch.bfloat16


def test_places_that_are_none(checkpoint):
    with pytest.raises(ValueError, match="/vit: a folder has no revisions, found revision 'main'"):
        load_encoder(checkpoint("vit"), revision="main", device="cpu")
    for name in ("no_such_folder", "./not/there", "/not/there", "a/b/c"):
        with pytest.raises(FileNotFoundError, match=f"{name}: not a file, folder or Hub id"):
            load_encoder(name, device="cpu")
    with pytest.raises(ValueError, match="dtype 'float8' is not one of float32, bfloat16, float16"):
        load_encoder(checkpoint("vit"), dtype="float8", device="cpu")
    with pytest.raises(FileNotFoundError, match="you/unknown: AutoConfig found nothing to load: "):
        load_encoder("you/unknown", device="cpu")


@pytest.mark.parametrize("revision", [None, "main", "abc1234"])
def test_code_of_a_repository_runs_only_at_a_commit(revision):
    with pytest.raises(ValueError, match="you/model.*: remote code is only run at a commit, expected 40 hexadecimal"):
        load_encoder("you/model", revision=revision, trust_remote_code=True, device="cpu")


def test_a_device_without_memory_for_the_model_is_named(checkpoint, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("no memory is left")

    monkeypatch.setattr(hf.ViTModel, "to", full)
    with pytest.raises(EncoderMemoryError, match="/vit: cpu is out of memory for the model"):
        load_encoder(checkpoint("vit"), device="cpu")


def test_several_encoders(checkpoint):
    entries = {
        "face": {"model_id": checkpoint("vit"), "feature_size": 16, "pooling": "attention", "batch_size": 5},
        "voice": {"model_id": checkpoint("hubert"), "modality": "audio", "extraction": {"layer": 1}},
    }
    found = load_encoders(entries, device="cpu", dtype="bfloat16")
    assert list(found) == ["face", "voice"] and found["face"].batch_size == 5 and found["voice"].layer == 1
    assert all(encoder.model.dtype == torch.bfloat16 for encoder in found.values())


def test_several_encoders_name_the_one_that_is_wrong(checkpoint):
    vit = checkpoint("vit")
    for entry, kind, message in (
        ({}, ValueError, "found no model_id, expected the model that extracts its features"),
        ({"model_id": "nowhere"}, FileNotFoundError, "nowhere: not a file, folder or Hub id"),
        ({"model_id": vit, "extraction": {"layer": 1}}, ValueError, "vit has no option 'layer'"),
        ({"model_id": vit, "feature_size": 768}, ValueError, "gives features of width 16, expected 768"),
    ):
        with pytest.raises(kind) as caught:
            load_encoders({"voice": {"model_id": checkpoint("hubert")}, "face": entry}, device="cpu")
        assert one_line(caught).startswith("encoder 'face': ") and message in one_line(caught)
