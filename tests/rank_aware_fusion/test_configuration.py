"""Settings: defaults, order of the encoders, and what is refused."""

import json
import math

import pytest
from huggingface_hub.errors import StrictDataclassError

from hf_blemo import RankAwareFusionConfig, blemore

# The first where the package checks before, the second where `strict` checks or wraps what the package raised.
REFUSALS = (ValueError, StrictDataclassError)


def test_encoders_are_completed_with_their_defaults():
    given = {"a": {"feature_size": 4}, "b": {"feature_size": 2, "pooling": "attention"}}
    config = RankAwareFusionConfig(encoders=given)
    assert given["a"] == {"feature_size": 4}, "the caller's dict was changed"
    assert config.id2label == dict(enumerate(blemore.EMOTIONS))
    assert config.encoders == {
        "a": {"feature_size": 4, "modality": "video", "pooling": "mean", "transform": "none"},
        "b": {"feature_size": 2, "modality": "video", "pooling": "attention", "transform": "none"},
    }


def test_round_trip_keeps_every_setting_and_the_order_of_the_encoders(encoders, tmp_path):
    config = RankAwareFusionConfig(
        encoders=encoders, top_n=2, hidden_size=32, gate="static", fusion="concatenation", gate_context=False,
        head_exponent=0.25, dropout=0, domain_adaptation="coral", joint_loss_weight=3,
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert list(stored["encoders"]) != list(encoders), "the file would not show whether the order is restored"
    loaded = RankAwareFusionConfig.from_pretrained(tmp_path)
    assert list(loaded.encoders) == list(encoders)
    assert {name: value for name, value in loaded.to_dict().items() if name != "auto_map"} == {
        name: value for name, value in config.to_dict().items() if name != "auto_map"
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "encoders['a']: 'feature_size' must be a positive integer, found None"),
        *(
            ({"feature_size": value}, f"encoders['a']: 'feature_size' must be a positive integer, found {value}")
            for value in (0, 2.0, True)
        ),
        ({"feature_size": 2, "poolin": "mean"}, "encoders['a']: unknown key 'poolin'"),
        ({"feature_size": 2, "pooling": "max"}, "pooling 'max' is not one of mean, statistics, attention"),
        ({"feature_size": 2, "modality": " "}, "expected a word as modality, found ' '"),
        ({"feature_size": 2, "transform": "softmax"}, "transform 'softmax' is not one of none, log_softmax"),
        *((value, "encoders") for value in (4, [4], "wavlm")),
    ],
)
def test_a_bad_encoder_is_refused_by_name(options, message):
    with pytest.raises(REFUSALS) as error:
        RankAwareFusionConfig(encoders={"good": {"feature_size": 1}, "a": options})
    assert message in str(error.value)


@pytest.mark.parametrize("name", ["../../x", "..", "a/../b", "/a", "a/", "a\\b", "", "a\x1b[2J", "a\n"], ids=ascii)
def test_a_name_that_could_lead_elsewhere_is_refused(name):
    with pytest.raises(ValueError, match="expected a name, not a path out of a folder"):
        RankAwareFusionConfig(encoders={name: {"feature_size": 1}}, encoder_order=[name])


@pytest.mark.parametrize("order", [["a"], ["a", "b", "c"], ["a", "a"], ["a", "c"]], ids=str)
def test_an_order_of_other_encoders_is_refused(order):
    with pytest.raises(ValueError, match="encoder_order"):
        RankAwareFusionConfig(encoders={"a": {"feature_size": 1}, "b": {"feature_size": 1}}, encoder_order=order)


BAD = {
    "top_n": (0, 1.5, 99), "hidden_size": (0,), "gate": ("softmax",), "fusion": ("attention",),
    "head_fusion": ("mean",), "domain_adaptation": ("dann",), "gate_context": ("yes",),
    "dropout": (1.0, -0.1, float("nan")),
    "encoder_dropout": (1,), "modality_dropout": (1.2,), "head_exponent": (0, 1.0), "gate_noise": (-0.5, math.inf),
    "gate_balance_weight": (-1,), "presence_loss_weight": (-1, math.nan), "joint_loss_weight": (-0.1, math.inf),
    "squash": ("tanh",), "experts": ("yes",), "gate_reads": ("all", "both"), "gate_prior": ("none", "relevance"),
    "gate_prior_weight": (-1,), "expert_penalty": (-1, float("nan")), "input_dropout": (1.0,),
    "domain_adaptation_weight": (-1,), "hiden_size": (1,), "topn": (1,), "encoder_drop_out": (1,),
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_a_bad_value_is_refused_by_name(encoders, name, value):
    with pytest.raises(REFUSALS, match=name):
        RankAwareFusionConfig(encoders=encoders, **{name: value})


def test_the_gates_target_needs_the_encoders_own_loss(encoders):
    with pytest.raises(REFUSALS, match="gate_loss_weight > 0 needs encoder_loss_weight > 0"):
        RankAwareFusionConfig(encoders=encoders, gate_loss_weight=0.1)


def test_a_bad_value_set_later_is_refused_when_saving(encoders, tmp_path):
    config = RankAwareFusionConfig(encoders=encoders)
    config.top_n = 0
    with pytest.raises(REFUSALS, match="top_n must be at least 1, found 0"):
        config.save_pretrained(tmp_path)
    assert not (tmp_path / "config.json").exists()
