"""A small Hub on the loopback interface, which the unmodified clients talk to through HF_ENDPOINT.

It answers what `huggingface_hub`, `transformers`, `datasets` and `peft` ask: accounts, repositories, revisions, trees,
preupload, large objects (served and received on a second port, as the Hub does), commits, tags and downloads with
entity tags and ranges. Faults can be asked for: see [`Faults`].
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKENS = {"hf_of_you": "you", "hf_of_others": "others"}
# Of the default .gitattributes of the Hub: what becomes a large object whatever its size.
LARGE_SUFFIXES = (".safetensors", ".parquet", ".bin", ".onnx", ".npz", ".npy", ".tar", ".zip", ".png", ".jpg")
LARGE_SIZE = 10 * 2**20


class HubError(Exception):
    """An answer other than success: status, message, the Hub's name of the error, further headers and fields."""

    def __init__(self, status: int, message: str, code: str = "", headers: Mapping[str, str] = {}, **more: Any):
        super().__init__(message)
        self.status, self.message, self.code, self.headers, self.more = status, message, code, headers, more


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
        """Git's name of the file."""
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    @property
    def etag(self) -> str:
        """Entity tag of a download."""
        return self.sha256 if self.large else self.oid

    def described(self) -> dict[str, Any]:
        """How listings of files describe a large object."""
        known = {"oid": self.sha256, "sha256": self.sha256, "size": len(self.content), "pointerSize": 130}
        return {"lfs": known} if self.large else {}


@dataclass(frozen=True)
class Commit:
    """One state of a repository."""

    oid: str
    files: Mapping[str, Blob]
    title: str
    author: str
    parent: "Commit | None"
    date: str = field(default_factory=lambda: datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.000Z"))

    def history(self) -> list["Commit"]:
        """This commit and those before it, newest first."""
        return [self, *(self.parent.history() if self.parent else [])]


class Repository:
    """A model or data set of "you" or "others", with one empty commit."""

    def __init__(self, kind: str, name: str, private: bool):
        self.kind, self.name, self.private, self.gated = kind, name, private, False
        self.owner = name.split("/")[0]
        self.branches: dict[str, Commit] = {}
        self.tags: dict[str, Commit] = {}
        self.pulls: dict[str, Commit] = {}
        self.push({".gitattributes": Blob(b"", False)}, "initial commit")

    def push(self, files: Mapping[str, Blob], title: str, author: str = "", branch: str = "main") -> Commit:
        """Adds a commit, named by its content and history, to a branch or pull request."""
        refs = self.pulls if branch.startswith("refs/pr/") else self.branches
        parent = refs.get(branch) or self.branches.get("main")
        listing = "".join(f"{path} {files[path].oid}\n" for path in sorted(files))
        text = f"{parent.oid if parent else ''}\n{title}\n{author or self.owner}\n{listing}"
        oid = hashlib.sha1(text.encode()).hexdigest()
        refs[branch] = Commit(oid, dict(files), title, author or self.owner, parent)
        return refs[branch]

    def edit(self, path: str, content: bytes | None) -> None:
        """Replaces or deletes a file of main, as somebody does on the Hub's pages."""
        files = {name: blob for name, blob in self.branches["main"].files.items() if name != path}
        self.push(files if content is None else {**files, path: Blob(content, False)}, "edit")

    def commit_of(self, revision: str) -> Commit:
        """The commit that a branch, tag, pull request or commit hash names."""
        refs = {**self.branches, **self.tags, **self.pulls}
        commits = {commit.oid: commit for ref in refs.values() for commit in ref.history()}
        if found := refs.get(revision) or commits.get(revision):
            return found
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")


@dataclass
class Faults:
    """What goes wrong next.

    Args:
        dropped_uploads: number of uploads of large objects that are cut off in the middle.
        statuses: HTTP statuses that the next commits are answered with instead of being made; 507 is a full disk.
    """

    dropped_uploads: int = 0
    statuses: list[int] = field(default_factory=list)


class HubServer:
    """The Hub, which serves from its creation on.

    `endpoint` is its address and `storage` that of large objects; `repositories` by kind and name, and `objects` by
    their sha256, are what it keeps.
    """

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.faults = Faults()
        self.lock = threading.Lock()
        self.endpoint, self.storage = (self._serve(routes) for routes in (API, STORAGE))
        # Another host, since clients until huggingface_hub 2 follow a redirect to the same one.
        self.storage = self.storage.replace("127.0.0.1", "localhost")

    def _serve(self, routes: "Routes") -> str:
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("_Handler", (Handler,), {"hub": self, "routes": routes}))
        server.daemon_threads = True
        # A client that goes away is no error of the Hub's.
        server.handle_error = lambda *_: None  # type: ignore[method-assign]
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return f"http://127.0.0.1:{server.server_address[1]}"

    @contextmanager
    def emptied(self) -> Iterator["HubServer"]:
        """Holds nothing for a while, so that names which others use are free."""
        kept, self.repositories = self.repositories, {}
        try:
            yield self
        finally:
            self.repositories = kept

    def create(self, name: str, private: bool = True, kind: str = "model") -> Repository:
        """Makes a repository, whoever owns the name."""
        with self.lock:
            if (kind, name) in self.repositories:
                raise HubError(409, f"You already created this {kind} repo: {name}", url=self.url(kind, name))
            self.repositories[kind, name] = Repository(kind, name, private)
            return self.repositories[kind, name]

    def put(self, name: str, folder: Path, private: bool = False) -> Repository:
        """Publishes a folder as a model."""
        files = {
            path.relative_to(folder).as_posix(): Blob(path.read_bytes(), path.suffix in LARGE_SUFFIXES)
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        self.objects |= {blob.sha256: blob.content for blob in files.values() if blob.large}
        repository = self.create(name, private)
        repository.push(files, "publish")
        return repository

    def copy(self, name: str, to: str) -> Repository:
        """Publishes the files of a model under another name."""
        repository = self.create(to, private=False)
        repository.push(self.repository(name).branches["main"].files, "publish")
        return repository

    def repository(self, name: str, kind: str = "model") -> Repository:
        """A repository, whoever owns it."""
        return self.repositories[kind, name]

    def files(self, name: str, revision: str = "main", kind: str = "model") -> dict[str, bytes]:
        """Path -> content of a revision."""
        files = self.repository(name, kind).commit_of(revision).files
        return {path: blob.content for path, blob in files.items() if path != ".gitattributes"}

    def url(self, kind: str, name: str) -> str:
        """The page of a repository."""
        return f"{self.endpoint}/{'' if kind == 'model' else f'{kind}s/'}{name}"


@lru_cache
def local_hub() -> HubServer:
    """The Hub of this process and of all that it starts, up from the first call on."""
    return HubServer()


Routes = list[tuple[str, str, Callable[..., None]]]
API: Routes = []
STORAGE: Routes = []
REPOSITORY = r"/api/(?P<kind>model|dataset)s/(?P<name>[^/]+/[^/]+)"
REVISION = r"(?P<revision>[^/]+)"
# Where files and large objects are, models have no word for their kind.
FILES = r"/(?:(?P<kind>dataset)s/)?(?P<name>[^/]+/[^/]+)"


def route(methods: str, pattern: str, routes: Routes = API) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Has a method of the handler answer requests; longer paths come before those that they begin with."""

    def add(handler: Callable[..., None]) -> Callable[..., None]:
        routes.append((methods, pattern, handler))
        return handler

    return add


class Handler(BaseHTTPRequestHandler):
    """Answers one client."""

    protocol_version = "HTTP/1.1"
    hub: HubServer
    routes: Routes

    def log_message(self, *_: Any) -> None:
        """Keeps what is served off the terminal."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):
            return self.answer
        raise AttributeError(name)

    def answer(self) -> None:
        """Finds the method that answers a request, and sends what it says or what it refuses."""
        parts = urlsplit(self.path)
        self.query = parse_qs(parts.query)
        # Before anything is refused: the next request of the connection begins after it.
        self.content = self.body() if self.routes is API else b""
        try:
            for methods, pattern, handler in self.routes:
                match = re.fullmatch(pattern, parts.path)
                if match and self.command in methods.split("|"):
                    named = {key: unquote(value) for key, value in match.groupdict().items() if value}
                    handler(self, **named)
                    return
            raise HubError(404, f"Cannot {self.command} {parts.path}")
        except HubError as error:
            headers = {**error.headers, "X-Error-Message": error.message.splitlines()[0]}
            if error.code:
                headers["X-Error-Code"] = error.code
            self.reply_json({"error": error.message, **error.more}, error.status, headers)

    def body(self) -> bytes:
        """What the client sent."""
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def json(self) -> Any:
        """The request's JSON."""
        return json.loads(self.content or b"{}")

    def reply(self, status: int, content: bytes = b"", headers: Mapping[str, str] = {}) -> None:
        """Answers; the content is left out for HEAD."""
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def reply_json(self, value: Any, status: int = 200, headers: Mapping[str, str] = {}) -> None:
        """Answers with JSON."""
        self.reply(status, json.dumps(value).encode(), {"Content-Type": "application/json", **headers})

    def reply_content(self, content: bytes, headers: Mapping[str, str]) -> None:
        """Answers with a file, or with the range of it that was asked for."""
        headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream", **headers}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            self.reply(200, content, headers)
            return
        start, end = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
        self.reply(206, content[start : end + 1], {**headers, "Content-Range": f"bytes {start}-{end}/{len(content)}"})

    def drop(self) -> None:
        """Cuts the connection."""
        self.wfile.flush()
        self.close_connection = True
        self.connection.close()

    def user(self, required: bool = False) -> str | None:
        """Who asks; None for nobody known."""
        authorization = self.headers.get("Authorization")
        if not authorization:
            if required:
                raise HubError(401, "Invalid username or password.")
            return None
        user = TOKENS.get(authorization.removeprefix("Bearer ").strip())
        if user is None:
            raise HubError(401, "Invalid credentials in Authorization header")
        return user

    def repository(self, kind: str, name: str, write: bool = False) -> Repository:
        """The repository of a request, if its sender may see it or write to it."""
        user, repository = self.user(), self.hub.repositories.get((kind, name))
        if repository is None or (repository.private and repository.owner != user):
            raise HubError(401 if user is None else 404, "Repository not found", "RepoNotFound")
        if repository.gated and repository.owner != user:
            raise HubError(401 if user is None else 403, f"Access to {name} is restricted", "GatedRepo")
        if write and repository.owner != self.user(required=True):
            raise HubError(403, f"Forbidden: you don't have write access to {name}")
        return repository

    @route("GET", "/api/whoami-v2")
    def whoami(self) -> None:
        token = {"displayName": "test", "role": "write"}
        auth = {"type": "access_token", "accessToken": token}
        user = self.user(required=True)
        self.reply_json({"type": "user", "name": user, "fullname": user, "orgs": [], "auth": auth})

    @route("POST", "/api/repos/create")
    def create(self) -> None:
        given, user = self.json(), self.user(required=True)
        owner, kind = given.get("organization") or user, given.get("type") or "model"
        if owner != user:
            raise HubError(403, f'You don\'t have the rights to create a {kind} under the namespace "{owner}"')
        name = f"{owner}/{given['name']}"
        self.hub.create(name, bool(given.get("private")) or given.get("visibility") == "private", kind)
        self.reply_json({"url": self.hub.url(kind, name), "name": name})

    @route("POST", "/api/validate-yaml")
    def validate(self) -> None:
        metadata_of(self.json()["content"])
        self.reply_json({"errors": [], "warnings": []})

    @route("GET", f"{REPOSITORY}/refs")
    def refs(self, kind: str, name: str) -> None:
        repository = self.repository(kind, name)

        def listed(refs: Mapping[str, Commit], prefix: str) -> list[dict[str, str]]:
            return [{"name": key, "ref": prefix + key, "targetCommit": commit.oid} for key, commit in refs.items()]

        found = {"branches": listed(repository.branches, "refs/heads/"), "tags": listed(repository.tags, "refs/tags/")}
        self.reply_json({**found, "converts": [], "pullRequests": listed(repository.pulls, "")})

    @route("POST", f"{REPOSITORY}/tag/{REVISION}")
    def tag(self, kind: str, name: str, revision: str) -> None:
        repository, tag = self.repository(kind, name, write=True), self.json()["tag"]
        if tag in repository.tags:
            raise HubError(409, f"Tag reference exists already: {tag}")
        repository.tags[tag] = repository.commit_of(revision)
        self.reply_json({})

    @route("GET", f"{REPOSITORY}/tree/{REVISION}(?:/(?P<path>.+))?")
    def tree(self, kind: str, name: str, revision: str, path: str = "") -> None:
        commit = self.repository(kind, name).commit_of(revision)
        prefix = f"{path}/" if path else ""
        found = [entry for entry in tree_of(commit) if entry["path"].startswith(prefix)]
        if path and not found:
            raise HubError(404, f"{path} does not exist on {revision}", "EntryNotFound", {"X-Repo-Commit": commit.oid})
        recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        self.reply_json([entry for entry in found if recursive or "/" not in entry["path"][len(prefix) :]])

    @route("GET", f"{REPOSITORY}(?:/revision/{REVISION})?")
    def info(self, kind: str, name: str, revision: str = "main") -> None:
        repository = self.repository(kind, name)
        commit = repository.commit_of(revision)
        card = (
            metadata_of(commit.files["README.md"].content.decode(), strict=False)
            if "README.md" in commit.files
            else {}
        )
        siblings = []
        for path, blob in sorted(commit.files.items()):
            sizes = (
                {"size": len(blob.content), "blobId": blob.oid, **blob.described()} if "blobs" in self.query else {}
            )
            siblings.append({"rfilename": path, **sizes})
        names = dict.fromkeys(("_id", "id", "modelId"), name)
        card_data = {"tags": list(card.get("tags") or []), "cardData": card}
        card_data |= {key: card.get(key) for key in ("pipeline_tag", "library_name")}
        state = {
            "private": repository.private,
            "gated": repository.gated,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
        }
        dates = {"lastModified": commit.date, "createdAt": commit.history()[-1].date}
        found = {**names, **card_data, **state, **dates, "author": repository.owner, "sha": commit.oid}
        self.reply_json({**found, "siblings": siblings})

    @route("POST", f"{REPOSITORY}/preupload/{REVISION}")
    def preupload(self, kind: str, name: str, revision: str) -> None:
        files = self.repository(kind, name, write="create_pr" not in self.query).commit_of(revision).files
        answers = []
        for file in self.json()["files"]:
            path = file["path"]
            large = file["size"] >= LARGE_SIZE or path.endswith(LARGE_SUFFIXES)
            oid = files[path].etag if path in files else None
            mode = "lfs" if large else "regular"
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.reply_json({"files": answers})

    @route("POST", rf"{FILES}\.git/info/lfs/objects/batch")
    def large_objects(self, name: str, kind: str = "model") -> None:
        self.repository(kind, name)
        self.user(required=True)
        answers = []
        for entry in self.json()["objects"]:
            answer = {"oid": entry["oid"], "size": entry["size"]}
            if entry["oid"] not in self.hub.objects:
                upload, verify = f"{self.hub.storage}/{entry['oid']}", f"{self.hub.endpoint}/verify"
                addresses = {"upload": upload, "verify": verify}
                answer["actions"] = {action: {"href": href, "header": {}} for action, href in addresses.items()}
            answers.append(answer)
        self.reply_json({"transfer": "basic", "objects": answers})

    @route("POST", "/verify")
    def verify(self) -> None:
        given = self.json()
        assert hashlib.sha256(self.hub.objects[given["oid"]]).hexdigest() == given["oid"]
        self.reply_json({})

    @route("POST", f"{REPOSITORY}/commit/{REVISION}")
    def commit(self, kind: str, name: str, revision: str) -> None:
        lines = [json.loads(line) for line in self.content.splitlines() if line.strip()]
        pull_request = "create_pr" in self.query
        repository, user = self.repository(kind, name, write=not pull_request), self.user(required=True)
        if self.hub.faults.statuses:
            status = self.hub.faults.statuses.pop(0)
            raise HubError(status, {507: "No space left on device"}.get(status, "Internal error"))
        with self.hub.lock:
            base = repository.commit_of(revision)
            files, title = dict(base.files), "commit"
            for line in lines:
                key, value = line["key"], line["value"]
                if key == "header":
                    title = value["summary"]
                    if value.get("parentCommit") not in (None, base.oid):
                        raise HubError(412, "A commit has happened since. Please refresh and try again.")
                elif key == "file":
                    files[value["path"]] = Blob(base64.b64decode(value["content"]), False)
                elif key == "lfsFile":
                    if value["oid"] not in self.hub.objects:
                        raise HubError(400, f"LFS pointer {value['path']} pointed to a file that does not exist")
                    files[value["path"]] = Blob(self.hub.objects[value["oid"]], True)
                elif key == "deletedFile":
                    if files.pop(value["path"], None) is None:
                        raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
                else:
                    raise HubError(400, f"Unknown operation {key}")
            if "README.md" in files:
                metadata_of(files["README.md"].content.decode())
            number = len(repository.pulls) + 1
            commit = repository.push(files, title, user, f"refs/pr/{number}" if pull_request else revision)
        url = self.hub.url(kind, name)
        answer = {"success": True, "commitOid": commit.oid, "commitUrl": f"{url}/commit/{commit.oid}"}
        if pull_request:
            answer["pullRequestUrl"] = f"{url}/discussions/{number}"
        self.reply_json(answer)

    @route("GET|HEAD", f"{FILES}/resolve/{REVISION}/(?P<path>.+)")
    def resolve(self, name: str, revision: str, path: str, kind: str = "model") -> None:
        commit = self.repository(kind, name).commit_of(revision)
        # The client remembers that this commit has no such file.
        headers = {"X-Repo-Commit": commit.oid}
        if path not in commit.files:
            raise HubError(404, f"Entry not found: {path}", "EntryNotFound", headers)
        blob = commit.files[path]
        if not blob.large:
            self.reply_content(blob.content, {**headers, "ETag": f'"{blob.etag}"'})
            return
        linked = {"X-Linked-Etag": f'"{blob.etag}"', "X-Linked-Size": str(len(blob.content))}
        self.reply(302, b"", {**headers, **linked, "Location": f"{self.hub.storage}/{blob.sha256}"})

    @route("GET|HEAD", "/(?P<oid>.+)", STORAGE)
    def download(self, oid: str) -> None:
        content = self.hub.objects[oid]
        self.reply_content(content, {"ETag": f'"{oid}"'})

    @route("PUT", "/(?P<oid>.+)", STORAGE)
    def upload(self, oid: str) -> None:
        if self.hub.faults.dropped_uploads > 0:
            self.hub.faults.dropped_uploads -= 1
            self.rfile.read(min(1024, int(self.headers.get("Content-Length", 0)) // 2))
            self.drop()
            return
        self.hub.objects[oid] = self.body()
        self.reply(200)


def metadata_of(card: str, strict: bool = True) -> dict[str, Any]:
    """The YAML at the head of a card; one that the Hub refuses is an error or, where that does not matter, empty."""
    head = re.match(r"\ufeff?\s*---\s*\n(.*?)^---\s*$", card, re.DOTALL | re.MULTILINE)
    try:
        found = (yaml.safe_load(head[1]) if head else {}) or {}
        problem = "" if isinstance(found, dict) else "expected a mapping"
        for key in ("license", "library_name", "pipeline_tag"):
            if not problem and key in found and not isinstance(found[key], str | list):
                problem = f'"{key}" must be a string'
    except yaml.YAMLError as error:
        found, problem = {}, str(error)
    if problem and strict:
        raise HubError(400, f"Invalid metadata in README.md: {problem}")
    return {} if problem else found


def tree_of(commit: Commit) -> list[dict[str, Any]]:
    """Every file and folder of a commit."""
    folders = {path.rsplit("/", depth)[0] for path in commit.files for depth in range(1, path.count("/") + 1)}
    entries = [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in folders]
    for path, blob in commit.files.items():
        entries.append({"type": "file", "path": path, "oid": blob.oid, "size": len(blob.content), **blob.described()})
    return sorted(entries, key=lambda entry: str(entry["path"]))
