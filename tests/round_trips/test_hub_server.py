"""The Hub that the other tests talk to behaves as the clients expect of a Hub."""

import os

PROGRAM = """
import json, os
from pathlib import Path
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import _http

api, report = HfApi(), {}
report["name"] = api.whoami()["name"]
api.create_repo("you/server", private=True)
assert api.create_repo("you/server", exist_ok=True).repo_id == "you/server"
folder = Path("files")
(folder / "sub").mkdir(parents=True)
(folder / "a.txt").write_text("first")
(folder / "sub" / "weights.safetensors").write_bytes(bytes(range(256)) * 40)
(folder / "README.md").write_text("---\\nlicense: mit\\ntags: [mine]\\n---\\ntext")
first = api.upload_folder(repo_id="you/server", folder_path=folder)
api.create_tag("you/server", tag="v1")
(folder / "a.txt").write_text("second")
second = api.upload_folder(repo_id="you/server", folder_path=folder)
again = api.upload_folder(repo_id="you/server", folder_path=folder)
report["commits"] = [first.oid != second.oid, second.oid == again.oid, len(api.list_repo_commits("you/server"))]
info = api.model_info("you/server", files_metadata=True)
report["info"] = [info.private, info.tags, {file.rfilename: file.lfs is not None for file in info.siblings}]
report["tree"] = [entry.path for entry in api.list_repo_tree("you/server")]
paths = {revision: hf_hub_download("you/server", "a.txt", revision=revision) for revision in ("v1", "main", first.oid)}
report["texts"] = {("first" if key == first.oid else key): Path(path).read_text() for key, path in paths.items()}
weights = Path(hf_hub_download("you/server", "sub/weights.safetensors"))
report["weights"] = weights.read_bytes() == bytes(range(256)) * 40
refused = {
    "entry": lambda: hf_hub_download("you/server", "absent"),
    "revision": lambda: hf_hub_download("you/server", "a.txt", revision="absent"),
    "repository": lambda: hf_hub_download("you/absent", "a.txt"),
    "namespace": lambda: api.create_repo("others/mine"),
    "tag": lambda: api.create_tag("you/server", tag="v1"),
    "anonymous": lambda: HfApi(token=False).model_info("you/server"),
    "stranger": lambda: HfApi(token="hf_of_others").model_info("you/server"),
    "token": lambda: HfApi(token="hf_wrong").model_info("you/server"),
    "parent": lambda: api.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id="you/server",
                                      parent_commit=first.oid),
}
for name, call in refused.items():
    try:
        call()
    except HfHubHTTPError as error:
        report[name] = [type(error).__name__, error.response.status_code]
pull = api.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id="you/server", create_pr=True)
report["pull"] = [pull.pr_num, "x.txt" in api.list_repo_files("you/server"),
                  "x.txt" in api.list_repo_files("you/server", revision="refs/pr/1")]
print(json.dumps(report))
"""


def test_the_clients_round_trip(on_hub, hub):
    # A download that breaks off is taken up where it broke.
    hub.faults.dropped_downloads = 1
    report = on_hub(PROGRAM)
    assert hub.faults.dropped_downloads == 0
    assert report["name"] == "you"
    assert report["commits"] == [True, True, 3]
    files = {".gitattributes": False, "README.md": False, "a.txt": False, "sub/weights.safetensors": True}
    assert report["info"] == [True, ["mine"], files]
    assert report["tree"] == [".gitattributes", "README.md", "a.txt", "sub"]
    assert report["texts"] == {"v1": "first", "main": "second", "first": "first"} and report["weights"]
    assert report["entry"] == ["RemoteEntryNotFoundError", 404]
    assert report["revision"] == ["RevisionNotFoundError", 404]
    assert report["repository"] == ["RepositoryNotFoundError", 404]
    assert report["namespace"] == ["HfHubHTTPError", 403] and report["tag"] == ["HfHubHTTPError", 409]
    assert report["anonymous"] == ["RepositoryNotFoundError", 401]
    assert report["stranger"] == ["RepositoryNotFoundError", 404]
    assert report["token"] == ["HfHubHTTPError", 401] and report["parent"] == ["HfHubHTTPError", 412]
    assert report["pull"] == [1, False, True]
    # Large objects come from another origin than the rest, as on the Hub.
    assert hub.storage != hub.endpoint
    assert all("/resolve/" in path for method, path in hub.requests if method == "HEAD")


def test_a_range_of_a_file_is_served(hub, on_hub):
    code = """
import json
from huggingface_hub import HfApi, get_session, hf_hub_url
api = HfApi()
api.create_repo("you/ranges")
for name in ("large.bin", "small.txt"):
    api.upload_file(path_or_fileobj=b"0123456789", path_in_repo=name, repo_id="you/ranges")
found = {}
for name in ("large.bin", "small.txt"):
    answer = get_session().get(hf_hub_url("you/ranges", name), headers={"Range": "bytes=3-5"}, follow_redirects=True)
    found[name] = [answer.status_code, answer.text, answer.headers["Content-Range"]]
print(json.dumps(found))
"""
    assert on_hub(code) == dict.fromkeys(("large.bin", "small.txt"), [206, "345", "bytes 3-5/10"])


def test_a_program_knows_this_hub_alone_and_starts_with_an_empty_cache(hub, on_hub, tmp_path):
    code = """
import json, os
from huggingface_hub import HfApi, constants, get_token
home = os.listdir(constants.HF_HOME)
HfApi().hf_hub_download("you/one-file", "config.json")
print(json.dumps([constants.ENDPOINT, home, get_token(), constants.HF_HUB_OFFLINE, constants.HF_HOME]))
"""
    (folder := tmp_path / "folder").mkdir()
    (folder / "config.json").write_text("{}")
    hub.put("you/one-file", folder)
    for token in (None, "hf_of_you"):
        *found, home = on_hub(code, token=token)
        assert found == [hub.endpoint, [], token, False] and home != os.environ["HF_HOME"]
