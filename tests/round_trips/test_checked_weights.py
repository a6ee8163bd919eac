"""Weights that are not finite, or not all there, are refused wherever a model is loaded or saved."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import MAKERS, save_tiny_model
from transformers import AutoModel, CLIPConfig, CLIPModel, pipeline

import hf_blemo
from hf_blemo import RankAwareFusionModel
from hf_blemo.pairs.clip_models import load_clip
from hf_blemo.prediction.fusion import load_fusion
from hf_blemo.rank_aware_fusion.pipeline_rank_aware_fusion import TASK

WEIGHTS = "model.safetensors"
FIRST = {"rank_aware_fusion": "heads.presence.bias", "clip_rd": "visual_projection.weight"}


def damage(folder: Path, name: str, value: float | None) -> None:
    """Sets one number of a tensor, or with None takes the tensor out."""
    weights = load_file(folder / WEIGHTS)
    if value is None:
        del weights[name]
    else:
        weights[name].view(-1)[0] = value
    save_file(weights, folder / WEIGHTS, {"format": "pt"})


DOORS = {
    "rank_aware_fusion": (AutoModel.from_pretrained, load_fusion, lambda folder: pipeline(TASK, folder, device="cpu")),
    "clip_rd": (AutoModel.from_pretrained, load_clip),
}


@pytest.mark.parametrize("family", MAKERS)
@pytest.mark.parametrize("value", [None, torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_door_answers_from_damaged_weights(family, value, dtype, tmp_path):
    save_tiny_model(family, tmp_path)
    AutoModel.from_pretrained(tmp_path, dtype=dtype).save_pretrained(tmp_path)
    for door in DOORS[family]:
        door(str(tmp_path))
    damage(tmp_path, FIRST[family], value)
    says = f"the weights {FIRST[family]} hold NaN or infinite"
    if value is None:
        says = f"({FIRST[family]} is missing|lacks 1 weights, the first is {FIRST[family]})"
    for door in DOORS[family]:
        with pytest.raises((ValueError, FileNotFoundError), match=f"{tmp_path.name}.*{says}"):
            door(str(tmp_path))


def test_settings_changed_at_load_may_need_new_weights(tmp_path):
    save_tiny_model("rank_aware_fusion", tmp_path)
    assert AutoModel.from_pretrained(pretrained_model_name_or_path=tmp_path, experts=True).experts is not None
    assert RankAwareFusionModel.from_pretrained(pretrained_model_name_or_path=tmp_path).experts is None
    damage(tmp_path, "fusion.linear.weight", None)
    with pytest.raises(ValueError, match="fusion.linear.weight is missing$"):
        AutoModel.from_pretrained(tmp_path, experts=True)


@pytest.mark.parametrize("family", MAKERS)
def test_nothing_is_saved_over_a_healthy_model(family, tmp_path):
    model = save_tiny_model(family, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    broken = {**model.state_dict(), FIRST[family]: torch.full((2,), torch.nan)}
    with pytest.raises(ValueError, match=f"not saved, since the weights {FIRST[family]} hold NaN"):
        model.save_pretrained(tmp_path, state_dict=broken)
    torch.nn.init.constant_(model.get_parameter(FIRST[family]), torch.inf)
    with pytest.raises(ValueError, match=f"not saved, since the weights {FIRST[family]} hold NaN"):
        model.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_clip_of_transformers_is_loaded_whole_too(tmp_path):
    save_tiny_model("clip_rd", tmp_path)
    AutoModel.from_pretrained(tmp_path).to_clip().save_pretrained(tmp_path)
    assert isinstance(load_clip(str(tmp_path)).model, CLIPModel) and CLIPConfig.from_pretrained(tmp_path)
    healthy = (tmp_path / WEIGHTS).read_bytes()
    damage(tmp_path, "text_projection.weight", torch.nan)
    with pytest.raises(ValueError, match="the weights text_projection.weight hold NaN"):
        load_clip(str(tmp_path))
    (tmp_path / WEIGHTS).write_bytes(healthy)
    damage(tmp_path, "text_projection.weight", None)
    with pytest.raises(ValueError, match="lacks 1 weights, the first is text_projection.weight"):
        load_clip(str(tmp_path))


def test_both_families_check_alike():
    package = Path(hf_blemo.__file__).parent
    one, other = (package / family / f"checked_weights_{family}.py" for family in MAKERS)
    assert one.read_text() == other.read_text()
