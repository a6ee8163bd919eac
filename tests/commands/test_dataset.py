"""`hf-blemo dataset` with other people's labels: what it builds, says and refuses."""

from pathlib import Path

import datasets
import numpy as np
import pytest
from command_line import refused, run

from hf_blemo import feature_sets

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def lines(text):
    return [" ".join(line.split()) for line in text.splitlines()]


def said(caplog):
    """What was logged, which the command prints on stderr."""
    found = [record.getMessage() for record in caplog.records]
    caplog.clear()
    return found


def real(name):
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"no {name} in ../shared/data")
    return path


def test_ravdess_has_eight_single_classes_and_its_actors_are_the_groups(capsys, caplog, tmp_path):
    table, output = real("ravdess_encoders.parquet"), tmp_path / "ravdess"
    code, out, _ = run(capsys, "dataset", "build", table, "--output", output, "--label-column", "emotion")
    assert code == 0 and lines(out)[:7] == [
        str(output), "clips 1200", "labels 8 valid; 8 names (ang, calm, disg, fea, hap, neu, sad, sur), single",
        "labelled 1200, 0 of them blends", "folds 0: 240, 1: 240, 2: 240, 3: 240, 4: 240",
        "groups 20, none in two folds", "name share top",
    ]  # fmt: skip
    assert "neu 0.067 80" in lines(out) and "cmp_rasta 494 float32 1200" in lines(out)
    assert said(caplog) == [f"{table}: the column 'actor' is kept as `group`; no value of it is in two folds"]
    assert run(capsys, "dataset", "info", output)[1] == out.partition("\n")[2]


def test_crema_d_has_shares_of_votes_and_encoders_that_a_third_lacks(capsys, caplog, tmp_path):
    table, output = real("crema_d_votes.parquet"), tmp_path / "crema"
    build = ("dataset", "build", table, "--output", output, "--label-prefix", "votes.", "--label-kind", "soft")
    assert "'prosody', clip '" in refused(capsys, *build) and not output.exists()
    caplog.clear()
    code, out, _ = run(capsys, *build, "--nan", "missing")
    assert code == 0 and lines(out)[2:5] == [
        "labels soft; 6 names (ang, disg, fea, hap, neu, sad), single",
        "labelled 5972, 5041 of them of several names (84%)", "folds 0: 977, 1: 1059, 2: 1148, 3: 1476, 4: 1312",
    ]  # fmt: skip
    assert {"groups 73, none in two folds", "e2v_onehot 8 float32 3932", "prosody 6 float32 3931"} <= set(lines(out))
    assert [line.removeprefix(f"{table}: ") for line in said(caplog)] == [
        "the column 'actor' is kept as `group`; no value of it is in two folds",
        "taken as missing for NaN or infinity, of 5972 rows: prosody in 1",
        "left out the columns intended, level, num_raters, which are neither vectors nor clip, fold, label or group",
    ]
    dataset = datasets.load_from_disk(str(output))
    np.testing.assert_allclose(np.array(dataset["labels"][:]).sum(1), 1, atol=1e-6)
    assert feature_sets.label_space(dataset)[1] == "soft"


def write(path, moods=("calm", "up", "calm+up"), clips=30):
    rows = [f"c{row},{moods[row % len(moods)]},{row % 5},{row}.5,{row % 7}\n" for row in range(clips)]
    path.write_text("clip,mood,person,voice.0,voice.1\n" + "".join(rows))
    return path


def test_sets_folds_and_groups_by_options(capsys, caplog, tmp_path):
    table, output = write(tmp_path / "t.csv"), tmp_path / "built"
    build = ("dataset", "build", table, "--output", output, "--label-column", "mood")
    options = "--names up calm low --blend-percents 70/30 50/50 --unblended low --folds 5 --group person --seed 3"
    code, out, _ = run(capsys, *build, *options.split())
    assert code == 0 and said(caplog) == [] and lines(out)[1:7] == [
        "clips 30", "labels 5 valid; 3 names (up, calm, low), blends of 70/30, 50/50, low unblended",
        "labelled 30, 10 of them blends (33%)", "folds 0: 6, 1: 6, 2: 6, 3: 6, 4: 6", "groups 5, none in two folds",
        "name share top",
    ]  # fmt: skip
    assert "low 0.000 0" in lines(out)
    code, out, _ = run(capsys, *build, "--folds", "3", "--overwrite")
    assert code == 0 and "groups unknown, so the folds may not be group-disjoint" in lines(out)
    assert [line.removeprefix(f"{table}: ") for line in said(caplog)] == [
        "folds are dealt by label alone and are not group-disjoint",
        "left out the columns person, which are neither vectors nor clip, fold, label or group",
    ]


def named_features(folder, names):
    for encoder, width in (("voice", 2), ("face_train", 3)):
        (folder / encoder).mkdir(parents=True)
        for number, name in enumerate(names):
            np.save(folder / encoder / f"{name}.npy", np.full((2, width), number, np.float32))
    return folder


NAMED = [f"A{actor}_{what}_ver1" for actor in range(1, 7) for what in ("hap_int1", "mix_ang_sad_70_30", "neu_sit2")]


def test_names_deal_the_folds_of_a_folder_and_of_a_data_set(capsys, caplog, tmp_path):
    folder, built, again = named_features(tmp_path / "features", NAMED), tmp_path / "built", tmp_path / "again"
    build = ("dataset", "build", folder, "--output", built)
    assert "--folds K deals folds by the clips' names" in refused(capsys, *build)
    code, out, _ = run(capsys, *build, "--folds", "3")
    assert code == 0 and said(caplog) == [] and lines(out)[:2] + lines(out)[3:6] == [
        str(built), "clips 18", "labelled 18, 6 of them blends (33%)",
        "folds 0: 6, 1: 6, 2: 6", "groups 6, none in two folds",
    ]  # fmt: skip
    assert {"face 3 float16 18", "voice 2 float16 18"} <= set(lines(out))
    (built / "encoders.json").write_text("{}")
    code, out, _ = run(capsys, "dataset", "build", built, "--output", again, "--folds", "2", "--seed", "1")
    assert code == 0 and {"folds 0: 9, 1: 9", "groups 6, none in two folds"} <= set(lines(out))
    assert (again / "encoders.json").read_text() == "{}"
    first, second = (datasets.load_from_disk(str(path)) for path in (built, again))
    assert first.features == second.features and first["group"][:3] == ["A1"] * 3
    for column in ("clip", "features", "labels", "group"):
        assert first[column][:] == second[column][:]
    # The metadata may lack folds then, and says which clips there are.
    (folder / "train_metadata.csv").write_text("\n".join(["filename", *NAMED[:12]]))
    assert "expected 'fold' among them; --folds K deals folds" in refused(capsys, *build, "--overwrite")
    assert "folds 0: 6, 1: 6" in lines(run(capsys, *build, "--folds", "2", "--overwrite")[1])


def test_folders_that_no_folds_can_be_dealt_in_are_refused(capsys, tmp_path):
    folder, output = named_features(tmp_path / "features", [*NAMED, "mine", "test_0001", "A1_hap"]), tmp_path / "built"
    clips = tmp_path / "clips"
    clips.mkdir()
    (clips / "A1_hap_int1_ver1.mp4").touch()
    for source, options, message in (
        (folder, "--folds 3", "found 2 of 21 clips without: 'A1_hap', 'mine'; rename them, or give a table"),
        (folder / "voice", "--folds 3 --split test", "--folds is for training clips"),
        (folder, "--seed 3", "--seed is for synthetic data, and for --folds"),
        (folder, "--folds 3 --group actor", "--group is for a table"),
        (clips, "--folds 3", "found clips (A1_hap_int1_ver1.mp4), expected their features; hf-blemo features"),
    ):
        found = refused(capsys, "dataset", "build", source, "--output", output, *options.split())
        assert message in found and not output.exists()
    named_features(tmp_path / "few", NAMED[:6])
    few = refused(capsys, "dataset", "build", tmp_path / "few", "--output", output, "--folds", "3")
    assert "few: --folds 3: found 2 groups of labelled clips, expected at least as many" in few
    assert run(capsys, "dataset", "build", tmp_path / "few", "--output", output, "--folds", "2")[0] == 0
    assert "a data set already; --folds K" in refused(capsys, "dataset", "build", output, "--output", tmp_path / "x")


def test_what_is_refused(capsys, tmp_path):
    table, output = write(tmp_path / "t.csv"), tmp_path / "built"
    for options, message in (
        ("--names a b", "names needs a column of labels (--label-column)"),
        (
            "--label-column mood --blend-percents 70-30",
            "blend_percents: found 70-30, expected whole numbers such as 70/30",
        ),
    ):
        found = refused(capsys, "dataset", "build", table, "--output", output, *options.split())
        assert message in found and not output.exists()
    synthetic = ("dataset", "build", "synthetic", "--output", output, "--label-column", "mood")
    assert "--label-column is for a table, found 'synthetic'" in refused(capsys, *synthetic)
