"""Values that a run refuses before it reads anything."""

import pytest

from hf_blemo.fusion_training.settings import AblationSettings, FusionSettings


@pytest.mark.parametrize("settings_class", [FusionSettings, AblationSettings])
def test_encoders_are_different_names(settings_class):
    for encoders in ([], ["voice", "voice"]):
        with pytest.raises(ValueError, match="encoders must be different names, at least one, found"):
            settings_class("synthetic", encoders=encoders)


def test_an_ablation_needs_something_to_score():
    with pytest.raises(ValueError, match="protocol 'none' scores nothing"):
        AblationSettings("synthetic", protocol="none")
    with pytest.raises(
        ValueError, match="a weight of each of mmd, coral, adversarial for each of fused, encoders, found"
    ):
        AblationSettings("synthetic", adaptation_weights={"fused": {"mdd": 1.0}})
