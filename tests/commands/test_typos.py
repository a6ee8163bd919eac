"""Typing errors: each ends a command with one line that names what was meant."""

import pytest
from command_line import refused

DRAWN = "--data synthetic --synthetic.num_clips 40 --output_dir {out}"
PAIRS = "--data synthetic --synthetic.num_pairs 20 --output_dir {out}"
# Command line -> what its line must suggest.
TYPOS = {
    # Commands.
    "trian": "train",
    "pubish --help": "publish",
    "abblate": "ablate",
    "dataset biuld": "build",
    # Options.
    "predict a.mp4 --modle x": "--model",
    "predict a.mp4 --model x --decodng soft": "--decoding",
    "evaluate --label x": "--labels",
    "publish x --licence mit": "--license",
    "submit --ouput x": "--output",
    "recipes fusion_table --overwirte": "--overwrite",
    # Settings, of the command line and inside of others.
    "train --lerning-rate 1": "--learning_rate",
    "features clips --encodr a=b": "--encoders",
    "features clips --encoders.a.model b": "model_id",
    f"train {DRAWN} --model.hiden_size 8": "hidden_size",
    "train --data synthetic --synthetic.num_clip 8 --output_dir {out}": "num_clips",
    f"distill {PAIRS} --weights.hdr 1": "hrd",
    f"distill {PAIRS} --augmentation.scal 1": "scale",
    f"distill {PAIRS} --evaluation.a.kid 3": "kind",
    "ablate-encoders --config encoders_synthetic --fusion.num_epoch 3": "num_epochs",
    # Values.
    "predict a.mp4 --model x --decoding sotf": "soft",
    "evaluate --model x --benchmark synthetik": "synthetic",
    "train --data x --protocol honst": "honest",
    f"train {DRAWN} --selection_metric nnl": "nll",
    f"train {DRAWN} --pooling statistic": "statistics",
    "features clips --encoder a=b --dtype bfloat61": "bfloat16",
    f"distill {PAIRS} --student vit-t-61": "vit-t-16",
    f"compare {PAIRS} --methods CLIP-KP": "CLIP-KD",
    # Names of data, encoders, rows, recipes and files.
    "train --data syntetic --output_dir {out}": "synthetic",
    f"train {DRAWN} --encoders vioce": "voice",
    f"ablate {DRAWN} --only adaptatoin": "adaptation",
    "ablate-encoders --config encoders_synthetic --sets.x vioce": "voice",
    "train --config fusion_blemor": "fusion_blemore",
    "recipes fusion-table.yml": "fusion_table",
}


@pytest.mark.parametrize(("line", "meant"), TYPOS.items(), ids=TYPOS)
def test_one_line_names_what_was_meant(capsys, tmp_path, fresh_accelerate_state, line, meant):
    error = refused(capsys, *line.format(out=tmp_path / "out").split())
    assert f"did you mean {meant}?" in error.replace("'", "") or f"the nearest known one is {meant!r}" in error
    assert not (tmp_path / "out").exists()


def test_what_is_near_nothing_is_told_what_there_is(capsys):
    for line, said in {
        "xyzzy": "hf-blemo: error: unknown command 'xyzzy', expected predict, ",
        "--colour predict": "unknown option --colour; expected a command before its options",
        "train --data x --protocol qqq": "found 'qqq', expected honest, published_style or none\n",
        "train --data x --config zzz": "zzz: no such file, expected settings in YAML or the name of a recipe (hf-bl",
    }.items():
        assert said in refused(capsys, *line.split())


def test_a_path_that_leads_nowhere_names_its_neighbour(capsys, tmp_path, fresh_accelerate_state):
    (tmp_path / "features").mkdir()
    error = refused(capsys, "train", "--data", tmp_path / "feature", "--output_dir", tmp_path / "out")
    assert error.endswith(f"; did you mean '{tmp_path / 'features'}'?\n")
