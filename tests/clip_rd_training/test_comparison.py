"""The comparison of methods: equal terms for all, honest numbers, resumable."""

import json
import shutil

import pytest
from fresh_processes import run_python
from huggingface_hub.errors import StrictDataclassFieldValidationError
from pair_files import write_shards

from hf_blemo.built_in import make_synthetic_pairs
from hf_blemo.clip_rd_training import comparison
from hf_blemo.clip_rd_training.comparison import compare, markdown
from hf_blemo.clip_rd_training.settings import METHODS, ComparisonSettings

TOWER = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
STUDENT = {
    "projection_dim": 8,
    "vision_config": {**TOWER, "model_type": "clip_vision_model", "image_size": 16, "patch_size": 8},
    "text_config": {**TOWER, "model_type": "clip_text_model", "max_position_embeddings": 16},
}


def settings_for(output, **changes):
    return ComparisonSettings(
        **{
            "data": "synthetic",
            "output_dir": str(output),
            "student": "custom",
            "student_config": STUDENT,
            "teacher_config": {"vision_config": {"hidden_size": 12}, "projection_dim": 8},
            "teacher_steps": 2,
            "num_steps": 2,
            "batch_size": 8,
            "warmup_steps": 1,
            "synthetic": {"num_pairs": 16, "image_size": 16},
            "weight_schedule": {"xrd": [[0, 0.0], [1, 2.0]]},
            "seeds": [3, 1],
            **changes,
        }
    )


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    """Tasks that take a moment."""
    shards = write_shards(tmp_path_factory.mktemp("pairs") / "shards", list(make_synthetic_pairs(12)["caption"]), 1)
    data = {"data": str(shards), "split": "train"}
    return {
        "zero_shot": {"kind": "zero_shot", **data, "label_column": "txt"},
        "retrieval": {"kind": "retrieval", **data},
    }


@pytest.fixture(scope="module")
def compared(once, leave_plots_out, evaluation):
    def make(folder):
        with pytest.MonkeyPatch.context() as patch:
            leave_plots_out(patch)
            compare(settings_for(folder, evaluation=evaluation))

    output = once("comparison", make)
    return output, json.loads((output / "comparison.json").read_text())


def test_every_method_trains_its_terms_with_the_same_budget(compared):
    output, result = compared
    assert list(result["students"]) == list(METHODS)
    for name, terms in METHODS.items():
        assert [row["seed"] for row in result["students"][name]] == [3, 1]
        metrics = json.loads((output / f"{name.replace(' ', '_')}_seed_1" / "metrics.json").read_text())
        assert metrics["history"][-1]["step"] == 2
        assert set(metrics["history"][-1]) == {"step", "loss", "logit_scale", "learning_rate", *terms}
        config = metrics["config"]
        assert (config["teacher"] is None) == (name == "no distillation")
        assert (config["seed"], config["batch_size"], config["num_steps"]) == (1, 8, 2)
        assert set(config["weight_schedule"]) == {"xrd"} & set(terms)
    teacher = json.loads((output / "teacher" / "config.json").read_text())
    assert teacher["vision_config"]["hidden_size"] == 12 and teacher["text_config"]["hidden_size"] == 8
    assert METHODS["CLIP-RD"] == ("task", "fd", "icl", "hrd", "vrd", "vrd_image", "vrd_text", "xrd")


def test_the_written_tables_show_the_numbers(compared):
    output, result = compared
    text = (output / "comparison.md").read_text()
    assert text == markdown(result)
    rows = result["students"]["CLIP-RD"]
    mean = sum(row["zero shot"] for row in rows) / 2
    lines = [line for line in text.splitlines() if line.startswith("| CLIP-RD |")]
    assert len(lines) == 2 and lines[0].startswith(f"| CLIP-RD | {mean:.4f} ± ")
    assert [line.split(",")[0] for line in text.splitlines() if line.startswith("| difference")] == [
        "| difference to CLIP-KD", "| difference to CLIP-RD",
    ]  # fmt: skip
    difference = sum(a["zero shot"] - b["zero shot"] for a, b in zip(rows, result["students"]["CLIP-KD"], strict=True))
    assert lines[1].startswith(f"| CLIP-RD | {difference / 2:+.4f} (")


def test_finished_students_are_not_trained_again(compared, monkeypatch, evaluation, tmp_path):
    made, result = compared
    output = tmp_path / "comparison"
    shutil.copytree(made, output)
    trained = []
    monkeypatch.setattr(comparison, "distill", lambda settings: trained.append(settings.output_dir))
    again = compare(settings_for(output, resume=True, evaluation=evaluation))
    assert trained == [] and again["students"] == result["students"]
    with pytest.raises(ValueError, match="resume: num_steps is 3 and was 2"):
        compare(settings_for(output, resume=True, evaluation=evaluation, num_steps=3))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data": "owner/pairs", "evaluation": {}},
            "data 'owner/pairs': expected evaluation, tasks, or an evaluation_share",
        ),
        ({"seeds": []}, "seeds"),
        ({"weights": {"task": 1.0, "fd": 1.0}}, "expected one above 0 for every term, found none for icl, hrd"),
        ({"teacher_steps": 0}, "teacher_steps"),
    ],
)
def test_bad_settings_are_named(changes, message, tmp_path):
    with pytest.raises((ValueError, StrictDataclassFieldValidationError), match=message):
        settings_for(tmp_path, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluation": {"mine": {"kind": "retrieval", "data": "gone"}}}, "gone"),
        ({"data": "gone", "evaluation_share": 0.5}, "gone"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_written(changes, message, tmp_path):
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        compare(settings_for(tmp_path / "out", **changes))
    assert list(tmp_path.iterdir()) == []


def test_two_processes_compare_as_one(evaluation, tmp_path):
    settings = {"methods": ["CLIP-RD"], "seeds": [3], "evaluation": evaluation, "dtype": "float64"}
    program = (
        "import json, sys\n"
        "from hf_blemo.clip_rd_training.comparison import compare\n"
        "from hf_blemo.clip_rd_training.settings import ComparisonSettings\n"
        "print(bool(compare(ComparisonSettings(**json.loads(sys.argv[1])))))"
    )
    given = json.dumps(vars(settings_for("two", **settings)))
    done = run_python(["-c", program, given], cwd=tmp_path, processes=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True", "False"]
    found = json.loads((tmp_path / "two" / "comparison.json").read_text())
    one = compare(settings_for(tmp_path / "one", **settings))
    assert found["students"] == one["students"] and found["teacher"] == one["teacher"]
