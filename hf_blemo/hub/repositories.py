"""Repositories to write to: made and checked before hours of work depend on them."""

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from huggingface_hub import HfApi

from .hub_errors import hub_errors


def prepare_repository(
    repo_id: str,
    accelerator: Accelerator,
    setting: str = "push_to_hub",
    private: bool = True,
    repo_type: str = "model",
    tag: str | None = None,
) -> None:
    """Make a repository and check that it can be written to; every process of a run calls this.

    Args:
        repo_id: `owner/name`.
        accelerator: of the run; its first process talks to the Hub, and all fail where it does.
        setting: that names the repository, for the message.
        private: whether a repository that is created is private.
        repo_type: "model" or "dataset".
        tag: a git tag that has to be free.

    Raises:
        ValueError: the Hub cannot be reached, knows no such token, or the token may not write there; or the tag is
            taken.

    Source: this project's choice.
    """
    problem: list[str | None] = [None]
    if accelerator.is_main_process:
        try:
            _prepare(repo_id, setting, private, repo_type, tag)
        except ValueError as error:
            problem = [str(error)]
    found = broadcast_object_list(problem)[0]
    if found is not None:
        raise ValueError(found)


def _prepare(repo_id: str, setting: str, private: bool, repo_type: str, tag: str | None) -> None:
    api = HfApi()
    with hub_errors(f"{setting} {repo_id!r} is not possible"):
        account = api.whoami()
        owner = repo_id.split("/")[0]
        owners = [account["name"], *(group["name"] for group in account.get("orgs", []))]
        if owner not in owners:
            raise ValueError(
                f"{setting} {repo_id!r}: the token writes for {', '.join(owners)}, which {owner!r} is not one of"
            )
        api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True)
        if tag is not None and tag in {found.name for found in api.list_repo_refs(repo_id, repo_type=repo_type).tags}:
            raise ValueError(f"hub_tag {tag!r}: it exists in {repo_id} already; choose another")
