"""Batches are a function of seed and step, whoever reads them, and broken pairs never end up in them unseen."""

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pair_files import assert_same, encoded, pairs_of, picture, write_shards

from hf_blemo.built_in.synthetic_pairs import MAX_TOKENS, synthetic_tokenizer
from hf_blemo.clip_rd_training import data_position
from hf_blemo.clip_rd_training.batches import MOST_IN_A_ROW, PairBatches, _quotas
from hf_blemo.clip_rd_training.data_position import DataPosition
from hf_blemo.clip_rd_training.settings import DistillationSettings
from hf_blemo.clip_rd_training.teachers import Teacher, _LiveTeacher
from hf_blemo.pairs.clip_models import Clip, image_processor_of
from hf_blemo.pairs.pair_processor import PairProcessor
from hf_blemo.pairs.pair_sources import PairTable, open_source
from hf_blemo.pairs.settings import PairSourceSettings

CROPS = {"scale": [0.5, 1.0], "flip": 0.5}
WORDS = ("red", "green", "blue", "yellow", "purple", "orange")


# Of words that the tokenizer knows, each another.
CAPTIONS = [" ".join(words) for words in itertools.product(WORDS, repeat=3)]


def processor(size: int = 16) -> PairProcessor:
    return PairProcessor(synthetic_tokenizer(), image_processor_of(size))


def table_of(captions, images=None, **settings) -> PairTable:
    return PairTable(PairSourceSettings(data="here", **settings), pairs_of(captions, images))


@pytest.fixture(scope="module")
def table() -> PairTable:
    return table_of(CAPTIONS[:24])


def batches_of(sources, batch_size=8, num_steps=6, rank=0, world=1, teacher=None, **settings) -> PairBatches:
    settings = DistillationSettings("synthetic", batch_size=batch_size, num_steps=num_steps, **settings)
    sources = sources if isinstance(sources, list) else [sources]
    return PairBatches(settings, sources, processor(), teacher or Teacher(), rank, world)


def read(batches: PairBatches, workers: int = 0):
    """All batches, with their reports, through a loader as in training."""
    loader = torch.utils.data.DataLoader(batches, batch_size=None, num_workers=workers, generator=torch.Generator())
    return list(loader)


# --- Who reads ---


@pytest.mark.parametrize("augmentation", [{}, CROPS], ids=["whole", "crops"])
def test_the_global_batch_is_that_of_one_process(table, augmentation):
    whole = batches_of(table, augmentation=augmentation)
    shares = [batches_of(table, augmentation=augmentation, rank=rank, world=2) for rank in range(2)]
    for step in range(6):
        parts = [share[step] for share in shares]
        for name, values in whole[step].items():
            # Slots are dealt to the processes in turn.
            for rank in range(2):
                assert torch.equal(parts[rank][name], values[rank::2]), (name, step)


@pytest.mark.parametrize("world", [2, 4])
def test_processes_share_sources_of_any_weight_and_what_replaces_their_broken_pairs(table, world):
    """Of a source with one pair per batch most processes read nothing."""
    captions = [CAPTIONS[50 + number] if number % 2 else " " for number in range(6)]
    others = table_of(captions, [encoded(picture(100 + number)) for number in range(6)])
    sources = [PairTable(PairSourceSettings(data="here", weight=7.0), table.data), others]
    whole = batches_of(sources, augmentation=CROPS)
    shares = [batches_of(sources, augmentation=CROPS, rank=rank, world=world) for rank in range(world)]
    assert whole.counts == [7, 1]
    read_shares = [read(share) for share in shares]
    for step, (expected, report) in enumerate(read(whole)):
        for rank in range(world):
            for name, values in expected.items():
                assert torch.equal(read_shares[rank][step][0][name], values[rank::world]), (name, step)
        for name in ("seen", "broken"):
            assert sum(found[step][1][name] for found in read_shares) == report[name], (name, step)
    # Half of the six are broken, and each was met once in the six steps.
    assert sum(report["broken"] for found in read_shares for _, report in found) >= 3


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_read_what_the_training_process_would(workers):
    """Also in the place of broken pairs."""
    images = [encoded(picture(number)) if number % 3 else b"no picture" for number in range(24)]
    table = table_of(CAPTIONS[:24], images)
    alone = read(batches_of(table, augmentation=CROPS))
    found = read(batches_of(table, augmentation=CROPS, num_workers=workers), workers)
    assert len(alone) == len(found) == 6
    for (one, expected), (other, report) in zip(alone, found, strict=True):
        assert_same(one, other)
        for name in ("seen", "broken", "examples"):
            assert report[name] == expected[name], name
    assert sum(report["broken"] for _, report in found) >= 16


def test_a_pass_visits_every_row_once_in_an_order_of_its_own(table):
    batches = batches_of(table)
    orders = []
    for number in range(2):
        passes, rows = zip(*(batches.rows(0, step) for step in range(3 * number, 3 * number + 3)), strict=True)
        assert set(passes) == {number}
        orders.append(np.concatenate(rows).tolist())
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(24)) and orders[0] != orders[1]
    assert not np.array_equal(batches_of(table, seed=1).rows(0, 0)[1], batches.rows(0, 0)[1])


def test_every_step_can_be_begun_with(table):
    batches = batches_of(table, augmentation=CROPS)
    expected = [batch for batch, _ in read(batches)]
    later = batches_of(table, augmentation=CROPS)
    later.resume(4, {})
    for (batch, _), same in zip(read(later), expected[4:], strict=True):
        assert_same(batch, same)


def test_sources_have_their_share_of_every_batch(table):
    others = table_of([CAPTIONS[50]] * 6, weight=3.0)
    batches = batches_of([table, others])
    assert batches.counts == [2, 6]
    unlike = processor().captions([CAPTIONS[50]])["input_ids"][0]
    for batch, _ in read(batches):
        assert (batch["input_ids"] == unlike).all(1).tolist() == [False] * 2 + [True] * 6
    with pytest.raises(ValueError, match="the share of 15 pairs in a batch is larger than the data 'here', 6 pairs"):
        batches_of([table, others], batch_size=20)


def test_quotas_are_whole_and_in_proportion(table):
    assert _quotas([1.0], 7) == [7]
    assert _quotas([3, 1], 16) == [12, 4]
    assert sum(_quotas([0.2, 0.3, 0.5], 7)) == 7
    for size in range(10, 30):
        shares = np.array([1.0, 2.0, 4.0])
        assert np.abs(np.array(_quotas(shares, size)) - shares / 7 * size).max() < 1
    with pytest.raises(ValueError, match="a source has less than one pair in a batch of 8"):
        _quotas([100, 1], 8)
    with pytest.raises(ValueError, match="batch_size 8 is not a multiple of the 3 processes"):
        batches_of(table, world=3)


# --- Pictures and captions ---


def test_variants_come_again_and_new_crops_never_do(table):
    first = {step: batches_of(table, 24, 4, augmentation={**CROPS, "variants": 2})[step] for step in range(4)}
    order = [batches_of(table, 24, 4).rows(0, step)[1].argsort() for step in range(4)]
    pixels = [first[step]["pixel_values"][order[step]] for step in range(4)]
    assert torch.equal(pixels[0], pixels[2]) and torch.equal(pixels[1], pixels[3])
    assert not torch.equal(pixels[0], pixels[1])
    endless = [batches_of(table, 24, 4, augmentation=CROPS)[step]["pixel_values"][order[step]] for step in range(4)]
    assert torch.equal(endless[0], pixels[0]) and not torch.equal(endless[0], endless[2])


def test_variants_of_a_stream_come_again_pass_by_pass(tmp_path):
    folder = write_shards(tmp_path / "shards", CAPTIONS[:6], 1)
    source = open_source(PairSourceSettings(data=str(folder), streaming=True), 6)
    pixels = []
    for batch, _ in read(batches_of(source, 6, 4, augmentation={**CROPS, "variants": 2})):
        texts = synthetic_tokenizer().batch_decode(batch["input_ids"], skip_special_tokens=True)
        pixels.append(batch["pixel_values"][np.argsort(texts).tolist()])
    assert torch.equal(pixels[0], pixels[2]) and torch.equal(pixels[1], pixels[3])
    assert not any(torch.equal(one, other) for one, other in zip(pixels[0], pixels[1], strict=True))


def test_a_teacher_of_another_size_sees_the_same_crop(table):
    batch = batches_of(table, augmentation=CROPS, teacher=Teacher([_LiveTeacher(Clip(None, processor(32), 8), {})]))[0]
    assert batch["teacher_pixel_values"].shape == (8, 3, 32, 32)
    halves = torch.nn.functional.avg_pool2d(batch["teacher_pixel_values"], 2)
    assert (halves - batch["pixel_values"]).abs().mean() < 0.5 * (halves - batch["pixel_values"].flip(0)).abs().mean()
    same = batches_of(table, augmentation=CROPS, teacher=Teacher([_LiveTeacher(Clip(None, processor(16), 8), {})]))[0]
    assert "teacher_pixel_values" not in same and "teacher_input_ids" not in same


def test_duplicates_have_one_number_whatever_their_crop_or_place(tmp_path):
    pictures = [picture(number) for number in range(3)]
    paths = [tmp_path / f"{number}.png" for number in range(2)]
    for path in paths:
        path.write_bytes(encoded(pictures[0]))
    images = [*map(str, paths), pictures[1], pictures[1], pictures[2], pictures[0]]
    data = [{"image": image, "caption": WORDS[number % 2], "where": ""} for number, image in enumerate(images)]
    reader = batches_of(table_of(CAPTIONS[:8]), augmentation=CROPS).reader
    read_pairs = [reader.read({**pair, "key": (0, row), "visit": row}, 0) for row, pair in enumerate(data)]
    found = [pair.image_id for pair in read_pairs]
    # A file is told apart by its bytes, which are not those of the picture in memory.
    assert found[0] == found[1] and found[2] == found[3] and len(set(found)) == 4
    batch = batches_of(table_of(["red", "blue"] * 12), duplicates="share")[0]
    texts = batch["input_ids"].unique(dim=0, return_inverse=True)[1]
    assert ((batch["text_ids"][:, None] == batch["text_ids"]) == (texts[:, None] == texts)).all()
    assert len(batch["image_ids"].unique()) == len(batch["image_ids"]) == 8
    assert "text_ids" not in batches_of(table_of(["red", "blue"] * 12), duplicates="negative")[0]


def test_of_several_captions_each_visit_draws_one():
    lists = [CAPTIONS[number : number + 72 : 24] for number in range(24)]
    table = table_of(lists)
    batches = batches_of(table, 24, 12)
    drawn = {row: [] for row in range(24)}
    for step in range(12):
        tokenizer = batches.student.tokenizer
        texts = tokenizer.batch_decode(batches[step]["input_ids"], skip_special_tokens=True)
        for row, text in zip(batches.rows(0, step)[1], texts, strict=True):
            drawn[row].append(lists[row].index(text))
        assert_same(batches[step], batches_of(table, 24, 12)[step])
    counts = np.bincount([number for row in drawn.values() for number in row], minlength=3)
    assert (counts > 0.2 * counts.sum()).all() and all(len(set(row)) > 1 for row in drawn.values())


def test_captions_longer_than_the_context_keep_their_end_and_empty_lists_are_broken():
    lists = [[" ".join(WORDS * 9)] if number else [] for number in range(8)]
    [(batch, report)] = read(batches_of(table_of(lists), num_steps=1))
    assert report["broken"] >= 1 and report["examples"][0] == "here, row 0: found the caption [], expected text"
    assert batch["input_ids"].shape == (8, MAX_TOKENS)
    assert (batch["input_ids"][:, -1] == synthetic_tokenizer().eos_token_id).all()


# --- Broken pairs ---


def test_broken_pairs_are_replaced_counted_and_named(tmp_path):
    images = [encoded(picture(number), "JPEG") for number in range(12)]
    captions = CAPTIONS[:12]
    images[1] = images[1][: len(images[1]) // 2]
    images[3] = {"bytes": None, "path": str(tmp_path / "gone.jpg")}
    images[5] = b"no picture"
    images[7] = None
    captions[9] = "  "
    captions[11] = None
    batches = batches_of(table_of(captions, images), 12, 3, augmentation=CROPS)
    whole = [encoded(picture(number), "JPEG") for number in range(12)]
    sound = batches_of(table_of(CAPTIONS[:12], whole), 12, 3, augmentation=CROPS)
    for step, (batch, report) in enumerate(read(batches)):
        assert report["broken"] >= 6 and report["seen"] == 12 + report["broken"]
        assert len(report["examples"]) == 3 and all("here, row " in example for example in report["examples"])
        # Those that can be read are where they would be.
        rows = batches.rows(0, step)[1]
        for slot, row in enumerate(rows):
            same = torch.equal(batch["pixel_values"][slot], sound[step]["pixel_values"][slot])
            assert same == (row % 2 == 0 or row > 11), row
        assert_same(batch, batches[step])


def test_data_of_which_nothing_can_be_read_ends_with_one_error(tmp_path):
    table = table_of(CAPTIONS[:8], [b"no picture"] * 8)
    message = f"^{MOST_IN_A_ROW} pairs in a row could not be read; the last: here, row [0-7]: image: 10 bytes[^\n]*$"
    with pytest.raises(ValueError, match=message):
        batches_of(table)[0]
    # From a worker comes the error alone, and nothing after it.
    (batch, report), *rest = read(batches_of(table, num_workers=1), 1)
    assert batch == {} and list(report) == ["error"] and not rest
    assert report["error"].startswith(f"{MOST_IN_A_ROW} pairs in a row")
    folder = write_shards(tmp_path / "shards", [" "] * 6, 2)
    source = open_source(PairSourceSettings(data=str(folder), streaming=True), 4)
    with pytest.raises(ValueError, match=f"^{MOST_IN_A_ROW} pairs in a row could not be read; the last: .*, shard"):
        read(batches_of(source, 4, 2))
    reports = [report for _, report in read(batches_of(source, 4, 2, num_workers=2), 2)]
    assert reports and all(list(report) == ["error"] for report in reports)


def share_together(monkeypatch, *positions):
    """What `share` of every process returned or raised, all of them calling it together."""
    barrier, given = threading.Barrier(len(positions)), {}

    def gather(own):
        given[own[0]["process"]] = own[0]
        barrier.wait(10)
        return [given[number] for number in sorted(given)]

    def shared(position):
        try:
            return position.share()
        except ValueError as error:
            return str(error)

    monkeypatch.setattr(data_position, "gather_object", gather)
    with ThreadPoolExecutor(len(positions)) as pool:
        return list(pool.map(shared, positions))


def position_of(rank, world, max_broken_share=0.1):
    process = SimpleNamespace(process_index=rank, num_processes=world, is_main_process=rank == 0)
    return DataPosition(process, max_broken_share)


def test_processes_add_up_what_they_have_read_and_end_at_too_large_a_share(monkeypatch):
    positions = [position_of(rank, 2) for rank in range(2)]
    for rank, position in enumerate(positions):
        report = {"seen": 100, "broken": 5 * rank, "examples": [f"here, row {rank}: cut"] * rank}
        position.take({**report, "consumer": rank, "states": [{"row": rank}]})
    assert share_together(monkeypatch, *positions) == [None, None]
    expected = {"seen": 200, "broken": 5, "examples": ["here, row 1: cut"]}
    for position in positions:
        assert position.state_dict() == {**expected, "states": {0: {0: [{"row": 0}]}, 1: {1: [{"row": 1}]}}}
    # One process read all that is broken, and both end.
    positions[1].count(10, 16, ["here, row 7: cut"])
    assert share_together(monkeypatch, *positions) == [None, None]
    positions[1].count(0, 1, ["here, row 8: cut"])
    errors = share_together(monkeypatch, *positions)
    assert (
        errors
        == [
            "22 of 210 pairs could not be read, more than max_broken_share 0.1 allows; for instance: "
            "here, row 1: cut; here, row 7: cut; here, row 8: cut"
        ]
        * 2
    )
    # Four of the first eight say little.
    few = position_of(0, 1, 0.05)
    few.count(8, 4, ["here, row 3: cut"])
    few.share()


# --- Streams and files ---


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_stream_goes_on_where_it_was(tmp_path, workers):
    folder = write_shards(tmp_path / "shards", CAPTIONS[:30], 3)

    def batches():
        source = open_source(PairSourceSettings(data=str(folder), streaming=True), 4, 5)
        return batches_of(source, 4, 20, num_workers=workers, augmentation=CROPS)

    expected = read(batches(), workers)
    assert len(expected) == 20
    for done in (1, 7, 8):
        states = {report["consumer"]: report["states"] for _, report in expected[:done]}
        later = batches()
        later.resume(done, states)
        for (batch, _), (same, _) in zip(read(later, workers), expected[done:], strict=True):
            assert_same(batch, same)
    ids = torch.cat([batch["input_ids"] for batch, _ in expected])
    texts = synthetic_tokenizer().batch_decode(ids, skip_special_tokens=True)
    counts = np.unique(texts, return_counts=True)[1]
    # 80 pairs are more than two passes of 30.
    assert len(counts) == 30 and counts.min() >= 2 and counts.max() <= 4


def test_processes_with_workers_go_on_from_the_checkpoint_of_the_first(tmp_path, monkeypatch, table):
    """Two processes of two workers, a table and a stream; the checkpoint is the first process's."""
    folder = write_shards(tmp_path / "shards", CAPTIONS[60:84], 4, torn=(5,))

    def batches(rank):
        stream = open_source(PairSourceSettings(data=str(folder), streaming=True), 3, 1)
        return batches_of([table, stream], 8, 12, rank=rank, world=2, num_workers=2, augmentation=CROPS)

    expected = [read(batches(rank), 2) for rank in range(2)]
    positions = [position_of(rank, 2) for rank in range(2)]
    done = 5
    for position, found in zip(positions, expected, strict=True):
        for _, report in found[:done]:
            position.take(report)
    assert share_together(monkeypatch, *positions) == [None, None]
    kept = positions[0].state_dict()
    for rank in range(2):
        position, later = position_of(rank, 2), batches(rank)
        position.load_state_dict(kept)
        later.resume(done, position.own_states())
        for (batch, report), (same, as_before) in zip(read(later, 2), expected[rank][done:], strict=True):
            assert_same(batch, same)
            assert report == as_before
    # In the 48 pairs that four consumers read of the stream, each of the 23 sound ones has come at least once.
    ids = torch.cat([torch.nn.functional.pad(batch["input_ids"], (0, 9)) for found in expected for batch, _ in found])
    texts = set(synthetic_tokenizer().batch_decode(ids, skip_special_tokens=True))
    assert {CAPTIONS[60 + number] for number in range(24) if number != 5} <= texts
    # Without streams it does not matter how many go on.
    with pytest.raises(ValueError, match="resume: the streams were read by 2 processes, found 1"):
        position_of(0, 1).load_state_dict(kept)
    position_of(0, 1).load_state_dict({**kept, "states": {0: {0: [{}]}, 1: {0: [{}]}}})
