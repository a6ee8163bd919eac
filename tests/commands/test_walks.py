"""How many of our own calls lie between a command and a network, and how often a clip is decoded on the way."""

from pathlib import Path
from traceback import walk_stack

import numpy as np
import pytest
import torch
from command_line import run
from tiny_encoders import save_encoder
from tiny_extraction import save_fusion

import hf_blemo
from hf_blemo.encoders.image_encoder import ImageEncoder
from hf_blemo.encoders.loading import load_encoders
from hf_blemo.media import Frame, media
from hf_blemo.rank_aware_fusion.modeling_rank_aware_fusion import RankAwareFusionModel

PACKAGE = str(Path(hf_blemo.__file__).parent)
MOST = 9


@pytest.fixture(scope="module")
def fusion(tmp_path_factory):
    folder = tmp_path_factory.mktemp("walks")
    entries = {"student": "vit", "hubert": "hubert"}
    for name, kind in entries.items():
        entries[name] = {"model_id": str(save_encoder(kind, folder / kind)), "feature_size": 16}
    return save_fusion(folder / "fusion", entries)


def watch(monkeypatch, network):
    """Counts our frames above each call of a network's forward."""
    counts, forward = [], network.forward

    def watched(self, *arguments, **options):
        counts.append(sum(frame.f_code.co_filename.startswith(PACKAGE) for frame, _ in walk_stack(None)))
        return forward(self, *arguments, **options)

    monkeypatch.setattr(network, "forward", watched)
    return counts


@pytest.fixture(params=[1, 2])
def num_threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_few_calls_lie_between_a_clip_and_the_networks(capsys, fusion, paths, monkeypatch, num_threads):
    from transformers import HubertModel, ViTModel

    counts = {network: watch(monkeypatch, network) for network in (ViTModel, HubertModel, RankAwareFusionModel)}

    def load(*arguments, **options):
        encoders = load_encoders(*arguments, **options)
        # Loading tries the networks out.
        for found in counts.values():
            found.clear()
        return encoders

    monkeypatch.setattr("hf_blemo.prediction.clips.load_encoders", load)
    code, _, err = run(capsys, "predict", paths[3], "--model", fusion)
    assert code == 0, err
    for network, found in counts.items():
        assert found and max(found) <= MOST, (network, found)
    # With one thread, all is one walk: main, the handler, predict_clips, encode_clips, run, run, forward, network and
    # what makes its rows.
    if num_threads == 1:
        assert max(counts[ViTModel]) == MOST


def test_few_calls_lie_between_features_and_the_fusion(capsys, tmp_path, fusion, monkeypatch):
    (tmp_path / "student").mkdir()
    np.save(tmp_path / "student" / "clip.npy", np.ones((3, 16), np.float32))
    counts = watch(monkeypatch, RankAwareFusionModel)
    assert run(capsys, "predict", "--features", tmp_path, "--model", fusion)[0] == 0
    assert counts and max(counts) <= MOST


def test_a_clip_is_decoded_once_whatever_is_asked_for(capsys, tmp_path, fusion, paths, monkeypatch):
    opened, read, frames, encoded = [], [], [], []
    forward = ImageEncoder.forward

    def counted(encoder, pieces):
        encoded.extend(pieces)
        return forward(encoder, pieces)

    class Counted(media.MediaFile):
        def __init__(self, source, *arguments, **options):
            opened.append(source)
            super().__init__(source, *arguments, **options)

        def read(self, *arguments, **options):
            read.append(self.name)
            for item in super().read(*arguments, **options):
                frames.append(isinstance(item, Frame))
                yield item

    for module in ("hf_blemo.extraction.decoding", "hf_blemo.encoders.encoder", "hf_blemo.media.media"):
        monkeypatch.setattr(f"{module}.MediaFile", Counted)
    monkeypatch.setattr(ImageEncoder, "forward", counted)
    clips = paths[:2]
    outputs = [tmp_path / f"results.{suffix}" for suffix in ("html", "json", "csv")]
    code, _, err = run(capsys, "predict", *clips, "--model", fusion, "--window", "0.5", "--output", *outputs)
    assert code == 0, err
    assert sorted(map(str, opened)) == sorted(read) == sorted(map(str, clips))
    assert outputs[0].read_text().count("data:image/jpeg") == 16
    # Windows overlap by half, and share the rows of frames; loading has tried the network with two.
    assert sum(frames) > 16 and len(encoded) == sum(frames) + 2
