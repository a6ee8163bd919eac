"""Values that a run refuses before it reads anything."""

import pytest

from hf_blemo.fusion_training.settings import AblationSettings, FusionSettings


@pytest.mark.parametrize("settings_class", [FusionSettings, AblationSettings])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protocol": "fair"}, "protocol 'fair' is not one of honest, published_style, none"),
        ({"selection": "accuracy"}, "selection 'accuracy' is not one of loss, score"),
        ({"decoding": "argmax"}, "decoding 'argmax' is not one of expected_score, thresholds"),
        ({"schedule": "linear"}, "schedule 'linear' is not one of constant, cosine"),
        ({"num_epochs": 0}, "num_epochs must be at least 1, found 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, found 0"),
        ({"unlabelled_batch_size": -1}, "unlabelled_batch_size must be at least 1, found -1"),
        ({"evaluation_batch_size": 0}, "evaluation_batch_size must be at least 1, found 0"),
        ({"patience": -1}, "patience must not be negative, found -1"),
        ({"seeds_at_once": -1}, "seeds_at_once must not be negative, found -1"),
        ({"max_grad_norm": -1.0}, "max_grad_norm must not be negative, found -1.0"),
        ({"encoders": []}, r"encoders must be different names, at least one, found \[\]"),
        ({"encoders": ["voice", "voice"]}, r"encoders must be different names, .*'voice', 'voice'"),
        ({"seeds": []}, r"seeds must be different .*, found \[\]"),
        ({"seeds": [1, 2, 1]}, r"seeds must be different .*, found \[1, 2, 1\]"),
        ({"seeds": [0, -1]}, r"seeds must be different non-negative .*, found \[0, -1\]"),
    ],
)
def test_bad_values_are_named(settings_class, changes, message):
    with pytest.raises(ValueError, match=message):
        settings_class(**changes)


def test_an_ablation_needs_something_to_score():
    with pytest.raises(ValueError, match="protocol 'none' scores nothing"):
        AblationSettings(protocol="none")
    with pytest.raises(
        ValueError, match="a weight of each of mmd, coral, adversarial for each of fused, encoders, found"
    ):
        AblationSettings(adaptation_weights={"fused": {"mdd": 1.0}})
