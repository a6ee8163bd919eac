"""What the Hub refuses is said in one line, with what to do."""

import pytest

from hf_blemo.encoders.loading import load_encoder
from hf_blemo.hub.feature_sets import load_hub_features
from hf_blemo.prediction.fusion import load_fusion


@pytest.mark.parametrize(
    ("token", "gated", "message"),
    [
        ("hf_expired", False, "the Hub rejected the token, which may be wrong or have expired: log in with"),
        ("hf_of_others", True, "the repository is gated: ask for access on its page of the Hub, and log in"),
        ("hf_of_others", False, "no such folder, and .*(no Hub repository that can be read|cannot be accessed)"),
    ],
)
@pytest.mark.parametrize("load", [load_hub_features, load_fusion, load_encoder])
def test_refusals_of_the_hub_say_what_to_do(hub, monkeypatch, token, gated, message, load):
    from huggingface_hub import HfApi

    kind = "dataset" if load is load_hub_features else "model"
    name = f"you/refused_{kind}_{gated}"
    HfApi().create_repo(name, repo_type=kind, private=not gated, exist_ok=True)
    repository = hub.repositories[kind, name]
    repository.edit("config.json" if kind == "model" else "data.csv", b"{}")
    repository.gated = gated
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(FileNotFoundError, match=f"^{name}: {message}") as caught:
        load(name)
    assert "\n" not in str(caught.value)
