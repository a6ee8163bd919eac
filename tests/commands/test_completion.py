"""`hf-blemo completion`: the script completes commands, options, settings, their values and recipes."""

import subprocess
import sys
from shutil import which

import pytest
from command_line import refused, run

from hf_blemo import cli
from hf_blemo.programs.recipes import recipes

# What is typed -> what it can become.
COMPLETED = {
    "tr": "train",
    "dataset b": "build",
    "predict --dec": "--decoding",
    "train --protocol h": "honest",
    "features --label_k": "--label_kind",
    "distill --config clip_rd_c": "clip_rd_comparison clip_rd_comparison_emoji",
}
ASK = """
eval "$1"
COMP_WORDS=(hf-blemo $2) COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
$(complete -p hf-blemo | sed 's/.*-F \\([^ ]*\\).*/\\1/') hf-blemo "${COMP_WORDS[$COMP_CWORD]}" "${COMP_WORDS[-2]}"
echo "${COMPREPLY[@]}"
"""


@pytest.mark.skipif(which("bash") is None, reason="needs bash")
def test_a_shell_completes_what_is_typed(capsys):
    pytest.importorskip("shtab")
    code, script, _ = run(capsys, "completion", "bash")
    assert code == 0
    for typed, completed in COMPLETED.items():
        done = subprocess.run(["bash", "-c", ASK, "ask", script, typed], capture_output=True, text=True, timeout=60)
        assert done.stdout.strip() == completed, done.stderr


def test_every_setting_is_an_option_for_what_goes_through_them():
    [commands] = [action.choices for action in cli._make_parser()._actions if isinstance(action.choices, dict)]
    parser = commands["distill"]
    before = parser.format_help()
    parser.add_settings()
    parser.add_settings()
    options = {action.option_strings[0]: action for action in parser._actions}
    assert {f"--{name}" for name in parser.settings_class().__dataclass_fields__} < set(options)
    assert options["--config"].choices == list(recipes())
    assert options["--mixed_precision"].choices == ("no", "bf16", "fp16")
    assert options["--overwrite"].choices == ("true", "false")
    assert parser.format_help() == before


def test_without_its_library_it_names_it(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert "completion needs shtab: pip install " in refused(capsys, "completion", "bash")
