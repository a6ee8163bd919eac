"""The family's own copies of the decoders against the benchmark's, label by label."""

import json

import numpy as np
import pytest
import torch
from drawn_probabilities import KINDS, draw

from hf_blemo import RankAwareFusionProcessor, blemore
from hf_blemo.rank_aware_fusion.decoding_rank_aware_fusion import decode_expected_score, decode_thresholds
from hf_blemo.rank_aware_fusion.label_space_rank_aware_fusion import BLEMORE_SPACE
from hf_blemo.rank_aware_fusion.modeling_rank_aware_fusion import RankAwareFusionOutput


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_thresholds_decode_as_the_benchmark_does(kind, dtype):
    probabilities = draw(kind, (250, 6), dtype)
    grid = blemore.THRESHOLD_GRID[::4].tolist()
    for alpha, beta in [(0.0, 0.0), (0.1, 0.1), (1.5, 0.0), *[(alpha, beta) for alpha in grid for beta in grid]]:
        found = decode_thresholds(probabilities, alpha, beta)
        assert found == blemore.decode_thresholds(probabilities, alpha, beta), (alpha, beta)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_expected_score_decodes_as_the_benchmark_does(kind, dtype):
    joint = draw(kind, (250, 36), dtype)
    for shares in ([], [0.1], [1.0]):
        assert decode_expected_score(joint, *shares) == blemore.decode_expected_score(joint, *shares)


def test_labels_are_the_benchmarks_in_its_order():
    assert list(blemore.LABELS) == [BLEMORE_SPACE.blend(index) for index in range(len(BLEMORE_SPACE))]
    assert BLEMORE_SPACE.names == blemore.EMOTIONS and tuple(BLEMORE_SPACE.sets) == blemore.EMOTION_SETS
    assert (np.rint(100 * blemore.LABEL_MATRIX) == BLEMORE_SPACE.percent).all()
    assert (BLEMORE_SPACE.set_of_label == blemore.LABEL_SETS).all()


@pytest.mark.parametrize("decode", ["thresholds", "expected_score"])
def test_predictions_are_plain_python_lists_that_nobody_shares(decode):
    values = np.tile(np.eye(36 if decode == "expected_score" else 6, dtype=np.float32)[:1], (2, 1))
    first, second = decode_thresholds(values, 0.1, 0.1) if decode == "thresholds" else decode_expected_score(values)
    first[0]["emotion"] = "changed"
    assert json.loads(json.dumps(second)) == [{"emotion": "ang", "salience": 100.0}]
    assert type(second[0]["salience"]) is float


@pytest.fixture
def output() -> RankAwareFusionOutput:
    return RankAwareFusionOutput(
        probabilities=torch.from_numpy(draw("softmax", (250, 6), np.float32)).requires_grad_(),
        joint_probabilities=torch.from_numpy(draw("softmax", (250, 36), np.float32)).requires_grad_(),
    )


def test_the_processors_own_decoding_is_the_default_and_zero_overrides_it(encoders, output):
    probabilities = output.probabilities.detach().numpy()
    joint = output.joint_probabilities.detach().numpy()
    assert RankAwareFusionProcessor(encoders).post_process_blends(output) == blemore.decode_expected_score(joint)
    processor = RankAwareFusionProcessor(encoders, decoding="thresholds", alpha=0.3, beta=0.25, blend_share=0.2)
    assert processor.post_process_blends(output) == blemore.decode_thresholds(probabilities, 0.3, 0.25)
    assert processor.post_process_blends(output, alpha=0.0, beta=0.0) == blemore.decode_thresholds(probabilities, 0, 0)
    found = processor.post_process_blends(output, decoding="expected_score")
    assert found == blemore.decode_expected_score(joint, 0.2) != blemore.decode_expected_score(joint)
    assert processor.post_process_blends(output, "expected_score", blend_share=0.9) == (
        blemore.decode_expected_score(joint, 0.9)
    )
    half = RankAwareFusionOutput(**{name: values.bfloat16() for name, values in output.items()})
    probabilities, joint = (half[name].detach().float().numpy() for name in ("probabilities", "joint_probabilities"))
    assert processor.post_process_blends(half) == blemore.decode_thresholds(probabilities, 0.3, 0.25)
    assert processor.post_process_blends(half, "expected_score") == blemore.decode_expected_score(joint, 0.2)


def test_an_unknown_decoding_is_refused(encoders, output):
    with pytest.raises(ValueError, match="decoding 'argmax' is not one of expected_score, thresholds, soft"):
        RankAwareFusionProcessor(encoders, decoding="argmax")
    with pytest.raises(ValueError, match="decoding 'argmax' is not one of expected_score, thresholds, soft"):
        RankAwareFusionProcessor(encoders).post_process_blends(output, decoding="argmax")
