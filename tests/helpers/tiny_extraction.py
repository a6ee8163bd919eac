"""Five small clips in the form of BlEmoRE, one of them broken, and two encoders for them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clip_files import gray_pictures, tone, write_clip
from tiny_encoders import save_encoder

from hf_blemo import feature_sets

CLIPS = (
    "A1_hap_int2_ver1",
    "A2_mix_ang_sad_70_30_ver1",
    "A3_neu_sit1_ver1",
    "A4_mix_disg_fea_50_50_ver2",
)
BROKEN = "A5_sad_int1_ver1"
# Tiny models; a frame and 20 ms of sound a row.
ENCODERS = {"student": ("student", "video", 12), "hubert": ("hubert", "audio", 16)}


def make_clips(folder: Path, broken: bool = True, silent: int | None = 2) -> Path:
    """Clips of different looks and lengths; that of number `silent` has no sound."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(CLIPS):
        sound = tone(1.0 + 0.2 * number, 16000, 200.0 * (number + 1))
        pictures = gray_pictures(range(20 * number, 20 * number + 10 + 2 * number))
        audio = None if number == silent else "aac"
        write_clip(folder / f"{name}.mp4", pictures=pictures, audio=audio, sound=sound)
    if broken:
        (folder / f"{BROKEN}.mp4").write_bytes(b"no clip at all")
    return folder


def save_encoders(folder: Path) -> dict[str, dict[str, Any]]:
    """Entries as of settings and configs; the models are in the folder."""
    entries = {}
    for name, (kind, _, _) in ENCODERS.items():
        entries[name] = {"model_id": str(save_encoder(kind, folder / name))}
    entries["student"]["extraction"] = {"frames_per_second": 5.0}
    return entries


def fusion_entries(entries: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """As of a fusion's config."""
    return {
        name: {"modality": ENCODERS[name][1], "feature_size": ENCODERS[name][2], **entry}
        for name, entry in entries.items()
    }


def make_fusion(entries: Mapping[str, Mapping[str, Any]], seed: int = 0) -> Any:
    """A fusion of these encoders with its processor."""
    import torch

    from hf_blemo import RankAwareFusionConfig, RankAwareFusionModel, RankAwareFusionProcessor

    torch.manual_seed(seed)
    config = RankAwareFusionConfig(encoders=fusion_entries(entries), top_n=2, hidden_size=8)
    return RankAwareFusionModel(config).eval(), RankAwareFusionProcessor(config.encoders)


@pytest.fixture(scope="session")
def entries(tmp_path_factory):
    """Entries of both encoders, saved once; no test writes into their folders."""
    return save_encoders(tmp_path_factory.mktemp("encoders"))


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    """The folder of all clips, the broken one included; no test writes into it."""
    return make_clips(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="session")
def paths(clip_folder):
    """The clips that can be read."""
    return [clip_folder / f"{name}.mp4" for name in CLIPS]


@pytest.fixture(scope="session")
def member(entries):
    """A fusion of both encoders with its processor."""
    return make_fusion(entries)


def save_fusion(folder: Path, entries: Mapping[str, Mapping[str, Any]], seed: int = 0) -> Path:
    """Saves [`make_fusion`]."""
    model, processor = make_fusion(entries, seed)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def features_by_clip(dataset: Any) -> dict[str, dict[str, np.ndarray]]:
    """Clip -> encoder -> features of a data set."""
    return dict(zip(dataset["clip"][:], feature_sets.read_features(dataset), strict=True))


def assert_same_features(found: Mapping[str, Any], expected: Mapping[str, Any], tolerance: float = 2e-3) -> None:
    """Of every clip and encoder; what is stored in float16 has three digits."""
    assert list(found) == list(expected)
    for clip, encoders in expected.items():
        assert set(found[clip]) == set(encoders), clip
        for name, values in encoders.items():
            np.testing.assert_allclose(found[clip][name], values, rtol=tolerance, atol=tolerance, err_msg=clip)
