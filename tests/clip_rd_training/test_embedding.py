"""A store holds what the teacher makes of the very pixels that students see, and refuses to serve anything else."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from fresh_processes import run_python
from pair_files import encoded, pairs_of, picture, write_shards
from torch.nn import functional
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from hf_blemo.built_in import make_synthetic_pairs
from hf_blemo.clip_rd_training import embedding
from hf_blemo.clip_rd_training.batches import PairBatches
from hf_blemo.clip_rd_training.embedding import embed
from hf_blemo.clip_rd_training.run import distill
from hf_blemo.clip_rd_training.settings import DistillationSettings, EmbeddingSettings
from hf_blemo.clip_rd_training.teachers import Teacher, _LiveTeacher, open_teacher
from hf_blemo.pairs.clip_models import image_processor_of, load_clip
from hf_blemo.pairs.images import Crop, open_image, read_crop
from hf_blemo.pairs.pair_processor import PairProcessor
from hf_blemo.pairs.pair_sources import open_source
from hf_blemo.pairs.settings import PairSourceSettings
from hf_blemo.pairs.teacher_store import TeacherStore

ROOT = Path(__file__).resolve().parents[2]
CROPS = {"scale": [0.5, 1.0], "variants": 2, "seed": 3}
PAIRS = {"num_pairs": 40}


def embed_settings(output, teacher, **changes) -> EmbeddingSettings:
    own = {
        "teachers": {"tiny": str(teacher)},
        "data": "synthetic",
        "synthetic": PAIRS,
        "augmentation": CROPS,
        "rows_per_shard": 16,
    }
    return EmbeddingSettings(**{"output_dir": str(output), "batch_size": 7, **own, **changes})


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "data").iterdir())}


def rows_of(folder: Path) -> list[dict]:
    return [row for path in sorted((folder / "data").iterdir()) for row in pq.read_table(path).to_pylist()]


@pytest.fixture(scope="module")
def made(once, teacher) -> Path:
    """A store to read."""
    return once("teacher_store", lambda folder: embed(embed_settings(folder, teacher)))


@pytest.fixture
def store(made, tmp_path) -> Path:
    """A store to change."""
    return shutil.copytree(made, tmp_path / "store")


def test_a_store_holds_the_embeddings_of_its_crops(teacher, made):
    rows = rows_of(made)
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
    described = json.loads((made / "store.json").read_text())["teachers"]["tiny"]
    assert described["dim"] == 48 and described["logit_scale"] == pytest.approx(model.logit_scale.exp().item())
    assert "40" in (made / "README.md").read_text()


def test_a_store_is_written_once_and_goes_on_where_it_stopped(teacher, store):
    whole = shards(store)
    assert len(whole) == 3
    assert embed(embed_settings(store, teacher))["written"] == 0
    (store / "data" / "train-00001-of-00003.parquet").unlink()
    with pytest.raises(FileNotFoundError, match="1 of 3 shards are missing, train-00001.* first"):
        TeacherStore(store)
    again = embed(embed_settings(store, teacher))
    assert again["written"] == 1 and again["seen"] == 32 and shards(store) == whole
    for changes in ({"augmentation": {**CROPS, "seed": 4}}, {"synthetic": {"num_pairs": 41}}, {"rows_per_shard": 8}):
        with pytest.raises(ValueError, match="a store with .*this run has"):
            embed(embed_settings(store, teacher, **changes))
    assert shards(store) == whole
    damaged = store / "data" / "train-00001-of-00003.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-300])
    with pytest.raises(ValueError, match="train-00001-of-00003.parquet cannot be read: .*delete it and run"):
        TeacherStore(store)
    damaged.unlink()
    assert embed(embed_settings(store, teacher, num_workers=1))["written"] == 1 and shards(store) == whole


def state_of(folder: Path) -> dict[Path, tuple[bytes, int]]:
    """Every file of a folder, and when it was written."""
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def test_another_run_s_store_stays_as_it_is(teacher, store, tmp_path):
    retrained = tmp_path / "retrained"
    shutil.copytree(teacher, retrained)
    model = AutoModel.from_pretrained(retrained)
    with torch.no_grad():
        model.logit_scale += 1e-3
    before = state_of(store)
    with pytest.raises(ValueError, match="a store with teachers .*retrained"):
        embed(embed_settings(store, retrained))
    # The folder of the same name with other weights in it.
    embed(embed_settings(tmp_path / "second", retrained))
    model.save_pretrained(retrained)
    second = state_of(tmp_path / "second")
    with pytest.raises(ValueError, match="a store with teachers .*'fingerprint'"):
        embed(embed_settings(tmp_path / "second", retrained))
    with pytest.raises(ValueError, match="a store with sources .*'pairs': 40.* this run has .*'pairs': 39"):
        embed(embed_settings(store, teacher, synthetic={"num_pairs": 39}))
    assert state_of(store) == before and state_of(tmp_path / "second") == second
    (store / "store.json").write_text(
        (store / "store.json").read_text().replace('schema_version": 1', 'schema_version": 2')
    )
    before = state_of(store)
    with pytest.raises(ValueError, match="store.json: expected schema_version 1, found 2"):
        embed(embed_settings(store, teacher))
    assert state_of(store) == before


def test_crops_that_cannot_be_drawn_begin_no_store_and_no_student(teacher, tmp_path, settings_for):
    crops, message = (
        {"scale": [0.0, 2.0], "variants": 2},
        "scale: expected 0 < least <= greatest <= 1, found 0.0 and 2.0",
    )
    with pytest.raises(ValueError, match=message):
        embed(embed_settings(tmp_path / "store", teacher, augmentation=crops))
    with pytest.raises(ValueError, match=message):
        distill(settings_for(tmp_path / "student", "--augmentation", json.dumps(crops)))
    assert not (tmp_path / "store").exists() and not (tmp_path / "student").exists()


def test_the_same_settings_may_be_written_in_other_ways(teacher):
    tuples = embed_settings("out", teacher, augmentation={**CROPS, "scale": tuple(CROPS["scale"])})
    assert tuples.augmentation == CROPS
    own = EmbeddingSettings(teachers={"tiny": "x/y"}, data="synthetic", synthetic={})
    listed = EmbeddingSettings(teachers={"tiny": "x/y"}, sources=[{"data": "synthetic"}])
    assert own.described_sources() == listed.described_sources()


def test_processes_write_the_store_of_one(teacher, made, tmp_path):
    program = [str(ROOT / "training" / "embed_teacher.py"), "--output_dir", str(tmp_path / "two")]
    program += ["--teachers.tiny", str(teacher), "--data", "synthetic"]
    program += ["--synthetic.num_pairs", "40", "--batch_size", "7"]
    program += ["--rows_per_shard", "16", "--augmentation", json.dumps(CROPS)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    done = run_python(program, cwd=tmp_path, env=environment, processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "40 pairs, 80 rows in 3 shards, 3 of them now; 0 of 80 could not be read" in done.stdout
    assert shards(tmp_path / "two") == shards(made)


def test_all_processes_write_what_the_first_found_missing(teacher, tmp_path, monkeypatch):
    """Another may have written a shard by the time the last one looks."""
    given = []

    def as_the_first(accelerator, make):
        given.append(make())
        return [1]

    monkeypatch.setattr(embedding, "of_first", as_the_first)
    assert embed(embed_settings(tmp_path / "store", teacher))["written"] == 1
    assert given == [[0, 1, 2]] and list(shards(tmp_path / "store")) == ["train-00001-of-00003.parquet"]


def assert_same_losses(one, other):
    assert len(one["history"]) == len(other["history"]) == 3
    for mine, theirs in zip(one["history"], other["history"], strict=True):
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            # Entries of 48 are rounded by 2^-12 of themselves at most, and the errors of a batch mostly cancel.
            assert theirs[name] == pytest.approx(value, rel=5e-4), name


def test_a_store_teaches_as_its_teacher_does_without_it(teacher, tmp_path, settings_for):
    moved = shutil.copytree(teacher, tmp_path / "teacher")
    embed(embed_settings(tmp_path / "store", moved))
    data = ("--synthetic.num_pairs", 40, "--augmentation", json.dumps(CROPS), "--dtype", "float64")
    live = distill(settings_for(tmp_path / "live", *data, "--teacher", moved))
    shutil.rmtree(moved)
    stored = distill(settings_for(tmp_path / "stored", *data, "--teacher_store", tmp_path / "store"))
    assert_same_losses(live, stored)
    # They are not the same numbers: one teacher was rounded.
    assert live["history"] != stored["history"]
    assert stored["teacher"] == {**live["teacher"], "stored": True} and not live["teacher"]["stored"]
    # The student has the tokenizer that came with the store.
    assert load_clip(str(tmp_path / "stored")).dim == 64


def test_a_store_of_whole_images_from_two_sources_teaches_too(teacher, tmp_path, settings_for):
    sources = [{"data": saved_pairs(tmp_path / f"pairs{number}", 20 + number)} for number in range(2)]
    embed(embed_settings(tmp_path / "store", teacher, sources=sources, synthetic={}, augmentation={}))
    arguments = ("--synthetic", "{}", "--sources", json.dumps(sources), "--dtype", "float64", "--tokenizer", teacher)
    live = distill(settings_for(tmp_path / "live", *arguments, "--teacher", teacher))
    assert_same_losses(
        live, distill(settings_for(tmp_path / "stored", *arguments, "--teacher_store", tmp_path / "store"))
    )


def saved_pairs(folder, count=20, captions=None, images=None):
    captions = list(make_synthetic_pairs(count)["caption"]) if captions is None else captions
    pairs_of(captions, images).save_to_disk(str(folder))
    return str(folder)


def test_a_smaller_student_sees_the_pixels_it_would_beside_the_live_teacher(teacher, tmp_path):
    """Large JPEGs are decoded at a part of their size, which has to be the same part."""
    images = [encoded(picture(number, size=(300, 200)), "JPEG") for number in range(8)]
    source = open_source(PairSourceSettings(data=saved_pairs(tmp_path / "pairs", 8, images=images)))
    embed(embed_settings(tmp_path / "store", teacher, data=source.settings.data, synthetic={}))
    clip = load_clip(str(teacher))
    small = PairProcessor(clip.processor.tokenizer, image_processor_of(16))
    settings = DistillationSettings("synthetic", batch_size=8, num_steps=4, augmentation=CROPS)
    taught = dataclasses.replace(settings, teacher_store=str(tmp_path / "store"))
    live = PairBatches(settings, [source], small, Teacher([_LiveTeacher(clip, {})]))
    stored = PairBatches(settings, [source], small, open_teacher(taught))
    unlike = PairBatches(settings, [source], small, Teacher())
    for step in range(4):
        one, other = live[step], stored[step]
        assert torch.equal(one["pixel_values"], other["pixel_values"])
        assert not torch.equal(one["pixel_values"], unlike[step]["pixel_values"])
        with torch.no_grad():
            images = clip.model.get_image_features(pixel_values=one["teacher_pixel_values"])
        embeds = functional.normalize(getattr(images, "pooler_output", images), dim=-1)
        torch.testing.assert_close(other["teacher_image_embeds"], embeds, rtol=0, atol=2**-11)
        # Each pair has its own: another's are far from it.
        assert (other["teacher_image_embeds"] - embeds.roll(1, 0)).abs().max() > 2**-6


def test_of_several_captions_those_that_were_embedded_are_drawn(teacher, tmp_path, settings_for):
    captions = list(make_synthetic_pairs(60)["caption"])
    lists = [captions[3 * row : 3 * row + 3] for row in range(20)]
    data = saved_pairs(tmp_path / "pairs", captions=lists)
    for name, augmentation in (("whole", {}), ("crops", CROPS)):
        store = tmp_path / f"store_{name}"
        embed(embed_settings(store, teacher, data=data, synthetic={}, augmentation=augmentation))
        assert len({lists[row["row"]].index(row["caption"]) for row in rows_of(store)}) == 3
        # Four passes, each of which would draw anew.
        arguments = ("--synthetic", "{}", "--data", data, "--augmentation", json.dumps(augmentation))
        arguments += ("--teacher_store", store, "--batch_size", 20, "--num_steps", 4)
        metrics = distill(settings_for(tmp_path / name, *arguments))
        assert metrics["data"]["seen"] == 80 and metrics["data"]["broken"] == 0


def test_a_store_may_hold_several_teachers(teacher, tmp_path, settings_for):
    other = tmp_path / "other"
    distill(settings_for(other, "--num_steps", 1, "--student_config.projection_dim", 24, "--seed", 5))
    both = {"tiny": str(teacher), "small": str(other)}
    embed(embed_settings(tmp_path / "store", teacher, teachers=both))
    row = rows_of(tmp_path / "store")[0]
    assert (len(row["tiny_text_embeds"]), len(row["small_text_embeds"])) == (48, 24)
    data = ("--synthetic.num_pairs", 40, "--augmentation", json.dumps(CROPS), "--teacher_store", tmp_path / "store")
    with pytest.raises(ValueError, match="name one of its teachers, tiny, small .--teacher_name., or several"):
        distill(settings_for(tmp_path / "student", *data))
    with pytest.raises(ValueError, match="no teacher 'large', found tiny, small"):
        distill(settings_for(tmp_path / "student", *data, "--teacher_name", "large"))
    metrics = distill(settings_for(tmp_path / "student", *data, "--teacher_name", "small"))
    assert metrics["teacher"]["source"] == str(other)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--teacher", "somebody/else"], "made with teacher .*, the run names 'somebody/else'"),
        (["--teacher_revision", "v2"], "made with revision None of the teacher, the run names 'v2'"),
        (["--augmentation.scale", "[0.9, 1.0]"], "made with augmentation .*the pixels would not be those"),
        (["--augmentation", "{}"], "made with augmentation"),
        (["--augmentation.variants", "3"], "made with augmentation"),
        (["--synthetic.num_pairs", "41"], "source 0 had options .*40.*, the run has .*41"),
        (["--image_size", "64"], "made for images of 32 pixels, the run reads 64; embed again"),
    ],
)
def test_a_store_of_something_else_is_refused(made, tmp_path, settings_for, arguments, message):
    data = ("--synthetic.num_pairs", 40, "--augmentation", json.dumps(CROPS), "--teacher_store", made)
    with pytest.raises(ValueError, match=message):
        distill(settings_for(tmp_path / "student", *data, *arguments))
    assert not (tmp_path / "student").exists()


def test_a_stream_or_pairs_that_have_changed_cannot_learn_from_a_store(teacher, tmp_path, settings_for):
    data = saved_pairs(tmp_path / "pairs")
    embed(embed_settings(tmp_path / "store", teacher, data=data, synthetic={}, augmentation={}))

    def learn(*arguments):
        arguments = ("--synthetic", "{}", "--teacher_store", tmp_path / "store", "--batch_size", 20, *arguments)
        return distill(settings_for(tmp_path / "student", *arguments))

    with pytest.raises(ValueError, match="pairs': stored embeddings are found by row, not in a stream"):
        learn("--data", data, "--streaming", "true")
    with pytest.raises(ValueError, match="made of 1 sources, the run has 2"):
        learn("--sources", json.dumps([{"data": data}] * 2))
    shutil.rmtree(data)
    saved_pairs(data, 21)
    with pytest.raises(ValueError, match="source 0 had pairs 20, the run has 21"):
        learn("--data", data)
    assert not (tmp_path / "student").exists()
    shutil.rmtree(data)
    other = "one small plain red ring on the left of a pink background"
    saved_pairs(data, captions=[other, *list(make_synthetic_pairs(20)["caption"])[1:]])
    with pytest.raises(ValueError, match="source 0 was made of other captions: .*pairs' has changed since"):
        learn("--data", data)


def test_broken_pairs_are_marked_and_replaced(teacher, tmp_path, settings_for):
    images = [b"no picture" if number == 4 else encoded(picture(number)) for number in range(20)]
    data = {"data": saved_pairs(tmp_path / "pairs", images=images), "synthetic": {}}
    found = embed(embed_settings(tmp_path / "store", teacher, **data))
    assert (found["broken"], found["seen"]) == (2, 40) and "row 4" in found["examples"][0]
    rows = rows_of(tmp_path / "store")
    assert [row["row"] for row in rows if row["broken"]] == [4, 4] and not any(rows[8]["tiny_image_embeds"])
    arguments = ("--synthetic", "{}", "--data", data["data"], "--teacher_store", tmp_path / "store")
    crops = ("--augmentation", json.dumps(CROPS), "--batch_size", 20, "--max_broken_share", 0.2)
    metrics = distill(settings_for(tmp_path / "student", *arguments, *crops))
    assert metrics["data"]["broken"] >= 6 and metrics["data"]["seen"] == 120 + metrics["data"]["broken"]
    with pytest.raises(ValueError, match="could not be read, more than max_broken_share 0.0 allows"):
        embed(embed_settings(tmp_path / "strict", teacher, **data, max_broken_share=0.0))


def test_what_cannot_be_embedded_is_named(teacher, tmp_path):
    folder = write_shards(tmp_path / "shards", ["red ring"] * 4, 2)
    stream = {"data": str(folder), "synthetic": {}, "streaming": True}
    for changes, message in (
        (stream, "embeddings are found by row, which a stream does not have"),
        ({"augmentation": {"scale": [0.5, 1.0]}}, "augmentation.variants: expected the number of crops"),
        ({"teachers": {"vit-b": "x"}}, "expected names of letters, digits and underscores, found 'vit-b'"),
    ):
        with pytest.raises(ValueError, match=message):
            embed_settings(tmp_path / "store", teacher, **changes)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="found something that is not a store"):
        embed(embed_settings(tmp_path / "mine", teacher))
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
