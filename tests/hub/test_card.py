"""Cards of every family: numbers come back out of the metadata, people's words survive, and machines stay unnamed."""

import copy
import re

import pytest
import yaml
from huggingface_hub import ModelCard
from jinja2 import UndefinedError
from sample_metrics import set_first_number

from hf_blemo.hub import write_card
from hf_blemo.hub.card import FAMILIES, _human_part, merge_card, render_card, without_local_paths

# The first number of each family's model index.
FIRST = {"rank_aware_fusion": 0.3125, "clip_rd": 0.17}
PHRASES = {
    "rank_aware_fusion": "58 actors|Article 5(1)(f)|2024/1689|informed and free consent|2605.21417|2601.13225",
    "clip_rd": "surveillance|recognising faces|English|2603.25383|2307.12732|2103.00020",
}


def first_of(card):
    return metadata_of(card)["model-index"][0]["results"][0]["metrics"][0]["value"]


def metadata_of(card):
    return yaml.safe_load(card.split("---\n")[1])


def test_model_card_reads_the_results_back(metrics):
    card = render_card(metrics, repo_id="owner/model")
    results = ModelCard(card).data.eval_results
    assert results[0].metric_value == FIRST[metrics["model_type"]]
    # Equal to the Hub's eye: the same task, data and name of a metric would overwrite each other.
    assert len({(result.unique_identifier, result.metric_name) for result in results}) == len(results)
    assert metadata_of(card)["model-index"][0]["name"] == "model"
    # Code and weights come from data and encoders whose licences are not known here.
    assert "license" not in metadata_of(card) and metadata_of(card)["library_name"] == "transformers"
    assert metadata_of(render_card(metrics, license="cc0-1.0"))["license"] == "cc0-1.0"
    assert metadata_of(render_card(metrics))["model-index"][0]["name"] == metrics["model_type"]


def test_bad_metrics_are_refused(metrics):
    with pytest.raises(ValueError, match="expected schema_version 1, found 2"):
        render_card(metrics | {"schema_version": 2})
    for key in FAMILIES[metrics["model_type"]].REQUIRED_KEYS:
        with pytest.raises(ValueError, match=rf"\['{key}'\] not found"):
            render_card({name: value for name, value in metrics.items() if name != key})
    with pytest.raises(FileNotFoundError, match="'bert'.*clip_rd.*rank_aware_fusion"):
        render_card(metrics | {"model_type": "bert"})


EVIL = "x` <img src=a> <!-- hf_blemo:end results -->\n```\n~~~ | [a](b) \x1b[2J"
_CODE = re.compile(r"^```.*?^```$|(?<![\\`])(`+)(?!`).*?(?<!`)\1(?!`)", re.DOTALL | re.MULTILINE)


def poisoned(tree):
    """The same tree with one text or name of an entry replaced, each in turn."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        if isinstance(tree, dict) and isinstance(value, dict):
            yield {EVIL if name == key else name: entry for name, entry in tree.items()}
        changes = poisoned(value) if isinstance(value, (dict, list)) else [EVIL] if isinstance(value, str) else []
        for changed in changes:
            copied = copy.copy(tree)
            copied[key] = changed
            yield copied


def test_no_value_is_a_tag_a_link_a_fence_or_a_marker(metrics):
    clean, num_cards = render_card(metrics, "owner/name"), 0
    for changed in poisoned(metrics):
        try:
            card = render_card(changed, "owner/name")
        except (ValueError, KeyError, FileNotFoundError, AttributeError, TypeError, UndefinedError):
            # A setting with few values, or an entry that is needed.
            continue
        text = card.split("\n---\n", 1)[1]
        num_cards += "src=a" in text
        assert text.count("<!--") == clean.count("<!--") and "\x1b" not in text
        assert len(re.findall("(?m)^ *(```|~~~)", text)) == len(re.findall("(?m)^ *(```|~~~)", clean))
        assert "<img" not in _CODE.sub("", text) and not re.search(r"(?<!\\)\[a\]", _CODE.sub("", text))
    assert num_cards > 10
    with pytest.raises(ValueError):
        render_card(metrics, 'owner/name"); print("')


def test_only_absolute_paths_are_cut():
    for text, expected in (
        ("/home/some one/my data/x y.csv", "x y.csv"),
        ("/home/o'brien/a b/x", "x"),
        ("/home/someone", "~"),
        ("file:///home/someone/x.mp4", "x.mp4"),
        ("see file:///home/someone/x, some@host:/home/someone/y", "see x, y"),
        ("host:/home/someone/data", "data"),
        (r"C:\Users\Some One\x", "x"),
        ("http://user:pw@host/a/b?sig=1", "http://host/a/b"),
        ("zip://a.mp4::/home/someone/x.zip", "zip://a.mp4::x.zip"),
        ("python a.py --data '/home/some one/x y/z' --out /b/c d/e", "python a.py --data 'z' --out e"),
        ("found /home/some one/x.mp4: no file, expected a/b", "found x.mp4: no file, expected a/b"),
        ("/home/someone/x.mp4 and /home/other/y.mp4", "x.mp4 and y.mp4"),
        ("/home/someone/blemore", "blemore"),
        ("/home/someone/blemore/", "blemore"),
        ("~/data/blemore", "blemore"),
        (r"C:\Users\someone\blemore.csv", "blemore.csv"),
        ("--data '/srv/a/b.csv' --output_dir=/srv/a/out", "--data 'b.csv' --output_dir=out"),
        ("training/configs/a.yaml and ../a/b and ./a/b", "training/configs/a.yaml and ../a/b and ./a/b"),
        ("https://huggingface.co/owner/name/tree/main", "https://huggingface.co/owner/name/tree/main"),
        ("owner/name, 70/30 / 50/50", "owner/name, 70/30 / 50/50"),
    ):
        assert without_local_paths({"a": [text, 3, None]}) == {"a": [expected, 3, None]}


def test_folder_decides_on_code_and_plots(metrics, tmp_path):
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "gate_weights.png").write_bytes(b"")
    (tmp_path / "config.json").write_text("{}")
    card = write_card(tmp_path, metrics).read_text(encoding="utf-8")
    assert "![gate weights](plots/gate_weights.png)" in card
    assert "trust_remote_code" not in card
    (tmp_path / "config.json").write_text('{"auto_map": {}}')
    assert "trust_remote_code" in write_card(tmp_path, metrics).read_text(encoding="utf-8")


def test_nothing_that_people_may_edit_depends_on_the_run(metrics):
    """Publishing tells an untouched card from an edited one by this."""
    if metrics["model_type"] == "clip_rd":
        other = {key: value for key, value in metrics.items() if "evaluation" not in key and key != "versions"}
        other |= {"student": "custom", "wall_seconds": None, "num_processes": 2}
    else:
        other = {**metrics, "data": {"source": "elsewhere"}, "decoding": "thresholds", "protocol": "published_style"}
    metadata, text = _human_part(render_card(metrics))
    other_metadata, other_text = _human_part(render_card(other, repo_id="owner/name", plots=["a.png"]))
    assert text == other_text
    assert {**metadata, "metrics": None} == {**other_metadata, "metrics": None}


def test_card_names_risks_and_sources_and_its_code_the_repository(metrics):
    card = render_card(metrics, repo_id="owner/model")
    for phrase in PHRASES[metrics["model_type"]].split("|"):
        assert phrase in card, phrase
    codes = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    for code in codes:
        compile(code, "card", "exec")
        assert 'from_pretrained("owner/model"' in code
    own = {"rank_aware_fusion": '"image|bind": np.random.randn(20, 7168)', "clip_rd": ".to_clip()"}
    assert own[metrics["model_type"]] in codes[-2]
    assert (
        codes[-1].count("trust_remote_code=True") == 2 + (metrics["model_type"] == "rank_aware_fusion")
        and "trust_remote_code" not in codes[-2]
    )
    assert len(codes) == (3 if metrics["model_type"] == "clip_rd" else 2)


def test_the_required_keys_are_enough(metrics):
    required = {key: metrics[key] for key in FAMILIES[metrics["model_type"]].REQUIRED_KEYS}
    if metrics["model_type"] == "clip_rd":
        required |= {"model_type": "clip_rd", "data": {"sources": [{"data": "synthetic"}]}, "config": {}}
    card = render_card(required)
    # No block leaves a gap or a variable.
    for text in (card, render_card(metrics), render_card(metrics, remote_code=False, plots=["a.png", "plots/b.png"])):
        assert "None" not in text and "Undefined" not in text and "\n\n\n" not in text
    if metrics["model_type"] == "clip_rd":
        assert "46,116,097" in card and "These weights were not evaluated." in card
    else:
        assert "| **mean ± sample standard deviation** |" in card
        assert metadata_of(card)["model-index"][0]["results"][0]["metrics"][2]["value"] == 0.22635


def test_edits_survive_and_numbers_follow(metrics, tmp_path):
    path = write_card(tmp_path, metrics)
    card = path.read_text(encoding="utf-8")
    card = card.replace("---\n", "---\nlicense: cc-by-4.0\nlanguage:\n- sv\n", 1)
    card = card.replace("- hf_blemo\n", "- hf_blemo\n- my-tag\n")
    card = card.replace("## Limitations\n", "## Limitations\n\nOur microphones hum.\n")
    card = card.replace("The run took 62 s", "Edited inside the markers")
    path.write_text("\ufeff" + card, encoding="utf-8", newline="\r\n")

    set_first_number(metrics, 0.25)
    merged = write_card(tmp_path, metrics).read_text(encoding="utf-8")
    metadata = metadata_of(merged)
    assert metadata["license"] == "cc-by-4.0" and metadata["language"] == ["sv"]
    assert metadata["tags"].count("my-tag") == 1 and metadata["tags"].count("hf_blemo") == 1
    assert first_of(merged) == 0.25
    assert merged.count("Our microphones hum.") == 1
    assert "Edited inside the markers" not in merged and merged.count("The run took 62 s") == 1
    assert write_card(tmp_path, metrics).read_text(encoding="utf-8") == merged  # a second time changes nothing


def test_cards_by_hand_keep_their_form(metrics):
    card = render_card(metrics)
    merged = merge_card("# By hand\n\nMy words.\n", card)
    assert "# By hand\n\nMy words.\n\n<!-- hf_blemo:begin results -->" in merged
    assert merged.count("hf_blemo:begin") == 1
    assert first_of(merged) == FIRST[metrics["model_type"]]
    # One of metadata alone gets the whole text, and a broken model index is replaced.
    merged = merge_card("---\nlicense: mit\nmodel-index: nonsense\n---\n", card)
    assert metadata_of(merged)["license"] == "mit" and first_of(merged) == FIRST[metrics["model_type"]]
    assert _human_part(merged)[1] == _human_part(card)[1]
    # A block that was deleted stays deleted.
    start, end = card.index("<!-- hf_blemo:begin data -->"), card.index("<!-- hf_blemo:end data -->")
    edited = card[:start] + card[end + len("<!-- hf_blemo:end data -->") :]
    assert merge_card(edited, card) == edited


def test_broken_cards_are_refused(metrics):
    for existing, message in (
        ("text\n<!-- hf_blemo:begin results -->\nmore\n", "<!-- hf_blemo:begin results --> alone"),
        ("<!-- hf_blemo:end results -->\n", "<!-- hf_blemo:end results --> alone"),
        ("---\n- a\n- b\n---\ntext\n", "should be a dict"),
        ("---\na: [\n---\ntext\n", "expected YAML metadata"),
    ):
        with pytest.raises(ValueError, match=message):
            merge_card(existing, render_card(metrics))
