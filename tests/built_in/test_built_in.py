import subprocess
import sys

import pytest

from hf_blemo import built_in


def test_the_door_is_light():
    code = "import sys, hf_blemo.built_in; sys.exit(bool({'torch', 'datasets', 'PIL'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_options_win_over_defaults_and_fixed_arguments_over_options(tmp_path):
    target = built_in.load("blends", {"num_clips": 5, "seed": 3}, domain="target", seed=4)
    assert target["clip"] == built_in.make_synthetic_blends(5, 4)["clip"] and set(target["domain"]) == {1}
    clips = {"num_clips": 1, "seconds": (1.0, 1.0), "size": 32}
    [path] = built_in.load("clips", clips, folder=tmp_path / "clips")
    assert path.is_file()
    assert built_in.load("synthetic", {"num_pairs": 3}) is built_in.make_synthetic_pairs(num_pairs=3)


def test_unknown_options_are_refused():
    for kind, name, message in (
        ("blends", "num_clip", "synthetic: unknown setting 'num_clip'; the nearest known one is 'num_clips'"),
        ("clips", "folder", "synthetic: unknown setting 'folder'"),
        ("synthetic", "helt_out", "synthetic: unknown setting 'helt_out'; the nearest known one is 'held_out'"),
        ("emoji", "size", "emoji: unknown setting 'size'; the nearest known one is 'image_size'"),
    ):
        with pytest.raises(ValueError, match=message):
            built_in.load(kind, {name: 1})
