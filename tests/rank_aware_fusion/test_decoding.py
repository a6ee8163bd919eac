"""The decoders against the benchmark's, label by label, and against plain Python on other label spaces."""

import json

import numpy as np
import pytest
import torch
from drawn_probabilities import KINDS, draw

from hf_blemo import RankAwareFusionProcessor, blemore
from hf_blemo.rank_aware_fusion.decoding_rank_aware_fusion import (
    decode_expected_score,
    decode_soft,
    decode_thresholds,
    default_blend_share,
)  # fmt: skip
from hf_blemo.rank_aware_fusion.label_space_rank_aware_fusion import BLEMORE_SPACE, LabelSpace
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


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("decoding", ["expected_score", "thresholds", "soft"])
def test_what_is_not_a_finite_number_becomes_no_emotion(encoders, output, decoding, bad):
    processor = RankAwareFusionProcessor(encoders, decoding=decoding)
    with torch.no_grad():
        (output.joint_probabilities if decoding == "expected_score" else output.probabilities)[7, 2] = bad
    with pytest.raises(ValueError, match="sample 7: the model gives .*probabilities that are not finite numbers"):
        processor.post_process_blends(output)
    options = {"alpha": bad} if decoding == "thresholds" else {"blend_share": bad}
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be from 0 to 1, found"):
        processor.post_process_blends(output, **options)
    with pytest.raises(ValueError, match="beta: found (nan|-?inf), expected a finite number"):
        blemore.decode_thresholds(np.eye(6), 0.1, bad)


def test_an_unknown_decoding_is_refused(encoders, output):
    with pytest.raises(ValueError, match="decoding 'argmax' is not one of expected_score, thresholds, soft"):
        RankAwareFusionProcessor(encoders, decoding="argmax")
    with pytest.raises(ValueError, match="decoding 'argmax' is not one of expected_score, thresholds, soft"):
        RankAwareFusionProcessor(encoders).post_process_blends(output, decoding="argmax")


SPACES = {
    "singles": LabelSpace("abcdefg"),
    "pairs": LabelSpace("abcdef", [(70, 30), (50, 50), (30, 70)]),
    "no even split": LabelSpace("abcd", [(60, 40), (40, 60)], ["d"]),
    "threes": LabelSpace("abcde", [(50, 50), (34, 33, 33), (50, 30, 20), (20, 30, 50)], ["b"]),
    "threes alone": LabelSpace("abcd", [(40, 30, 30)]),
}


def by_expected_score(joint, blend_share, space):
    """Over the valid labels, 0.5 / N for the right set, and 0.5 / N_blends for the right label of a blend."""
    blends = [space.blend(index) for index in range(len(space))]
    sets = [{part["emotion"] for part in blend} for blend in blends]
    scores = []
    for index, own in enumerate(sets):
        score = 0.5 * sum(joint[other] for other, names in enumerate(sets) if names == own)
        if len(own) > 1 and blend_share > 0:
            score += 0.5 * joint[index] / blend_share
        scores.append(score)
    best = max(scores)
    return [blend for blend, score in zip(blends, scores, strict=True) if score >= best - 1e-12]


def by_thresholds(row, alpha, beta, space):
    """The documented rule, name by name."""
    order = sorted(range(len(row)), key=lambda place: -row[place])[: space.largest_set]
    kept = [order[0]] + [place for place in order[1:] if row[place] >= alpha and row[place] > 0]
    alone = [place for place in kept if space.names[place] in space.unblended]
    if len(kept) > 1 and alone:
        kept = kept[:1] if alone[0] == kept[0] else [place for place in kept if place not in alone]
    while not space.splits(len(kept)):
        kept = kept[:-1]
    places = sorted(kept)
    # Python 3.12 sums floats with less error than before, which leaves ties that rounding breaks elsewhere.
    shares = row[places].astype(np.float64) / row[places].sum(dtype=np.float64)
    splits = space.splits(len(places))
    even = [split for split in splits if max(split) - min(split) <= 1]
    if not (even and max(row[p] for p in places) - min(row[p] for p in places) <= beta):
        splits = [split for split in splits if split not in even] or splits
        even = [min(splits, key=lambda split: np.abs(shares - np.array(split) / 100).sum())]
    return [{"emotion": space.names[p], "salience": float(part)} for p, part in zip(places, even[0], strict=True)]


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_expected_score_on_other_spaces(space):
    joint = np.random.default_rng(0).dirichlet(np.full(len(space), 0.3), 120)
    for blend_share in (0.0, 0.2, 0.5, 1.0):
        for row, found in zip(joint, decode_expected_score(joint, blend_share, space), strict=True):
            assert found in by_expected_score(row, blend_share, space)
    if not space.blend_percents:
        best = [space.blend(index) for index in joint.argmax(1)]
        assert all(decode_expected_score(joint, share, space) == best for share in (0.0, 0.5, 1.0))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_thresholds_on_other_spaces(space, dtype):
    probabilities = np.random.default_rng(0).dirichlet(np.full(len(space.names), 0.5), 150).astype(dtype)
    for alpha, beta in ((0.0, 0.0), (0.05, 0.05), (0.1, 0.3), (0.2, 0.1), (0.3, 1.0), (1.0, 0.1)):
        limits = dtype(alpha), dtype(beta)
        expected = [by_thresholds(row, *limits, space) for row in probabilities]
        assert decode_thresholds(probabilities, alpha, beta, space) == expected
    sizes = {len(blend) for blend in decode_thresholds(probabilities, 0.01, 0.1, space)}
    assert sizes <= {1, *space.num_sets} and max(sizes) == space.largest_set
    certain = np.eye(len(space.names), dtype=dtype)
    assert decode_thresholds(certain, 0.0, 1.0, space) == [space.blend(index) for index in range(len(space.names))]


def test_soft_gives_the_distribution_itself():
    rows = np.random.default_rng(0).dirichlet(np.ones(3), 5).astype(np.float32)
    found = decode_soft(rows, LabelSpace("xyz"))
    assert [[part["emotion"] for part in blend] for blend in found] == [list("xyz")] * 5
    np.testing.assert_array_equal([[part["salience"] for part in blend] for blend in found], 100 * rows.astype(float))
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    ("space", "share"), [(BLEMORE_SPACE, 1660 / 3050), (SPACES["threes"], 0.5), (SPACES["singles"], 0.0)]
)
def test_the_share_of_blends_that_is_assumed_where_none_was_measured(space, share):
    assert default_blend_share(space) == share


@pytest.mark.parametrize(("kind", "decoding"), [("valid", "expected_score"), ("soft", "soft")])
def test_processors_decode_over_their_own_space(encoders, kind, decoding):
    space = SPACES["threes"]
    names = dict(enumerate(space.names))
    splits = [list(split) for split in space.blend_percents]
    processor = RankAwareFusionProcessor(
        encoders, id2label=names, blend_percents=splits, unblended=["b"], label_kind=kind
    )
    generator = np.random.default_rng(0)
    probabilities, joint = (generator.dirichlet(np.ones(size), 9).astype(np.float32) for size in (5, len(space)))
    output = {"probabilities": torch.from_numpy(probabilities), "joint_probabilities": torch.from_numpy(joint)}
    expected = {
        "expected_score": decode_expected_score(joint, 0.5, space),
        "thresholds": decode_thresholds(probabilities, 0.1, 0.1, space),
        "soft": decode_soft(probabilities, space),
    }
    assert processor.decoding == decoding and processor.post_process_blends(output) == expected[decoding]
    for name, blends in expected.items():
        assert processor.post_process_blends(output, name) == blends
