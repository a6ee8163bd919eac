"""Rows from chosen layers, in every family of encoders."""

import numpy as np
import pytest
import torch
import transformers as hf
from direct_features import frame_features, segment_features, spectrogram_features, speech_features
from known_clips import assert_same, encoded
from tiny_encoders import HIDDEN, PATCHES, SQUARE
from torch import nn

from hf_blemo.encoders import load_encoder
from hf_blemo.encoders.layers import HiddenLayers

# Plain transformers and its options; of each family and each way to write a network in transformers.
DIRECT = {
    **dict.fromkeys(("clip", "student", "siglip", "vit", "resnet", "dinov2", "vit_mae"), (frame_features, (True,))),
    **{name: (segment_features, (n,)) for name, n in {"videomae": 16, "timesformer": 4, "vivit": 8}.items()},
    **dict.fromkeys(("hubert", "hubert_base", "wavlm", "data2vec_audio", "wav2vec2_conformer"), (speech_features, ())),
    "whisper": (spectrogram_features, (32000, 320)),
    "ast": (spectrogram_features, (20480, None)),
    "wav2vec2_bert": (spectrogram_features, (160000, None)),
}
# Ways in which features are asked for, with the layers they name.
ASKED = [({"layer": 1}, [1]), ({"layers": [1, 0]}, [1, 0]), ({"layers": "0-1"}, [0, 1])]


@pytest.mark.parametrize("name", DIRECT)
def test_rows_are_the_hidden_states_of_plain_transformers(name, checkpoint, clips, direct):
    function, options = DIRECT[name]
    shown = clips[0].frames if function in (frame_features, segment_features) else clips[0].samples
    expected = [direct(function, checkpoint(name), clips[0].path, shown, *options, layer) for layer in (0, 1)]
    size = sum(values.numel() for values in load_encoder(checkpoint(name), device="cpu").model.parameters())
    for extraction, numbers in ASKED:
        [(features, _)] = encoded([clips[0].path], checkpoint(name), batch_size=3, extraction=extraction)
        chosen = [expected[number] for number in numbers]
        assert_same(features, np.concatenate(chosen, -1) if "0-1" not in extraction.values() else np.mean(chosen, 0))
        # Of two blocks, the second is not needed.
        encoder = load_encoder(checkpoint(name), extraction=extraction, device="cpu")
        assert sum(values.numel() for values in encoder.model.parameters()) < size


@pytest.mark.parametrize(
    ("name", "norm"),
    [("clip", None), ("vit", None), ("videomae", None), ("hubert", "encoder.layer_norm"), ("whisper", "layer_norm")],
)
def test_the_last_layer_is_what_the_last_block_gives(name, norm, checkpoint, clips):
    """The norm after it belongs to the network's own output."""
    encoder = load_encoder(checkpoint(name), extraction={"layer": 2}, device="cpu")
    found = encoder.encode(clips[0].path).features
    function, options = DIRECT[name]
    shown = clips[0].frames if encoder.modality == "video" else clips[0].samples
    if norm is None:
        # transformers gives the state before the norm, too.
        assert_same(found, function(checkpoint(name), shown, *options, 2))
    else:
        found = encoder.model.get_submodule(norm)(torch.from_numpy(found)).detach().numpy()
        assert_same(found, function(checkpoint(name), shown, *options))


class Blocks(nn.Module):
    """A network of three blocks, written in one of several ways."""

    def __init__(self, way):
        super().__init__()
        torch.manual_seed(0)
        self.way, self.calls = way, []
        # Lists of parts are not the blocks.
        self.parts = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.blocks = nn.ModuleList(nn.Linear(4, 4 + (way == "wider") * n, bias=False) for n in range(3))
        for previous, block in zip(self.blocks, self.blocks[1:], strict=False):
            block.weight = nn.Parameter(torch.randn(block.out_features, previous.out_features))

    def forward(self, values, output_hidden_states=False):
        if self.way == "unknowing" and output_hidden_states:
            raise TypeError("got an unexpected keyword argument")
        states = [values]
        for number in range(3) if self.way == "counting" else range(len(self.blocks)):
            values = self.blocks[number](states[-1])
            self.calls.append(number)
            states.append(values)
        if self.way == "reshaping":
            states = [state.flatten(1) for state in states]
        output = hf.modeling_outputs.BaseModelOutput(last_hidden_state=values)
        if output_hidden_states and self.way != "silent":
            output.hidden_states = tuple(states)
        return output


def asked(way, **extraction):
    """Rows of a network, and the blocks that ran for them."""
    network, layers = Blocks(way), HiddenLayers(extraction, "you/model")
    values = torch.arange(8.0).view(1, 2, 4)
    layers(network, lambda states: states, values=values)
    network.calls.clear()
    found = layers(network, lambda states: states, values=values).detach()
    states = network(values, output_hidden_states=True).hidden_states
    return found, states, network.calls[: -len(network.blocks) or None]


@pytest.mark.parametrize(("way", "calls"), [("plain", [0, 1]), ("counting", [0, 1, 2]), ("wider", [0, 1])])
def test_later_blocks_are_dropped_where_the_network_runs_without_them(way, calls):
    found, states, ran = asked(way, layers=[0, 2])
    assert torch.equal(found, torch.cat([states[0], states[2]], -1)) and ran == calls
    with torch.no_grad():
        assert asked(way, layer=0)[2] == ([0, 1, 2] if way == "counting" else [0])


@pytest.mark.parametrize(
    ("way", "extraction", "message"),
    [
        ("plain", {"layer": 4}, "layer must be from 0 to 3 or null, found 4"),
        ("plain", {"layers": "2-9"}, "layer must be from 0 to 3 or null, found 4"),
        ("plain", {"layers": [1, 7]}, "layer must be from 0 to 3 or null, found 7"),
        *(("plain", {"layer": layer}, "layer must be a whole number from 0 ") for layer in (-1, 1.0, True, "1", [1])),
        *(
            ("plain", {"layers": layers}, "layers must be a range such as 6-12 (their mean) or a list ")
            for layers in (2, "2", "3-1", "-1-2", "1-x", [], [1, 1], [-1], [1.0], ["1"], {})
        ),
        ("plain", {"layer": 1, "layers": [1]}, "found both layer 1 and layers [1], expected one of them"),
        ("wider", {"layers": "1-3"}, "layers are 4, 5, 6 wide, which have no mean; expected a list or one layer"),
        ("unknowing", {"layer": 1}, "gives no hidden states, so neither layer nor layers can be set for it"),
        ("silent", {"layer": 1}, "gives no hidden states, so neither layer nor layers can be set for it"),
        ("reshaping", {"layer": 1}, "gives hidden states that are not those of its blocks, so neither layer nor "),
    ],
)
def test_layers_that_cannot_be_had_are_refused_in_one_line(way, extraction, message):
    with pytest.raises(ValueError) as caught:
        asked(way, **extraction)
    text = str(caught.value)
    assert text.startswith(f"you/model: {message}") and "\n" not in text


def test_a_model_of_the_hub_that_lacks_a_layer_is_refused_as_it_is_loaded(checkpoint, tmp_path):
    for name in ("clip", "videomae", "wavlm", "whisper"):
        with pytest.raises(ValueError, match=f"/{name}: layer must be from 0 to 2 or null, found 9$"):
            load_encoder(checkpoint(name), extraction={"layer": 9}, device="cpu")
    with pytest.raises(ValueError, match="/clap: gives hidden states that are not those of its blocks"):
        load_encoder(checkpoint("clap"), extraction={"layer": 1}, device="cpu")
    # Half precision changes no state on its way.
    hf.ViTModel(hf.ViTConfig(**HIDDEN, **PATCHES)).save_pretrained(tmp_path)
    hf.ViTImageProcessorPil(**SQUARE).save_pretrained(tmp_path)
    assert load_encoder(tmp_path.as_posix(), extraction={"layers": "0-2"}, dtype="bfloat16").feature_size == 16
