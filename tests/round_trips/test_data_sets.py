"""Feature data sets and teacher stores are pushed to the Hub as Parquet with cards, and load from there."""

import json

import datasets
import numpy as np
import pytest
import yaml
from tiny_models import save_tiny_model

from hf_blemo import feature_sets
from hf_blemo.built_in import make_synthetic_blends
from hf_blemo.cli import main
from hf_blemo.clip_rd_training.embedding import embed
from hf_blemo.clip_rd_training.run import distill
from hf_blemo.clip_rd_training.settings import DistillationSettings, EmbeddingSettings
from hf_blemo.fusion_training.run import train_fusion
from hf_blemo.fusion_training.settings import FusionSettings


@pytest.fixture(autouse=True)
def work(fresh_accelerate_state, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def parquet(files):
    return sorted(path for path in files if path.endswith(".parquet"))


def test_features_round_trip_and_edits_of_the_card_survive(hub):
    build = ["dataset", "build", "synthetic", "--output", "built", "--push-to-hub", "you/features"]
    assert main([*build, "--num-clips", "40"]) == 0
    card = hub.files("you/features", kind="dataset")["README.md"].decode()
    assert "No licence is stated" in card
    card = card.replace("tags:", "license: cc0-1.0\ntags:", 1) + "\nWritten on the Hub.\n"
    repository = hub.repository("you/features", "dataset")
    repository.edit("README.md", card.encode())
    assert main([*build, "--num-clips", "30", "--overwrite"]) == 0
    assert repository.private
    files = hub.files("you/features", kind="dataset")
    assert parquet(files) == ["data/train-00000-of-00001.parquet"]
    card = files["README.md"].decode()
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata["license"] == "cc0-1.0" and "blemore" in metadata["tags"]
    assert metadata["dataset_info"]["splits"][0]["num_examples"] == 30
    assert "Written on the Hub." in card and "No licence is stated" not in card
    assert "30 clips in the split" in card and "| `face` | 48 |" in card

    found = datasets.load_dataset("you/features", split="train")
    made = make_synthetic_blends(num_clips=30)
    assert found["clip"][:] == made["clip"][:]
    for one, two in zip(feature_sets.read_features(found), feature_sets.read_features(made), strict=True):
        assert set(one) == set(two) and all(np.array_equal(one[name], two[name]) for name in one)
    assert next(iter(datasets.load_dataset("you/features", split="train", streaming=True)))["clip"] == made[0]["clip"]
    settings = FusionSettings(data="you/features", output_dir="run", seeds=[0], num_epochs=1, protocol="none")
    data = train_fusion(settings)["data"]
    assert (data["hub_id"], data["clips"]) == ("you/features", 30)


def test_a_pushed_teacher_store_trains_students(hub, tmp_path):
    save_tiny_model("clip_rd", tmp_path / "teacher")
    settings = {
        "data": "synthetic",
        "teachers": {"tiny": "teacher"},
        "synthetic": {"num_pairs": 12},
        "push_to_hub": "you/store",
    }
    embed(EmbeddingSettings(output_dir="store", rows_per_shard=4, batch_size=4, **settings))
    repository = hub.repository("you/store", "dataset")
    repository.edit("README.md", hub.files("you/store", kind="dataset")["README.md"] + b"Mine.\n")
    embed(EmbeddingSettings(output_dir="other", rows_per_shard=6, batch_size=4, **settings))
    assert repository.private
    files = hub.files("you/store", kind="dataset")
    # The shards of the store before, four rows each, are gone.
    assert parquet(files) == ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"]
    assert json.loads(files["store.json"])["rows_per_shard"] == 6
    assert "tokenizers/tiny/tokenizer.json" in files
    card = files["README.md"].decode()
    assert card.endswith("Mine.\n") and "| `tiny` | teacher | 12 | 16 |" in card

    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    student = {
        "projection_dim": 12,
        "vision_config": {"model_type": "clip_vision_model", "patch_size": 8, **tower},
        "text_config": {"model_type": "clip_text_model", "max_position_embeddings": 80, **tower},
    }
    metrics = distill(
        DistillationSettings(
            data="synthetic", output_dir="run", teacher_store="you/store", synthetic={"num_pairs": 12},
            student="custom", num_steps=2, batch_size=4, image_size=16, student_config=student,
        )
    )  # fmt: skip
    rows = datasets.load_dataset("you/store", split="train")
    assert metrics["teacher"]["stored"] is True and len(rows) == 12
    assert {"tiny_image_embeds", "tiny_text_embeds", "caption"} <= set(rows.column_names)
