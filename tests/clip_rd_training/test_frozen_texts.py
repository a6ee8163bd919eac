"""Captions under a frozen text tower are embedded once, whatever batch they come in."""

import pytest
import torch
from tiny_models import clip_tokenizer, make_student
from transformers import AutoModel

from hf_blemo.clip_rd_training.frozen_texts import FrozenTexts
from hf_blemo.clip_rd_training.run import _Training, distill
from hf_blemo.pairs.images import content_id
from hf_blemo.pairs.pair_processor import PairProcessor

CAPTIONS = ["a", "a dog", "a cat in the long wet grass of the field", "two", "a dog", "a bird on a wire at night"]


class Counted:
    """The text tower of a model, and the rows that it was run on."""

    def __init__(self, model, processor=None):
        self.model, self.rows = model, []
        self.processor = processor or PairProcessor(clip_tokenizer(), None, model.text_model.config)

    def __call__(self, input_ids, attention_mask):
        self.rows.append(len(input_ids))
        return self.model.get_text_features(input_ids=input_ids, attention_mask=attention_mask)

    def of(self, frozen, captions):
        tokens = self.processor.captions(captions)
        return frozen([content_id(one) for one in captions], tokens["input_ids"], tokens["attention_mask"])


@pytest.fixture
def tower():
    return Counted(make_student(0)[0])


def test_a_caption_is_computed_once_and_as_the_tower_would_compute_it(tower):
    frozen = FrozenTexts(tower, tower.processor.max_length)
    found = tower.of(frozen, CAPTIONS)
    with torch.no_grad():
        expected = tower.model.get_text_features(**tower.processor.captions(CAPTIONS))
    torch.testing.assert_close(found, expected)
    runs = len(tower.rows)
    assert torch.equal(tower.of(frozen, CAPTIONS[::-1]), found.flip(0)) and len(tower.rows) == runs
    assert torch.equal(tower.of(frozen, ["new", CAPTIONS[2]])[1], found[2]) and len(tower.rows) == runs + 1


@pytest.mark.parametrize("most_bytes", [2**30, 12 * 4 * 3])
def test_the_bits_do_not_depend_on_the_batches_or_on_the_memory(tower, most_bytes):
    many = [f"{CAPTIONS[number % 6]} number {number}" for number in range(150)]
    whole = tower.of(FrozenTexts(tower, 40), many)
    frozen, found = FrozenTexts(tower, 40, most_bytes), {}
    for start in (70, 0, 63, 140, 100, 0):
        part = many[start : start + 70]
        found |= dict(zip(part, tower.of(frozen, part), strict=True))
    assert torch.equal(whole, torch.stack([found[caption] for caption in many]))
    assert sum(values.nbytes for values in frozen.kept.values()) <= most_bytes


def frozen_run(settings_for, folder, clip, *more):
    own = ("--student_config.text_config", "{}", "--student_config.projection_dim", 12)
    return settings_for(folder, "--teacher", clip, "--text_weights", "teacher", "--freeze", "text", *own, *more)


@pytest.mark.parametrize("more", [(), ("--student_config.projection_dim", 10), ("--chunk_size", 7)])
def test_a_run_with_a_frozen_text_tower_is_the_run_that_computes_it_every_step(
    more, settings_for, tmp_path, clip, monkeypatch
):
    # A projection of another width is new, and trained although the tower is frozen.
    once = distill(frozen_run(settings_for, tmp_path / "once", clip, *more))
    monkeypatch.setattr(_Training, "_frozen_texts", lambda _: {})
    live = distill(frozen_run(settings_for, tmp_path / "live", clip, *more))
    for one, other in zip(once["history"], live["history"], strict=True):
        assert one == pytest.approx(other, rel=2e-3)
    found = [AutoModel.from_pretrained(tmp_path / name).state_dict() for name in ("once", "live")]
    assert torch.equal(
        found[0]["text_model.embeddings.token_embedding.weight"],
        found[1]["text_model.embeddings.token_embedding.weight"],
    )


def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(settings_for, tmp_path, clip, stopped):
    distill(frozen_run(settings_for, tmp_path / "whole", clip))
    cut = ("--checkpoint_every", 2)
    stopped(frozen_run(settings_for, tmp_path / "cut", clip, *cut), 4)
    distill(frozen_run(settings_for, tmp_path / "cut", clip, *cut, "--resume", "true"))
    whole, resumed = (AutoModel.from_pretrained(tmp_path / name).state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(values, resumed[name]) for name, values in whole.items())


def test_a_frozen_tower_drops_nothing_and_a_released_one_is_read_live(settings_for, tmp_path, clip, monkeypatch):
    seen = []

    def watched(training, *arguments):
        terms = step(training, *arguments)
        seen.append((bool(training.texts), training.distiller.student.text_model.training))
        return terms

    step = _Training._step
    monkeypatch.setattr(_Training, "_step", watched)
    distill(frozen_run(settings_for, tmp_path / "frozen", clip))
    distill(frozen_run(settings_for, tmp_path / "released", clip, "--release.text", 3))
    assert seen == [(True, False)] * 6 + [(False, False)] * 3 + [(False, True)] * 3
