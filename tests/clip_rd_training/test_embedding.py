"""A store holds what the teacher makes of the very pixels that students see, and refuses to serve anything else."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from pair_files import encoded, picture, write_shards
from torch.nn import functional
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from hf_blemo.clip_models import load_clip
from hf_blemo.clip_rd_training import embedding
from hf_blemo.clip_rd_training.embedding import embed, push_store
from hf_blemo.clip_rd_training.embedding_settings import EmbeddingSettings
from hf_blemo.clip_rd_training.run import distill
from hf_blemo.data.images import Crop, open_image, read_crop
from hf_blemo.data.synthetic_pairs import make_synthetic_pairs

ROOT = Path(__file__).resolve().parents[2]
CROPS = {"scale": [0.5, 1.0], "variants": 2, "seed": 3}
PAIRS = {"num_pairs": 40}


def embed_settings(output, teacher, **changes) -> EmbeddingSettings:
    own = {"teachers": {"tiny": str(teacher)}, "synthetic": PAIRS, "augmentation": CROPS, "rows_per_shard": 16}
    return EmbeddingSettings(**{"output_dir": str(output), "batch_size": 7, **own, **changes})


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "data").iterdir())}


def rows_of(folder: Path) -> list[dict]:
    return [row for path in sorted((folder / "data").iterdir()) for row in pq.read_table(path).to_pylist()]


@pytest.fixture
def store(teacher, tmp_path) -> Path:
    embed(embed_settings(tmp_path / "store", teacher))
    return tmp_path / "store"


def test_a_store_holds_the_embeddings_of_its_crops(teacher, store):
    rows = rows_of(store)
    assert [(row["row"], row["variant"]) for row in rows] == [(row, k) for row in range(40) for k in range(2)]
    model = AutoModel.from_pretrained(teacher).eval()
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    image_processor = AutoImageProcessor.from_pretrained(teacher, backend="pil")
    pairs = make_synthetic_pairs(40)
    for row in rows[::7]:
        left, top, width, height = row["crop"]
        crop = Crop(left, top, width, height, row["flip"])
        pixels = read_crop(open_image(pairs[row["row"]]["image"]), crop, (32, 32))
        mean, std = (np.array(getattr(image_processor, f"image_{name}")) for name in ("mean", "std"))
        image = torch.from_numpy((pixels / 255 - mean) / std).permute(2, 0, 1).float()[None]
        text = tokenizer([pairs[row["row"]]["caption"]], return_tensors="pt")
        with torch.no_grad():
            out = model(pixel_values=image, **text)
        assert row["caption"] == pairs[row["row"]]["caption"] and not row["broken"]
        for side, found in (("image", out.image_embeds), ("text", out.text_embeds)):
            stored = torch.tensor(row[f"tiny_{side}_embeds"], dtype=torch.float32)
            # Entries are below 1, where float16 rounds by at most 2^-12.
            torch.testing.assert_close(stored, found[0], rtol=0, atol=2**-11)
    one, other = rows[0], rows[1]
    assert one["crop"] != other["crop"] and one["tiny_image_embeds"] != other["tiny_image_embeds"]
    described = json.loads((store / "store.json").read_text())["teachers"]["tiny"]
    assert described["dim"] == 48 and described["logit_scale"] == pytest.approx(model.logit_scale.exp().item())
    assert "40" in (store / "README.md").read_text()


def test_a_store_is_written_once_and_goes_on_where_it_stopped(teacher, store):
    whole = shards(store)
    assert len(whole) == 3
    assert embed(embed_settings(store, teacher))["written"] == 0
    (store / "data" / "train-00001-of-00003.parquet").unlink()
    with pytest.raises(FileNotFoundError, match="1 of 3 shards are missing, train-00001.* first"):
        embedding_of(store)
    again = embed(embed_settings(store, teacher))
    assert again["written"] == 1 and again["seen"] == 32 and shards(store) == whole
    for changes in ({"augmentation": {**CROPS, "seed": 4}}, {"synthetic": {"num_pairs": 41}}, {"rows_per_shard": 8}):
        with pytest.raises(ValueError, match="a store with .*this run has"):
            embed(embed_settings(store, teacher, **changes))
    assert shards(store) == whole


def embedding_of(store):
    from hf_blemo.data.teacher_store import TeacherStore

    return TeacherStore(store)


def test_processes_write_the_store_of_one(teacher, store, tmp_path):
    program = [str(ROOT / "training" / "embed_teacher.py"), "--output_dir", str(tmp_path / "two")]
    program += ["--teachers.tiny", str(teacher), "--synthetic.num_pairs", "40", "--batch_size", "7"]
    program += ["--rows_per_shard", "16", "--augmentation", json.dumps(CROPS)]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *program]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "40 pairs, 80 rows in 3 shards, 3 of them now; 0 of 80 could not be read" in done.stdout
    assert shards(tmp_path / "two") == shards(store)


def test_losses_from_the_store_are_those_of_the_live_teacher(teacher, store, tmp_path, settings_for):
    data = ("--synthetic.num_pairs", 40, "--augmentation", json.dumps(CROPS), "--dtype", "float64")
    live = distill(settings_for(tmp_path / "live", *data, "--teacher", teacher))
    moved = tmp_path / "moved"
    shutil.move(teacher, moved)
    try:
        stored = distill(settings_for(tmp_path / "stored", *data, "--teacher_store", store))
    finally:
        shutil.move(moved, teacher)
    assert len(live["history"]) == len(stored["history"]) == 3
    for one, other in zip(live["history"], stored["history"], strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            # Entries of 48 are rounded by 2^-12 of themselves at most, and the errors of a batch mostly cancel.
            assert other[name] == pytest.approx(value, rel=5e-4), name
    # They are not the same numbers: one teacher was rounded.
    assert live["history"] != stored["history"]
    assert stored["teacher"]["stored"] and stored["teacher"]["source"] == str(teacher)
    assert stored["teacher"]["fingerprint"] == live["teacher"]["fingerprint"]


def test_a_store_may_hold_several_teachers(teacher, tmp_path, settings_for):
    other = tmp_path / "other"
    distill(settings_for(other, "--num_steps", 1, "--student_config.projection_dim", 24, "--seed", 5))
    both = {"tiny": str(teacher), "small": str(other)}
    embed(embed_settings(tmp_path / "store", teacher, teachers=both))
    row = rows_of(tmp_path / "store")[0]
    assert (len(row["tiny_text_embeds"]), len(row["small_text_embeds"])) == (48, 24)
    data = ("--synthetic.num_pairs", 40, "--augmentation", json.dumps(CROPS), "--teacher_store", tmp_path / "store")
    with pytest.raises(ValueError, match="name one of its teachers: tiny, small"):
        distill(settings_for(tmp_path / "student", *data))
    with pytest.raises(ValueError, match="no teacher 'large', found tiny, small"):
        distill(settings_for(tmp_path / "student", *data, "--teacher_name", "large"))
    metrics = distill(settings_for(tmp_path / "student", *data, "--teacher_name", "small"))
    assert metrics["teacher"]["source"] == str(other)


REFUSED = {
    "teacher": (["--teacher", "somebody/else"], "made with teacher .*, the run names 'somebody/else'"),
    "revision": (["--teacher_revision", "v2"], "made with revision None of the teacher, the run names 'v2'"),
    "crops": (["--augmentation.scale", "[0.9, 1.0]"], "made with augmentation .*the pixels would not be those"),
    "no crops": (["--augmentation", "{}"], "made with augmentation"),
    "variants": (["--augmentation.variants", "3"], "made with augmentation"),
    "number of pairs": (["--synthetic.num_pairs", "41"], "source 0 had options .*40.*, the run has .*41"),
    "image size": (["--image_size", "64"], "made for images of 32 pixels, the run reads 64; embed again"),
}


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_store_of_something_else_is_refused(store, tmp_path, settings_for, arguments, message):
    data = ("--synthetic.num_pairs", 40, "--augmentation", json.dumps(CROPS), "--teacher_store", store)
    with pytest.raises(ValueError, match=message):
        distill(settings_for(tmp_path / "student", *data, *arguments))
    assert not (tmp_path / "student").exists()


def test_pairs_that_changed_since_are_named(teacher, tmp_path, settings_for):
    pairs = make_synthetic_pairs(40)
    pairs.save_to_disk(str(tmp_path / "pairs"))
    data = {"data": str(tmp_path / "pairs"), "synthetic": {}, "augmentation": {}}
    embed(embed_settings(tmp_path / "store", teacher, **data))
    shutil.rmtree(tmp_path / "pairs")
    captions = ["one small plain red ring on the left of a pink background", *list(pairs["caption"])[1:]]
    changed = pairs.remove_columns("caption").add_column("caption", captions)
    changed.save_to_disk(str(tmp_path / "pairs"))
    arguments = ("--synthetic", "{}", "--data", tmp_path / "pairs", "--teacher_store", tmp_path / "store")
    with pytest.raises(ValueError, match="pairs, row 0: embedded .*, found 'one small plain red ring.*has changed"):
        distill(settings_for(tmp_path / "student", *arguments, "--batch_size", 40))


def test_broken_pairs_are_marked_and_replaced(teacher, tmp_path, settings_for):
    images = [{"bytes": encoded(picture(number)), "path": None} for number in range(20)]
    images[4] = {"bytes": b"no picture", "path": None}
    features = datasets.Features({"image": datasets.Image(decode=False), "caption": datasets.Value("string")})
    captions = list(make_synthetic_pairs(20)["caption"])
    pairs = datasets.Dataset.from_dict({"image": images, "caption": captions}, features=features)
    pairs.save_to_disk(str(tmp_path / "pairs"))
    data = {"data": str(tmp_path / "pairs"), "synthetic": {}}
    made = embed(embed_settings(tmp_path / "store", teacher, **data))
    assert (made["broken"], made["seen"]) == (2, 40) and "row 4" in made["examples"][0]
    rows = rows_of(tmp_path / "store")
    assert [row["row"] for row in rows if row["broken"]] == [4, 4] and not any(rows[8]["tiny_image_embeds"])
    arguments = ("--synthetic", "{}", "--data", tmp_path / "pairs", "--teacher_store", tmp_path / "store")
    crops = ("--augmentation", json.dumps(CROPS), "--batch_size", 20, "--max_broken_share", 0.2)
    metrics = distill(settings_for(tmp_path / "student", *arguments, *crops))
    assert metrics["data"]["broken"] >= 6 and metrics["data"]["seen"] == 120 + metrics["data"]["broken"]
    with pytest.raises(ValueError, match="could not be read, more than max_broken_share 0.0 allows"):
        embed(embed_settings(tmp_path / "strict", teacher, **data, max_broken_share=0.0))


def test_what_cannot_be_embedded_is_named(teacher, tmp_path):
    folder = write_shards(tmp_path / "shards", ["red ring"] * 4, 2)
    with pytest.raises(ValueError, match="embeddings are found by row, which a stream does not have"):
        embed_settings(tmp_path / "store", teacher, data=str(folder), synthetic={}, streaming=True)
    with pytest.raises(ValueError, match="augmentation.variants: expected the number of crops"):
        embed_settings(tmp_path / "store", teacher, augmentation={"scale": [0.5, 1.0]})
    with pytest.raises(ValueError, match="expected names of letters, digits and underscores, found 'vit-b'"):
        embed_settings(tmp_path / "store", teacher, teachers={"vit-b": str(teacher)})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="found something that is no store"):
        embed(embed_settings(tmp_path / "mine", teacher))
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_a_store_goes_to_the_hub_as_a_data_set(store, monkeypatch):
    calls = {}

    class Api:
        def __init__(self, token=None):
            pass

        def create_repo(self, repo_id, **options):
            calls["create"] = options
            return type("Url", (), {"repo_id": repo_id})

        def upload_folder(self, **options):
            calls["upload"] = options
            return type("Commit", (), {"commit_url": "https://hub/commit"})

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    assert push_store(store, "somebody/store") == "https://hub/commit"
    assert calls["create"] == {"repo_type": "dataset", "private": True, "exist_ok": True}
    assert calls["upload"]["repo_type"] == "dataset" and calls["upload"]["repo_id"] == "somebody/store"
    from fnmatch import fnmatch

    names = [str(path.relative_to(store)) for path in store.rglob("*") if path.is_file()]
    sent = [name for name in names if any(fnmatch(name, known) for known in calls["upload"]["allow_patterns"])]
    assert {"README.md", "store.json", "data/train-00002-of-00003.parquet"} < set(sent)
    assert any(name.startswith(f"{embedding.TOKENIZERS}/tiny/") for name in sent) and len(sent) == len(names)


def test_what_a_student_needs_of_the_teacher_is_in_the_store(store, tmp_path, settings_for):
    """The teacher's tokenizer; without one of its own the student has it."""
    data = ("--synthetic.num_pairs", 40, "--augmentation", json.dumps(CROPS), "--teacher_store", store)
    distill(settings_for(tmp_path / "student", *data, "--num_steps", 2))
    clip = load_clip(str(tmp_path / "student"))
    texts = clip.processor.captions(["one small red ring"])
    features = clip.model.get_text_features(**texts)
    embeds = getattr(features, "pooler_output", features)
    assert functional.normalize(embeds, dim=-1).shape == (1, 64)
