"""The Hub that the other tests talk to behaves as the clients expect of a Hub."""

import os
from pathlib import Path

import pytest
from fresh_processes import run_code
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError

NAME = "you/server"
WEIGHTS = bytes(range(256)) * 40


def test_the_clients_round_trip(hub, tmp_path):
    api = HfApi()
    assert api.whoami()["name"] == "you"
    api.create_repo(NAME, private=True)
    assert api.create_repo(NAME, exist_ok=True).repo_id == NAME
    folder = tmp_path / "files"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.txt").write_text("first")
    (folder / "sub" / "weights.safetensors").write_bytes(WEIGHTS)
    (folder / "README.md").write_text("---\nlicense: mit\ntags: [mine]\n---\ntext")
    first = api.upload_folder(repo_id=NAME, folder_path=folder)
    api.create_tag(NAME, tag="v1")
    (folder / "a.txt").write_text("second")
    second = api.upload_folder(repo_id=NAME, folder_path=folder)
    assert first.oid != second.oid == api.upload_folder(repo_id=NAME, folder_path=folder).oid
    assert len(api.list_repo_commits(NAME)) == 3
    info = api.model_info(NAME, files_metadata=True)
    files = {".gitattributes": False, "README.md": False, "a.txt": False, "sub/weights.safetensors": True}
    assert info.private and info.tags == ["mine"]
    assert {file.rfilename: file.lfs is not None for file in info.siblings} == files
    assert [entry.path for entry in api.list_repo_tree(NAME)] == [".gitattributes", "README.md", "a.txt", "sub"]
    for revision, text in {"v1": "first", "main": "second", first.oid: "first"}.items():
        assert Path(hf_hub_download(NAME, "a.txt", revision=revision)).read_text() == text
    # A download that breaks off is resumed where it broke.
    hub.faults.dropped_downloads = 1
    assert Path(hf_hub_download(NAME, "sub/weights.safetensors")).read_bytes() == WEIGHTS
    assert hub.faults.dropped_downloads == 0
    refused = {
        ("RemoteEntryNotFoundError", 404): lambda: hf_hub_download(NAME, "absent"),
        ("RevisionNotFoundError", 404): lambda: hf_hub_download(NAME, "a.txt", revision="absent"),
        ("RepositoryNotFoundError", 404): lambda: HfApi(token="hf_of_others").model_info(NAME),
        ("RepositoryNotFoundError", 401): lambda: HfApi(token=False).model_info(NAME),
        ("HfHubHTTPError", 401): lambda: HfApi(token="hf_wrong").model_info(NAME),
        ("HfHubHTTPError", 403): lambda: api.create_repo("others/mine"),
        ("HfHubHTTPError", 409): lambda: api.create_tag(NAME, tag="v1"),
        ("HfHubHTTPError", 412): lambda: api.upload_file(
            path_or_fileobj=b"x", path_in_repo="x", repo_id=NAME, parent_commit=first.oid
        ),
    }
    for (kind, status), call in refused.items():
        with pytest.raises(HfHubHTTPError) as error:
            call()
        assert (type(error.value).__name__, error.value.response.status_code) == (kind, status)
    pull = api.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id=NAME, create_pr=True)
    assert pull.pr_num == 1 and "x.txt" not in api.list_repo_files(NAME)
    assert "x.txt" in api.list_repo_files(NAME, revision="refs/pr/1")
    # Large objects come from another origin than the rest, as on the Hub.
    assert hub.storage != hub.endpoint
    assert all("/resolve/" in path for method, path in hub.requests if method == "HEAD")


def test_a_fresh_process_knows_only_this_hub_and_starts_with_an_empty_cache(hub, tmp_path):
    code = """
import json, os
from huggingface_hub import HfApi, constants
home = os.listdir(constants.HF_HOME)
HfApi().hf_hub_download("you/one-file", "config.json")
print(json.dumps([constants.ENDPOINT, home, constants.HF_HOME]))
"""
    (folder := tmp_path / "folder").mkdir()
    (folder / "config.json").write_text("{}")
    hub.put("you/one-file", folder)
    for _ in range(2):
        *found, home = run_code(tmp_path, code)
        assert found == [hub.endpoint, []] and home != os.environ["HF_HOME"]
