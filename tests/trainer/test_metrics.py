"""Measures under Trainer: which rows and which predictions count."""

from types import SimpleNamespace

import numpy as np
import pytest
from torch import from_numpy as tensor

from hf_blemo import RankAwareFusionConfig, RankAwareFusionProcessor, blemore
from hf_blemo.metrics import measure
from hf_blemo.trainer import blemore_metrics, fusion_metrics


def predicted(labels, wrong):
    """Predictions of the clips' own labels; the first `wrong` of them are of a label that no clip has."""
    probabilities = np.array([[0.7, 0.3, 0.0, 0.0, 0.0, 0.0]] * 2 + [[0.0, 0.0, 0.0, 0.0, 0.0, 1.0]] * 2)
    joint = np.zeros((4, len(blemore.LABELS)))
    joint[np.arange(4), blemore.label_indices(np.array([[0.7, 0.3, 0, 0, 0, 0]] * 2 + [[0, 0, 0, 0, 0, 1]] * 2))] = 1
    probabilities[:wrong], joint[:wrong] = [0.0, 0.0, 0.0, 0.0, 1.0, 0.0], np.eye(len(blemore.LABELS))[4]
    return SimpleNamespace(predictions=(np.zeros((4, 3)), probabilities, joint), label_ids=labels)


def test_the_labelled_rows_are_scored():
    labels = [[0.7, 0.3, 0, 0, 0, 0]] * 2 + [[0, 0, 0, 0, 0, 1], [-100] * 6]
    found = blemore_metrics(predicted(labels, wrong=0))
    assert found == {"acc_presence": 1.0, "acc_salience": 1.0, "score": 1.0}
    found = blemore_metrics(predicted(labels, wrong=1))
    assert found == pytest.approx({"acc_presence": 2 / 3, "acc_salience": 1 / 2, "score": 7 / 12})


NAMES = dict(enumerate("abcde"))


@pytest.mark.parametrize(
    ("labels", "kind", "width", "keys"),
    [
        ({"id2label": NAMES}, "valid", 5, {"nll"}),
        ({"id2label": NAMES, "blend_percents": [[60, 40], [40, 60]]}, "valid", 25, {"nll", "acc_salience"}),
        ({"id2label": NAMES}, "soft", 5, {"js_distance", "mae"}),
        ({}, "valid", 36, {"nll", "acc_salience", "score"}),
    ],
)
def test_any_labels_are_measured(labels, kind, width, keys):
    config = RankAwareFusionConfig(
        encoders={"face": {"feature_size": 3}}, label_kind=kind, presence_share=0.2, **labels
    )
    space, generator = config.label_space, np.random.default_rng(0)
    joint = generator.dirichlet(np.ones(width), 30).astype(np.float32)
    # As wide as the names, and before their probabilities: logits are no distributions.
    logits = generator.normal(size=(30, len(space.names)))
    probabilities = (joint @ space.percent / 100).astype(np.float32)
    rows = space.percent[generator.integers(0, width, 30)] / 100
    truth = generator.dirichlet(np.ones(5), 30) if kind == "soft" else rows
    truth = np.concatenate([truth, np.full((2, len(space.names)), -100.0)])
    parts = [np.concatenate([part, part[:2]]) for part in (logits, probabilities, logits, joint)]
    processor = RankAwareFusionProcessor.from_config(config)
    blends = processor.post_process_blends(
        {"probabilities": tensor(probabilities), "joint_probabilities": tensor(joint)}
    )
    expected = measure(space, truth[:30], blends, probabilities, joint, kind, 0.2)
    assert keys <= set(expected)
    named = dict(
        zip(("presence_logits", "probabilities", "salience_logits", "joint_probabilities"), parts, strict=True)
    )
    batches = [tuple(part[rows] for part in parts) for rows in (slice(0, 20), slice(20, 32))]
    for predictions in (tuple(parts), named, batches):
        label_ids = [truth[:20], truth[20:]] if predictions is batches else truth
        found = SimpleNamespace(predictions=predictions, label_ids=label_ids, inputs={"features": {}}, losses=None)
        assert fusion_metrics(config)(found) == expected
        assert fusion_metrics(processor, presence_share=0.2)(found) == expected


def test_the_processors_own_decoding_counts_unless_another_is_given():
    labels = [[0.7, 0.3, 0, 0, 0, 0]] * 2 + [[0, 0, 0, 0, 0, 1], [-100] * 6]
    processor = RankAwareFusionProcessor({}, decoding="thresholds", alpha=0.1, beta=0.5)
    found = fusion_metrics(processor)(predicted(labels, wrong=0))
    assert (found["acc_presence"], found["acc_salience"]) == (1.0, 0.0)
    assert fusion_metrics(processor, beta=0.3)(predicted(labels, wrong=0))["score"] == 1
    assert fusion_metrics(processor, decoding="expected_score")(predicted(labels, wrong=0))["score"] == 1
    with pytest.raises(ValueError, match="'best' is not one of"):
        fusion_metrics(processor, decoding="best")
    with pytest.raises(ValueError, match="expected a config or a processor of a fusion, found dict"):
        fusion_metrics({})


def test_what_cannot_be_scored_is_refused():
    unlabelled = [[-100] * 6] * 4
    with pytest.raises(ValueError, match="found 4 rows, none of them labelled"):
        blemore_metrics(predicted(unlabelled, wrong=0))
    with pytest.raises(ValueError, match=r"shapes \[\(4, 6\)\], expected probabilities"):
        blemore_metrics(SimpleNamespace(predictions=[np.zeros((4, 6))], label_ids=unlabelled))
