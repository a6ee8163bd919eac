"""A small Hub on the loopback interface, which the unmodified clients talk to through HF_ENDPOINT.

It answers what `huggingface_hub`, `transformers`, `datasets` and `peft` ask: accounts, repositories, revisions, trees,
preupload, large objects (served and received on a second port, as the Hub does), commits, tags and downloads with
entity tags and ranges. Faults can be asked for: see [`Faults`].
"""

import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from hub_repositories import (
    LARGE_SIZE,
    LARGE_SUFFIXES,
    Blob,
    Commit,
    HubError,
    Repositories,
    Repository,
    make_commit,
    metadata_of,
)

TOKENS = {"hf_of_you": "you", "hf_of_others": "others"}
REPOSITORY = r"(?:(?P<kind>models|datasets|spaces)/)(?P<name>[^/]+/[^/]+)"


@dataclass
class Faults:
    """What goes wrong next.

    Args:
        dropped_uploads: number of uploads of large objects that are cut off in the middle.
        statuses: HTTP statuses that the next commits are answered with instead of being made; 507 is a full disk.
        dropped_downloads: number of downloads of large objects that are cut off in the middle.
    """

    dropped_uploads: int = 0
    statuses: list[int] = field(default_factory=list)
    dropped_downloads: int = 0


class HubServer:
    """The Hub; `with HubServer() as hub` starts and stops it.

    `endpoint` is its address; `repositories` what it keeps; `requests` the requests so far as (method, path).
    """

    def __init__(self):
        self.repositories = Repositories(TOKENS)
        self.faults = Faults()
        self.requests: list[tuple[str, str]] = []
        self._servers = [_Server(("127.0.0.1", 0), handler) for handler in (_ApiHandler, _StorageHandler)]
        for server in self._servers:
            server.hub = self
        self.endpoint, self.storage = (f"http://127.0.0.1:{server.server_address[1]}" for server in self._servers)

    def __enter__(self) -> "HubServer":
        for server in self._servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def repository(self, name: str, kind: str = "model") -> Repository:
        """A repository, whoever owns it."""
        return self.repositories.all[kind, name]

    @contextmanager
    def emptied(self) -> Iterator["HubServer"]:
        """Holds nothing for a while, so that names which others use are free."""
        kept, self.repositories = self.repositories, Repositories(TOKENS)
        try:
            yield self
        finally:
            self.repositories = kept

    def put(self, name: str, folder: Path, private: bool = False) -> Repository:
        """Publishes a folder as a model, whoever owns the name."""
        files = {
            path.relative_to(folder).as_posix(): Blob(path.read_bytes(), path.suffix in LARGE_SUFFIXES)
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        self.repositories.objects |= {blob.sha256: blob.content for blob in files.values() if blob.large}
        return self._publish(name, files, private)

    def copy(self, name: str, to: str) -> Repository:
        """Publishes the files of a model under another name."""
        return self._publish(to, self.repository(name).branches["main"].files, False)

    def _publish(self, name: str, files: Mapping[str, Blob], private: bool) -> Repository:
        owner = name.split("/")[0]
        repository = self.repositories.create("model", name, private, owner)
        repository.branches["main"] = make_commit(files, "publish", owner, repository.branches["main"])
        return repository

    def files(self, name: str, revision: str = "main", kind: str = "model") -> dict[str, bytes]:
        """Path -> content of a revision."""
        files = self.repository(name, kind).commit_of(revision).files
        return {path: blob.content for path, blob in files.items() if path != ".gitattributes"}


@lru_cache
def local_hub() -> HubServer:
    """The Hub of this process and of all that it starts, up from the first call on."""
    return HubServer().__enter__()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: HubServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no error of the Hub's."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_: Any) -> None:
        """Keeps what is served off the terminal."""

    @property
    def hub(self) -> HubServer:
        return self.server.hub

    def body(self) -> bytes:
        """What the client sent, in one piece or in chunks."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def reply(self, status: int, content: bytes = b"", headers: dict[str, str] | None = None) -> None:
        """Answers; the content is left out for HEAD."""
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def reply_json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        """Answers with JSON."""
        self.reply(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def reply_content(self, content: bytes, headers: dict[str, str]) -> None:
        """Answers with a file, or with the range of it that was asked for."""
        headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream", **headers}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            self.reply(200, content, {**headers, "Content-Length": str(len(content))})
            return
        start = int(asked[1])
        end = min(int(asked[2]) if asked[2] else len(content) - 1, len(content) - 1)
        if start > end:
            self.reply(416, b"", {"Content-Range": f"bytes */{len(content)}"})
            return
        self.reply(206, content[start : end + 1], {**headers, "Content-Range": f"bytes {start}-{end}/{len(content)}"})

    def drop(self) -> None:
        """Cuts the connection without an answer."""
        self.close_connection = True
        self.connection.close()


class _StorageHandler(_Handler):
    """Large objects, on an origin of their own."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        content = self.hub.repositories.objects.get(self.path.strip("/"))
        if content is None:
            self.reply(404)
            return
        headers = {"ETag": f'"{self.path.strip("/")}"'}
        if self.command == "GET" and self.hub.faults.dropped_downloads > 0:
            self.hub.faults.dropped_downloads -= 1
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            self.drop()
            return
        self.reply_content(content, headers)

    def do_PUT(self) -> None:
        if self.hub.faults.dropped_uploads > 0:
            self.hub.faults.dropped_uploads -= 1
            self.rfile.read(min(1024, int(self.headers.get("Content-Length", 0)) // 2))
            self.drop()
            return
        self.hub.repositories.objects[self.path.strip("/")] = self.body()
        self.reply(200)


class _ApiHandler(_Handler):
    """Everything but large objects."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):
            return self.answer
        raise AttributeError(name)

    def answer(self) -> None:
        """Finds the handler of a request by method and path, and sends what it says or what it refuses."""
        parts = urlsplit(self.path)
        self.query = parse_qs(parts.query)
        self.hub.requests.append((self.command, unquote(parts.path)))
        self.content = self.body()
        try:
            self.user = self.hub.repositories.user(self.headers.get("Authorization"))
            for method, pattern, handler in ROUTES:
                match = re.fullmatch(pattern, parts.path)
                if match and self.command in method.split("|"):
                    handler(self, **{key: unquote(value or "") for key, value in match.groupdict().items()})
                    return
            raise HubError(404, f"Cannot {self.command} {parts.path}")
        except HubError as error:
            headers = {**error.headers, "X-Error-Message": error.message.splitlines()[0]}
            if error.code is not None:
                headers["X-Error-Code"] = error.code
            self.reply_json({"error": error.message, **error.more}, error.status, headers)

    def json(self) -> Any:
        """The request's JSON."""
        return json.loads(self.content or b"{}")

    def repository(self, kind: str, name: str, write: bool = False) -> Repository:
        """The repository of a request, if its sender may see it or write to it."""
        repositories = self.hub.repositories
        return (repositories.owned if write else repositories.get)(kind.removesuffix("s") or "model", name, self.user)

    # What the routes call: named after what they answer.

    def whoami(self) -> None:
        if self.user is None:
            raise HubError(401, "Invalid username or password.")
        token = {"displayName": "test", "role": "write"}
        auth = {"type": "access_token", "accessToken": token}
        self.reply_json({"type": "user", "name": self.user, "fullname": self.user, "orgs": [], "auth": auth})

    def create(self) -> None:
        given = self.json()
        name = f"{given.get('organization') or self.user}/{given['name']}"
        kind = given.get("type") or "model"
        private = given.get("private") or given.get("visibility") == "private"
        try:
            self.hub.repositories.create(kind, name, bool(private), self.user)
        except HubError as error:
            if "url" in error.more:
                error.more["url"] = self.url(kind, name)
            raise
        self.reply_json({"url": self.url(kind, name), "name": name})

    def url(self, kind: str, name: str) -> str:
        return f"{self.hub.endpoint}/{'' if kind == 'model' else f'{kind}s/'}{name}"

    def delete(self) -> None:
        given = self.json()
        kind, name = given.get("type") or "model", f"{given.get('organization') or self.user}/{given['name']}"
        self.hub.repositories.owned(kind, name, self.user)
        del self.hub.repositories.all[kind, name]
        self.reply_json({})

    def settings(self, kind: str, name: str) -> None:
        repository, given = self.repository(kind, name, write=True), self.json()
        repository.private = bool(given.get("private") or given.get("visibility") == "private")
        self.reply_json({"private": repository.private})

    def info(self, kind: str, name: str, revision: str = "main") -> None:
        repository = self.repository(kind, name)
        commit = repository.commit_of(revision or "main")
        card = repository.card_data(commit)
        siblings = []
        for path, blob in sorted(commit.files.items()):
            entry: dict[str, Any] = {"rfilename": path}
            if self.query.get("blobs"):
                entry |= {"size": len(blob.content), "blobId": blob.oid, **_large(blob)}
            siblings.append(entry)
        self.reply_json(
            {
                "_id": repository.name,
                "id": repository.name,
                "modelId": repository.name,
                "author": repository.owner,
                "sha": commit.oid,
                "lastModified": commit.date,
                "createdAt": commit.history()[-1].date,
                "private": repository.private,
                "gated": False,
                "disabled": False,
                "downloads": 0,
                "likes": 0,
                "tags": list(card.get("tags") or []),
                "pipeline_tag": card.get("pipeline_tag"),
                "library_name": card.get("library_name"),
                "cardData": card,
                "siblings": siblings,
            }
        )

    def tree(self, kind: str, name: str, revision: str, path: str = "") -> None:
        commit = self.repository(kind, name).commit_of(revision)
        entries = _tree(commit)
        prefix = f"{path}/" if path else ""
        if path and not any(entry["path"].startswith(prefix) for entry in entries):
            raise HubError(404, f"{path} does not exist on {revision}", "EntryNotFound", {"X-Repo-Commit": commit.oid})
        recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        found = [entry for entry in entries if entry["path"].startswith(prefix)]
        self.reply_json([entry for entry in found if recursive or "/" not in entry["path"][len(prefix) :]])

    def paths_info(self, kind: str, name: str, revision: str) -> None:
        commit = self.repository(kind, name).commit_of(revision)
        if "json" in self.headers.get("Content-Type", ""):
            paths = self.json()["paths"]
        else:
            paths = parse_qs(self.content.decode()).get("paths", [])
        self.reply_json([entry for entry in _tree(commit) if entry["path"] in paths])

    def refs(self, kind: str, name: str) -> None:
        repository = self.repository(kind, name)

        def listed(refs: dict[str, Commit], prefix: str) -> list[dict[str, str]]:
            return [{"name": key, "ref": prefix + key, "targetCommit": commit.oid} for key, commit in refs.items()]

        branches, tags = listed(repository.branches, "refs/heads/"), listed(repository.tags, "refs/tags/")
        pulls = listed(repository.pulls, "") if self.query.get("include_prs") else []
        self.reply_json({"branches": branches, "converts": [], "tags": tags, "pullRequests": pulls})

    def commits(self, kind: str, name: str, revision: str) -> None:
        history = self.repository(kind, name).commit_of(revision).history()
        self.reply_json(
            [
                {
                    "id": commit.oid,
                    "title": commit.title,
                    "message": "",
                    "date": commit.date,
                    "authors": [{"user": commit.author}],
                }
                for commit in history
            ]
        )

    def tag(self, kind: str, name: str, revision: str) -> None:
        repository = self.repository(kind, name, write=True)
        if self.command == "DELETE":
            if repository.tags.pop(revision, None) is None:
                raise HubError(404, f"Tag {revision} not found", "RevisionNotFound")
        else:
            tag = self.json()["tag"]
            if tag in repository.tags:
                raise HubError(409, f"Tag reference exists already: {tag}")
            repository.tags[tag] = repository.commit_of(revision)
        self.reply_json({})

    def branch(self, kind: str, name: str, branch: str) -> None:
        repository = self.repository(kind, name, write=True)
        if self.command == "DELETE":
            repository.branches.pop(branch, None)
        elif branch in repository.branches:
            raise HubError(409, f"Reference already exists: {branch}")
        else:
            repository.branches[branch] = repository.commit_of(self.json().get("startingPoint") or "main")
        self.reply_json({})

    def validate(self) -> None:
        try:
            metadata_of(self.json()["content"])
        except HubError as error:
            self.reply_json({"errors": [{"message": error.message}], "warnings": []}, 400)
            return
        self.reply_json({"errors": [], "warnings": []})

    def preupload(self, kind: str, name: str, revision: str) -> None:
        repository = self.repository(kind, name, write=not self.query.get("create_pr"))
        commit = repository.commit_of(revision)
        answers = []
        for file in self.json()["files"]:
            path = file["path"]
            large = file["size"] >= LARGE_SIZE or path.endswith(LARGE_SUFFIXES)
            there = commit.files.get(path)
            answers.append(
                {
                    "path": path,
                    "uploadMode": "lfs" if large else "regular",
                    "shouldIgnore": False,
                    "oid": None if there is None else there.etag,
                }
            )
        self.reply_json({"files": answers})

    def large_objects(self, kind: str, name: str) -> None:
        self.repository(kind or "models", name)
        if self.user is None:
            raise HubError(401, "Invalid username or password.")
        answers = []
        for entry in self.json()["objects"]:
            answer = {"oid": entry["oid"], "size": entry["size"]}
            if entry["oid"] not in self.hub.repositories.objects:
                verify = f"{self.hub.endpoint}/verify"
                answer["actions"] = {
                    "upload": {"href": f"{self.hub.storage}/{entry['oid']}", "header": {}},
                    "verify": {"href": verify, "header": {}},
                }
            answers.append(answer)
        self.reply_json({"transfer": "basic", "objects": answers})

    def verify(self) -> None:
        import hashlib

        given = self.json()
        content = self.hub.repositories.objects.get(given["oid"], b"")
        if len(content) != given["size"] or hashlib.sha256(content).hexdigest() != given["oid"]:
            self.hub.repositories.objects.pop(given["oid"], None)
            raise HubError(400, "The uploaded object is not what was announced")
        self.reply_json({})

    def commit(self, kind: str, name: str, revision: str) -> None:
        pull_request = bool(self.query.get("create_pr"))
        repository = self.repository(kind, name, write=not pull_request)
        if self.user is None:
            raise HubError(401, "Invalid username or password.")
        if self.hub.faults.statuses:
            status = self.hub.faults.statuses.pop(0)
            messages = {507: "No space left on device", 503: "Service unavailable"}
            raise HubError(status, messages.get(status, "Internal error"))
        lines = [json.loads(line) for line in self.content.splitlines() if line.strip()]
        commit, branch = self.hub.repositories.commit(repository, revision, lines, self.user, pull_request)
        url = self.url(repository.kind, name)
        answer = {"success": True, "commitOid": commit.oid, "commitUrl": f"{url}/commit/{commit.oid}"}
        if pull_request:
            answer["pullRequestUrl"] = f"{url}/discussions/{branch.removeprefix('refs/pr/')}"
        self.reply_json(answer)

    def resolve(self, kind: str, name: str, revision: str, path: str) -> None:
        repository = self.repository(kind or "models", name)
        commit, blob = repository.file(revision, path)
        headers = {"X-Repo-Commit": commit.oid}
        if not blob.large:
            self.reply_content(blob.content, {**headers, "ETag": f'"{blob.etag}"'})
            return
        linked = {"X-Linked-Etag": f'"{blob.etag}"', "X-Linked-Size": str(len(blob.content))}
        self.reply(302, b"", {**headers, **linked, "Location": f"{self.hub.storage}/{blob.sha256}"})


def _large(blob: Blob) -> dict[str, Any]:
    if not blob.large:
        return {}
    return {
        "lfs": {"oid": blob.sha256, "sha256": blob.sha256, "size": len(blob.content), "pointerSize": len(blob.pointer)}
    }


def _tree(commit: Commit) -> list[dict[str, Any]]:
    """Every file and folder of a commit."""
    folders = {path.rsplit("/", depth)[0] for path in commit.files for depth in range(1, path.count("/") + 1)}
    entries = [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in folders]
    for path, blob in commit.files.items():
        entries.append({"type": "file", "path": path, "oid": blob.oid, "size": len(blob.content), **_large(blob)})
    return sorted(entries, key=lambda entry: str(entry["path"]))


# Longer paths before those that they begin with.
ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("GET", r"/api/whoami-v2", _ApiHandler.whoami),
    ("POST", r"/api/repos/create", _ApiHandler.create),
    ("DELETE", r"/api/repos/delete", _ApiHandler.delete),
    ("POST", r"/api/validate-yaml", _ApiHandler.validate),
    ("POST", r"/verify", _ApiHandler.verify),
    ("PUT", rf"/api/{REPOSITORY}/settings", _ApiHandler.settings),
    ("GET", rf"/api/{REPOSITORY}/refs", _ApiHandler.refs),
    ("GET", rf"/api/{REPOSITORY}/commits/(?P<revision>[^/]+)", _ApiHandler.commits),
    ("POST|DELETE", rf"/api/{REPOSITORY}/tag/(?P<revision>[^/]+)", _ApiHandler.tag),
    ("POST|DELETE", rf"/api/{REPOSITORY}/branch/(?P<branch>[^/]+)", _ApiHandler.branch),
    ("POST", rf"/api/{REPOSITORY}/preupload/(?P<revision>[^/]+)", _ApiHandler.preupload),
    ("POST", rf"/api/{REPOSITORY}/commit/(?P<revision>[^/]+)", _ApiHandler.commit),
    ("POST", rf"/api/{REPOSITORY}/paths-info/(?P<revision>[^/]+)", _ApiHandler.paths_info),
    ("GET", rf"/api/{REPOSITORY}/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?", _ApiHandler.tree),
    ("GET", rf"/api/{REPOSITORY}/revision/(?P<revision>[^/]+)", _ApiHandler.info),
    ("GET", rf"/api/{REPOSITORY}", _ApiHandler.info),
    (
        "POST",
        r"/(?:(?P<kind>datasets)/)?(?P<name>[^/]+/[^/]+)\.git/info/lfs/objects/batch",
        _ApiHandler.large_objects,
    ),
    (
        "GET|HEAD",
        r"/(?:(?P<kind>datasets)/)?(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)",
        _ApiHandler.resolve,
    ),
]
