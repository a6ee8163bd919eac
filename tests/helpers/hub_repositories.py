"""What the test Hub keeps: repositories with commits, branches, tags and pull requests, and large objects."""

import hashlib
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

import yaml

# Of the default .gitattributes of the Hub: what becomes a large object whatever its size.
LARGE_SUFFIXES = (".safetensors", ".parquet", ".bin", ".onnx", ".npz", ".npy", ".tar", ".zip", ".png", ".jpg")
LARGE_SIZE = 10 * 2**20


class HubError(Exception):
    """An answer other than success.

    Args:
        status: HTTP status.
        message: for the client's eyes.
        code: the Hub's name of the error, sent as X-Error-Code.
        more: further fields of the answer.
        headers: further headers.
    """

    def __init__(self, status: int, message: str, code: str | None = None, headers: Mapping[str, str] = {}, **more):
        super().__init__(message)
        self.status, self.message, self.code, self.headers, self.more = status, message, code, dict(headers), more


@dataclass(frozen=True)
class Blob:
    """A file of a commit: its bytes, and whether they are kept as a large object."""

    content: bytes
    large: bool

    @property
    def sha256(self) -> str:
        """Name of the large object."""
        return hashlib.sha256(self.content).hexdigest()

    @property
    def oid(self) -> str:
        """git's name of the file, or of the pointer that stands for a large object."""
        data = self.pointer if self.large else self.content
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    @property
    def pointer(self) -> bytes:
        """What git holds instead of a large object."""
        lines = (
            "version https://git-lfs.github.com/spec/v1",
            f"oid sha256:{self.sha256}",
            f"size {len(self.content)}",
        )
        return ("\n".join(lines) + "\n").encode()

    @property
    def etag(self) -> str:
        """Entity tag of a download."""
        return self.sha256 if self.large else self.oid


@dataclass(frozen=True)
class Commit:
    """One state of a repository."""

    oid: str
    files: Mapping[str, Blob]
    title: str
    author: str
    parent: "Commit | None" = None
    date: str = field(default_factory=lambda: datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.000Z"))

    def history(self) -> list["Commit"]:
        """This commit and those before it, newest first."""
        found: list[Commit] = []
        commit: Commit | None = self
        while commit is not None:
            found.append(commit)
            commit = commit.parent
        return found


def make_commit(files: Mapping[str, Blob], title: str, author: str, parent: Commit | None = None) -> Commit:
    """A commit named by its content and history."""
    listing = "".join(f"{path} {files[path].oid}\n" for path in sorted(files))
    text = f"{parent.oid if parent else ''}\n{title}\n{author}\n{listing}"
    return Commit(hashlib.sha1(text.encode()).hexdigest(), dict(files), title, author, parent)


class Repository:
    """A model or data set.

    Args:
        kind: "model" or "dataset".
        name: owner/name.
        private: whether others see it.
    """

    def __init__(self, kind: str, name: str, private: bool):
        self.kind, self.name, self.private = kind, name, private
        self.owner = name.split("/")[0]
        first = make_commit({".gitattributes": Blob(b"", False)}, "initial commit", self.owner)
        self.branches: dict[str, Commit] = {"main": first}
        self.tags: dict[str, Commit] = {}
        self.pulls: dict[str, Commit] = {}

    def commit_of(self, revision: str) -> Commit:
        """The commit that a branch, tag, pull request or commit hash names."""
        for refs in (self.branches, self.tags, self.pulls):
            if revision in refs:
                return refs[revision]
        for ref in (*self.branches.values(), *self.tags.values(), *self.pulls.values()):
            for commit in ref.history():
                if commit.oid == revision:
                    return commit
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def file(self, revision: str, path: str) -> tuple[Commit, Blob]:
        """A file of a revision."""
        commit = self.commit_of(revision)
        if path not in commit.files:
            # The client keeps that this commit has no such file.
            headers = {"X-Repo-Commit": commit.oid}
            raise HubError(404, f"Entry not found: {path}", "EntryNotFound", headers)
        return commit, commit.files[path]

    def edit(self, path: str, content: bytes | None) -> None:
        """Replaces or deletes a file of main, as somebody does on the Hub's pages."""
        head = self.branches["main"]
        files = {name: blob for name, blob in head.files.items() if name != path}
        if content is not None:
            files[path] = Blob(content, False)
        self.branches["main"] = make_commit(files, "edit", self.owner, head)

    def card_data(self, commit: Commit) -> dict[str, Any]:
        """Metadata of the README.md."""
        card = commit.files.get("README.md")
        try:
            return {} if card is None else metadata_of(card.content.decode())
        except HubError:
            return {}

    def advance(self, branch: str, commit: Commit) -> None:
        """Moves a branch or pull request to a commit."""
        (self.pulls if branch.startswith("refs/pr/") else self.branches)[branch] = commit


def metadata_of(card: str) -> dict[str, Any]:
    """The YAML at the head of a card.

    Raises:
        HubError: it is no mapping, or no YAML.
    """
    lines = card.lstrip("\ufeff").splitlines()
    if not lines or lines[0].strip() != "---" or "---" not in [line.strip() for line in lines[1:]]:
        return {}
    end = [line.strip() for line in lines[1:]].index("---") + 1
    try:
        found = yaml.safe_load("\n".join(lines[1:end])) or {}
    except yaml.YAMLError as error:
        raise HubError(400, f"Invalid metadata in README.md: {error}") from None
    if not isinstance(found, dict):
        raise HubError(400, "Invalid metadata in README.md: expected a mapping")
    for key in ("license", "library_name", "pipeline_tag"):
        if key in found and not isinstance(found[key], str | list):
            raise HubError(400, f'Invalid metadata in README.md: "{key}" must be a string')
    return found


class Repositories:
    """All repositories of the Hub, and who may do what.

    Args:
        tokens: token -> user.
    """

    def __init__(self, tokens: Mapping[str, str]):
        self.tokens = dict(tokens)
        self.lock = threading.RLock()
        self.all: dict[tuple[str, str], Repository] = {}
        self.objects: dict[str, bytes] = {}

    def user(self, authorization: str | None) -> str | None:
        """Who asks; None for nobody known.

        Raises:
            HubError: the token is unknown.
        """
        if not authorization:
            return None
        user = self.tokens.get(authorization.removeprefix("Bearer ").strip())
        if user is None:
            raise HubError(401, "Invalid credentials in Authorization header")
        return user

    def create(self, kind: str, name: str, private: bool, user: str | None) -> Repository:
        """Makes a repository of the user."""
        with self.lock:
            if user is None:
                raise HubError(401, "Invalid username or password.")
            owner = name.split("/")[0]
            if owner != user:
                raise HubError(403, f'You don\'t have the rights to create a {kind} under the namespace "{owner}"')
            if (kind, name) in self.all:
                raise HubError(409, f"You already created this {kind} repo: {name}", url=name)
            self.all[kind, name] = Repository(kind, name, private)
            return self.all[kind, name]

    def get(self, kind: str, name: str, user: str | None) -> Repository:
        """A repository that the user may see."""
        repository = self.all.get((kind, name))
        if repository is None or (repository.private and repository.owner != user):
            status = 401 if user is None else 404
            raise HubError(status, "Repository not found", "RepoNotFound")
        return repository

    def owned(self, kind: str, name: str, user: str | None) -> Repository:
        """A repository that the user may write to."""
        repository = self.get(kind, name, user)
        if user is None:
            raise HubError(401, "Invalid username or password.")
        if repository.owner != user:
            raise HubError(403, f"Forbidden: you don't have write access to {name}")
        return repository

    def commit(
        self,
        repository: Repository,
        revision: str,
        lines: Iterable[Mapping[str, Any]],
        user: str,
        pull_request: bool = False,
    ) -> tuple[Commit, str]:
        """Applies the lines of a commit, all or none.

        Returns:
            The commit and the branch it is on.
        """
        import base64

        with self.lock:
            base = repository.commit_of(revision)
            files = dict(base.files)
            title = "commit"
            for line in lines:
                value = line["value"]
                if line["key"] == "header":
                    title = value["summary"]
                    parent = value.get("parentCommit")
                    if parent is not None and parent != base.oid:
                        raise HubError(412, "A commit has happened since. Please refresh and try again.")
                elif line["key"] == "file":
                    files[value["path"]] = Blob(base64.b64decode(value["content"]), False)
                elif line["key"] == "lfsFile":
                    if value["oid"] not in self.objects:
                        raise HubError(400, f"LFS pointer {value['path']} pointed to a file that does not exist")
                    files[value["path"]] = Blob(self.objects[value["oid"]], True)
                elif line["key"] == "deletedFile":
                    if files.pop(value["path"], None) is None:
                        raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
                elif line["key"] == "deletedFolder":
                    prefix = value["path"].rstrip("/") + "/"
                    files = {path: blob for path, blob in files.items() if not path.startswith(prefix)}
                elif line["key"] == "copyFile":
                    files[value["path"]] = repository.file(value.get("srcRevision") or revision, value["srcPath"])[1]
                else:
                    raise HubError(400, f"Unknown operation {line['key']}")
            if "README.md" in files:
                metadata_of(files["README.md"].content.decode())
            commit = make_commit(files, title, user, base)
            branch = f"refs/pr/{len(repository.pulls) + 1}" if pull_request else revision
            repository.advance(branch, commit)
            return commit, branch
