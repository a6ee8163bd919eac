"""`hf-blemo predict`, `evaluate` and `submit` with labels other than BlEmoRE's: the user's own names everywhere."""

import csv
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import refused, run
from labelled_models import LABELS, make_labelled, save_labelled

from hf_blemo import cli, feature_sets
from hf_blemo.feature_sets.layout import Clip, dataset_features, dataset_of
from hf_blemo.metrics.measures import measure
from hf_blemo.prediction.fusion import predict_blends

NUM_CLIPS = 9


def rows_of(num_clips=NUM_CLIPS):
    """Rows of a stranger's table: both encoders, one of which rows lack, an unknown one, and columns of no encoder."""
    generator = np.random.default_rng(0)
    rows = []
    for number in range(num_clips):
        face, voice = (generator.normal(size=width).tolist() for width in (6, 4))
        clip = f"take {number}.mp4"
        rows.append({"clip": clip, "face": face, "voice": voice, "smell": [1.0, 2.0], "note": "x"})
    rows[1]["face"] = rows[2]["voice"] = None
    return rows


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Models of all labels, and a table without labels."""
    folder = tmp_path_factory.mktemp("labels")
    for name in LABELS:
        save_labelled(name, folder / name)
    pq.write_table(pa.Table.from_pylist(rows_of()), folder / "table.parquet")
    return folder


@pytest.fixture(scope="module")
def predicted(shared):
    """What `predict` writes of each model."""
    for name in LABELS:
        outputs = [str(shared / f"{name}.{suffix}") for suffix in ("json", "csv", "html")]
        options = ["--features", str(shared / "table.parquet"), "--output", *outputs]
        assert cli.main(["predict", "--model", str(shared / name), *options]) == 0
    return shared


def labelled(folder, name, labels, kind="valid"):
    """A built data set with the labels of a model, saved."""
    space = make_labelled(name)[0].config.label_space
    features = dataset_features({"face": (6, "float32")}, len(space.names))
    clips = [row["clip"] for row in rows_of()]
    face = {"face": np.ones((1, 6), np.float32)}
    data = dataset_of([Clip(clip, face, row, -1) for clip, row in zip(clips, labels, strict=True)], features)
    feature_sets.with_label_space(data, space, kind).save_to_disk(str(folder))
    return folder


@pytest.mark.parametrize("name", LABELS)
def test_every_output_speaks_of_the_models_own_names(predicted, name):
    member = make_labelled(name)
    names, space = list(LABELS[name]["id2label"].values()), member[0].config.label_space
    expected = list(predict_blends([member], feature_sets.load_features(predicted / "table.parquet")))
    content = json.loads((predicted / f"{name}.json").read_text())
    assert content["predictions"] == {result["clip"]: result["blend"] for result in expected}
    assert content["label_space"] == {
        "names": names,
        "blend_percents": LABELS[name].get("blend_percents", []),
        "unblended": LABELS[name].get("unblended", []),
        "label_kind": LABELS[name].get("label_kind", "valid"),
        "presence_share": 0.0,
    }
    for found, right in zip(content["clips"], expected, strict=True):
        assert list(found) == list(right)
        assert {"blend", "top", "probabilities", "encoder_weights", "selected_encoders"} < set(found)
        assert list(found["probabilities"]) == names and list(found["encoder_weights"]) == ["face", "voice"]
        best = max(right["blend"], key=lambda part: (part["salience"], right["probabilities"][part["emotion"]]))
        assert found["top"] == best["emotion"]
    assert len({clip["top"] for clip in content["clips"]}) > 1
    assert content["clips"][1]["encoder_weights"]["face"] == 0 == content["clips"][2]["encoder_weights"]["voice"]

    with (predicted / f"{name}.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    soft = name == "soft"
    own = ["top"] if soft else [f"{kind}_{i + 1}" for i in range(space.largest_set) for kind in ("name", "salience")]
    columns = [*own, *(f"{kind}_{name}" for kind in ("probabilities", "presence", "salience") for name in names)]
    assert list(table[0])[3 : 3 + len(columns)] == columns
    for cells, right in zip(table, expected, strict=True):
        blend = {
            cells[f"name_{i + 1}"]: float(cells[f"salience_{i + 1}"]) for i in range(len(right["blend"]) * (not soft))
        }
        assert soft or blend == {part["emotion"]: part["salience"] for part in right["blend"]}
        assert not soft or cells["top"] == right["top"]
        shares = [float(cells[f"probabilities_{name}"]) for name in names]
        assert shares == pytest.approx(list(right["probabilities"].values()), abs=1e-6)

    page = (predicted / f"{name}.html").read_text()
    assert all(name in page for name in names)
    assert "emotion" not in page.split("</style>")[1].replace("clip-emotions", "").lower()


def test_a_nan_is_an_error_or_a_missing_encoder(capsys, shared, tmp_path):
    rows = rows_of(4)
    rows[3]["face"][2] = float("nan")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "nan.parquet")
    predict = ["predict", "--model", shared / "seven", "--features", tmp_path / "nan.parquet"]
    code, _, err = run(capsys, *predict)
    assert code == 2 and "'face'" in err and "take 3" in err and "--nan missing" in err
    code, out, _ = run(capsys, *predict, "--nan", "missing")
    assert code == 0 and out.splitlines()[3].startswith("take 3: ") and "face 0.00" not in out.splitlines()[3]
    gone = [{**row, "face": None, "voice": None} if number == 1 else row for number, row in enumerate(rows_of(4))]
    pq.write_table(pa.Table.from_pylist(gone), tmp_path / "gone.parquet")
    output = tmp_path / "gone.json"
    code, out, err = run(capsys, *predict[:-1], tmp_path / "gone.parquet", "--output", output)
    assert code == 2 and out.startswith("3 clips") and "1 of 4 clips have no prediction" in err.splitlines()[-1]
    content = json.loads(output.read_text())
    assert len(content["predictions"]) == 3 and "no features" in content["clips"][1]["error"]
    # An encoder that no row has is as one that the table lacks.
    for row, words, expected in (
        ({"face": None}, "", 0),
        ({"face": None, "smell": None, "voice": None}, "no features", 2),
    ):
        schema = pq.read_schema(tmp_path / "gone.parquet")
        pq.write_table(pa.Table.from_pylist([{**gone[0], **row}], schema), tmp_path / "one.parquet")
        code, _, err = run(capsys, *predict[:-1], tmp_path / "one.parquet")
        assert code == expected and words in err
    assert "--nan is for --features" in refused(capsys, "predict", "clip.mp4", "--model", "m", "--nan", "missing")


def test_predictions_are_measured_against_labels_of_their_space(capsys, predicted, tmp_path):
    generator = np.random.default_rng(3)
    for name, kind in (("seven", "valid"), ("soft", "soft"), ("three", "valid")):
        space = make_labelled(name)[0].config.label_space
        truth = space.percent[generator.integers(len(space), size=NUM_CLIPS)] / 100
        if kind == "soft":
            truth = generator.dirichlet(np.ones(len(space.names)), NUM_CLIPS).astype(np.float32).astype(float)
        data = labelled(tmp_path / name, name, truth, kind)
        content = json.loads((predicted / f"{name}.json").read_text())
        shares = np.array([list(clip["probabilities"].values()) for clip in content["clips"]])
        shares /= shares.sum(1, keepdims=True)
        expected = measure(space, truth, list(content["predictions"].values()), shares, kind=kind)
        evaluate = ["evaluate", "--predictions", predicted / f"{name}.json", "--labels", data]
        code, out, err = run(capsys, *evaluate, "--output", tmp_path / "found.json")
        assert code == 0, err
        found = json.loads((tmp_path / "found.json").read_text())
        assert found == pytest.approx({**expected, "clips": NUM_CLIPS}, abs=1e-5)
        assert list(found) == [*expected, "clips"] and "score" not in found
        assert [line.split()[0] for line in out.splitlines()] == ["clips", *expected]
        assert f"{found['kl']:.4f} (lower is better)" in out


def test_labels_of_another_space_are_one_error_that_lists_both(capsys, predicted, tmp_path):
    three = labelled(
        tmp_path / "three", "three", [make_labelled("three")[0].config.label_space.percent[0] / 100] * NUM_CLIPS
    )
    seven, soft = predicted / "seven.json", predicted / "soft.json"
    blemore = "6 names (ang, disg, fea, hap, sad, neu), blends of 70/30, 50/50, 30/70, neu unblended"
    classes = "7 names (neutral, calm, happy, sad, angry, afraid, surprised), single"
    for words, parts in (
        (["evaluate", "--predictions", seven, "--labels", three], (classes, "4 names (joy, awe, envy, calm)")),
        (["evaluate", "--predictions", seven], ("--labels is needed", classes)),
        (["submit", "--predictions", seven, "--output", tmp_path / "x.zip"], (classes, blemore)),
        (["submit", "--predictions", soft, "--output", tmp_path / "x.zip"], ("5 names (cat, dog", blemore)),
    ):  # fmt: skip
        error = refused(capsys, *words)
        assert all(part in error for part in parts), error
    for models, parts in (
        (["seven"], (classes, blemore, "a submission to the BlEmoRE challenge")),
        (["seven", "soft"], ("model 2 of 2 has 5 names", "the first has 7 names")),
    ):
        models = [predicted / name for name in models]
        table, output = predicted / "table.parquet", tmp_path / "x.zip"
        code, _, err = run(capsys, "predict", "--model", *models, "--features", table, "--output", output)
        assert code == 2 and all(part in err for part in parts), err
    assert not (tmp_path / "x.zip").exists()


def test_files_of_predictions_that_say_nonsense_are_refused(capsys, predicted, tmp_path):
    content = json.loads((predicted / "three.json").read_text())
    clip = next(iter(content["predictions"]))
    for change, message in (
        ({"label_space": {"names": ["a"]}}, "expected at least two classes"),
        ({"label_space": {"size": 3}}, "expected the names of a label space"),
        ({"predictions": [1]}, "expected a JSON object"),
        ({"predictions": {clip: [{"emotion": "love", "salience": 100.0}]}}, f"clip '{clip}': found the name 'love'"),
        ({"predictions": {clip: [{"emotion": "joy", "salience": 90.0}]}}, f"clip '{clip}': found the shares"),
        ({"predictions": {}}, "found no predictions"),
    ):
        (tmp_path / "bad.json").write_text(json.dumps({**content, **change}))
        data = tmp_path / "data"
        if not data.exists():
            labelled(data, "three", [make_labelled("three")[0].config.label_space.percent[0] / 100] * NUM_CLIPS)
        assert message in refused(capsys, "evaluate", "--predictions", tmp_path / "bad.json", "--labels", data)
