"""The one way to the Hub: files and a card in one commit, to a repository that was checked before."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

from .card import CARD_FILE, card_on_hub, without_local_paths

if TYPE_CHECKING:
    from accelerate import Accelerator


# Their words may look like paths, and are no settings.
_FILES_OF_TEXTS = ("tokenizer.json", "vocab.json", "added_tokens.json", "model.safetensors.index.json")


def upload(
    repo_id: str,
    files: Mapping[str, Path | bytes],
    message: str,
    card: Callable[[str | None], str] | None = None,
    repo_type: str = "model",
    private: bool = True,
    token: str | None = None,
    create_pr: bool = False,
    tag: str | None = None,
    replaced: str | None = None,
) -> tuple[str, str]:
    """Uploads files and a card in one commit; makes the repository where there is none.

    Args:
        repo_id: `owner/name`.
        files: path inside the repository -> file on this machine, or content; JSON files go without the folders of
            this machine.
        message: of the commit.
        card: takes the card on the Hub, None where there is none, and returns the one to upload; without it the card
            on the Hub stays as it is.
        replaced: folder inside the repository; its files that are not in `files` are deleted.

    Returns:
        The address of the commit, or of the pull request; and the card that was uploaded, if any.
    """
    api = HfApi(token=token)
    repo_id = _open_repository(api, repo_id, repo_type, private, tag)
    parent = api.repo_info(repo_id, repo_type=repo_type).sha
    contents, text = {name: _without_local_paths(name, content) for name, content in files.items()}, ""
    if card is not None:
        text = card(card_on_hub(repo_id, repo_type, revision=parent, token=token))
        contents[CARD_FILE] = text.encode()
    stale = api.list_repo_files(repo_id, repo_type=repo_type, revision=parent) if replaced is not None else []
    commit = api.create_commit(
        repo_id,
        [
            *(CommitOperationAdd(name, content) for name, content in contents.items()),
            *(
                CommitOperationDelete(name)
                for name in stale
                if name.startswith(f"{replaced}/") and name not in contents
            ),
        ],
        commit_message=message,
        repo_type=repo_type,
        create_pr=create_pr,
        parent_commit=parent,
    )
    if tag is not None:
        api.create_tag(repo_id, tag=tag, revision=commit.oid, repo_type=repo_type)
    return commit.pr_url or commit.commit_url, text


def _without_local_paths(name: str, content: Path | bytes) -> Path | bytes:
    """A settings file without this machine's folders; any other file as it is."""
    if not name.endswith(".json") or name.rpartition("/")[2] in _FILES_OF_TEXTS:
        return content
    found = json.loads(content if isinstance(content, bytes) else content.read_bytes())
    cleaned = without_local_paths(found)
    return content if cleaned == found else (json.dumps(cleaned, indent=2) + "\n").encode()


def prepare_repository(
    repo_id: str,
    accelerator: "Accelerator",
    repo_type: str = "model",
    private: bool = True,
    tag: str | None = None,
) -> None:
    """Makes a repository and checks that it can be written to before hours of work depend on it.

    Every process of a run calls this; the first one talks to the Hub.

    Raises:
        ValueError: the Hub cannot be reached, rejects the token or does not let it write there; or the tag is taken.
    """
    if accelerator.is_main_process:
        with hub_errors(f"push_to_hub {repo_id!r} is not possible"):
            api = HfApi()
            account = api.whoami()
            owner = repo_id.split("/")[0]
            owners = [account["name"], *(group["name"] for group in account.get("orgs", []))]
            if owner not in owners:
                raise ValueError(
                    f"push_to_hub {repo_id!r}: the token writes for {', '.join(owners)}, not for {owner!r}"
                )
            _open_repository(api, repo_id, repo_type, private, tag)
    accelerator.wait_for_everyone()


@contextmanager
def hub_errors(what: str) -> Iterator[None]:
    """Words a refusal of the Hub, a failed connection or a missing token in one line of a ValueError.

    `what` did not happen, for instance "out/model was not published to owner/name".
    """
    # The client does not wrap connection errors of its HTTP library, and has changed that library before.
    http_error: Any = HfHubHTTPError.__bases__[0]
    try:
        yield
    except (http_error, LocalTokenNotFoundError, OfflineModeIsEnabled) as error:
        raise ValueError(f"{what}: {_explained(error)}") from error
    except RuntimeError as error:
        # The client wraps the error that breaks off an upload.
        if not isinstance(error.__cause__, http_error):
            raise
        raise ValueError(f"{what}: {error} {_explained(error.__cause__)}") from error


def _explained(error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, LocalTokenNotFoundError) or status == 401:
        return f"the Hub rejected the token; log in with `hf auth login` or set HF_TOKEN ({error})"
    if status == 403:
        return f"the token may not write there ({error})"
    return str(error) or type(error).__name__


def _open_repository(api: HfApi, repo_id: str, repo_type: str, private: bool, tag: str | None) -> str:
    """Makes the repository where there is none, and refuses a tag that exists."""
    repo_id = api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True).repo_id
    if tag is not None and tag in {found.name for found in api.list_repo_refs(repo_id, repo_type=repo_type).tags}:
        raise ValueError(f"tag {tag!r}: it exists in {repo_id} already; choose another")
    return repo_id
