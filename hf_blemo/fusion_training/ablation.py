"""One table of what every part of the design is worth, on one data set."""

import itertools
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from accelerate import Accelerator

from hf_blemo import feature_sets
from hf_blemo.built_in import SYNTHETIC
from hf_blemo.files import read_json, write_json
from hf_blemo.fusion_training.cross_validation import cross_validate, train_on_all
from hf_blemo.fusion_training.data import load_data, model_config, with_unlabelled
from hf_blemo.fusion_training.feature_store import FeatureStore
from hf_blemo.fusion_training.results import CrossValidationResults
from hf_blemo.fusion_training.settings import AblationSettings, ExperimentSettings
from hf_blemo.programs.checkpoints import check_same_run
from hf_blemo.programs.tables import plus_minus, table
from hf_blemo.rank_aware_fusion.configuration_rank_aware_fusion import RankAwareFusionConfig
from hf_blemo.rank_aware_fusion.modeling_rank_aware_fusion import RankAwareFusionModel

_ADAPTATIONS = ("mmd", "coral", "adversarial")


@dataclass(frozen=True)
class _Variant:
    """One row of the table: what it changes in the model's settings and in the others, and the encoders it uses."""

    name: str
    model: dict[str, Any] = field(default_factory=dict)
    encoders: tuple[str, ...] | None = None
    settings: dict[str, Any] = field(default_factory=dict)


def _variants(settings: ExperimentSettings, encoder_names: list[str]) -> Iterator[_Variant]:
    """The rows for a data set: baselines, the method for every n, and the method with one part changed at a time."""
    every, model = len(encoder_names), settings.model
    top_n = model.get("top_n", 3)
    for name in encoder_names:
        yield _Variant(f"single encoder: {name}", {"gate": "uniform", "fusion": "weighted_sum", "top_n": 1}, (name,))
    yield _Variant("mean of all", {"gate": "uniform", "fusion": "weighted_sum", "top_n": every})
    yield _Variant("concatenation of all", {"gate": "uniform", "fusion": "concatenation", "top_n": every})
    for number in sorted({min(number, every) for number in (1, 2, top_n)}):
        yield _Variant(f"static top-{number}", {"gate": "static", "top_n": number})
    for number in range(1, every + 1):
        mark = " (the method as configured)" if number == top_n else ""
        yield _Variant(f"rank-aware, n = {number}{mark}", {"top_n": number})
    yield _Variant("  without rank order (weighted sum)", {"fusion": "weighted_sum"})
    yield _Variant("  gated concatenation", {"fusion": "concatenation"})
    yield _Variant("  presence head alone", {"head_fusion": "presence"})
    yield _Variant("  salience head alone", {"head_fusion": "salience"})
    yield _Variant("  without joint interaction", {"joint_interaction": False})
    yield _Variant("  without joint loss", {"joint_loss_weight": 0.0})
    yield _Variant("  gate without context", {"gate_context": False})
    yield _Variant("  without gate noise", {"gate_noise": 0.0})
    if model.get("gate_noise", 0.0) == 0:
        yield _Variant("  with gate noise", {"gate_noise": 0.5})
    yield _Variant("  without balance term", {"gate_balance_weight": 0.0})
    yield _Variant("  without gate loss", {"gate_loss_weight": 0.0})
    yield _Variant("  without encoder loss", {"encoder_loss_weight": 0.0, "gate_loss_weight": 0.0})
    if model.get("encoder_loss_weight", 0.0) == 0:
        yield _Variant("  with encoder loss", {"encoder_loss_weight": 0.2})
    yield _Variant("  without encoder dropout", {"encoder_dropout": 0.0})
    yield _Variant("  scored the published way (optimistic)", settings={"protocol": "published_style"})
    if settings.align_folds:
        yield _Variant("  without alignment of the folds", settings={"align_folds": False})


def _planted_share(results: CrossValidationResults, data: datasets.Dataset, encoder_names: list[str]) -> float | None:
    """Share of clips whose selected encoders are exactly the planted ones, out of fold, mean over seeds.

    None where the data has no planted truth.
    """
    if "informative" not in data.column_names:
        return None
    row_of = {clip: row for row, clip in enumerate(data["clip"])}
    truth = np.asarray(data["informative"])[[row_of[clip] for clip in results.clips]]
    names, shares = list(feature_sets.encoder_widths(data)), []
    for seed in results.seeds:
        selected = results.pooled([seed])["selected_encoders"]
        # The planted numbers count the encoders of the data, the selected ones those of the model.
        selected = np.array([*(names.index(name) for name in encoder_names), -1])[selected]
        if selected.shape[1] != truth.shape[1]:
            return None
        shares.append(float((np.sort(selected, 1) == np.sort(truth, 1)).all(1).mean()))
    return float(np.mean(shares))


def ablate(settings: AblationSettings) -> dict[str, Any]:
    """Cross-validates every variant with the same budget, folds and seeds.

    `ablation.json` and `ablation.md` in `settings.output_dir` grow row by row.

    Args:
        settings: of the run.

    Returns:
        The content of `ablation.json`: `settings`; `rows`, one per variant as of [`measure_variant`]; and, on the
        built-in data, `adaptation`: for no domain adaptation and for every kind and level, the Score on shifted clips
        (`score`, per seed), on the same clips unshifted (`unshifted`), and `recovered`, the share of the loss without
        adaptation that is won back, empty where nothing was lost.

    Raises:
        ValueError: `only` asks for rows that do not exist, or another setting or the data is not usable.
    """
    accelerator = Accelerator()
    data = load_data(settings.data, settings.synthetic)
    base = model_config(data, settings)
    chosen = _chosen_variants(settings, base)
    adapts = settings.data == SYNTHETIC and (not settings.only or "adaptation" in settings.only)
    if not chosen and not adapts:
        names = [variant.name.strip() for variant in _variants(settings, list(base.encoders))]
        raise ValueError(f"only {settings.only} asks for no row; the rows are {', '.join(names)}")
    FeatureStore(data, base, settings.align_folds, progress=False).labelled_rows(settings.protocol)
    output = Path(settings.output_dir)
    result: dict[str, Any] = {"settings": asdict(settings), "rows": []}
    measured: dict[str, dict[str, Any]] = {}
    if settings.resume and (output / "ablation.json").is_file():
        earlier = read_json(output / "ablation.json")
        check_same_run(asdict(settings), earlier["settings"], settings.free_in_resume, settings.output_dir)
        measured = {row["name"]: row for row in earlier["rows"]}
    for variant in chosen:
        row = measured.get(variant.name) or measure_variant(
            accelerator, data, settings, variant.name, variant.model, variant.encoders, **variant.settings
        )
        result["rows"].append(row)
        _keep(accelerator, output, result)
    if adapts:
        result["adaptation"] = []
        for row in _compare_adaptations(accelerator, settings, data):
            result["adaptation"].append(row)
            _keep(accelerator, output, result)
    accelerator.print(f"\n{_markdown(result)}\nWritten to {output / 'ablation.md'} and {output / 'ablation.json'}")
    return result


def _chosen_variants(settings: AblationSettings, base: RankAwareFusionConfig) -> list[_Variant]:
    """The rows that `settings.only` asks for, without those that would change nothing."""
    chosen = []
    for variant in _variants(settings, list(base.encoders)):
        if settings.only and not variant.name.strip().startswith(tuple(settings.only)):
            continue
        changes = {key: value for key, value in variant.model.items() if settings.model.get(key) != value}
        unchanged = all(getattr(base, key) == value for key, value in changes.items()) and not variant.settings
        if not (variant.name.startswith("  ") and unchanged):
            chosen.append(variant)
    return chosen


def measure_variant(
    accelerator: Accelerator,
    data: datasets.Dataset,
    settings: AblationSettings,
    name: str,
    model: dict[str, Any],
    encoders: Sequence[str] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """Cross-validates one row of a table.

    Args:
        accelerator: of the run.
        data: all clips.
        settings: of the run; its `output_dir` holds checkpoints on the way.
        name: of the row.
        model: changes of the model's settings.
        encoders: the encoders to use; those of the settings by default.
        changes: changes of other settings.

    Returns:
        `name`; mean and std over seeds of the metrics for both decodings (`expected_score`, `thresholds`); of the seed
        `ensemble`; the negative log-likelihood (`loss`); `planted`, the share of clips whose selected encoders are the
        planted ones; `seconds`.
    """
    start = time.perf_counter()
    own = replace(
        settings,
        model={**settings.model, **model},
        encoders=list(encoders) if encoders else settings.encoders,
        encoder_options={
            encoder: options
            for encoder, options in settings.encoder_options.items()
            if encoders is None or encoder in encoders
        },
        **changes,
    )
    store = FeatureStore(data, model_config(data, own), own.align_folds, progress=False)
    checkpoints = Path(settings.output_dir, "checkpoints")
    row_folder = checkpoints / name.strip().replace("/", "_")
    results, _ = cross_validate(accelerator, store, own, row_folder, description=name.strip())
    if accelerator.is_main_process:
        shutil.rmtree(checkpoints, ignore_errors=True)
    return {
        "name": name,
        "expected_score": results.over_seeds("expected_score"),
        "thresholds": results.over_seeds("thresholds"),
        "loss": {"mean": float(np.mean(results.losses())), "std": float(np.std(results.losses()))},
        "ensemble": results.over_folds("expected_score"),
        "planted": _planted_share(results, data, list(store.config.encoders)),
        "seconds": round(time.perf_counter() - start, 1),
    }


def _keep(accelerator: Accelerator, output: Path, result: dict[str, Any]) -> None:
    """Prints a row that is done and writes the tables so far."""
    if accelerator.is_main_process:
        text = _markdown(result)
        print(text.splitlines()[-1], flush=True)
        output.mkdir(parents=True, exist_ok=True)
        write_json({output / "ablation.json": result})
        (output / "ablation.md").write_text(text)


_HEADER = ("method", "Score", "presence", "salience", "Score, thresholds", "Score, ensemble", "NLL", "gate = planted")


def _table_row(row: dict[str, Any]) -> list[str]:
    """Cells of a row; mean ± std over seeds of the mean over folds."""
    planted = "" if row["planted"] is None else f"{row['planted']:.3f}"
    cells = [row["name"].replace("  ", "&nbsp;&nbsp;")]
    cells += [plus_minus(row["expected_score"][metric]) for metric in ("score", "acc_presence", "acc_salience")]
    cells += [plus_minus(row["thresholds"]["score"]), f"{row['ensemble']['score']['mean']:.4f}"]
    return [*cells, plus_minus(row["loss"]), planted]


def _compare_adaptations(
    accelerator: Accelerator, settings: AblationSettings, source: datasets.Dataset
) -> Iterator[dict[str, Any]]:
    """Yields a row without adaptation, then one per kind and level, all with the same budget.

    Trained on the source with its labels and on one set of target clips without theirs; scored on further target
    clips, with the shift and, the same clips, without it. No label of the target chooses anything.
    """
    target = {**settings.synthetic, "domain": "target"}
    seed = settings.synthetic.get("seed", 0)
    both = with_unlabelled(source, load_data("synthetic", {**target, "seed": seed + 1}))
    scored = {
        "score": load_data("synthetic", {**target, "seed": seed + 2}),
        "unshifted": load_data("synthetic", {**target, "seed": seed + 2, "domain": "source"}),
    }
    config = model_config(source, settings)
    stores = {name: FeatureStore(clips, config, progress=False) for name, clips in scored.items()}
    lost = unadapted = np.zeros(len(settings.seeds))
    for kind, level in [("none", "fused"), *itertools.product(_ADAPTATIONS, settings.adaptation_weights)]:
        weight = settings.adaptation_weights[level].get(kind, 0.0)
        changes = {
            "domain_adaptation": kind,
            "domain_adaptation_level": level,
            "domain_adaptation_weight": weight,
        }
        own = replace(settings, model={**settings.model, **changes})
        data = source if kind == "none" else both
        store = FeatureStore(data, model_config(source, own), progress=False)
        models = train_on_all(accelerator, store, own, settings.num_epochs)
        row: dict[str, Any] = {"kind": kind, "level": level, "weight": weight}
        for name, clips in stores.items():
            row[name] = [_score(clips, model, store.blend_share) for model in models]
        if kind == "none":
            unadapted = np.array(row["score"])
            lost = np.array(row["unshifted"]) - unadapted
        row["recovered"] = ((np.array(row["score"]) - unadapted) / lost).tolist() if (lost > 0).all() else []
        yield row


def _score(store: FeatureStore, model: RankAwareFusionModel, blend_share: float) -> float:
    """The Score of one model's predictions of all rows."""
    found = {name: values.numpy() for name, values in store.predict([model]).items()}
    blends = store.judge.decode(found, "expected_score", {"blend_share": blend_share})
    return store.judge.measure(blends, store.labels.numpy(), found)["score"]


_ADAPTATION_HEADER = (
    "domain adaptation", "of", "weight", "Score, shifted", "Score, same clips unshifted", "recovered",
)  # fmt: skip


def _adaptation_row(row: dict[str, Any]) -> list[str]:
    """Cells of a row; mean ± std over seeds."""
    adapted = row["kind"] != "none"
    cells = [row["kind"], row["level"] if adapted else "", f"{row['weight']:g}" if adapted else ""]
    cells += [f"{np.mean(row[name]):.4f} ± {np.std(row[name]):.4f}" for name in ("score", "unshifted")]
    recovered = row["recovered"]
    cells.append(f"{np.mean(recovered):.3f} ± {np.std(recovered):.3f}" if adapted and recovered else "")
    return cells


def _markdown(result: dict[str, Any]) -> str:
    """The tables of [`ablate`] as Markdown."""
    tables = [table(_HEADER, [*map(_table_row, result["rows"])], padded=False)]
    if "adaptation" in result:
        tables.append(table(_ADAPTATION_HEADER, [*map(_adaptation_row, result["adaptation"])], padded=False))
    return "\n\n".join(tables) + "\n"
