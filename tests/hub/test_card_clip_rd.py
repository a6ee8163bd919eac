"""The card of a CLIP-RD student: its numbers beside the teacher's, what it came from, and what was not measured."""

import re

import pytest
from huggingface_hub import ModelCard

from hf_blemo.clip_rd.weights_clip_rd import TERMS
from hf_blemo.hub.card import render_card


def card_metadata(metrics):
    return ModelCard(render_card(metrics)).data


def block(card, name):
    return re.search(rf"<!-- hf_blemo:begin {name} -->\n(.*?)<!-- hf_blemo:end", card, re.DOTALL)[1]


def test_metadata_holds_the_numbers(clip_rd_metrics):
    metadata = card_metadata(clip_rd_metrics).to_dict()
    assert metadata["pipeline_tag"] == "zero-shot-image-classification"
    assert metadata["tags"] == ["clip", "distillation", "clip-rd", "hf_blemo"]
    assert metadata["base_model"] == "owner/teacher" and "base_model_relation" not in metadata
    assert metadata["datasets"] == ["owner/pairs"]
    assert metadata["metrics"] == ["accuracy", "recall"]
    zero_shot, retrieval = metadata["model-index"][0]["results"]
    assert zero_shot["task"]["type"] == "zero-shot-image-classification"
    assert (zero_shot["dataset"]["type"], retrieval["dataset"]["type"]) == ("synthetic", "owner/coco")
    assert zero_shot["dataset"]["args"] == {"task": "zero_shot", "images": 500, "classes": 36}
    named = {metric["name"]: metric["value"] for metric in zero_shot["metrics"]}
    assert named == {"top-1 accuracy": 0.17, "top-5 accuracy": 0.425}
    assert retrieval["dataset"]["args"] == {"task": "coco", "images": 1000, "captions": 5000}
    found = {metric["name"]: metric["value"] for metric in retrieval["metrics"]}
    assert len(found) == 12
    assert found["image to text R@5 (standard protocol)"] == pytest.approx(0.51)
    assert found["text to image R@10 (first caption of each image only)"] == pytest.approx(0.2975)


@pytest.mark.parametrize(
    ("data", "split"),
    [
        (("/home/me/one", "/home/me/two"), ("test", "test")),
        (("owner/one", "owner/two"), ("test", "test")),
        (("owner/one", "owner/one"), ("test", "validation")),
        (("owner/one", "owner/one"), ("test", "test")),
        (("synthetic", "emoji"), (None, None)),
        (("synthetic", "synthetic"), (None, None)),
    ],
)
def test_every_task_has_an_entry_of_its_own(clip_rd_metrics, data, split):
    tasks = clip_rd_metrics["evaluation"]["tasks"]
    tasks |= {f"task_{number}": {**tasks["zero_shot"], "data": source} for number, source in enumerate(data)}
    clip_rd_metrics["config"]["evaluation"] = {
        f"task_{number}": {"split": name} if name else {} for number, name in enumerate(split)
    }
    for number in (0, 1):
        tasks[f"task_{number}"]["top_1"] = 0.25 + number / 4
    results = card_metadata(clip_rd_metrics).to_dict()["model-index"][0]["results"]
    found = [entry for entry in results if entry["dataset"]["config"].startswith("task_")]
    assert [entry["dataset"]["config"] for entry in found] == ["task_0", "task_1"]
    assert [entry["dataset"].get("split") for entry in found] == list(split)
    assert [entry["metrics"][0]["value"] for entry in found] == [0.25, 0.5]
    assert all(len({metric["name"] for metric in entry["metrics"]}) == len(entry["metrics"]) for entry in results)


def test_results_tables(clip_rd_metrics):
    results = block(render_card(clip_rd_metrics), "results")
    for row in (
        "| zero_shot | **this model** | 17.0% | 42.5% |",
        "| zero_shot | teacher | 20.0% | 50.0% |",
        "| zero_shot | *guessing among 36 classes* | 2.8% | 13.9% |",
        "| coco | **this model** | 34.0% | 51.0% | 68.0% | 25.5% | 42.5% | 59.5% |",
        "| coco | teacher | 40.0% | 60.0% | 80.0% | 30.0% | 50.0% | 70.0% |",
        "| 100 | 10.0% | 20.0% | 15.0% |",
    ):
        assert results.count(f"{row}\n") == 1, row
    standard, one_caption = results.split("### Retrieval, one-caption protocol")
    assert "| coco | **this model** | 17.0% | 25.5% | 34.0% | 12.8% | 21.2% | 29.8% |" in one_caption
    assert "| coco | teacher | 40.0%" in standard and "| coco | teacher | 20.0%" in one_caption
    assert "owner/coco, 1,000 images, 5,000 captions" in standard
    assert "after the last of 150 steps" in standard


def test_what_was_not_measured_is_said(clip_rd_metrics):
    clip_rd_metrics["teacher_evaluation"] = None
    clip_rd_metrics["evaluation"]["step"] = 100
    del clip_rd_metrics["evaluation"]["tasks"]["zero_shot"]
    results = block(render_card(clip_rd_metrics), "results")
    assert "The teacher was not evaluated." in results and "| teacher |" not in results
    assert "### Zero-shot classification\n\nNot evaluated." in results
    assert "after step 100 of 150, not on these final weights" in results

    clip_rd_metrics |= {"evaluation": None, "evaluations": None}
    card = render_card(clip_rd_metrics)
    assert block(card, "results") == "These weights were not evaluated.\n"
    assert "model-index" not in card_metadata(clip_rd_metrics).to_dict() and "%" not in block(card, "results")


def test_terms_with_their_weights_and_values(clip_rd_metrics):
    losses = block(render_card(clip_rd_metrics), "losses")
    rows = {line.split("`")[1]: line for line in losses.splitlines() if line.startswith("| `")}
    assert tuple(rows) == TERMS
    assert rows["fd"].endswith("| 250 | 2000 | 0.003912 | 0.0005123 |")
    assert rows["hrd"].endswith("| 1 | 1 | 4 | 2 |")
    assert rows["xrd"].endswith("| 0 at step 0, 1 at step 100 | 1 | 4 | 2 |")
    assert "logit scale 100.00; its embeddings were computed at every step." in losses


def test_the_method_is_named_by_its_terms(clip_rd_metrics):
    for used, name in (
        (TERMS, "the terms of CLIP-RD"),
        (("task", "fd", "icl", "hrd"), "the terms of CLIP-KD"),
        (("task", "hrd"), "the contrastive loss and affinity mimicking"),
        (("task", "xrd"), "a choice of CLIP-RD's terms"),
    ):
        # A schedule that never leaves 0 does not use its term.
        schedule = {} if "vrd" in used else {"vrd": [[0, 0.0], [9, 0.0]]}
        clip_rd_metrics["config"] |= {"weights": dict.fromkeys(used, 2.0), "weight_schedule": schedule}
        assert f"huggingface.co/owner/teacher) with {name}." in block(render_card(clip_rd_metrics), "summary")


def test_data_and_broken_images(clip_rd_metrics):
    data = block(render_card(clip_rd_metrics), "data")
    assert "| [owner/pairs](https://huggingface.co/datasets/owner/pairs) | 75.0% | not counted |" in data
    assert "| pairs | 25.0% | 4,000 |" in data
    assert "19,200 image-caption pairs were read for 150 steps of 128." in data
    assert "3 of them were broken" in data
    for broken, text in ((1, "1 of them was broken"), (0, "None of them was"), (None, "was not recorded")):
        clip_rd_metrics["data"]["broken"] = broken
        assert text in block(render_card(clip_rd_metrics), "data")


def test_a_student_without_a_teacher_was_not_distilled(clip_rd_metrics):
    clip_rd_metrics |= {"teachers": [], "teacher_evaluation": None}
    clip_rd_metrics["config"]["weights"] = {"task": 1.0}
    card = render_card(clip_rd_metrics)
    assert "without a teacher" in block(card, "summary") and "distilled" not in block(card, "summary")
    assert block(card, "losses").count("| `") == 1
    metadata = card_metadata(clip_rd_metrics)
    assert metadata.base_model is None and metadata.tags == ["clip", "clip-rd", "hf_blemo"]
    assert card_metadata(clip_rd_metrics | {"student": "owner/start"}).base_model == "owner/start"


def test_towers_that_did_not_start_at_random_are_named(clip_rd_metrics):
    clip_rd_metrics["config"] |= {"vision_weights": "owner/vit", "text_weights": "teacher", "freeze": ["text"]}
    summary = block(render_card(clip_rd_metrics), "summary")
    assert "Its vision tower started from [owner/vit](https://huggingface.co/owner/vit)." in summary
    assert "Its text tower started from the teacher's, and was not trained." in summary
    clip_rd_metrics["config"]["release"] = {"text": 500}
    assert "and is trained from step 500." in block(render_card(clip_rd_metrics), "summary")


def test_folders_are_no_base_model(clip_rd_metrics, tmp_path, monkeypatch):
    """`out` holds the run's own output, and `work/teacher` exists."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "work" / "teacher").mkdir(parents=True)
    for source in ("out/teacher", "work/teacher", "/data/someone/teacher", "./teacher", "teacher"):
        clip_rd_metrics["teachers"][0]["source"] = source
        card = render_card(clip_rd_metrics)
        assert ModelCard(card).data.base_model is None, source
        assert "distilled from a local model (`teacher`) with" in card, source


def test_drawings_are_called_drawings(clip_rd_metrics):
    assert "drawings" not in block(render_card(clip_rd_metrics), "summary")
    clip_rd_metrics["data"]["sources"].append({"data": "emoji", "weight": 1.0})
    assert "Trained in part on drawings**: emoji" in block(render_card(clip_rd_metrics), "summary")
    clip_rd_metrics["data"]["sources"] = [{"data": "synthetic", "weight": 1.0}, {"data": "emoji", "weight": 1.0}]
    assert "Trained on drawings alone**: emoji" in block(render_card(clip_rd_metrics), "summary")
    assert "datasets" not in card_metadata(clip_rd_metrics).to_dict()


def test_metrics_that_the_card_cannot_tell_are_refused(clip_rd_metrics):
    clip_rd_metrics["data"] = {"source": "synthetic", "pairs": 3}
    with pytest.raises(ValueError, match="metrics.json: expected the metrics of a run .*, found: KeyError: 'sources'"):
        render_card(clip_rd_metrics)
