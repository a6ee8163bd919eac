"""Clips to batches, and every input that is refused with the clip, what was found and what was expected."""

import numpy as np
import pytest
import torch

from hf_blemo import RankAwareFusionProcessor


@pytest.fixture
def processor(encoders) -> RankAwareFusionProcessor:
    return RankAwareFusionProcessor(encoders)


def test_batch_holds_the_clips_where_the_mask_says(processor, encoders, make_samples):
    samples = make_samples(4, absent={1: ["clip"], 2: ["clip", "wavlm.large", "action units"]})
    batch = processor(samples)
    assert list(batch) == ["features", "feature_mask"]
    assert list(batch["features"]) == list(batch["feature_mask"]) == list(encoders)
    for name, options in encoders.items():
        values, mask = batch["features"][name], batch["feature_mask"][name]
        num_steps = max(len(sample.get(name, ())) for sample in samples)
        assert values.shape == (4, num_steps, options["feature_size"]) and values.dtype == torch.float32
        assert mask.shape == (4, num_steps) and mask.dtype == torch.bool
        assert values[~mask].eq(0).all()
        for row, sample in enumerate(samples):
            expected = sample.get(name, np.zeros((0, options["feature_size"])))
            assert mask[row].tolist() == [True] * len(expected) + [False] * (num_steps - len(expected))
            np.testing.assert_array_equal(values[row][mask[row]].numpy(), expected)


def test_what_no_clip_has_is_left_out_and_a_vector_is_one_step(processor):
    steps = np.ones((3, 4), dtype=np.float32)
    batch = processor([{"clip": np.arange(4.0), "wavlm.large": None}, {"clip": steps}])
    assert list(batch["features"]) == list(batch["feature_mask"]) == ["clip"]
    assert batch["feature_mask"]["clip"].tolist() == [[True, False, False], [True, True, True]]
    assert batch["features"]["clip"][0].tolist() == [[0, 1, 2, 3], [0] * 4, [0] * 4]
    batch["features"]["clip"].zero_()
    assert steps.sum() == 12, "the caller's array was changed"


def test_a_single_clip_needs_no_list_and_several_may_be_an_array(processor, encoders, make_samples):
    sample = dict(reversed(make_samples(1)[0].items()))
    single, listed = processor(sample), processor([sample, sample])
    array = processor(np.array([sample, sample]))
    assert list(single["features"]) == list(encoders)
    for name in sample:
        torch.testing.assert_close(single["features"][name], listed["features"][name][:1], rtol=0, atol=0)
        torch.testing.assert_close(array["features"][name], listed["features"][name], rtol=0, atol=0)


def test_steps_of_any_kind_become_float32(processor):
    steps = torch.arange(8.0).view(2, 4)
    kinds = [steps.numpy().astype(dtype) for dtype in (np.float64, np.float16, np.int64)]
    # VideoMAEv2 has a middle axis.
    for given in (*kinds, steps.numpy()[:, None], steps.tolist(), steps.clone().requires_grad_(), steps.bfloat16()):
        values = processor([{"clip": given}])["features"]["clip"]
        torch.testing.assert_close(values, steps[None], rtol=0, atol=0)
        assert not values.requires_grad


def test_rows_without_labels(processor):
    samples = [{"clip": np.zeros(4)}] * 4
    labels = processor(samples, labels=[None, [-100] * 6, [0, 0, 0.3, 0, 0.7, 0], torch.eye(6)[5]])["labels"]
    expected = torch.tensor([[-100.0] * 6, [-100.0] * 6, [0, 0, 0.3, 0, 0.7, 0], [0, 0, 0, 0, 0, 1.0]])
    torch.testing.assert_close(labels, expected)


def test_labels_that_are_none_of_the_space_are_refused_with_their_clip(processor):
    with pytest.raises(
        ValueError, match=r"^A2: found the shares \[0.6, .*expected one of the valid .* or -100 everywh"
    ):
        processor([{"clip": np.zeros(4)}] * 2, labels=[None, [0.6, 0.4, 0, 0, 0, 0]], clips=["A1", "A2"])


@pytest.mark.parametrize(
    ("sample", "found", "expected"),
    [
        ({"clip": np.zeros((2, 5))}, "(2, 5)", "(time, 4)"),
        ({"clip": np.zeros(3)}, "(3,)", "(4,)"),
        ({"clip": np.zeros((2, 2, 4))}, "(2, 2, 4)", "(time, 4)"),
        ({"clip": 1.0}, "()", "(time, 4)"),
        ({"clip": torch.zeros(2, 5)}, "(2, 5)", "(time, 4)"),
        ({"klip": np.zeros((2, 4))}, "'klip'", "wavlm.large, clip, hicmae/logits, action units"),
        ({"clip": np.zeros((0, 4))}, "empty", "leave an absent encoder out"),
        ({"clip": np.array([[0, 1, 2, 3], [0, np.nan, 2, 3]])}, "nan at step 1, column 1", "finite"),
        ({"clip": np.array([[0, 1, np.inf, 3]])}, "inf at step 0, column 2", "finite"),
        ({"clip": np.array([-np.inf, 1, 2, 3])}, "-inf at step 0, column 0", "finite"),
        ({"clip": np.array([[1e300, 1, 2, 3]])}, "column 0", "finite"),
        ({"clip": [[0, 1, 2, 3], [0, 1]]}, "'clip'", "(time, 4)"),
        ({"clip": ["a", "b", "c", "d"]}, "'clip'", "(time, 4)"),
        ({}, "no encoder", "wavlm.large, clip, hicmae/logits, action units"),
        ({"clip": None}, "no encoder", "wavlm.large, clip, hicmae/logits, action units"),
        ([0, 1, 2, 3], "list", "encoder"),
    ],
)
def test_a_bad_clip_is_refused_with_its_name_what_was_found_and_what_was_expected(processor, sample, found, expected):
    good = {"clip": np.zeros((2, 4))}
    with pytest.raises(ValueError) as error:
        processor([good, sample], clips=["A102_ang_int1_ver1", "A303_neu_sit2_ver1"])
    message = str(error.value)
    assert "A303_neu_sit2_ver1" in message and "A102" not in message and "\n" not in message
    assert found in message and expected in message
    with pytest.raises(ValueError, match="sample 1"):
        processor([good, sample])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": []}, "found 0 for 2 samples"),
        ({"labels": [None] * 3}, "found 3 for 2 samples"),
        ({"clips": ["A1"]}, "2 samples"),
        ({"return_tensors": "np"}, "return_tensors must be 'pt', found 'np'"),
        ({"samples": []}, "expected at least one"),
        ({"samples": np.array([])}, "expected at least one"),
        ({"samples": np.zeros((2, 4))}, "sample 0: expected a mapping of encoder names to arrays, found ndarray"),
        ({"samples": np.array({"clip": np.zeros(4)})}, "or a list of such mappings, found ndarray"),
        ({"samples": None}, "or a list of such mappings, found NoneType"),
    ],
    ids=str,
)
def test_a_call_that_does_not_fit_is_refused(processor, options, message):
    with pytest.raises(ValueError, match=message):
        processor(**{"samples": [{"clip": np.zeros(4)}] * 2, **options})


def test_to_casts_the_floating_tensors_at_every_depth(processor, make_samples, make_labels):
    batch = processor(make_samples(3), labels=make_labels(3))
    before = {name: values.clone() for name, values in batch["features"].items()}
    assert batch.to(torch.bfloat16) is batch
    for name, values in before.items():
        torch.testing.assert_close(batch["features"][name], values.bfloat16())
        assert batch["feature_mask"][name].dtype == torch.bool
    assert batch["labels"].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("place", "options", "dtype"),
    [
        (["meta"], {}, torch.float32),
        ([], {"device": torch.device("meta")}, torch.float32),
        (["meta", torch.float16], {}, torch.float16),
    ],
    ids=["positional", "keyword", "device and dtype"],
)
def test_to_moves_every_tensor_at_every_depth(processor, make_samples, make_labels, place, options, dtype):
    batch = processor(make_samples(3), labels=make_labels(3)).to(*place, **options)
    tensors = [batch["labels"], *batch["features"].values(), *batch["feature_mask"].values()]
    assert len(tensors) == 9 and {tensor.device.type for tensor in tensors} == {"meta"}
    assert {tensor.dtype for tensor in tensors} == {dtype, torch.bool}


def test_round_trip_keeps_every_setting_and_the_order_of_the_encoders(encoders, tmp_path):
    processor = RankAwareFusionProcessor(encoders, decoding="thresholds", alpha=0.25, beta=0.15, blend_share=0.4)
    processor.save_pretrained(tmp_path)
    loaded = RankAwareFusionProcessor.from_pretrained(tmp_path)
    assert (loaded.decoding, loaded.alpha, loaded.beta, loaded.blend_share) == ("thresholds", 0.25, 0.15, 0.4)
    assert loaded.encoders == processor.encoders
    # The order is that of encoder_weights and selected_encoders, which are read with the processor's names.
    assert list(loaded.encoders) == list(encoders)
