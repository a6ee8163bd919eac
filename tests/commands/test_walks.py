"""How many of our own calls lie between a command and a network, and how often a clip is decoded on the way."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import run
from tiny_encoders import save_encoder
from tiny_extraction import save_fusion

import hf_blemo
from hf_blemo.encoders.loading import load_encoders
from hf_blemo.media import media
from hf_blemo.rank_aware_fusion.modeling_rank_aware_fusion import RankAwareFusionModel

PACKAGE = str(Path(hf_blemo.__file__).parent)
MOST = 7


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("walks")
    kinds = {"student": "vit", "hubert": "hubert"}
    entries = {
        name: {"model_id": str(save_encoder(kind, folder / kind)), "feature_size": 16} for name, kind in kinds.items()
    }
    save_fusion(folder / "fusion", entries)
    return folder


def watch(monkeypatch, network):
    """Counts our frames above each call of a network's forward."""
    counts, forward = [], network.forward

    def watched(self, *arguments, **options):
        frame, count = sys._getframe(1), 0
        while frame is not None:
            count += frame.f_code.co_filename.startswith(PACKAGE)
            frame = frame.f_back
        counts.append(count)
        return forward(self, *arguments, **options)

    monkeypatch.setattr(network, "forward", watched)
    return counts


@pytest.mark.parametrize("num_threads", [1, 2])
def test_few_calls_lie_between_a_clip_and_the_networks(capsys, shared, paths, monkeypatch, num_threads):
    from transformers import HubertModel, ViTModel

    before = torch.get_num_threads()
    counts = {network: watch(monkeypatch, network) for network in (ViTModel, HubertModel, RankAwareFusionModel)}

    def load(*arguments, **options):
        encoders = load_encoders(*arguments, **options)
        # Loading tries the networks out.
        for found in counts.values():
            found.clear()
        return encoders

    monkeypatch.setattr("hf_blemo.prediction.clips.load_encoders", load)
    try:
        torch.set_num_threads(num_threads)
        code, _, err = run(capsys, "predict", paths[3], "--model", shared / "fusion")
    finally:
        torch.set_num_threads(before)
    assert code == 0, err
    for network, found in counts.items():
        assert found and max(found) <= MOST, (network, found)
    # With one thread, all is one walk: main, the handler, predict_clips, encode_clips, run, run, forward.
    if num_threads == 1:
        assert max(counts[ViTModel]) == MOST


def test_few_calls_lie_between_features_and_the_fusion(capsys, tmp_path, shared, monkeypatch):
    (tmp_path / "student").mkdir()
    np.save(tmp_path / "student" / "clip.npy", np.ones((3, 16), np.float32))
    counts = watch(monkeypatch, RankAwareFusionModel)
    assert run(capsys, "predict", "--features", tmp_path, "--model", shared / "fusion")[0] == 0
    assert counts and max(counts) <= MOST


def test_a_clip_is_decoded_once_whatever_is_asked_for(capsys, tmp_path, shared, paths, monkeypatch):
    opened, read = [], []

    class Counted(media.MediaFile):
        def __init__(self, source, *arguments, **options):
            opened.append(source)
            super().__init__(source, *arguments, **options)

        def read(self, *arguments, **options):
            read.append(self.name)
            return super().read(*arguments, **options)

    for module in ("hf_blemo.extraction.decoding", "hf_blemo.encoders.encoder", "hf_blemo.media.media"):
        monkeypatch.setattr(f"{module}.MediaFile", Counted)
    clips = paths[:2]
    outputs = [tmp_path / f"results.{suffix}" for suffix in ("html", "json", "csv")]
    code, _, err = run(
        capsys, "predict", *clips, "--model", shared / "fusion", "--window", "0.5", "--output", *outputs
    )
    assert code == 0, err
    assert sorted(map(str, opened)) == sorted(read) == sorted(map(str, clips))
    assert outputs[0].read_text().count("data:image/jpeg") == 16
