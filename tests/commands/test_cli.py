"""The `hf-blemo` command: what it writes, what it prints, and one line with exit code 2 for what it cannot use."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from command_line import refused, run
from distribution_files import write_metadata

import hf_blemo.hub
from hf_blemo import RankAwareFusionConfig, RankAwareFusionModel, RankAwareFusionProcessor, blemore, cli, feature_sets
from hf_blemo.prediction.fusion import load_fusion, predict_blends

REPOSITORY = Path(__file__).resolve().parents[2]
ENCODERS = {"wavlm": {"feature_size": 5, "modality": "audio"}, "imagebind": {"feature_size": 3}}
CLIPS = ["A1_ang_int1_ver1", "A1_mix_ang_hap_30_70_ver1", "A2_neu_sit1_ver1", "A2_mix_fea_sad_50_50_ver1"]
PREDICTIONS = {
    "A1_ang_int1_ver1": [{"emotion": "ang", "salience": 100.0}],
    "A1_mix_ang_hap_30_70_ver1": [{"emotion": "ang", "salience": 70.0}, {"emotion": "hap", "salience": 30.0}],
    "A2_neu_sit1_ver1": [{"emotion": "sad", "salience": 100.0}],
    "A2_mix_fea_sad_50_50_ver1": [{"emotion": name, "salience": 50.0} for name in ("fea", "sad")],
}
COMMANDS = (
    *("dataset build", "dataset info", "predict", "demo", "recipes", "evaluate", "submit", "publish", "export"),
    "completion",
    *cli.PROGRAMS,
)
METRICS = {"acc_presence": 0.75, "acc_salience": 0.5, "score": 0.625, "clips": 4, "blends": 2}


def write_table(path, clips=CLIPS):
    generator = np.random.default_rng(0)
    arrays = {name: generator.standard_normal((len(clips), entry["feature_size"])) for name, entry in ENCODERS.items()}
    np.savez(path, clip=np.array(clips), fold=np.arange(len(clips)) % 2, **arrays)
    return path


def write_model(folder, seed=0, **settings):
    torch.manual_seed(seed)
    config = RankAwareFusionConfig(encoders=ENCODERS, top_n=1, hidden_size=8)
    RankAwareFusionModel(config).save_pretrained(folder)
    RankAwareFusionProcessor(config.encoders, **settings).save_pretrained(folder)
    return folder


def write_predictions(path, predictions):
    path.write_text(json.dumps({"predictions": predictions}))
    return path


def write_distribution(root):
    for split, clips in {"train": CLIPS, "test": ["test_0001", "test_0002"]}.items():
        for name, options in ENCODERS.items():
            folder = root / f"pre_extracted_{split}_data" / f"{name}_{split}"
            folder.mkdir(parents=True)
            for clip in clips:
                np.save(folder / f"{clip}.npy", np.ones((2, options["feature_size"]), dtype=np.float32))
    write_metadata(root, {clip: fold for fold, clip in enumerate(CLIPS)})
    return root


def assert_refused(capsys, command, cases):
    """Cases are options, as one text, and a part of the line that is printed."""
    for words, message in cases.items():
        assert message in refused(capsys, *command, *words.split())


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A table, a data set built from it, and two models, which no test changes."""
    folder = tmp_path_factory.mktemp("cli")
    write_table(folder / "table.npz")
    feature_sets.build_table_dataset(folder / "table.npz", folder / "data")
    write_model(folder / "model")
    write_model(folder / "other", seed=1)
    return folder


def test_help_takes_little_time_and_no_torch():
    code = (
        "import time; from hf_blemo import cli; import sys\n"
        "for words in ['', *sys.argv[1:]]: assert cli.main([*words.split(), '--help']) == 0\n"
        "print(time.process_time(), *sorted({'torch', 'numpy', 'datasets', 'transformers'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code, *COMMANDS], cwd=REPOSITORY, capture_output=True, text=True)
    seconds, *loaded = result.stdout.splitlines()[-1].split()
    assert loaded == [] and float(seconds) < 0.6, result.stdout[-200:]


def test_as_a_module_it_prints_one_line_and_exits_with_2():
    command = [sys.executable, "-m", "hf_blemo.cli", "dataset", "info"]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("hf-blemo dataset info: error: the following") and result.stderr.count("\n") == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_says_what_is_read_and_written_with_an_example_that_parses(capsys, command):
    code, out, _ = run(capsys, *command.split(), "--help")
    assert code == 0 and "\nReads " in out
    lines = out.replace("$ME", "me").splitlines()
    examples = [shlex.split(line)[1:] for line in lines if line.startswith("  hf-blemo ")]
    assert examples
    for example in examples:
        assert cli._make_parser().parse_args(example).program == f"hf-blemo {command}"


def test_version_and_misuse(capsys, monkeypatch):
    # A checkout on the path need not be installed.
    monkeypatch.setattr("importlib.metadata.distribution", lambda name: 1 / 0)
    assert run(capsys, "--version") == (0, f"hf_blemo {hf_blemo.__version__}\n", "")
    error = refused(capsys, "dataset", "info", "x", "--colour", "red")
    assert error.startswith("hf-blemo dataset info: error: unknown option --colour")


SHORT = "--output o --threads 2 --encoder a=m/a@c0ffee b=m/b --push-to-hub me/it --public clips --overwrite"
LONG = (
    "--data clips --output_dir o --num_threads 2 --encoders.a.model_id m/a --encoders.a.revision c0ffee "
    "--encoders.b.model_id m/b --push_to_hub me/it --hub_private false --overwrite true"
)
MORE = "--encoders.a.extraction.layer 3 --limits max_seconds=9 max_pixels=99 --frames-per-second 2.5 --seed=4"


def test_features_take_short_forms_beside_all_settings_of_the_program():
    short, long = (
        cli._make_parser().parse_args(["features", *words.split(), *MORE.split()]).settings for words in (SHORT, LONG)
    )
    assert short == long
    assert short.encoders["a"] == {"model_id": "m/a", "revision": "c0ffee", "extraction": {"layer": 3}}
    assert short.limits == {"max_seconds": 9, "max_pixels": 99} and short.seed == 4 and short.frames_per_second == 2.5


@pytest.mark.parametrize("command", ["", "dataset"])
def test_without_a_subcommand_the_help_is_shown(capsys, command):
    code, out, err = run(capsys, *command.split())
    assert (code, err) == (2, "") and out == run(capsys, *command.split(), "--help")[1]


def test_build_and_info_of_a_table(capsys, tmp_path):
    table, output = write_table(tmp_path / "table.npz"), tmp_path / "out" / "data"
    build = ("dataset", "build", table, "--output", output)
    code, out, err = run(capsys, *build, "--encoders", "imagebind", "--feature-dtype", "float16")
    assert (code, err) == (0, "")
    dataset = datasets.load_from_disk(str(output))
    assert dataset["clip"][:] == CLIPS and feature_sets.encoder_widths(dataset) == {"imagebind": 3}
    expected = [
        "clips 4",
        "labels 36 valid; 6 names (ang, disg, fea, hap, sad, neu), blends of 70/30, 50/50, 30/70, neu unblended",
        *("labelled 4, 2 of them blends (50%)", "folds 0: 2, 1: 2"),
        "groups 2, A1 in several folds, so these are not group-disjoint",
        *("name share top", "ang 0.325 1", "disg 0.000 0", "fea 0.125 1", "hap 0.175 1", "sad 0.125 0", "neu 0.250 1"),
        *("encoder width dtype clips", "imagebind 3 float16 4"),
    ]
    assert [" ".join(line.split()) for line in out.splitlines()] == [str(output), *expected]
    assert run(capsys, "dataset", "info", output)[1] == out.partition("\n")[2]


def test_build_of_the_synthetic_benchmark(capsys, tmp_path):
    output = tmp_path / "synthetic"
    build = ["dataset", "build", "synthetic", "--output", output, "--num-clips", "30"]
    assert run(capsys, *build, "--seed", "1")[0] == 0
    first = datasets.load_from_disk(str(output)).to_dict()
    assert "already exists; pass --overwrite" in refused(capsys, *build, "--seed", "2")
    assert run(capsys, *build, "--seed", "2", "--domain", "target", "--overwrite")[0] == 0
    replaced = datasets.load_from_disk(str(output)).to_dict()
    assert len(first["clip"]) == len(replaced["clip"]) == 30 and replaced["features"] != first["features"]
    assert [path.name for path in tmp_path.iterdir()] == ["synthetic"]


def test_build_refuses_what_it_cannot_use_and_writes_nothing(capsys, tmp_path):
    output = tmp_path / "data"
    build = ["dataset", "build", write_table(tmp_path / "table.npz"), "--output", output]
    synthetic = ["dataset", "build", "synthetic", "--output", output]
    cases = {
        "--split test": "--split is for a folder of features",
        "--allow-missing": "--allow-missing is for a folder of features",
        "--num-clips 0": "--num-clips: found 0, expected at least 1",
        "--public": "--public needs --push-to-hub",
    }
    assert_refused(capsys, build, cases)
    assert_refused(capsys, synthetic, {"--encoders face": "--encoders is for a folder of features or a table"})
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    for command in (build, synthetic):
        assert "exists and is not a data set" in refused(capsys, *command, "--overwrite")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["data", "notes.txt", "table.npz"]


def test_build_pushes_privately_unless_told_otherwise(capsys, tmp_path, hub):
    root, output = write_distribution(tmp_path / "BlEmoRE"), tmp_path / "a"
    build = ["dataset", "build", root, "--push-to-hub", "you/built"]
    code, out, _ = run(capsys, *build, "--output", output)
    assert code == 0 and out.endswith("uploaded to you/built, split train\n")
    assert hub.repository("you/built", "dataset").private
    public = [*build[:-1], "you/built-test", "--output", tmp_path / "b", "--split", "test", "--public"]
    assert run(capsys, *public)[0] == 0
    assert not hub.repository("you/built-test", "dataset").private
    names = [name for name in hub.files("you/built-test", kind="dataset") if name.endswith(".parquet")]
    assert names == ["data/test-00000-of-00001.parquet"]
    # A failed upload leaves the data set.
    error = refused(capsys, *build[:-1], "somebody/built", "--output", output, "--overwrite")
    assert f"{output} was built, but not uploaded to somebody/built: " in error
    assert len(datasets.load_from_disk(str(output))) == 4


def test_predictions_are_those_of_the_models(capsys, shared, tmp_path):
    output = tmp_path / "new" / "results.json"
    models = [shared / "model", shared / "other"]
    code, out, _ = run(capsys, "predict", "--model", *models, "--features", shared / "data", "--output", output)
    assert code == 0 and out == f"4 clips, decoding expected_score: {output}\n"
    members = [load_fusion(model) for model in models]
    expected = list(predict_blends(members, feature_sets.load_features(shared / "data")))
    content = json.loads(output.read_text())
    assert content["predictions"] == {result["clip"]: result["blend"] for result in expected}
    assert content["decoding"] == {"name": "expected_score", "blend_share": blemore.BLEND_SHARE}
    assert content["model"] == [str(model) for model in models] and len(content) == 4
    for found, right in zip(content["clips"], expected, strict=True):
        assert list(found) == list(right)
        for name, value in right.items():
            if isinstance(value, dict):
                assert list(found[name]) == list(value)
                value = pytest.approx(value, abs=1e-6)
            assert found[name] == value
    assert [path.name for path in output.parent.iterdir()] == ["results.json"]
    # The other commands read it.
    assert run(capsys, "evaluate", "--predictions", output, "--labels", shared / "data")[0] == 0


def test_thresholds_come_from_the_processor_or_the_command_line(capsys, shared, tmp_path):
    model = write_model(tmp_path / "model", decoding="thresholds", alpha=0.1, beta=0.9)
    predict = ["predict", "--model", model, "--features", shared / "table.npz", "--output", tmp_path / "out.json"]

    def predicted(*options):
        assert run(capsys, *predict, *options)[0] == 0
        content = json.loads((tmp_path / "out.json").read_text())
        return [[part["salience"] for part in blend] for blend in content["predictions"].values()], content["decoding"]

    # A beta of 0.9 makes every blend an even one, a beta of 0 none, and an alpha of 1 leaves no blend at all.
    saliences, decoding = predicted()
    assert decoding == {"name": "thresholds", "alpha": 0.1, "beta": 0.9}
    assert all(part in ([100.0], [50.0, 50.0]) for part in saliences) and [50.0, 50.0] in saliences
    saliences, decoding = predicted("--beta", "0")
    assert decoding == {"name": "thresholds", "alpha": 0.1, "beta": 0.0}
    assert [50.0, 50.0] not in saliences and [100.0] * len(saliences) != saliences
    saliences, _ = predicted("--alpha", "1")
    assert saliences == [[100.0]] * 4
    assert predicted("--decoding", "expected_score")[1]["name"] == "expected_score"


def test_predict_refuses_what_it_cannot_use_and_leaves_old_outputs(capsys, shared, tmp_path):
    output = tmp_path / "out.json"
    output.write_text("old")
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "file").write_text("")
    model, data = shared / "model", shared / "data"
    cases = {
        "--beta 2": "--beta: found 2, expected a number from 0 to 1",
        "--revision main": "a folder has no revisions",
        str(output): f"--output: found {output} twice",
        "x.txt": "--output x.txt: expected the suffix .json or .csv or .html or .zip",
        f"{tmp_path}/folder.json": "found a folder, expected a file",
        # One of two files cannot be written, so neither changes.
        f"{tmp_path}/file/table.csv": "file",
    }
    assert_refused(capsys, ("predict", "--model", model, "--features", data, "--output", output), cases)
    assert output.read_text() == "old"
    # What was predicted is not lost with an output that cannot be written.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.json", "out.json", "out.json.partial"]


def test_evaluate_scores_by_the_names_or_by_any_labels(capsys, shared, tmp_path):
    # Clips are paired by name, in whatever order and with whatever suffix.
    shuffled = {f"{clip}.mov": PREDICTIONS[clip] for clip in reversed(CLIPS)}
    predictions = write_predictions(tmp_path / "predictions.json", shuffled)
    output, metadata = tmp_path / "metrics.json", tmp_path / "train_metadata.csv"
    write_metadata(tmp_path, {clip: fold for fold, clip in enumerate(CLIPS)})
    for labels in (None, shared / "data", shared / "table.npz", metadata):
        option = [] if labels is None else ["--labels", labels]
        code, out, _ = run(capsys, "evaluate", "--predictions", predictions, *option, "--output", output)
        assert code == 0 and json.loads(output.read_text()) == METRICS
        expected = ["clips 4, 2 of them blends", "ACC_presence 0.7500", "ACC_salience 0.5000", "Score 0.6250"]
        assert [" ".join(line.split()) for line in out.splitlines()] == expected


def test_evaluate_names_clips_that_are_missing_on_either_side(capsys, shared, tmp_path):
    fewer = write_predictions(tmp_path / "fewer.json", {clip: PREDICTIONS[clip] for clip in CLIPS[1:]})
    more = write_predictions(tmp_path / "more.json", {**PREDICTIONS, "A9_sad_int1_ver1": PREDICTIONS[CLIPS[0]]})
    tested = write_predictions(tmp_path / "tested.json", {**PREDICTIONS, "test_0001": PREDICTIONS[CLIPS[0]]})
    wrong = write_predictions(tmp_path / "wrong.json", {CLIPS[0]: [{"emotion": "ang", "salience": 60.0}]})
    data, unlabelled = shared / "data", write_table(tmp_path / "unlabelled.npz", ["test_0001", *CLIPS])
    for predictions, labels, message in (
        (fewer, data, f"{fewer}: found no prediction of '{CLIPS[0]}', expected one for each of the 4 clips"),
        (more, data, f"{data}: found no label of 'A9_sad_int1_ver1', expected one for each of the 5 clips"),
        (tested, unlabelled, "found no label of 'test_0001'"),
        (tested, None, "test clips carry no label"),
        (wrong, None, "expected one of the 36 labels"),
    ):
        option = [] if labels is None else ["--labels", labels]
        assert message in refused(capsys, "evaluate", "--predictions", predictions, *option)
    assert run(capsys, "evaluate", "--predictions", more)[0] == 0


MISSING = "missing, 593 of the 594 test clips: test_0002 to test_0594"
TWO_MISSING = "missing, 2 of the 594 test clips: test_0004 to test_0005"


def test_all_test_clips_make_a_submission(capsys, shared, tmp_path):
    names = [f"test_{number:04d}" for number in range(1, 595)]
    results, made, again = (tmp_path / name for name in ("results.json", "made.zip", "again.zip"))
    predict = ("predict", "--model", shared / "model", "--features")
    fewer = write_table(tmp_path / "fewer.npz", names[:1])
    odd = write_table(tmp_path / "odd.npz", [*names[:3], "mine.mp4", *names[5:], "test_0595.mov"])
    for features, lines in ((fewer, [MISSING]), (odd, ["found no test clips: 'mine', 'test_0595'", TWO_MISSING])):
        code, out, err = run(capsys, *predict, features, "--output", made)
        assert (code, out, err.splitlines()[:-1]) == (2, "", lines) and "nothing was predicted" in err
    features = write_table(tmp_path / "features.npz", names)
    assert run(capsys, *predict, features, "--output", results, made)[0] == 0
    code, out, _ = run(capsys, "submit", "--predictions", results, "--output", again)
    assert (code, out) == (0, f"{again}: 594 clips, ready to submit\n")
    predictions = json.loads(results.read_text())["predictions"]
    for submission in (made, again):
        assert run(capsys, "submit", "--check", submission) == (0, f"{submission}: a valid submission\n", "")
        assert blemore.read_predictions(submission) == predictions and len(predictions) == 594


def test_incomplete_submission_is_refused_with_its_problems_and_the_old_one_kept(capsys, tmp_path):
    predictions = write_predictions(tmp_path / "predictions.json", {"test_0001": PREDICTIONS[CLIPS[0]]})
    output = tmp_path / "submission.zip"
    output.write_bytes(b"old")
    cases = {
        f"--predictions {predictions} --output {output}": MISSING,
        f"--predictions {predictions} --output {tmp_path}/submission.json": "expected the suffix .zip",
        f"--predictions {predictions}": "--predictions needs --output",
        f"--check {predictions} --output {output}": "--output is for --predictions",
        "": "one of the arguments --predictions --check is required",
    }
    assert_refused(capsys, ("submit",), cases)
    assert output.read_bytes() == b"old"
    code, out, err = run(capsys, "submit", "--check", predictions)
    assert code == 2 and err.endswith("found 2 problems, expected a submission without any\n")
    assert out.splitlines() == ["clip 'test_0001': expected the suffix .mov", MISSING]


@pytest.fixture
def publishable(tmp_path):
    folder = write_model(tmp_path / "model")
    card = "---\nlicense: apache-2.0\nlibrary_name: transformers\npipeline_tag: video-classification\ntags: [x]\n---\n"
    (folder / "README.md").write_text(card)
    (folder / "optimizer.safetensors").write_text("not for the Hub")
    return folder


def test_publish_lists_the_files_or_refuses_and_changes_nothing(capsys, publishable, tmp_path):
    before = {path: path.read_bytes() for path in publishable.rglob("*") if path.is_file()}
    code, out, _ = run(capsys, "publish", publishable)
    names = [line.strip() for line in out.splitlines()[1:]]
    assert code == 0 and out.startswith(f"{publishable} can be published")
    assert {"README.md", "config.json", "model.safetensors", "modeling_rank_aware_fusion.py"} <= set(names)
    assert "optimizer.safetensors" not in names
    cases = {
        f"{publishable} --tag v1": "--tag needs --repo",
        f"{publishable} --create-pr": "--create-pr needs --repo",
        f"{publishable} --repo somebody/name": f"{publishable} was not published to somebody/name: ",
        f"{tmp_path}/gone": "expected a folder with a model",
    }
    assert_refused(capsys, ("publish",), cases)
    assert {path: path.read_bytes() for path in publishable.rglob("*") if path.is_file()} == before
    (publishable / "model.safetensors").unlink()
    assert "model.safetensors is missing" in refused(capsys, "publish", publishable)


def test_a_terminal_is_asked_for_the_licence_once(capsys, publishable, hub, monkeypatch):
    card = publishable / "README.md"
    card.write_text(
        card.read_text().replace("license: apache-2.0\n", "").replace("tags: [x]\n---\n", "tags: [x]\n---\n# X\n")
    )
    publish = ("publish", publishable, "--repo", "you/asked")
    answers = ["", "cc-by-4.0"]
    with hub.emptied(), monkeypatch.context() as patch:
        # Nobody is asked where nobody can answer, and none is assumed.
        assert run(capsys, *publish)[0] == 0 and b"license" not in hub.files("you/asked")["README.md"]
        for stream in (sys.stdin, sys.stderr):
            patch.setattr(stream, "isatty", lambda: True, raising=False)
        patch.setattr("builtins.input", lambda prompt: answers.pop(0))
        for expected in (False, True, True):
            assert run(capsys, *publish)[0] == 0
            assert (b"license: cc-by-4.0" in hub.files("you/asked")["README.md"]) == expected
        assert answers == [] and "license: cc-by-4.0" in card.read_text()


def test_publish_hands_its_options_over(capsys, publishable, monkeypatch):
    calls = []
    monkeypatch.setattr(hf_blemo.hub, "publish", lambda *call, **options: calls.append((call, options)) or "https://a")
    defaults = {"private": True, "create_pr": False, "message": None, "tag": None, "license": None}
    for words, changes in (
        ("", {}),
        ("--public --tag v1 --message First", {"private": False, "tag": "v1", "message": "First"}),
        ("--create-pr --license mit", {"create_pr": True, "license": "mit"}),
    ):
        assert run(capsys, "publish", publishable, "--repo", "owner/name", *words.split()) == (0, "https://a\n", "")
        assert calls.pop() == ((str(publishable), "owner/name"), {**defaults, **changes})
