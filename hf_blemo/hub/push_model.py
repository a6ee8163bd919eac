"""Publication of a model that is in memory."""

import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCardData
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

from .card import FAMILIES
from .publish import CARD_FILE, publish


def push_model(
    model: Any,
    processor: Any,
    repo_id: str,
    license: str,
    private: bool = True,
    token: str | None = None,
    message: str | None = None,
    tag: str | None = None,
    **metadata: Any,
) -> str:
    """Publish a model, what prepares its inputs, its code and a card in one commit.

    A card that is on the Hub stays as it is. Without one a short card is written that claims no results: write yours
    on the Hub, or train by the programs of this package, whose cards come from what they measured.

    Args:
        model: of one of this package's families.
        processor: `RankAwareFusionProcessor`, or a student's `CLIPProcessor` or `PairProcessor`.
        repo_id: `owner/name` on the Hub.
        license: of the weights, for a new card; those of your data and of what you started from decide.
        private: whether a repository that is created is private.
        token, message, tag: as in `publish`.
        metadata: more of the new card's metadata, for instance `base_model` or `datasets`.

    Returns:
        The address of the commit.

    Raises:
        ValueError: the model is of no family of this package, or as in `publish`.

    Source:
        This project's choice.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if model_type not in FAMILIES:
        raise ValueError(f"found a model of type {model_type!r}, expected one of {', '.join(sorted(FAMILIES))}")
    with tempfile.TemporaryDirectory(prefix="hf_blemo_push_") as name:
        folder = Path(name) / repo_id.split("/")[-1]
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        card = _card_on_the_hub(repo_id, token) or _short_card(model_type, repo_id, license, metadata)
        (folder / CARD_FILE).write_text(card, encoding="utf-8", newline="\n")
        return publish(folder, repo_id, private=private, token=token, message=message, tag=tag)


def _card_on_the_hub(repo_id: str, token: str | None) -> str | None:
    try:
        path = HfApi(token=token).hf_hub_download(repo_id, CARD_FILE)
    except (EntryNotFoundError, RepositoryNotFoundError):
        return None
    return Path(path).read_text(encoding="utf-8")


def _short_card(model_type: str, repo_id: str, license: str, metadata: dict[str, Any]) -> str:
    family = FAMILIES[model_type]
    data = ModelCardData(
        license=license,
        library_name="transformers",
        pipeline_tag=family.PIPELINE_TAG,
        **{**metadata, "tags": list(dict.fromkeys([*family.TAGS, *metadata.get("tags", [])]))},
    )
    return f"""---
{data.to_yaml()}
---

# {repo_id.split("/")[-1]}

```python
import hf_blemo  # or, without the package: trust_remote_code=True, after reading the code beside the weights
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("{repo_id}")
processor = AutoProcessor.from_pretrained("{repo_id}")
```

No results are recorded here. What the model was trained on, what for, and where it fails is not written yet.
"""
