"""Tables of other people: their labels, folds, groups, gaps and columns, and what is refused of them."""

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_blemo import feature_sets
from hf_blemo.feature_sets.tables import build_table_dataset

MOODS = ["calm", "up", "low"]


def frame(num_clips=24, **columns):
    """Clips of six actors in three folds, two actors each, with every mood twice per fold and more."""
    rows = np.arange(num_clips)
    table = {"clip": [f"c{row}" for row in rows], "actor": rows % 6, "fold": rows % 6 // 2}
    table |= {"mood": [MOODS[row // 6 % 3] for row in rows], "voice.0": rows * 0.5, "voice.1": rows * -1.0}
    return pd.DataFrame(table | columns)


@pytest.fixture
def write(tmp_path):
    def write(table=None, name="t.csv", **columns):
        path, table = tmp_path / name, frame(**columns) if table is None else table
        if path.suffix == ".csv":
            table.to_csv(path, index=False)
        elif path.suffix == ".npz":
            voice = table[["voice.0", "voice.1"]].to_numpy()
            np.savez(path, voice=voice, **{name: table[name].to_numpy(str) for name in ("clip", "mood")})
        else:
            voice = table[["voice.0", "voice.1"]].to_numpy().tolist()
            table.drop(columns=["voice.0", "voice.1"]).assign(voice=voice).to_parquet(path)
        return path

    return write


def messages(caplog):
    return [record.getMessage().split(": ", 1)[1] for record in caplog.records]


def test_classes_in_every_form_of_table(write, caplog):
    for name in ("t.csv", "t.parquet", "t.npz"):
        dataset = build_table_dataset(write(name=name), label_column="mood")
        space, kind = feature_sets.label_space(dataset)
        assert (space.names, len(space), kind) == (("calm", "low", "up"), 3, "valid")
        assert dataset.features["labels"].length == 3
        assert [space.names[np.argmax(row)] for row in dataset["labels"][:]] == frame()["mood"].tolist()
        assert feature_sets.encoder_widths(dataset) == {"voice": 2}
        assert ("group" in dataset.column_names) == (name != "t.npz")
    assert messages(caplog) == ["the column 'actor' is kept as `group`; no value of it is in two folds"] * 2
    caplog.clear()
    leaking = build_table_dataset(write(frame(actor=[0] * 24)), label_column="mood")
    assert "group" not in leaking.column_names
    assert "actor '0' is in the folds 0, 1, 2, so they are not group-disjoint" in caplog.text


def test_class_labels_of_a_hugging_face_table(tmp_path):
    features = datasets.Features(
        {
            "clip": datasets.Value("int64"),
            "mood": datasets.ClassLabel(names=MOODS),
            "moods": datasets.List(datasets.ClassLabel(names=MOODS)),
            "voice": datasets.List(datasets.Value("float32")),
        }
    )
    rows = {"clip": [1, 2, 30], "mood": [2, 0, -1], "moods": [[0, 2], [1], []], "voice": [[1.0]] * 3}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "t.parquet")
    dataset = build_table_dataset(tmp_path / "t.parquet", label_column="mood", encoders=["voice"])
    assert feature_sets.label_space(dataset)[0].names == tuple(MOODS) and dataset["clip"][:] == ["1", "2", "30"]
    assert dataset["labels"][:] == [[0, 0, 1], [1, 0, 0], [-100] * 3]
    dataset = build_table_dataset(tmp_path / "t.parquet", label_column="moods")
    assert dataset["labels"][:] == [[0.5, 0, 0.5], [0, 1, 0], [-100] * 3]
    assert feature_sets.label_space(dataset)[0].blend_percents == ((50, 50),)


def test_votes_and_their_order(write, tmp_path):
    table = frame().drop(columns="mood").assign(**{"v.up": range(1, 25), "v.calm": 1, "note_1": "x", "age_3": 4})
    for name in ("t.csv", "t.parquet"):
        path = write(table, name)
        dataset = build_table_dataset(path, tmp_path / f"{name}.built", label_prefix="v.", label_kind="soft")
        space, kind = feature_sets.label_space(datasets.load_from_disk(tmp_path / f"{name}.built"))
        assert (space.names, kind) == (("up", "calm"), "soft")
        np.testing.assert_allclose(dataset["labels"][:][2], [0.75, 0.25])
        assert feature_sets.encoder_widths(dataset) == {"voice": 2}
    ordered = build_table_dataset(path, label_prefix="v.", label_kind="soft", names=["calm", "up"])
    np.testing.assert_allclose(ordered["labels"][:][2], [0.25, 0.75])


def test_folds_are_dealt_by_group_or_by_label(write, caplog):
    path = write()
    dataset = build_table_dataset(path, label_column="mood", folds=3, group="actor", seed=1)
    assert dataset["group"][:] == [str(actor) for actor in frame()["actor"]]
    pairs = set(zip(dataset["group"], dataset["fold"], strict=True))
    assert len(pairs) == 6 and sorted(np.bincount([fold for _, fold in pairs])) == [2, 2, 2]
    assert messages(caplog) == ["the column 'fold' is replaced by 3 folds that are dealt anew"]
    dataset = build_table_dataset(path, label_column="mood", folds=4)
    assert np.bincount(dataset["fold"][:]).tolist() == [6] * 4 and "group" not in dataset.column_names
    assert feature_sets.describe(dataset).groups == "unknown, so the folds may not be group-disjoint"
    with pytest.raises(ValueError, match="t.csv: --folds 7: found 6 groups"):
        build_table_dataset(path, label_column="mood", folds=7, group="actor")


def test_the_actor_is_the_group_of_blemores_names(tmp_path):
    names = [f"A{number % 4}_{emotion}_int1_ver{number}" for number in range(1, 9) for emotion in ("ang", "hap")]
    (tmp_path / "t.csv").write_text("clip,voice.0\n" + "".join(f"{name},1\n" for name in [*names, "test_0001"]))
    dataset = build_table_dataset(tmp_path / "t.csv", folds=2)
    assert feature_sets.label_space(dataset)[1] == "valid" and dataset.info.description == ""
    assert dataset["group"][:] == [name.split("_")[0] for name in names] + [None]
    assert dataset["fold"][-1] == -1 and feature_sets.describe(dataset).groups == "4, none in two folds"


def test_gaps_within_vectors(write, tmp_path, caplog):
    table = frame().assign(**{"face.0": 1.0, "face.1": [np.nan, np.inf, *[1.0] * 22]})
    path = write(table)
    with pytest.raises(ValueError, match="'face', clip 'c0': found NaN or infinity .*--nan missing"):
        build_table_dataset(path, label_column="mood")
    for dataset in (
        build_table_dataset(path, label_column="mood", nan="missing"),
        feature_sets.load_features(path, nan="missing"),
    ):
        assert [list(row) for row in feature_sets.read_features(dataset, [0, 1, 2])] == [["voice"]] * 2 + [
            ["voice", "face"]
        ]
    assert "taken as missing for NaN or infinity, of 24 rows: face in 2" in messages(caplog)
    vectors = pa.array([[1, None], [1, 2], [3, 4]], pa.list_(pa.int32()))
    pq.write_table(pa.table({"clip": list("abc"), "x": vectors, "y": [[1.0]] * 3}), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="'x', clip 'a': found NaN or infinity or an empty value"):
        feature_sets.load_features(tmp_path / "t.parquet")
    found = feature_sets.read_features(feature_sets.load_features(tmp_path / "t.parquet", nan="missing"))
    assert list(found[0]) == ["y"] and found[1]["x"].tolist() == [[1, 2]]
    with pytest.raises(ValueError, match="nan: found 'zero', expected one of error, missing"):
        build_table_dataset(path, nan="zero")


def test_features_alone_need_nothing_else_of_a_table(write, caplog):
    table = frame().assign(note="x", labels="sad", when=pd.Timestamp("2024-01-05"))
    for name in ("t.csv", "t.parquet"):
        dataset = feature_sets.load_features(write(table, name))
        assert feature_sets.encoder_widths(dataset) == {"voice": 2} and len(dataset) == 24
    left_out = [line for line in messages(caplog) if line.startswith("left out")]
    assert len(left_out) == 2 and all(name in left_out[0] for name in ("mood", "note", "labels", "when"))


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({}, {"label_column": "feeling"}, "expected 'feeling' among them"),
        ({}, {"label_prefix": "votes."}, "expected single numbers in some that begin with 'votes.'"),
        ({}, {"label_column": "mood", "group": "speaker"}, "expected 'speaker' among them"),
        ({}, {}, "no label in a name: clip 'c0'.*--label-column or --label-prefix"),
        ({"mood": "up"}, {"label_column": "mood", "names": MOODS}, r"labels of one class only \(up\)"),
        ({"mood": ["odd"] + ["up", "low"] * 11 + ["up"]}, {"label_column": "mood"}, "class 'odd' in fold 0 only"),
        ({"actor": [0] * 24}, {"label_column": "mood", "group": "actor"}, "actor '0' in the folds 0, 1, 2, expected"),
        ({"actor": [None] + [1] * 23}, {"label_column": "mood", "group": "actor"}, "clip 'c0' has no actor"),
        ({"labels": "up"}, {}, "single values in the column 'labels'.*--label-column labels reads them"),
    ],
)  # fmt: skip
def test_what_is_refused(write, tmp_path, columns, options, message):
    path = write(**columns)
    with pytest.raises(ValueError, match=f"t.csv.*{message}") as error:
        build_table_dataset(path, tmp_path / "built", **options)
    assert "\n" not in str(error.value) and not (tmp_path / "built").exists()


def test_another_reading_does_not_resume_an_unfinished_build(write, tmp_path):
    path, output = write(), tmp_path / "built"
    build_table_dataset(path, output, label_column="mood")
    (tmp_path / "built.partial").mkdir()
    (tmp_path / "built.partial" / "build.json").write_text((output / "build.json").read_text())
    output.rename(tmp_path / "old")
    with pytest.raises(ValueError, match="unfinished build with other settings"):
        build_table_dataset(path, output, label_column="mood", label_kind="soft")
    build_table_dataset(path, output, label_column="mood")
