"""Upload of a store of teacher embeddings as a data set."""

from dataclasses import asdict
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import EntryNotFoundError

from hf_blemo.pairs.teacher_store import STORE_FILE, TOKENIZERS, StoreDescription

from .card import merge_card
from .store_card import store_card

CARD_FILE = "README.md"
SHARDS = "data"


def push_store(folder: Path, repo_id: str, token: str | None = None) -> str:
    """Upload a store in one commit to a data set that is made private where it is new.

    The card keeps what people wrote on the Hub; shards that this store does not have are removed there.

    Args:
        folder: of the store.
        repo_id: `owner/name`.
        token: a Hub token; the one stored by `hf auth login` by default.

    Returns:
        The address of the commit.

    Raises:
        ValueError: the card on the Hub has metadata that is none.

    Source: this project's choice.
    """
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, repo_type="dataset", private=True, exist_ok=True).repo_id
    parent = api.dataset_info(repo_id).sha
    files = [folder / STORE_FILE, *(folder / SHARDS).glob("*.parquet"), *(folder / TOKENIZERS).rglob("*")]
    names = {path.relative_to(folder).as_posix(): path for path in sorted(files) if path.is_file()}
    card = store_card(asdict(StoreDescription.load(folder)))
    try:
        path = api.hf_hub_download(repo_id, CARD_FILE, repo_type="dataset", revision=parent)
        card = merge_card(Path(path).read_text(encoding="utf-8-sig"), card)
    except EntryNotFoundError:
        pass
    stale = [
        name
        for name in api.list_repo_files(repo_id, repo_type="dataset", revision=parent)
        if name.startswith(f"{SHARDS}/") and name not in names
    ]
    commit = api.create_commit(
        repo_id,
        [
            CommitOperationAdd(CARD_FILE, card.encode()),
            *(CommitOperationAdd(name, str(path)) for name, path in names.items()),
            *(CommitOperationDelete(name) for name in stale),
        ],
        commit_message="Upload teacher embeddings",
        repo_type="dataset",
        parent_commit=parent,
    )
    return commit.commit_url
