import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from tiny_encoders import HIDDEN, speech_extractor

from hf_blemo.encoders import load_encoder, load_encoders
from hf_blemo.encoders.encoder import EncoderMemoryError


@pytest.fixture
def changed(checkpoint, tmp_path):
    """Gives a copy of a checkpoint that tests may damage."""
    return lambda name: Path(shutil.copytree(checkpoint(name), tmp_path / name))


def refused(kind, folder, **options):
    """The one line of the error with which a model is refused."""
    with pytest.raises(kind) as caught:
        load_encoder(str(folder), device="cpu", **options)
    text = str(caught.value)
    assert type(caught.value) is kind and "\n" not in text and text.startswith(f"{folder}: ")
    return text.removeprefix(f"{folder}: ")


@pytest.mark.parametrize(
    ("name", "part", "needed"),
    [("hubert", "layers.1.attention", True), ("hubert", "masked_spec_embed", False), ("clip", "text_model.", False)],
)
def test_a_checkpoint_that_lacks_weights_is_refused_where_features_need_them(name, part, needed, changed):
    folder = changed(name)
    weights = load_file(folder / "model.safetensors")
    lacking = sorted(key for key in weights if part in key)
    for key in lacking:
        del weights[key]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    if needed:
        message = f"the checkpoint lacks {len(lacking)} weights, the first is {lacking[0]}; expected all"
        assert refused(ValueError, folder) == message
    else:
        assert lacking and load_encoder(str(folder), device="cpu").feature_size in (12, 16)


def test_damaged_checkpoints_are_refused(changed, tmp_path):
    config = json.loads((changed("vit") / "config.json").read_text())
    smaller = json.dumps({**config, "hidden_size": 8}).encode()
    for file, content, kind, message in (
        ("config.json", None, FileNotFoundError, "AutoConfig found nothing to load: "),
        ("model.safetensors", None, FileNotFoundError, "AutoModel found nothing to load: "),
        ("preprocessor_config.json", None, FileNotFoundError, "AutoImageProcessor found nothing to load: "),
        ("model.safetensors", b"cut off", FileNotFoundError, "AutoModel found nothing to load: "),
        ("config.json", smaller, ValueError, "AutoModel cannot be loaded: "),
    ):
        shutil.rmtree(tmp_path / "vit")
        path = changed("vit") / file
        path.unlink() if content is None else path.write_bytes(content)
        assert refused(kind, path.parent).startswith(message)


def test_models_of_texts_or_of_more_than_one_piece_are_refused(tmp_path):
    hf.BertModel(hf.BertConfig(**HIDDEN, vocab_size=20)).save_pretrained(tmp_path)
    assert refused(ValueError, tmp_path) == "bert is not a model of images, videos or sound"
    config = hf.SpeechT5Config(
        hidden_size=16, encoder_layers=1, encoder_ffn_dim=16, encoder_attention_heads=2, decoder_layers=1,
        decoder_ffn_dim=16, decoder_attention_heads=2, conv_dim=[8] * 7, num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2, vocab_size=20,
    )  # fmt: skip
    hf.SpeechT5ForSpeechToText(config).save_pretrained(tmp_path)
    speech_extractor(False).save_pretrained(tmp_path)
    refused(ValueError, tmp_path)


def test_invalid_options_are_refused(checkpoint):
    for name, options, message in (
        ("vit", {"extraction": {"late": 2}}, "vit has no option 'late' of extraction, it has: frames_per_second, "),
        (
            "hubert",
            {"extraction": {"image_backend": "pil"}},
            "no option 'image_backend' of extraction, it has: layer, l",
        ),
        ("hubert", {"extraction": "layer"}, "extraction must be options by name, found 'layer'"),
        ("vit", {"extraction": {"image_backend": "fast"}}, "image_backend must be one of pil, torchvision, found 'f"),
        ("vit", {"dtype": "float8"}, "dtype 'float8' is not one of float32, bfloat16, float16"),
        ("vit", {"revision": "main"}, "a folder has no revisions, found revision 'main'"),
        *(("vit", {"batch_size": size}, "batch_size must be a positive whole number") for size in (0, 2.0, True)),
    ):
        with pytest.raises(ValueError) as caught:
            load_encoder(checkpoint(name), device="cpu", **options)
        text = str(caught.value)
        assert text.startswith(checkpoint(name)) and message in text and "\n" not in text


def test_invalid_model_ids_are_refused():
    for name in ("no_such_folder", "./not/there", "/not/there", "a/b/c"):
        assert refused(FileNotFoundError, name) == "not a file, folder or Hub id (owner/name)"
    assert refused(FileNotFoundError, "you/unknown").startswith("no such folder, and no Hub repository that can be ")
    for revision in (None, "main", "abc1234"):
        with pytest.raises(ValueError, match="you/model.*: remote code is only run at a commit, expected 40 hexadeci"):
            load_encoder("you/model", revision=revision, trust_remote_code=True, device="cpu")


def test_a_device_without_memory_for_the_model_is_named(checkpoint, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("no memory is left")

    monkeypatch.setattr(hf.ViTModel, "to", full)
    assert refused(EncoderMemoryError, checkpoint("vit")) == "cpu is out of memory for the model"


def test_several_encoders(checkpoint, capfd):
    entries = {
        "face": {"model_id": checkpoint("vit"), "feature_size": 16, "pooling": "attention", "batch_size": 5},
        "voice": {"model_id": checkpoint("hubert"), "modality": "audio", "extraction": {"layer": 1}},
    }
    options = {"device": "cpu", "dtype": "bfloat16"}
    capfd.readouterr()
    found = load_encoders(entries, **options, defaults={"frames_per_second": 2})
    assert capfd.readouterr() == ("", "")
    source = {"model_id": checkpoint("vit"), "extraction": {"frames_per_second": 2}}
    assert found["face"].source.options() == source
    assert list(found) == ["face", "voice"] and found["face"].batch_size == 5
    # What an entry says wins over the defaults.
    assert found["voice"].rows_of.numbers == (1,) and found["face"].frames_per_second == 2
    assert all(encoder.model.dtype == torch.bfloat16 for encoder in found.values())
    with pytest.raises(ValueError, match="image_backend: found for voice, none of which knows it"):
        load_encoders({"voice": entries["voice"]}, **options, defaults={"image_backend": "pil"})


def test_errors_name_the_encoder(checkpoint):
    vit = checkpoint("vit")
    for entry, kind, message in (
        ({}, ValueError, "found no model_id, expected the model that extracts its features"),
        ({"model_id": "nowhere"}, FileNotFoundError, "nowhere: not a file, folder or Hub id"),
        ({"model_id": vit, "extraction": {"late": 1}}, ValueError, "vit has no option 'late'"),
        ({"model_id": vit, "feature_size": 768}, ValueError, "gives features of width 16, expected 768"),
    ):
        with pytest.raises(kind, match=f"^encoder 'face': .*{message}"):
            load_encoders({"voice": {"model_id": checkpoint("hubert")}, "face": entry}, device="cpu")
