"""Publishing over HTTP: nothing is half-published, a retry succeeds, and refusals are said in one line."""

import pytest
from huggingface_hub.utils import _http
from tiny_models import MAKERS, save_tiny_model

from hf_blemo.hub import publish
from hf_blemo.hub.uploads import hub_errors

CARD = """---
license: mit
library_name: transformers
pipeline_tag: other
tags: [mine]
---
Written by hand.
"""


def published(folder, name, **options):
    with hub_errors("not published"):
        publish(folder, name, **options)


@pytest.fixture(params=MAKERS)
def family(request):
    return request.param


@pytest.fixture
def folder(family, tmp_path):
    """A model with its inputs and a card."""
    folder = tmp_path / "model"
    # Weights of its own: what the Hub has already is not uploaded again.
    save_tiny_model(family, folder, seed=7)
    (folder / "README.md").write_text(CARD)
    return folder


def test_nothing_is_half_published_and_a_retry_succeeds(hub, family, folder, monkeypatch):
    """Dropped uploads, refused commits and a full disk leave the latest revision as it was."""
    # The client waits between its attempts.
    monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)
    name = f"you/faults-{family}"
    hub.create(name)
    before = hub.repository(name).branches["main"]
    hub.faults.dropped_uploads = 100
    with pytest.raises(ValueError, match="^not published: "):
        published(folder, name)
    assert hub.repository(name).branches["main"] is before
    # A connection that breaks once is taken up again by the client; then the disk is full.
    hub.faults.dropped_uploads, hub.faults.statuses = 1, [507]
    with pytest.raises(ValueError, match="No space left on device"):
        published(folder, name)
    assert hub.faults.dropped_uploads == 0 and hub.repository(name).branches["main"] is before
    published(folder, name)
    assert len(hub.repository(name).branches["main"].history()) == 2
    assert {"config.json", "model.safetensors", "README.md"} < set(hub.files(name))


def test_a_token_that_may_not_write_is_refused(hub, tmp_path, monkeypatch):
    save_tiny_model("rank_aware_fusion", tmp_path / "model")
    (tmp_path / "model" / "README.md").write_text(CARD)
    hub.create("others/theirs", private=False)
    before = hub.repository("others/theirs").branches["main"]
    with pytest.raises(ValueError, match="^not published: the token may not write there"):
        published(tmp_path / "model", "others/theirs")
    for token in ("", "hf_wrong"):
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(ValueError, match="log in with `hf auth login` or set HF_TOKEN"):
            published(tmp_path / "model", "you/mine")
    assert hub.repository("others/theirs").branches["main"] is before
    assert ("model", "you/mine") not in hub.repositories


def test_a_card_with_broken_metadata_is_refused_before_anything_is_sent(hub, tmp_path):
    save_tiny_model("rank_aware_fusion", tmp_path / "model")
    (tmp_path / "model" / "README.md").write_text("---\nlicense: [mit\n---\ntext")
    hub.create("you/broken-card")
    with pytest.raises(ValueError, match="README.md.*YAML"):
        published(tmp_path / "model", "you/broken-card")
    # The other way round: the folder's card is fine, the one on the Hub is not.
    (tmp_path / "model" / "README.md").write_text(CARD)
    hub.repository("you/broken-card").edit("README.md", b"---\nlicense: [mit\n---\nBy hand.")
    with pytest.raises(ValueError, match="README.md.*YAML"):
        published(tmp_path / "model", "you/broken-card")
    assert hub.files("you/broken-card")["README.md"].endswith(b"By hand.")
