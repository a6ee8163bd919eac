"""The Hub that the other tests talk to is the only one that they can reach."""

import os

from fresh_processes import run_code


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
