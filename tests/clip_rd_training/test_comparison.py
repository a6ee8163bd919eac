"""The comparison of methods: equal terms for all, honest numbers, resumable."""

import json

import pytest
import torch

from hf_blemo.clip_rd_training import comparison
from hf_blemo.clip_rd_training.comparison import Benchmark, compare, markdown
from hf_blemo.clip_rd_training.comparison_settings import METHODS, ComparisonSettings
from hf_blemo.data.synthetic_pairs import HELD_OUT

TOWER = {
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "hidden_act": "gelu",
}
STUDENT = {
    "projection_dim": 8,
    "vision_config": {**TOWER, "model_type": "clip_vision_model", "image_size": 16, "patch_size": 8},
    "text_config": {**TOWER, "model_type": "clip_text_model", "max_position_embeddings": 16},
}


@pytest.fixture(autouse=True)
def start_fresh(fresh_accelerate_state) -> None:
    """Every test here starts without state of Accelerate."""


def settings_for(output, **changes):
    return ComparisonSettings(
        **{
            "output_dir": str(output),
            "student": "custom",
            "student_config": STUDENT,
            "teacher_config": {"vision_config": {"hidden_size": 12}, "projection_dim": 8},
            "teacher_steps": 2,
            "num_steps": 2,
            "batch_size": 8,
            "warmup_steps": 1,
            "synthetic": {"num_pairs": 16, "image_size": 16},
            "seeds": [3, 1],
            "evaluation_pairs": 30,
            **changes,
        }
    )


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        output = tmp_path_factory.mktemp("comparison")
        return output, compare(settings_for(output))


def test_every_method_trains_its_terms_with_the_same_budget(compared):
    output, result = compared
    assert list(result["students"]) == list(METHODS)
    for name, terms in METHODS.items():
        assert [row["seed"] for row in result["students"][name]] == [3, 1]
        metrics = json.loads((output / f"{name.replace(' ', '_')}_seed_1" / "metrics.json").read_text())
        assert metrics["history"][-1]["step"] == 2
        assert set(metrics["history"][-1]) == {"step", "loss", "logit_scale", *terms}
        config = metrics["config"]
        assert (config["teacher"] is None) == (name == "no distillation")
        assert (config["seed"], config["batch_size"], config["num_steps"]) == (1, 8, 2)
    teacher = json.loads((output / "teacher" / "config.json").read_text())
    assert teacher["vision_config"]["hidden_size"] == 12 and teacher["text_config"]["hidden_size"] == 8
    assert METHODS["CLIP-RD"] == ("task", "fd", "icl", "hrd", "vrd", "vrd_image", "vrd_text", "xrd")


def test_the_written_tables_show_the_numbers(compared):
    output, result = compared
    assert json.loads((output / "comparison.json").read_text()) == json.loads(json.dumps(result))
    text = (output / "comparison.md").read_text()
    assert text == markdown(result)
    rows = result["students"]["CLIP-RD"]
    mean = sum(row["zero_shot"] for row in rows) / 2
    lines = [line for line in text.splitlines() if line.startswith("| CLIP-RD |")]
    assert len(lines) == 2 and lines[0].startswith(f"| CLIP-RD | {mean:.4f} ± ")
    difference = sum(a["zero_shot"] - b["zero_shot"] for a, b in zip(rows, result["students"]["CLIP-KD"], strict=True))
    assert lines[1].startswith(f"| CLIP-RD | {difference / 2:+.4f} ± ")


def test_finished_students_are_not_trained_again(compared, monkeypatch, tmp_path):
    output, result = compared
    trained = []
    monkeypatch.setattr(comparison, "distill", lambda settings: trained.append(settings.output_dir))
    again = compare(settings_for(output, resume=True))
    assert trained == [] and again["students"] == result["students"]
    with pytest.raises(ValueError, match="resume: num_steps is 3 and was 2"):
        compare(settings_for(output, resume=True, num_steps=3))


def test_the_benchmark_scores_a_model_that_knows_everything(tmp_path, monkeypatch):
    """Embeddings made of the captions themselves: right on all that is asked, held out or not."""
    benchmark = Benchmark(settings_for(tmp_path))
    assert len(set(benchmark.drawn["caption"])) == 30 == len(benchmark.held_out)
    shown = {comparison._shape_and_colour(caption) for caption in benchmark.held_out["caption"]}
    assert shown <= set(HELD_OUT)
    assert not {comparison._shape_and_colour(caption) for caption in benchmark.drawn["caption"]} & set(HELD_OUT)
    vectors = {}

    def embed(captions):
        rows = []
        for caption in captions:
            row = torch.zeros(64)
            for word in caption.replace("crosses", "cross").split():
                word = word if word.endswith("cross") else word.removesuffix("s")
                row[vectors.setdefault(word, len(vectors))] = 1
            rows.append(row)
        return torch.stack(rows)

    class Knowing:
        def eval(self):
            return self

        def get_text_features(self, captions):
            return embed(captions)

        def get_image_features(self, images):
            return embed(images)

    class Reading:
        def __init__(self, *parts):
            self.parts = parts

        def captions(self, captions):
            return {"captions": captions}

        def images(self, images):
            return [captions_of[id(image)] for image in images]

    captions_of = {}
    for pairs in (benchmark.drawn, benchmark.held_out):
        images = list(pairs["image"])
        captions_of |= {id(image): caption for image, caption in zip(images, pairs["caption"], strict=True)}
        kept = {"image": images, "caption": list(pairs["caption"])}
        monkeypatch.setattr(benchmark, "drawn" if pairs is benchmark.drawn else "held_out", Pairs(kept))
    monkeypatch.setattr(comparison, "PairProcessor", Reading)
    for name, value in (("AutoModel", Knowing()), ("AutoTokenizer", None), ("AutoImageProcessor", None)):
        monkeypatch.setattr(comparison, name, type(name, (), {"from_pretrained": lambda *a, value=value, **k: value}))
    found = benchmark.evaluate("anywhere")
    assert found == dict.fromkeys(("zero_shot", "held_out_zero_shot", "image_to_text", "text_to_image"), 1.0)


class Pairs(dict):
    """Columns whose images stay the same objects."""

    def __len__(self) -> int:
        return len(self["caption"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "owner/pairs"}, "made on the built-in pairs, found data 'owner/pairs'"),
        ({"seeds": []}, "seeds must be different"),
        ({"weights": {"task": 1.0, "fd": 1.0}}, "expected one above 0 for every term, found none for icl, hrd"),
        ({"teacher_steps": 0}, "teacher_steps must be at least 1"),
    ],
)
def test_bad_settings_are_named(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        settings_for(tmp_path, **changes)
