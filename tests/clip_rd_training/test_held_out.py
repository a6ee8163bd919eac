"""Pairs are held out of training by their pictures, and runs as long as their pairs ask for."""

import json

import numpy as np
import pytest
from accelerate import Accelerator
from pair_files import encoded, pairs_of, picture, write_shards

from hf_blemo.built_in import synthetic_tokenizer
from hf_blemo.clip_evaluation.tasks import tasks_of_training_data
from hf_blemo.clip_rd_training.held_out import hold_out, retrieval_task
from hf_blemo.clip_rd_training.results import summary
from hf_blemo.clip_rd_training.run import distill
from hf_blemo.clip_rd_training.settings import DistillationSettings
from hf_blemo.pairs.pair_sources import PairTable
from hf_blemo.pairs.settings import PairSourceSettings


def table_of(numbers, captions=None, data="here") -> PairTable:
    """Pictures by their numbers, of which the same one is the same picture."""
    captions = captions or [f"picture {number}, row {row}" for row, number in enumerate(numbers)]
    return PairTable(PairSourceSettings(data=data), pairs_of(captions, [encoded(picture(n)) for n in numbers]))


def held_captions(sources, share):
    split = hold_out(Accelerator(), share, sources)
    return split, {caption for found in retrieval_task(sources, split.pictures).captions for caption in found}


def test_the_content_of_pictures_chooses_and_all_rows_of_one_stay_together():
    numbers = [*range(30), *range(10), 3, 3]
    table = table_of(numbers)
    split, captions = held_captions([table], 0.2)
    [training] = split.training
    described = split.description()
    assert described["held_out"]["pairs"] + described["pairs"] == len(table) == 42 and split.num_pairs == len(training)
    assert 6 <= len(captions) <= 8
    trained = {pair["caption"] for pair in training.pairs(range(len(training)))}
    assert trained | captions == set(table.data["caption"]) and not trained & captions
    pictures = [{numbers[row] for _, row in places} for places in split.pictures]
    assert all(len(found) == 1 for found in pictures) and len(set.union(*pictures)) == len(pictures)
    shown = {numbers[pair["key"][1]] for pair in training.pairs(range(len(training)))}
    assert shown.isdisjoint(set.union(*pictures)) and len(shown) + len(pictures) == 30
    # Another order of the rows, and two sources instead of one, hold out the same.
    order = np.random.default_rng(0).permutation(42)
    shuffled = table_of([numbers[row] for row in order], [table.data["caption"][row] for row in order])
    assert held_captions([shuffled], 0.2)[1] == captions
    parts = [table_of(numbers[:15], table.data["caption"][:15]), table_of(numbers[15:], table.data["caption"][15:])]
    assert held_captions(parts, 0.2)[1] == captions


def test_pictures_are_found_by_all_their_captions_and_rows_without_one_are_trained_on():
    table = table_of([0, 0, 0, 1, 1, 1, 2, 2], [["a", "b"], ["b"], ["c"], [" "], None, ["d"], [], ["e"]])
    split = hold_out(Accelerator(), 0.5, [table])
    task = retrieval_task([table], split.pictures)
    assert task.data == "here" and len(task.images) == len(task.captions) == len(split.pictures)
    known = {0: ["a", "b", "c"], 1: ["d"], 2: ["e"]}
    for number, captions in enumerate(task.captions):
        [shown] = [picture_number for picture_number, texts in known.items() if texts == captions]
        assert task.images[number]["bytes"] == encoded(picture(shown))
    kept = [pair["caption"] for pair in split.training[0].pairs(range(len(split.training[0])))]
    assert all(caption in kept for caption in ([" "], None, []))


def test_what_cannot_be_held_out_is_said(tmp_path, settings_for):
    for share, numbers, message in (
        (0.1, [0] * 5 + [1] * 5, "1 of 10 pairs would be held out, but every picture has more rows than that"),
        (0.9, [0], "evaluation_share 0.9: holds out all pairs of data 'here'"),
    ):
        with pytest.raises(ValueError, match=message):
            hold_out(Accelerator(), share, [table_of(numbers)])
    shards = write_shards(tmp_path / "shards", ["one small red ring"] * 6, 1)
    stream = json.dumps([{"data": str(shards), "streaming": True}])
    stream = ("--synthetic", "{}", "--sources", stream, "--teacher", "null", "--tokenizer", tmp_path / "tokenizer")
    synthetic_tokenizer().save_pretrained(tmp_path / "tokenizer")
    for arguments, message in (
        ((*stream, "--evaluation_share", 0.5), "is a stream, from which nothing can be held out"),
        ((*stream, "--num_steps", "null", "--epochs", 2), "epochs: a stream does not know .* --num_steps STEPS"),
        (("--evaluation_share", 0.9), "batch_size 16 .* 6 pairs to train on; pass --batch_size 6 or less"),
    ):
        with pytest.raises(ValueError, match=message):
            distill(settings_for(tmp_path / "output", *arguments))
        assert not (tmp_path / "output").exists()


def test_a_task_of_the_training_data_is_noticed(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("image,caption")
    tasks = {"own": {"data": "pairs", "split": "train"}, "other": {"data": "pairs"}, "file": {"data": str(path)}}
    found = tasks_of_training_data({**tasks, "built-in": {"kind": "emoji"}}, [{"data": "pairs"}, {"data": str(path)}])
    assert found == ["own", "file"]


@pytest.mark.parametrize(
    ("given", "pairs", "steps"),
    [
        ({"epochs": 30}, 270, 126),
        ({"epochs": 0.5}, 64, 1),
        ({"epochs": 0.1}, 30, 1),
        ({"epochs": 0.1, "batch_size": 3}, 90, 3),
        ({"num_steps": 7}, None, 7),
        ({}, 5, 1000),
    ],
)
def test_epochs_and_shares_become_steps(given, pairs, steps):
    schedule = {"hrd": [[0, 0], [0.5, 1], [1.0, 2]], "xrd": [[1, 0], [3, 1]]}
    values = {"data": "synthetic", "batch_size": 64, "warmup_steps": 0.25, "weight_schedule": schedule}
    settings = DistillationSettings(**{**values, **given})
    made = settings.for_pairs(pairs)
    assert (made.steps, made.epochs, made.warmup_steps) == (steps, None, round(0.25 * steps))
    assert made.weight_schedule["xrd"] == schedule["xrd"]
    expected = {0: 0, round(steps / 2): 1, steps: 2}
    assert made.weight_schedule["hrd"] == [list(point) for point in expected.items()]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epochs": 2, "num_steps": 3}, "num_steps 3 and epochs 2: expected one of them .--epochs null or"),
        ({"epochs": 0}, "epochs: expected a number above 0"),
        ({"evaluation_share": 1}, "evaluation_share: expected a number below 1"),
        ({"evaluation_share": 0.1, "evaluation": {"held_out": {}}}, "evaluation.held_out: evaluation_share makes a"),
    ],
)
def test_bad_lengths_and_shares_are_named(given, message):
    with pytest.raises(ValueError, match=message):
        DistillationSettings(**{"data": "synthetic", **given})


def test_a_run_of_epochs_resumes_bit_for_bit_and_keeps_what_it_held_out(teacher, tmp_path, settings_for, stopped):
    arguments = ("--teacher", teacher, "--num_steps", "null", "--epochs", 2, "--evaluation_share", 0.25)
    arguments += ("--warmup_steps", 0.5, "--checkpoint_every", 2, "--evaluate_teacher", "true")
    alone = distill(settings_for(tmp_path / "alone", *arguments))
    assert alone["num_steps"] == 6 and alone["epochs"] == 2 and alone["config"]["warmup_steps"] == 3
    assert alone["data"]["held_out"] == {"pairs": 16, "pictures": 16} and alone["data"]["pairs"] == 48
    assert [row["step"] for row in alone["evaluations"]] == [0, 6]
    for found in (*alone["evaluations"], alone["teacher_evaluation"]):
        assert found["tasks"]["held_out"]["images"] == 16
    lines = summary(alone)
    shown = [line.split(": ")[0] for line in lines if line.startswith("held_out, ")]
    assert shown == ["held_out, teacher", "held_out, student before training", "held_out, student"]
    assert lines[-2].endswith("(guessing: 6.2%)") and lines[-1].startswith("In all ")
    [pace] = [line for line in lines if line.startswith("6 steps of 16 pairs, 2 times the 48 pairs; ")]
    assert pace.endswith(" pairs a second") and 0 < alone["seconds_per_step"] < alone["wall_seconds"]
    card = (tmp_path / "alone" / "README.md").read_text()
    assert "16 further pairs were held out" in card and "48 |" in card
    stopped(settings_for(tmp_path / "resumed", *arguments), 3)
    other = distill(settings_for(tmp_path / "resumed", *arguments, "--resume", "true"))
    assert (tmp_path / "resumed" / "model.safetensors").read_bytes() == (
        tmp_path / "alone" / "model.safetensors"
    ).read_bytes()
    for key in ("history", "evaluations", "data"):
        assert other[key] == alone[key], key
    with pytest.raises(ValueError, match="resume: evaluation_share is 0.5 and was 0.25"):
        distill(settings_for(tmp_path / "resumed", *arguments, "--resume", "true", "--evaluation_share", 0.5))
