"""Feature data sets and teacher stores go to the Hub as Parquet with cards, and come back."""

import json

import yaml

FEATURES = """
import json, sys
import numpy as np
from hf_blemo import blemore
from hf_blemo.cli import main
from huggingface_hub import HfApi

main(["dataset", "build", "synthetic", "--output", "built", "--num-clips", "40", "--push-to-hub", "you/features"])
text = open(HfApi().hf_hub_download("you/features", "README.md", repo_type="dataset")).read()
text = text.replace("**Licence: not stated.**", "**Licence: CC0.**").replace("tags:", "license: cc0-1.0\\ntags:", 1)
HfApi().upload_file(path_or_fileobj=text.encode(), path_in_repo="README.md", repo_id="you/features",
                    repo_type="dataset")
main(["dataset", "build", "synthetic", "--output", "built", "--num-clips", "30", "--overwrite",
      "--push-to-hub", "you/features"])
print(json.dumps(True))
"""
TRAIN = """
import datasets, json
import numpy as np
from hf_blemo import blemore
from hf_blemo.built_in import make_synthetic_blends
found = datasets.load_dataset("you/features", split="train")
made = make_synthetic_blends(num_clips=30)
same = found["clip"][:] == made["clip"][:]
for one, two in zip(blemore.read_features(found), blemore.read_features(made)):
    same = same and set(one) == set(two) and all(np.array_equal(one[name], two[name]) for name in one)
streamed = next(iter(datasets.load_dataset("you/features", split="train", streaming=True)))
from hf_blemo.fusion_training.run import train_fusion
from hf_blemo.fusion_training.settings import FusionSettings
metrics = train_fusion(FusionSettings(data="you/features", output_dir="run", seeds=[0], num_epochs=1, protocol="none"))
print(json.dumps([same, streamed["clip"] == made[0]["clip"], metrics["data"]["hub_id"], metrics["data"]["clips"]]))
"""


def test_features_go_and_come_back_and_people_keep_their_words(hub, on_hub):
    on_hub(FEATURES)
    repository = hub.repository("you/features", "dataset")
    assert repository.private
    files = hub.files("you/features", kind="dataset")
    assert [path for path in files if path.endswith(".parquet")] == ["data/train-00000-of-00001.parquet"]
    card = files["README.md"].decode()
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata["license"] == "cc0-1.0" and "blemore" in metadata["tags"]
    assert metadata["dataset_info"]["splits"][0]["num_examples"] == 30
    assert "**Licence: CC0.**" in card and "30 clips in the split" in card and "| `face` | 48 |" in card
    assert on_hub(TRAIN) == [True, True, "you/features", 30]


STORE = """
import json, sys
from huggingface_hub import HfApi
from tiny_models import save_tiny_model
from pathlib import Path
from hf_blemo.clip_rd_training.embedding import embed
from hf_blemo.clip_rd_training.settings import EmbeddingSettings

save_tiny_model("clip_rd", Path("teacher"))
settings = dict(teachers={"tiny": "teacher"}, synthetic={"num_pairs": 12}, push_to_hub="you/store", batch_size=4)
embed(EmbeddingSettings(output_dir="store", rows_per_shard=4, **settings))
text = Path(HfApi().hf_hub_download("you/store", "README.md", repo_type="dataset")).read_text() + "Mine.\\n"
HfApi().upload_file(path_or_fileobj=text.encode(), path_in_repo="README.md", repo_id="you/store", repo_type="dataset")
embed(EmbeddingSettings(output_dir="other", rows_per_shard=6, **settings))
print(json.dumps(True))
"""
DISTIL = """
import json
from hf_blemo.clip_rd_training.run import distill
from hf_blemo.clip_rd_training.settings import DistillationSettings
tower = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
settings = DistillationSettings(
    output_dir="run", teacher_store="you/store", synthetic={"num_pairs": 12}, student="custom", num_steps=2,
    batch_size=4, image_size=16, student_config={
        "projection_dim": 12, "vision_config": {"model_type": "clip_vision_model", "patch_size": 8, **tower},
        "text_config": {"model_type": "clip_text_model", "max_position_embeddings": 80, **tower},
    },
)
metrics = distill(settings)
import datasets
rows = datasets.load_dataset("you/store", split="train")
print(json.dumps([metrics["teacher"]["stored"], len(rows), rows.column_names]))
"""


def test_a_teacher_store_goes_and_trains_students_elsewhere(hub, on_hub):
    on_hub(STORE)
    repository = hub.repository("you/store", "dataset")
    assert repository.private
    files = hub.files("you/store", kind="dataset")
    # The shards of the store before, four rows each, are gone.
    assert sorted(path for path in files if path.endswith(".parquet")) == [
        "data/train-00000-of-00002.parquet",
        "data/train-00001-of-00002.parquet",
    ]
    assert json.loads(files["store.json"])["rows_per_shard"] == 6
    assert "tokenizers/tiny/tokenizer.json" in files
    card = files["README.md"].decode()
    assert card.endswith("Mine.\n") and "| `tiny` | teacher | 12 | 16 |" in card
    stored, rows, columns = on_hub(DISTIL)
    assert stored is True and rows == 12 and {"tiny_image_embeds", "tiny_text_embeds", "caption"} <= set(columns)
