"""The table of the ablation: its rows, what each of them changes, and the numbers that only it computes."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from accelerate import Accelerator

from hf_blemo import RankAwareFusionConfig, feature_sets
from hf_blemo.fusion_training import ablation, adaptation
from hf_blemo.fusion_training.ablation import CHOSEN, _chosen_variants, _markdown, _planted_share, _variants, ablate
from hf_blemo.fusion_training.cross_validation import cross_validate
from hf_blemo.fusion_training.data import model_config
from hf_blemo.fusion_training.naive_fusion import naive_names
from hf_blemo.fusion_training.settings import AblationSettings

NAMES = ["voice", "face", "noise"]
ENCODERS = {name: {"feature_size": 3} for name in NAMES}


@pytest.fixture
def settings_for(make_settings, make_data, tmp_path):
    """Settings for a small data set on disk whose planted encoders are always voice and face."""
    data = make_data(36, num_folds=3).add_column("informative", [[1, 0]] * 36)
    data.save_to_disk(str(tmp_path / "data"))

    def make(only=(), resume=False, **changes):
        base = make_settings(**{"data": str(tmp_path / "data"), "num_epochs": 1, **changes})
        values = {name: value for name, value in vars(base).items() if name in AblationSettings.__dataclass_fields__}
        return AblationSettings(
            **{**values, "only": list(only), "resume": resume, "output_dir": str(tmp_path / "ablation")}
        )

    return make


def test_the_rows_for_three_encoders(settings_for):
    settings = settings_for()
    rows = list(_variants(settings, NAMES))
    names = [row.name for row in rows]
    assert len(set(names)) == len(names)
    assert names[:3] == [f"single encoder: {name}" for name in NAMES]
    assert names[3:12] == naive_names(NAMES)
    ranked = ["rank-aware, n = 1", "rank-aware, n = 2 (the method as configured)", "rank-aware, n = 3", CHOSEN]
    unordered = ["without rank order, n = 1", "without rank order, n = 3"]
    fixed = ["mean of all", "concatenation of all", "static top-1", "static top-2"]
    assert names[12:22] == [*fixed, *ranked, *unordered]
    for row in rows:
        RankAwareFusionConfig(encoders=ENCODERS, **{**settings.model, **row.model})
    assert not [name for name in names if "alignment" in name]
    aligned = _variants(settings_for(align_folds=True), NAMES)
    assert [row.settings for row in aligned if "alignment" in row.name] == [{"align_folds": False}]


def test_only_asks_for_rows_by_their_beginning(settings_for, make_data):
    # Rows that would change nothing are left out: this configuration has no gate noise and no encoder dropout.
    settings = settings_for(only=["single encoder: face", "rank-aware, n = 2", "without"])
    chosen = _chosen_variants(settings, model_config(make_data(4), settings))
    assert [variant.name.strip() for variant in chosen] == [
        "single encoder: face",
        "rank-aware, n = 2 (the method as configured)",
        "without rank order, n = 1",
        "without rank order, n = 3",
        "without rank order (weighted sum)",
        "without joint interaction",
        "without joint loss",
        "without balance term",
    ]


def test_a_table_of_no_rows_is_refused_and_one_broken_off_is_finished(settings_for, monkeypatch, tmp_path, capsys):
    trained, original = [], ablation.cross_validate

    def recorded(*arguments, **options):
        trained.append(options["description"])
        if trained.count("mean of all") == 1 and options["description"] == "mean of all":
            raise KeyboardInterrupt
        return original(*arguments, **options)

    monkeypatch.setattr(ablation, "cross_validate", recorded)
    with pytest.raises(
        ValueError, match="no row begins with 'gate without contxt'; did you mean 'gate without context'"
    ):
        ablate(settings_for(only=["gate without contxt"]))
    folder = tmp_path / "ablation"
    assert not folder.exists()
    with pytest.raises(KeyboardInterrupt):
        ablate(settings_for(only=["single encoder: face", "mean of all"]))
    first = json.loads((folder / "ablation.json").read_text())["rows"]
    assert [row["name"] for row in first] == ["single encoder: face"]
    capsys.readouterr()
    result = ablate(settings_for(only=["single encoder: face", "mean of all"], resume=True))
    assert trained == ["single encoder: face", "mean of all", "mean of all"]
    assert result["rows"][0] | {"against_naive": {}} == first[0] and len(result["rows"]) == 2
    assert json.loads((folder / "ablation.json").read_text()) == json.loads(json.dumps(result))
    text, printed = (folder / "ablation.md").read_text(), capsys.readouterr().out
    assert text == _markdown(result) and text in printed
    lines = [line for line in text.splitlines() if "|" in line]
    assert lines[2] in printed and printed.count(lines[3]) == 2
    assert len(lines) == 2 + 2 and {line.count("|") for line in lines} == {11 + 1}
    assert result["rows"][1]["against_naive"]["accuracy"]["against"] == "mean of all"
    with pytest.raises(ValueError, match="resume: learning_rate is 0.5 and was 0.01"):
        ablate(settings_for(resume=True, learning_rate=0.5))


def test_rows_that_are_not_asked_for_again_are_kept(settings_for, make_data, tmp_path):
    """Of the same data alone; what is not resumed is refused, or replaced as a whole."""
    names, path = ["single encoder: face", "mean of all"], tmp_path / "own"
    make_data(30, num_folds=3).save_to_disk(str(path))

    def rows():
        return [row["name"] for row in json.loads((tmp_path / "ablation" / "ablation.json").read_text())["rows"]]

    ablate(settings_for(only=names, data=str(path)))
    ablate(settings_for(only=["static top-1"], data=str(path), resume=True))
    assert sorted(rows()) == sorted([*names, "static top-1"])
    (tmp_path / "ablation" / "rows" / "mean_of_all.safetensors").unlink()
    ablate(settings_for(only=["static top-1"], data=str(path), resume=True))
    assert sorted(rows()) == sorted([*names, "static top-1"]), "a row without its predictions is still a row"
    with pytest.raises(FileExistsError, match="holds an earlier run .ablation.json.; name another fo"):
        ablate(settings_for(only=["static top-1"], data=str(path)))
    shutil.rmtree(path)
    make_data(30, num_folds=3, seed=5).save_to_disk(str(path))
    with pytest.raises(ValueError, match="resume: the labels of data changed since the run in "):
        ablate(settings_for(only=["static top-1"], data=str(path), resume=True))
    ablate(settings_for(only=["static top-1"], data=str(path), overwrite=True))
    assert rows() == ["static top-1"]


def test_a_row_is_the_cross_validation_of_its_settings(settings_for, make_store, make_settings, monkeypatch):
    """The static ranking puts noise last; the planted encoders of all clips are the other two."""
    monkeypatch.setattr(
        "hf_blemo.fusion_training.cross_validation._probe_scores",
        lambda store, rows: {name: 0.0 if name == "noise" else 1.0 for name in store.config.encoders},
    )
    given = {"encoders": ["noise", "voice", "face"], "encoder_options": {"voice": {"pooling": "statistics"}}}
    only = ["single encoder: face", "concatenation", "static top-2", "scored the published"]
    settings = settings_for(only=only, seeds=[3, 1], **given)
    single = {"gate": "uniform", "fusion": "weighted_sum", "top_n": 1}
    concatenation = {"gate": "uniform", "fusion": "concatenation", "top_n": 3}
    alike = [
        {"model": single, "encoders": ["face"]},
        {"model": concatenation, **given},
        {"protocol": "published_style", **given},
    ]
    rows = ablate(settings)["rows"]
    # Only a selection of as many encoders as are planted can be theirs.
    assert [row["planted"] for row in rows[:3]] == [None, None, 1.0] and rows[3]["planted"] is not None
    for row, changes in zip([*rows[:2], rows[3]], alike, strict=True):
        own = make_settings(seeds=[3, 1], num_epochs=1, **changes)
        store = make_store(feature_sets.load_features(settings.data), own)
        results, _ = cross_validate(Accelerator(), store, own)
        for decoding in ("expected_score", "thresholds"):
            for name, found in results.over_seeds(decoding).items():
                assert row[decoding][name] == pytest.approx(found), (decoding, name)
        assert row["ensemble"] == results.over_folds("expected_score")
        assert row["loss"] == {"mean": np.mean(results.losses()), "std": np.std(results.losses(), ddof=1)}


def test_planted_share_by_hand(make_data):
    """Neither the order within a selection nor that of the clips matters; -1 stands for an encoder too few."""
    clips = make_data(4, widths=dict.fromkeys("wxyz", 2))
    data = clips.select([3, 2, 1, 0]).add_column("informative", [[2, -1], [0, 1], [3, 0], [1, 2]])
    selected = {0: [[2, 1], [0, 3], [1, 0], [1, 2]], 1: [[2, 0], [0, 3], [1, 2], [2, -1]]}

    class Results:
        seeds, clips = [0, 1], [f"clip_{row:03d}" for row in range(4)]

        def pooled(self, seeds):
            return {"selected_encoders": np.array(selected[seeds[0]])}

    assert _planted_share(Results(), data, list("wxyz")) == pytest.approx((3 / 4 + 2 / 4) / 2)
    assert _planted_share(Results(), data, list("wxzy")) < 1 / 2
    assert _planted_share(Results(), clips, list("wxyz")) is None
    wider = clips.add_column("informative", [[0, 1, 2]] * 4)
    assert _planted_share(Results(), wider, list("wxyz")) is None


WEIGHTS = {"mmd": 0.25, "coral": 1.0, "adversarial": 1.0}
# Per kind and seed: on shifted clips, on the same clips unshifted.
SCORES = {
    "none": ([0.2, 0.3], [0.6, 0.4]),
    "mmd": ([0.4, 0.3], [0.6, 0.4]),
    "coral": ([0.6, 0.25], [0.5, 0.4]),
    "adversarial": ([0.1, 0.5], [0.6, 0.3]),
}


def test_recovered_is_the_share_of_the_loss_won_back(monkeypatch, capsys, tmp_path):
    """Scripted scores; what is trained on and what is scored is recorded."""
    trainings, predicted, reads = [], [], []

    def train(accelerator, store, settings, num_epochs):
        trainings.append((store.config, store, num_epochs))
        return [SimpleNamespace(kind=store.config.domain_adaptation, seed=seed) for seed in settings.seeds]

    def score(store, model, blend_share):
        predicted.append(store.dataset)
        return SCORES[model.kind][0 if set(store.dataset["domain"]) == {1} else 1][model.seed]

    class Store(ablation.FeatureStore):
        def __init__(self, data, *arguments, **options):
            reads.append(len(data))
            super().__init__(data, *arguments, **options)

    for name, replacement in (("train_on_all", train), ("FeatureStore", Store), ("_score", score)):
        monkeypatch.setattr(adaptation, name, replacement)
    monkeypatch.setattr(ablation, "FeatureStore", Store)
    settings = AblationSettings(
        data="synthetic",
        seeds=[0, 1],
        num_epochs=7,
        only=["adaptation"],
        synthetic={"num_clips": 15, "seed": 4},
        adaptation_weights={"fused": WEIGHTS, "encoders": WEIGHTS},
        model={"hidden_size": 8},
        output_dir=str(tmp_path / "ablation"),
    )
    result = ablate(settings)
    assert result["rows"] == []
    rows = result["adaptation"]
    levels = ("fused", "encoders")
    kinds = [(kind, level, weight) for kind, weight in WEIGHTS.items() for level in levels]
    assert [(row["kind"], row["level"], row["weight"]) for row in rows[1:]] == kinds
    assert rows[0]["kind"] == "none"
    expected = [[0, 0], *np.repeat([[0.5, 0], [1, -0.5], [-0.25, 2]], 2, axis=0).tolist()]
    for row, recovered in zip(rows, expected, strict=True):
        assert row["recovered"] == pytest.approx(recovered)
        assert (row["score"], row["unshifted"]) == SCORES[row["kind"]]
    lines = _markdown(result).splitlines()[-7:]
    assert lines[1] == "| mmd | fused | 0.25 | 0.3500 ± 0.0707 | 0.5000 ± 0.1414 | 0.250 ± 0.354 |"
    assert "\n".join(lines) in capsys.readouterr().out
    # The source once for the check and once per training; the clips to be scored once each.
    assert reads == [15, 15, 15, 15, *[30] * 6]

    assert [len(store) for _, store, _ in trainings] == [15, *[30] * 6]
    assert {epochs for _, _, epochs in trainings} == {7}
    assert [config.domain_adaptation_weight for config, _, _ in trainings[1:]] == [weight for _, _, weight in kinds]
    source, both = trainings[0][1], trainings[1][1]
    assert (both.labels[15:] == -100).all() and not (both.labels[:15] == -100).any()
    assert both.clips[:15] == source.clips
    shifted, unshifted = (next(clips for clips in predicted if set(clips["domain"]) == {domain}) for domain in (1, 0))
    assert shifted["clip"] == unshifted["clip"]
    assert not set(shifted["clip"]) & set(both.clips)
