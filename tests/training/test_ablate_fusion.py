"""The program of the ablation: its two files, and its errors."""

import json

import pytest

QUICK = ("--seeds", 0, "--num_epochs", 1, "--model.hidden_size", 8, "--model.top_n", 1)


def test_two_rows_are_computed_and_written(program, table, tmp_path, capsys):
    output = tmp_path / "output"
    only = ("--only", "mean of all", "rank-aware, n = 1")
    program("ablate_fusion.py", "--data", table, "--output_dir", output, *QUICK, *only)
    rows = json.loads((output / "ablation.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["mean of all", "rank-aware, n = 1 (the method as configured)"]
    text = (output / "ablation.md").read_text()
    for row in rows:
        [line] = [line for line in text.splitlines() if line.startswith(f"| {row['name']} |")]
        assert f"{row['expected_score']['score']['mean']:.4f}" in line
        assert f"{row['loss']['mean']:.4f}" in line
    assert text in capsys.readouterr().out


def test_bad_input_ends_with_code_two_and_writes_nothing(program, table, tmp_path, capsys):
    for arguments in (["--onli", "mean"], ["--encoders", "clip"], ["--data", "gone"]):
        with pytest.raises(SystemExit) as end:
            program("ablate_fusion.py", "--data", table, "--output_dir", tmp_path / "output", *QUICK, *arguments)
        assert end.value.code == 2
        assert "ablate_fusion.py: error: " in capsys.readouterr().err
    assert not (tmp_path / "output").exists()
