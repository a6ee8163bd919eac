"""Rows of data sets become batches, whatever form `datasets` gives them in."""

import datasets
import pytest
import torch
from pair_files import encoded, picture
from tiny_models import make_student

from hf_blemo.built_in import make_synthetic_blends, make_synthetic_pairs, synthetic_tokenizer
from hf_blemo.pairs.pair_processor import PairProcessor
from hf_blemo.rank_aware_fusion.processing_rank_aware_fusion import RankAwareFusionProcessor
from hf_blemo.trainer import BlendCollator, PairCollator, pair_columns


@pytest.fixture(scope="module")
def clips():
    return make_synthetic_blends(num_clips=12, missing=0.5)


@pytest.fixture(scope="module")
def collator(clips):
    from hf_blemo import feature_sets

    encoders = {name: {"feature_size": width} for name, width in feature_sets.encoder_widths(clips).items()}
    return BlendCollator(RankAwareFusionProcessor(encoders))


def assert_same(one, two):
    assert set(one["features"]) == set(two["features"])
    for name in one["features"]:
        assert torch.equal(one["features"][name], two["features"][name])
        assert torch.equal(one["feature_mask"][name], two["feature_mask"][name])
    assert torch.equal(one["labels"], two["labels"])


def test_lists_and_arrays_give_the_same_batch_as_the_reader(clips, collator):
    from hf_blemo import feature_sets

    rows = list(range(6))
    expected = collator.processor(feature_sets.read_features(clips, rows), labels=clips["labels"][:6])
    assert_same(collator([clips[row] for row in rows]), expected)
    arrays = clips.with_format("numpy")
    assert_same(collator([arrays[row] for row in rows]), expected)
    assert not expected["feature_mask"][next(iter(expected["features"]))].all()


def test_rows_without_labels_are_unlabelled_beside_labelled_ones(clips, collator):
    rows = [clips[0], {**clips[1], "labels": None}, {"features": clips[2]["features"]}]
    batch = collator(rows)
    assert (batch["labels"][1:] == -100).all() and not (batch["labels"][0] == -100).any()
    assert "labels" not in collator([{"features": clips[0]["features"]}])


NAMES = ("calm", "tense", "tired")


def named_processor(**options):
    return RankAwareFusionProcessor({"face": {"feature_size": 2}}, id2label=dict(enumerate(NAMES)), **options)


@pytest.mark.parametrize("column", ["label", "labels"])
@pytest.mark.parametrize("form", [None, "numpy", "torch"])
@pytest.mark.parametrize(
    ("given", "kind", "feature"),
    [
        ([2, 0, -100], "valid", datasets.Value("int64")),
        ([2, 0, -1], "valid", datasets.ClassLabel(names=list(NAMES))),
        (["tired", "calm", None], "valid", datasets.Value("string")),
        ([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [-100.0] * 3], "valid", datasets.Sequence(datasets.Value("float32"))),
        ([["tired"], ["calm"], None], "valid", datasets.Sequence(datasets.Value("string"))),
        ([[0.25, 0.0, 0.75], [0.5, 0.25, 0.25], [-100.0] * 3], "soft", datasets.Sequence(datasets.Value("float64"))),
    ],
)
def test_labels_of_any_form_become_shares(given, kind, feature, form, column):
    rows = 2 if isinstance(feature, datasets.ClassLabel) else 3
    features = datasets.Features({"features": {"face": datasets.Sequence(datasets.Value("float32"))}, column: feature})
    data = datasets.Dataset.from_dict({"features": [{"face": [0.0, 1.0]}] * 3, column: given}, features=features)
    batch = BlendCollator(named_processor(label_kind=kind), data)(list(data.select(range(rows)).with_format(form)))
    expected = [[0, 0, 1.0], [1.0, 0, 0], [-100.0] * 3] if kind == "valid" else given
    assert torch.equal(batch["labels"], torch.tensor(expected[:rows], dtype=torch.float32))


def test_a_data_set_of_other_names_is_refused():
    row = {"features": [{"face": [0.0, 1.0]}]}
    for names, what in ((["tense", "calm", "tired"], "order of the names differs"), (["calm", "joy"], "names differ")):
        data = datasets.Dataset.from_dict({**row, "label": [1]}).cast_column("label", datasets.ClassLabel(names=names))
        with pytest.raises(ValueError, match=f"the {what}: the data set has .*the processor has 3 names .calm"):
            BlendCollator(named_processor(), data)
    with pytest.raises(ValueError, match="the names differ: the data set has 6 names .*the processor has 3 names"):
        BlendCollator(named_processor(), make_synthetic_blends(num_clips=2))


def test_every_batch_has_every_encoder(clips, collator):
    """Trainer joins the inputs of batches where metrics ask for them."""
    name = next(iter(collator.processor.encoders))
    row = {
        "features": {name: clips[0]["features"][name] or [[0.0] * collator.processor.encoders[name]["feature_size"]]}
    }
    batch = collator([row])
    assert set(batch["features"]) == set(batch["feature_mask"]) == set(collator.processor.encoders)
    assert sum(mask.any().item() for mask in batch["feature_mask"].values()) == 1


def test_encoders_that_the_model_does_not_know_are_left_out(clips, collator):
    row = {**clips[0], "features": {**clips[0]["features"], "thermal": [[1.0, 2.0]]}}
    assert_same(collator([row]), collator([clips[0]]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": None}, "A102.*: found the columns .*, expected 'features'"),
        ({"features": {}}, "no encoder is present"),
        ({"features": {"face": [[1.0]]}}, "expected shape"),
        ({"labels": [0.2] * 6}, "which sum to 1.2, expected 1"),
    ],
)
def test_a_bad_row_is_named(change, message, clips, collator):
    clip = clips[0]["clip"]
    with pytest.raises(ValueError, match=message.replace("A102.*", clip)) as error:
        collator([{**clips[0], **change}])
    assert clip in str(error.value)
    # Trainer drops the name: the place in the batch remains.
    with pytest.raises(ValueError, match="row 0 of the batch"):
        collator([{key: value for key, value in {**clips[0], **change}.items() if key != "clip"}])


def test_pairs_are_read_undecoded_and_as_the_processor_reads_them():
    table = make_synthetic_pairs(num_pairs=4, image_size=20)
    pairs = pair_columns(table)
    assert pairs.column_names == ["pixel_values", "input_ids"] and isinstance(pairs[0]["pixel_values"], dict)
    processor = make_student(0)[1]
    batch = PairCollator(processor)(list(pairs))
    expected = processor(text=table["caption"][:], images=table["image"][:], padding=True, truncation=True,
                         max_length=40, return_tensors="pt")  # fmt: skip
    torch.testing.assert_close(batch["pixel_values"], expected["pixel_values"], rtol=0, atol=1e-6)
    assert torch.equal(batch["input_ids"], expected["input_ids"])
    assert torch.equal(batch["attention_mask"], expected["attention_mask"])
    stream = pair_columns(table.to_iterable_dataset())
    assert torch.equal(PairCollator(processor)(list(stream))["pixel_values"], batch["pixel_values"])


def test_a_teacher_of_other_pixels_and_tokens_gets_its_own():
    student = make_student(0)[1]
    larger = type(student.image_processor)(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
    teacher = PairProcessor(synthetic_tokenizer(), larger)
    rows = list(pair_columns(make_synthetic_pairs(num_pairs=3, image_size=20)))
    batch = PairCollator(student, teacher)(rows)
    assert batch["pixel_values"].shape == (3, 3, 16, 16) and batch["teacher_pixel_values"].shape == (3, 3, 24, 24)
    assert batch["teacher_input_ids"].shape != batch["input_ids"].shape
    assert set(PairCollator(student, student)(rows)) == {"pixel_values", "input_ids", "attention_mask"}
    both = PairCollator(student, [student, teacher])(rows)
    assert torch.equal(both["teacher_2_pixel_values"], batch["teacher_pixel_values"])
    assert torch.equal(both["teacher_2_input_ids"], batch["teacher_input_ids"]) and "teacher_input_ids" not in both


def test_one_of_several_captions_is_drawn():
    processor = make_student(0)[1]
    image = make_synthetic_pairs(num_pairs=1, image_size=20)[0]["image"]
    rows = [{"pixel_values": image, "input_ids": ["a", "b"]}]
    torch.manual_seed(0)
    drawn = {tuple(PairCollator(processor)(rows)["input_ids"][0].tolist()) for _ in range(20)}
    assert len(drawn) == 2


def test_duplicates_get_one_number_where_they_share_their_targets():
    processor = make_student(0)[1]
    rows = [{"pixel_values": encoded(picture(number // 2)), "input_ids": text} for number, text in enumerate("abab")]
    batch = PairCollator(processor, duplicates="share")(rows)
    assert batch["image_ids"].unique(return_inverse=True)[1].bincount().tolist() == [2, 2]
    assert batch["text_ids"].tolist()[:2] == batch["text_ids"].tolist()[2:]
    assert "text_ids" not in PairCollator(processor)(rows)
    with pytest.raises(ValueError, match="duplicates: expected 'share' or 'negative', found 'shared'"):
        PairCollator(processor, duplicates="shared")


def test_rows_that_are_no_pairs_are_refused():
    table = datasets.Dataset.from_dict({"picture": [b"1"], "caption": ["a"]})
    with pytest.raises(ValueError, match="found the columns picture, caption, expected 'image' among them"):
        pair_columns(table)
    processor = make_student(0)[1]
    with pytest.raises(ValueError, match="expected 'pixel_values' and 'input_ids': name them by pair_columns"):
        PairCollator(processor)([{"image": b"", "caption": "a"}])
    with pytest.raises(ValueError, match="expected a processor with tokenizer and image_processor, found int"):
        PairCollator(3)
    with pytest.raises(ValueError, match="found zero bytes"):
        PairCollator(processor)([{"pixel_values": b"", "input_ids": "a"}])
