"""The metrics as modules of `evaluate` give what the benchmark's own functions give."""

from concurrent.futures import ThreadPoolExecutor

import evaluate
import numpy as np
import pytest

from hf_blemo import blemore
from hf_blemo.metrics import (
    AccPresence,
    AccSalience,
    BlemoreScore,
    BlendMeasures,
    blends_to_saliences,
    measure,
    metric_path,
)
from hf_blemo.rank_aware_fusion.label_space_rank_aware_fusion import LabelSpace

METRICS = {"acc_presence": AccPresence, "acc_salience": AccSalience, "score": BlemoreScore}
NAMES = dict(zip(METRICS, ("acc_presence", "acc_salience", "blemore_score"), strict=True))


def drawn(num_clips: int, seed: int = 0):
    """Soft labels and predictions, half of which are right."""
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, 36, num_clips)
    predicted = np.where(generator.random(num_clips) < 0.5, truth, generator.integers(0, 36, num_clips))
    return blemore.LABEL_MATRIX[truth], blemore.decode_label_indices(predicted)


def expected(blends, labels):
    return {name: getattr(blemore, name)(blends, labels) for name in METRICS}


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", METRICS)
def test_by_class_and_by_path_they_are_the_benchmarks(name):
    labels, blends = drawn(200)
    value = expected(blends, labels)[name]
    assert 0.2 < value < 0.8
    inputs = {"predictions": blends_to_saliences(blends), "references": labels}
    assert METRICS[name]().compute(**inputs) == {name: pytest.approx(value, abs=0)}
    assert evaluate.load(metric_path(NAMES[name])).compute(**inputs) == {name: pytest.approx(value, abs=0)}


def test_rows_may_be_added_in_parts():
    labels, blends = drawn(90)
    rows = blends_to_saliences(blends)
    metric = AccSalience()
    metric.add(prediction=rows[0], reference=labels[0])
    metric.add_batch(predictions=rows[1:50], references=labels[1:50])
    metric.add_batch(predictions=rows[50:], references=labels[50:])
    assert metric.compute() == {"acc_salience": expected(blends, labels)["acc_salience"]}


def test_they_are_combined():
    labels, blends = drawn(120)
    combined = evaluate.combine([*(metric_path(name) for name in NAMES.values())])
    inputs = {"predictions": blends_to_saliences(blends), "references": labels}
    assert combined.compute(**inputs) == expected(blends, labels)
    assert set(evaluate.combine([AccPresence(), BlemoreScore()]).compute(**inputs)) == {"acc_presence", "score"}


def test_two_processes_gather_what_one_has(tmp_path_factory):
    """Threads stand for the processes: each has its own locks and files in the folder through which they gather."""
    cache = tmp_path_factory.mktemp("gathered")
    labels, blends = drawn(64, seed=3)
    rows = blends_to_saliences(blends)

    def compute(rank):
        metric = BlemoreScore(num_process=2, process_id=rank, experiment_id="two", cache_dir=str(cache))
        metric.add_batch(predictions=rows[rank::2], references=labels[rank::2])
        return metric.compute()

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(compute, range(2))) == [{"score": expected(blends, labels)["score"]}, None]


def test_measures_of_any_names_are_a_module_too():
    generator = np.random.default_rng(4)
    names = ["calm", "tense", "tired"]
    labels, shares = generator.dirichlet(np.ones(3), (2, 40))
    expected_soft = measure(LabelSpace(names), labels, shares, shares, kind="soft", presence_share=0.3)
    settings = {"names": names, "kind": "soft", "presence_share": 0.3}
    for metric, changes in (
        (evaluate.load(metric_path("blend_measures"), **settings), {}),
        (BlendMeasures(names=names), {"kind": "soft", "presence_share": 0.3}),
    ):
        assert metric.compute(predictions=shares, references=labels, **changes) == expected_soft
    blends = [[{"emotion": "calm", "salience": 60.0}, {"emotion": "tired", "salience": 40.0}], [], []]
    rows = blends_to_saliences(blends, names)
    assert rows.tolist() == [[0.6, 0, 0.4], [0.0] * 3, [0.0] * 3]
    metric = BlendMeasures(names=names, blend_percents=[[60, 40], [40, 60]], unblended=["tense"])
    found = metric.compute(predictions=rows[:1], references=rows[:1])
    assert set(found) == {"accuracy", "uar", "macro_f1", "acc_presence", "acc_salience"} and set(found.values()) == {1}
    labels, blends = drawn(90)
    found = BlendMeasures().compute(predictions=blends_to_saliences(blends), references=labels)
    assert {name: found[name] for name in METRICS} == expected(blends, labels)


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([[1.0, 0, 0, 0, 0, 0]], [[-100.0] * 6], "row 0 is unlabelled"),
        ([[1.0, 0, 0, 0, 0, 0]], [[0.2, 0.8, 0, 0, 0, 0]], "row 0"),
        ([[1.5, 0, 0, 0, 0, 0]], [[1.0, 0, 0, 0, 0, 0]], "prediction 0: found .*expected six saliences from 0 to 1"),
        ([[float("nan"), 0, 0, 0, 0, 0]], [[1.0, 0, 0, 0, 0, 0]], "prediction 0: found"),
    ],
)
def test_what_is_no_label_is_refused(predictions, references, message):
    with pytest.raises(ValueError, match=message):
        AccPresence(keep_in_memory=True).compute(predictions=predictions, references=references)


def test_names_and_emotions_are_checked():
    with pytest.raises(ValueError, match="unknown metric 'accuracy', expected one of acc_presence"):
        metric_path("accuracy")
    with pytest.raises(ValueError, match="blend 1: found the emotion 'joy'"):
        blends_to_saliences([[], [{"emotion": "joy", "salience": 100.0}]])
    assert blends_to_saliences([[]]).tolist() == [[0.0] * 6]
    empty = AccPresence(keep_in_memory=True).compute(predictions=np.zeros((1, 6)), references=blemore.LABEL_MATRIX[:1])
    assert empty == {"acc_presence": 0.0}
