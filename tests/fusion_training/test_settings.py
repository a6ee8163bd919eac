"""Values that a run refuses before it reads anything."""

import pytest

from hf_blemo.fusion_training.settings import AblationSettings, FusionSettings
from hf_blemo.programs.settings import read_settings


@pytest.mark.parametrize("settings_class", [FusionSettings, AblationSettings])
def test_bad_values_are_named(settings_class):
    for key, value, message in (
        ("protocol", "fair", "found 'fair', expected honest, published_style or none"),
        ("decoding", "argmax", "found 'argmax', expected expected_score, thresholds or soft"),
        ("schedule", "linear", "found 'linear', expected constant or cosine"),
        ("num_epochs", "0", "expected at least 1, found 0"),
        ("batch_size", "0", "expected at least 1, found 0"),
        ("unlabelled_batch_size", "-1", "expected at least 1, found -1"),
        ("evaluation_batch_size", "0", "expected at least 1, found 0"),
        ("patience", "-1", "expected at least 0, found -1"),
        ("seeds_at_once", "-1", "expected at least 0, found -1"),
        ("max_grad_norm", "-1.0", "expected at least 0, found -1.0"),
        ("exchange_groups", "30", "expected a share from 0 to 1, found 30"),
        ("checkpoint_every", "-1", "expected at least 0, found -1"),
        ("seeds", "[1, 2, 1]", r"expected different numbers from 0, at least one, found \[1, 2, 1\]"),
    ):
        with pytest.raises(ValueError, match=f"--{key}: {message}"):
            read_settings(settings_class, [f"--{key}", value])
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
