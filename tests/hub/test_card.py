"""Cards: the numbers of a run come back out of the metadata and the text, and people's words survive."""

import copy
import re

import pytest
import yaml
from huggingface_hub import ModelCard, metadata_load

from hf_blemo.hub import card_metadata, card_template, merge_card, render_card, write_card
from hf_blemo.hub.card import human_part, without_local_paths

MEASURES = {
    "acc_presence": {"mean": 0.3125, "std": 0.0211},
    "acc_salience": {"mean": 0.1402, "std": 0.0333},
    "score": {"mean": 0.22635, "std": 0.0187},
}
METRICS = {
    "schema_version": 1,
    "model_type": "rank_aware_fusion",
    "protocol": "honest",
    "protocol_description": "Epoch and thresholds come from the following fold.",
    "decoding": "expected_score",
    "data": {"source": "/home/someone/blemore", "hub_id": None, "clips": 2456, "folds": [0, 1], "blend_share": 0.5443},
    "seeds": [0, 1, 2],
    "summary": MEASURES,
    "ensemble": {"acc_presence": 0.33, "acc_salience": 0.15, "score": 0.24},
    "alternatives": {"expected_score": MEASURES, "thresholds": {"acc_presence": {"mean": 0.29, "std": 0.01}}},
    "folds": [
        {"seed": seed, "fold": fold, "epoch": 7, "alpha": 0.14474, "beta": 0.09737, "score": 0.2 + 0.01 * fold}
        for seed in range(3)
        for fold in range(2)
    ],
    "encoders": {
        "wavlm": {
            "feature_size": 1024,
            "modality": "audio",
            "pooling": "attention",
            "mean_weight": 0.61,
            "selected": 0.9,
        },
        "image|bind": {"feature_size": 7168, "modality": "video", "pooling": "mean"},
    },
    "config": {"learning_rate": 0.001, "data": "/home/someone/blemore"},
    "command": "python training/train_fusion.py --config training/configs/a.yaml --data=/home/someone/blemore",
    "versions": {"hf_blemo": "0.1.0", "torch": "2.13.0"},
    "num_parameters": 1234567,
    "wall_seconds": 61.6,
}


@pytest.fixture
def metrics():
    return copy.deepcopy(METRICS)


def metadata_of(card):
    return yaml.safe_load(card.split("---\n")[1])


def rows_of(card, first_cell):
    lines = [line for line in card.splitlines() if line.startswith(f"| {first_cell}")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_metadata_holds_the_numbers(metrics, tmp_path):
    path = write_card(tmp_path, metrics)
    metadata = metadata_load(path)
    assert metadata["license"] == "apache-2.0"
    assert metadata["library_name"] == "transformers"
    assert metadata["pipeline_tag"] == "video-classification"
    assert metadata["tags"] == ["blended-emotion-recognition", "hf_blemo", "rank-aware-fusion", "blemore"]
    assert "datasets" not in metadata
    (index,) = metadata["model-index"]
    (result,) = index["results"]
    assert result["task"]["type"] == "video-classification"
    assert result["dataset"]["split"] == "train"
    assert result["dataset"]["args"] == {"protocol": "honest", "folds": [0, 1], "clips": 2456}
    found = {metric["type"]: (metric["value"], metric["args"]) for metric in result["metrics"]}
    assert found == {key: (value["mean"], {"std": value["std"], "runs": 6}) for key, value in MEASURES.items()}
    assert all("honest cross-validation" in metric["name"] for metric in result["metrics"])


def test_model_card_reads_the_results_back(metrics):
    results = ModelCard(render_card(metrics, repo_id="owner/fusion")).data.eval_results
    assert {result.metric_type: result.metric_value for result in results} == {
        key: value["mean"] for key, value in MEASURES.items()
    }
    assert metadata_of(render_card(metrics, repo_id="owner/fusion"))["model-index"][0]["name"] == "fusion"


def test_data_sets_are_named_for_what_they_are(metrics):
    metrics["data"] |= {"source": "owner/blemore-features", "hub_id": "owner/blemore-features"}
    metadata = card_metadata(metrics).to_dict()
    assert metadata["datasets"] == ["owner/blemore-features"]
    assert metadata["model-index"][0]["results"][0]["dataset"]["type"] == "owner/blemore-features"

    metrics["data"] = {"source": "synthetic", "clips": 120}
    card = render_card(metrics)
    dataset = metadata_of(card)["model-index"][0]["results"][0]["dataset"]
    assert dataset["type"] == "synthetic" and "BlEmoRE" not in dataset["name"]
    assert "Trained on invented data" in card
    assert "0.345 ± 0.035" not in card  # numbers on BlEmoRE are no yardstick for invented data
    assert "Trained on invented data" not in render_card(METRICS)
    assert "0.345 ± 0.035" in render_card(METRICS)


def test_results_table(metrics):
    card = render_card(metrics)
    assert rows_of(card, "**mean") == [
        [
            "**mean ± standard deviation over 6 runs (2 folds, 3 seeds), decoded by expected score**",
            "0.3125 ± 0.0211",
            "0.1402 ± 0.0333",
            "0.2263 ± 0.0187",
        ]
    ]
    assert rows_of(card, "ensemble") == [["ensemble of the seeds", "0.3300", "0.1500", "0.2400"]]
    assert rows_of(card, "decoded by") == [["decoded by thresholds instead", "0.2900 ± 0.0100", "–", "–"]]
    assert rows_of(card, "2 | 1 |") == [["2", "1", "–", "7", "0.1447", "0.0974", "–", "–", "0.2100"]]
    assert rows_of(card, "wavlm") == [["wavlm", "audio", "1024", "attention", "0.610", "90.0%"]]
    assert rows_of(card, "image") == [["image\\|bind", "video", "7168", "mean", "–", "–"]]
    assert "2,456 clips in 2 folds, 54.4% of them blends" in card
    assert "1,234,567 parameters" in card
    assert "took 62 s" in card


def test_protocols_are_told_in_plain_words(metrics):
    assert "honest cross-validation" in render_card(metrics)
    assert "optimistic" not in render_card(metrics)
    metrics["protocol"] = "published_style"
    assert "**Protocol: published style, optimistic.**" in render_card(metrics)
    metrics["protocol"] = "none"
    card = render_card(metrics)
    assert "were not evaluated" in card
    assert "model-index" not in metadata_of(card) and "metrics" not in metadata_of(card)
    assert not rows_of(card, "**mean")


def test_the_four_required_keys_are_enough():
    required = {key: METRICS[key] for key in ("schema_version", "protocol", "summary", "encoders")}
    card = render_card(required)
    assert metadata_of(card)["model-index"][0]["results"][0]["metrics"][2]["value"] == MEASURES["score"]["mean"]
    assert "None" not in card and "Undefined" not in card
    assert rows_of(card, "**mean")[0][0] == "**mean ± standard deviation**"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "expected schema_version 1, found 2"),
        ({"protocol": "lucky"}, "expected a protocol of .* found 'lucky'"),
        ({"encoders": ...}, r"\['encoders'\] not found"),
    ],
)
def test_bad_metrics_are_refused(metrics, change, message):
    metrics |= change
    metrics = {key: value for key, value in metrics.items() if value is not ...}
    with pytest.raises(ValueError, match=message):
        render_card(metrics)


def test_unknown_family_names_the_known_ones(metrics):
    metrics["model_type"] = "bert"
    with pytest.raises(FileNotFoundError, match="'bert'.*rank_aware_fusion"):
        render_card(metrics)


def test_no_folder_of_the_machine_reaches_the_card(metrics):
    card = render_card(metrics)
    assert "someone" not in card
    assert "--data=blemore" in card and "training/configs/a.yaml" in card


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/someone/blemore", "blemore"),
        ("/home/someone/blemore/", "blemore"),
        ("~/data/blemore", "blemore"),
        (r"C:\Users\someone\blemore.csv", "blemore.csv"),
        ("--data '/srv/a/b.csv' --output_dir=/srv/a/out", "--data 'b.csv' --output_dir=out"),
        ("training/configs/a.yaml and ../a/b and ./a/b", "training/configs/a.yaml and ../a/b and ./a/b"),
        ("https://huggingface.co/owner/name/tree/main", "https://huggingface.co/owner/name/tree/main"),
        ("owner/name, 70/30 / 50/50", "owner/name, 70/30 / 50/50"),
    ],
)
def test_only_absolute_paths_are_cut(text, expected):
    assert without_local_paths({"a": [text, 3, None]}) == {"a": [expected, 3, None]}


def test_usage_code_names_repository_and_features(metrics):
    codes = re.findall(r"```python\n(.*?)```", render_card(metrics, repo_id="owner/fusion"), re.DOTALL)
    assert len(codes) == 2
    for code in codes:
        compile(code, "card", "exec")
        assert 'AutoModel.from_pretrained("owner/fusion"' in code
    assert '"image|bind": np.random.randn(20, 7168)' in codes[0]
    assert "trust_remote_code=True" in codes[1]


def test_folder_decides_on_code_and_plots(metrics, tmp_path):
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "gate_weights.png").write_bytes(b"")
    (tmp_path / "config.json").write_text('{"model_type": "rank_aware_fusion"}')
    card = write_card(tmp_path, metrics).read_text(encoding="utf-8")
    assert "![gate weights](plots/gate_weights.png)" in card
    assert "trust_remote_code" not in card
    (tmp_path / "config.json").write_text('{"model_type": "rank_aware_fusion", "auto_map": {}}')
    assert "trust_remote_code" in write_card(tmp_path, metrics).read_text(encoding="utf-8")


def test_card_names_risks_and_sources(metrics):
    card = render_card(metrics)
    for phrase in (
        "58 actors",
        "Article 5(1)(f)",
        "2024/1689",
        "informed and free consent",
        "2605.21417",
        "2601.13225",
    ):
        assert phrase in card


def test_template_of_ones_own(metrics, tmp_path):
    template = tmp_path / "card.jinja"
    template.write_text("---\n{{ card_data }}\n---\n{{ greeting }} {{ metrics.summary.score | measure }}")
    card = render_card(metrics, template, greeting="Hello")
    assert card.endswith("---\nHello 0.2263 ± 0.0187\n")
    assert metadata_of(card)["license"] == "apache-2.0"


def test_nothing_that_people_may_edit_depends_on_the_run(metrics):
    """Publishing tells an untouched card from an edited one by this."""
    other = {**metrics, "data": {"source": "synthetic"}, "decoding": "thresholds", "protocol": "published_style"}
    assert human_part(render_card(metrics)) == human_part(render_card(other, repo_id="owner/name", plots=["a.png"]))


def test_edits_survive_and_numbers_follow(metrics, tmp_path):
    path = write_card(tmp_path, metrics)
    card = path.read_text(encoding="utf-8")
    card = card.replace("license: apache-2.0", "license: cc-by-4.0\nlanguage:\n- sv")
    card = card.replace("- hf_blemo\n", "- hf_blemo\n- my-tag\n")
    card = card.replace("## Limitations\n", "## Limitations\n\nOur microphones hum.\n")
    card = card.replace("| ensemble of the seeds", "| edited inside the markers")
    path.write_text("\ufeff" + card, encoding="utf-8", newline="\r\n")

    metrics["summary"]["score"]["mean"] = 0.25
    merged = write_card(tmp_path, metrics).read_text(encoding="utf-8")
    metadata = metadata_of(merged)
    assert metadata["license"] == "cc-by-4.0" and metadata["language"] == ["sv"]
    assert metadata["tags"].count("my-tag") == 1 and metadata["tags"].count("hf_blemo") == 1
    values = [metric["value"] for metric in metadata["model-index"][0]["results"][0]["metrics"]]
    assert values == [0.3125, 0.1402, 0.25]
    assert merged.count("Our microphones hum.") == 1
    assert "edited inside the markers" not in merged and merged.count("ensemble of the seeds") == 1
    assert "0.2500 ± 0.0187" in merged and "0.2263" not in merged
    assert write_card(tmp_path, metrics).read_text(encoding="utf-8") == merged  # a second time changes nothing


def test_card_without_markers_gets_results_at_its_end(metrics):
    merged = merge_card("# By hand\n\nMy words.\n", render_card(metrics))
    assert "# By hand\n\nMy words.\n\n<!-- hf_blemo:begin results -->" in merged
    assert merged.count("hf_blemo:begin") == 1
    assert metadata_of(merged)["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.3125


def test_card_of_metadata_alone_gets_the_whole_text(metrics):
    merged = merge_card("---\nlicense: mit\n---\n", render_card(metrics))
    assert metadata_of(merged)["license"] == "mit"
    assert human_part(merged)[1] == human_part(render_card(metrics))[1]


def test_deleted_block_stays_deleted(metrics):
    card = render_card(metrics)
    start, end = card.index("<!-- hf_blemo:begin decoding -->"), card.index("<!-- hf_blemo:end decoding -->")
    edited = card[:start] + card[end + len("<!-- hf_blemo:end decoding -->") :]
    assert merge_card(edited, card) == edited


def test_broken_model_index_is_replaced(metrics):
    merged = merge_card("---\nmodel-index: nonsense\n---\ntext\n", render_card(metrics))
    assert metadata_of(merged)["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.3125


@pytest.mark.parametrize(
    ("existing", "message"),
    [
        ("text\n<!-- hf_blemo:begin results -->\nmore\n", "<!-- hf_blemo:begin results --> alone"),
        ("<!-- hf_blemo:end results -->\n", "<!-- hf_blemo:end results --> alone"),
        ("---\n- a\n- b\n---\ntext\n", "should be a dict"),
        ("---\na: [\n---\ntext\n", "expected YAML metadata"),
    ],
)
def test_broken_cards_are_refused(metrics, existing, message):
    with pytest.raises(ValueError, match=message):
        merge_card(existing, render_card(metrics))


def test_template_is_found():
    assert card_template("rank_aware_fusion").read_text(encoding="utf-8").startswith("---\n{{ card_data }}\n---\n")
