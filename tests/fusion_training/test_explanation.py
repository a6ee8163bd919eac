"""What the gate says of an encoder against what its absence changes; and adaptation to the scored fold."""

import numpy as np
import pytest
import torch

from hf_blemo import RankAwareFusionModel
from hf_blemo.fusion_training import adaptation, explanation, naive_fusion
from hf_blemo.fusion_training.ablation import _markdown, ablate
from hf_blemo.fusion_training.explanation import changes_without, spearman
from hf_blemo.fusion_training.settings import AblationSettings
from hf_blemo.rank_aware_fusion.label_space_rank_aware_fusion import LabelSpace

SPACE = LabelSpace(["red", "green", "blue"])


def test_spearman_by_hand():
    assert spearman(np.array([1, 2, 3]), np.array([10, 20, 15])) == pytest.approx(0.5)
    assert spearman(np.array([1, 2, 2, 4]), np.array([1, 3, 3, 9])) == pytest.approx(1)
    assert np.isnan(spearman(np.array([1, 1]), np.array([1, 2]))) and np.isnan(spearman(np.empty(0), np.empty(0)))


def test_changes_are_those_of_a_clip_that_lacks_the_encoder(make_data, make_store, make_settings):
    data = make_data(6, space=SPACE, missing=[(2, "face"), (2, "noise"), (3, "voice")])
    store = make_store(data, make_settings())
    torch.manual_seed(0)
    model = RankAwareFusionModel(store.config).eval()
    weights, changes, present = changes_without(store, model, np.arange(6))
    assert present.tolist() == [[True] * 3] * 2 + [[True, False, False], [False, True, True]] + [[True] * 3] * 2
    assert (changes[~present] == 0).all() and changes[2].tolist() == [0, 0, 0]
    lacking = make_store(make_data(6, space=SPACE, missing=[(0, "voice")]), make_settings())
    one, two = (s.predict([model])["probabilities"][0] for s in (store, lacking))
    assert changes[0, 0] == pytest.approx(0.5 * float((one - two).abs().sum()), abs=1e-6)
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-5)


@pytest.fixture
def settings(make_data, make_settings, tmp_path):
    data = make_data(36, num_folds=3, space=SPACE)
    data.add_column("group", [f"actor {row // 4}" for row in range(36)]).save_to_disk(str(tmp_path / "data"))
    own = make_settings(data=str(tmp_path / "data"), output_dir=str(tmp_path / "ablation"), num_epochs=1, seeds=[0, 1])
    values = {name: value for name, value in vars(own).items() if name in AblationSettings.__dataclass_fields__}

    def make(**changes):
        return AblationSettings(**{**values, **changes})

    return make


def test_the_table_of_other_labels(settings, monkeypatch):
    monkeypatch.setattr(naive_fusion, "L2", (0.1,))
    monkeypatch.setattr(naive_fusion, "_NUM_STEPS", 10)
    only = ["single encoder", "rank-aware", "linear concatenation", "static weights", "explanations"]
    result = ablate(settings(only=only))
    rows = {row["name"]: row for row in result["rows"]}
    assert len(rows) == 3 + 3 + 4 + 1 and result["resampled"] == "9 groups"
    naive = [name for name in rows if name.startswith(("static weights", "linear concatenation"))]
    best = max(naive, key=lambda name: rows[name]["measures"]["accuracy"]["mean"])
    for name, row in rows.items():
        against = row["against_naive"]["accuracy"]
        assert against["against"] == best and against["low"] <= against["difference"] <= against["high"]
        difference = row["measures"]["accuracy"]["mean"] - rows[best]["measures"]["accuracy"]["mean"]
        assert against["difference"] == pytest.approx(difference), name
    chosen = rows["rank-aware, n chosen inside the training folds"]
    assert np.shape(chosen["chosen"]) == (2, 3) and chosen["chosen_from"] == [1, 2, 3]
    assert [entry["against"] for entry in result["comparisons"]] == ["rank-aware, n = 3"] * 2
    found = result["explanations"]
    assert -1 <= found["spearman"]["mean"] <= 1 and 0 <= found["top"]["mean"] <= 1
    text = _markdown(result)
    for part in ("| accuracy | uar | macro_f1 | acc_presence | nll |", "paired bootstrap over 9 groups", "the best |"):
        assert part in text
    again = ablate(settings(only=["mean of probabilities"], resume=True))
    assert [row["name"] for row in again["rows"]][-4:] == [row["name"] for row in result["rows"]][-4:]
    assert len(again["rows"]) == len(rows) + 1


def test_adaptation_to_the_scored_fold_reads_none_of_its_labels(settings, monkeypatch):
    hidden = []

    def train(accelerator, store, own, num_epochs):
        hidden.append((store.config.domain_adaptation, (~store.labelled).sum(), set(store.folds[~store.labelled])))
        assert (store.labels[~store.labelled] == -100).all() and store.config.domain_adaptation == own.model.get(
            "domain_adaptation"
        )
        torch.manual_seed(0)
        return [RankAwareFusionModel(store.config).eval() for _ in own.seeds]

    monkeypatch.setattr(adaptation, "train_on_all", train)
    result = ablate(settings(only=["adaptation"]))
    kinds = [(row["kind"], row["level"]) for row in result["adaptation"]]
    pairs = [(kind, level) for kind in ("mmd", "coral", "adversarial") for level in ("fused", "encoders")]
    assert kinds == [("none", "fused"), *pairs]
    assert hidden == [(kind, 12, {fold}) for kind, _ in kinds for fold in range(3)]
    first = result["adaptation"][0]["against_none"]
    assert first["accuracy"] == first["nll"] == {"difference": 0.0, "low": 0.0, "high": 0.0}
    assert "| mmd | encoders | 40 |" in _markdown(result)


def test_explanations_are_of_models_that_did_not_see_the_labels(settings, monkeypatch):
    seen = []

    def train(accelerator, store, own, num_epochs):
        seen.append((set(store.folds[store.labelled]), num_epochs))
        return [RankAwareFusionModel(store.config).eval() for _ in own.seeds]

    monkeypatch.setattr(explanation, "train_on_all", train)
    ablate(settings(only=["explanations"], num_epochs=4))
    assert seen == [({1, 2}, 4), ({0, 2}, 4), ({0, 1}, 4)]
