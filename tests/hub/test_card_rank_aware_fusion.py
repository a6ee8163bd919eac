"""The card of a fusion: its numbers, in metadata and text, and what it says of protocols and risks."""

import copy
import re

import pytest
import yaml

from hf_blemo.hub.card import render_card


def metadata_of(card):
    return yaml.safe_load(card.split("---\n")[1])


def rows_of(card, first_cell):
    lines = [line for line in card.splitlines() if line.startswith(f"| {first_cell}")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_metadata_holds_the_numbers(fusion_metrics):
    metadata = metadata_of(render_card(fusion_metrics))
    assert metadata["pipeline_tag"] == "video-classification"
    assert metadata["tags"] == ["blended-emotion-recognition", "hf_blemo", "rank-aware-fusion", "blemore"]
    assert "datasets" not in metadata
    [result] = metadata["model-index"][0]["results"]
    assert result["task"]["type"] == "video-classification"
    assert (result["dataset"]["type"], result["dataset"]["split"]) == ("blemore", "train")
    assert result["dataset"]["args"] == {"protocol": "honest", "folds": [0, 1], "clips": 2456}
    found = {metric["type"]: (metric["value"], metric["args"]) for metric in result["metrics"]}
    summary = fusion_metrics["summary"].items()
    assert found == {key: (value["mean"], {"std": value["std"], "runs": 6}) for key, value in summary}
    assert all("honest cross-validation" in metric["name"] for metric in result["metrics"])


def test_data_sets_are_named_for_what_they_are(fusion_metrics):
    measured = render_card(copy.deepcopy(fusion_metrics))
    assert "Trained on invented data" not in measured and "0.345 ± 0.035" in measured
    fusion_metrics["data"] |= {"source": "owner/blemore-features", "hub_id": "owner/blemore-features"}
    metadata = metadata_of(render_card(fusion_metrics))
    assert metadata["datasets"] == ["owner/blemore-features"]
    assert metadata["model-index"][0]["results"][0]["dataset"]["type"] == "owner/blemore-features"

    fusion_metrics["data"] = {"source": "synthetic", "clips": 120}
    card = render_card(fusion_metrics)
    dataset = metadata_of(card)["model-index"][0]["results"][0]["dataset"]
    assert dataset["type"] == "synthetic" and "BlEmoRE" not in dataset["name"]
    # Numbers on BlEmoRE are no yardstick for invented data.
    assert "Trained on invented data" in card and "0.345 ± 0.035" not in card
    fusion_metrics["data"]["name"] = "My clips"
    assert "Trained on My clips" in render_card(fusion_metrics)


def test_results_table(fusion_metrics):
    card = render_card(fusion_metrics)
    name = "**mean ± sample standard deviation over 6 runs (2 folds, 3 seeds), decoded by expected score**"
    assert rows_of(card, "**mean") == [[name, "0.3125 ± 0.0211", "0.1402 ± 0.0333", "0.2263 ± 0.0187"]]
    assert rows_of(card, "ensemble") == [["ensemble of the seeds, ± over the folds", "0.3300", "0.1500", "0.2400"]]
    assert rows_of(card, "decoded by") == [["decoded by thresholds instead", "0.2900 ± 0.0100", "–", "–"]]
    assert rows_of(card, "2 | 1 |") == [["2", "1", "–", "7", "0.1447", "0.0974", "–", "–", "0.2100"]]
    assert rows_of(card, "wavlm") == [["wavlm", "audio", "1024", "attention", "0.610", "90.0%"]]
    assert rows_of(card, "image") == [["image\\|bind", "video", "7168", "mean", "–", "–"]]
    for text in ("2,456 clips in 2 folds, 54.4% of them blends", "1,234,567 parameters", "took 62 s"):
        assert text in card


def test_protocols_are_told_in_plain_words(fusion_metrics):
    assert "honest cross-validation" in render_card(fusion_metrics)
    assert "optimistic" not in render_card(fusion_metrics)
    fusion_metrics["protocol"] = "published_style"
    assert "**Protocol: published style, optimistic.**" in render_card(fusion_metrics)
    fusion_metrics["protocol"] = "none"
    card = render_card(fusion_metrics)
    assert "were not evaluated" in card
    assert "model-index" not in metadata_of(card) and "metrics" not in metadata_of(card)
    assert not rows_of(card, "**mean")
    with pytest.raises(ValueError, match="expected a protocol of .* found 'lucky'"):
        render_card(fusion_metrics | {"protocol": "lucky"})


def test_cards_of_other_data_with_the_six_names_say_nothing_of_blemore(fusion_metrics):
    assert "holds video and audio of actors" in render_card(copy.deepcopy(fusion_metrics))
    fusion_metrics["data"] |= {"is_blemore": False, "source": "/home/me/moods", "blend_share": 0.0}
    fusion_metrics |= {"command": None, "config": {}}
    card = render_card(fusion_metrics)
    metadata, text = metadata_of(card), re.sub("hf.blemo", "", card.split("---\n", 2)[2])
    assert "blemore" not in metadata["tags"] and "blended-emotion-recognition" in metadata["tags"]
    [result] = metadata["model-index"][0]["results"]
    assert (result["dataset"]["type"], result["dataset"]["name"]) == ("local", "local data")
    assert "0.0% of them blends" in text and "anger (`ang`)" in text
    assert not re.search("blemo|actor|vocalis|0.345", text, re.IGNORECASE)


LABELS = {
    "seven": {"id2label": dict(enumerate("abcdefg"))},
    "soft": {"id2label": dict(enumerate("abc")), "label_kind": "soft", "encoders": {"x": {"modality": "audio"}}},
    "blends": {"id2label": dict(enumerate("abcd")), "blend_percents": [[60, 40], [40, 30, 30]], "unblended": ["d"]},
    "words": {"id2label": {"0": "a", "1": "b"}, "encoders": {"x": {"modality": "text"}}},
}


@pytest.mark.parametrize(
    ("name", "tag", "texts"),
    [
        ("seven", "tabular", ["which of 7 classes a clip shows", "is the most probable class", "over the 7 labels"]),
        ("soft", "audio", ["how a clip shares among 3 classes", "is a distribution", "nothing is decoded"]),
        ("blends", "tabular", ["blend of two or three of them", "60/40, 40/30/30: 8 valid labels. `d` never"]),
        ("words", "text", ["The 2 classes, in this order: `a`, `b`."]),
    ],
)  # fmt: skip
def test_cards_of_other_labels_say_their_names_and_nothing_of_blemore(fusion_metrics, name, tag, texts):
    measures = {"kl": {"mean": 0.4, "std": 0.1}, "accuracy": {"mean": 0.5, "std": 0.1}, "own": {"mean": 1.0}}
    decoding = "soft" if name == "soft" else "expected_score"
    fusion_metrics |= {"summary": measures, "ensemble": None, "alternatives": {}, "decoding": decoding, "config": {}}
    fusion_metrics |= {"command": None, "data": {"source": "/home/me/mine", "clips": 9, "blend_share": 0.25}}
    fusion_metrics["data"] |= {"folds": [0, 1], "groups": 4 if name == "seven" else None}
    card = render_card(fusion_metrics, config=LABELS[name])
    metadata, text = metadata_of(card), " ".join(card.split("---\n", 2)[2].split())
    assert metadata["pipeline_tag"] == f"{tag}-classification" and "blemore" not in metadata["tags"]
    [result] = metadata["model-index"][0]["results"]
    assert [metric["type"] for metric in result["metrics"]] == ["accuracy", "kl", "own"]
    assert result["task"]["type"] == f"{tag}-classification" and result["dataset"]["name"] == "local data"
    assert all(words in text for words in texts) and ("of them blends" in text) == (name == "blends")
    assert ("None of the 4 groups is in two folds." if name == "seven" else "may not be group-disjoint") in text
    assert rows_of(card, "**mean")[0][1:] == ["0.5000 ± 0.1000", "0.4000 ± 0.1000", "1.0000"]
    assert not re.search(
        "blemo|six emotions|36 labels|actors|vocalis|anger", re.sub("hf.blemo", "", text), re.IGNORECASE
    )
