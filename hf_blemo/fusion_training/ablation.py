"""One table of what every part of the design is worth, on one data set."""

import itertools
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from accelerate import Accelerator

from hf_blemo import blemore
from hf_blemo.built_in import SYNTHETIC
from hf_blemo.files import read_json, write_json
from hf_blemo.fusion_training.cross_validation import cross_validate, labelled_rows, train_on_all
from hf_blemo.fusion_training.data import load_data, model_config, with_unlabelled
from hf_blemo.fusion_training.feature_store import FeatureStore
from hf_blemo.fusion_training.results import CrossValidationResults, spread
from hf_blemo.fusion_training.selection import measure
from hf_blemo.fusion_training.settings import AblationSettings, ExperimentSettings
from hf_blemo.prediction.fusion import predict_blends
from hf_blemo.programs.checkpoints import check_same_run
from hf_blemo.programs.tables import markdown_head, markdown_row, plus_minus
from hf_blemo.rank_aware_fusion.configuration_rank_aware_fusion import RankAwareFusionConfig
from hf_blemo.rank_aware_fusion.processing_rank_aware_fusion import RankAwareFusionProcessor

ADAPTATIONS = ("mmd", "coral", "adversarial")


@dataclass(frozen=True)
class Variant:
    """One row of the table.

    Args:
        name: as printed.
        model: what it changes in the model's settings.
        encoders: the encoders it uses; all by default.
        settings: what it changes in the other settings.
    """

    name: str
    model: dict[str, Any] = field(default_factory=dict)
    encoders: tuple[str, ...] | None = None
    settings: dict[str, Any] = field(default_factory=dict)


def variants(settings: ExperimentSettings, encoder_names: list[str]) -> Iterator[Variant]:
    """The rows for a data set: baselines, the method for every n, and the method with one part changed at a time."""
    every, model = len(encoder_names), settings.model
    top_n = model.get("top_n", 3)
    for name in encoder_names:
        yield Variant(f"single encoder: {name}", {"gate": "uniform", "fusion": "weighted_sum", "top_n": 1}, (name,))
    yield Variant("mean of all", {"gate": "uniform", "fusion": "weighted_sum", "top_n": every})
    yield Variant("concatenation of all", {"gate": "uniform", "fusion": "concatenation", "top_n": every})
    for number in sorted({min(number, every) for number in (1, 2, top_n)}):
        yield Variant(f"static top-{number}", {"gate": "static", "top_n": number})
    for number in range(1, every + 1):
        mark = " (the method as configured)" if number == top_n else ""
        yield Variant(f"rank-aware, n = {number}{mark}", {"top_n": number})
    yield Variant("  without rank order (weighted sum)", {"fusion": "weighted_sum"})
    yield Variant("  gated concatenation", {"fusion": "concatenation"})
    yield Variant("  presence head alone", {"head_fusion": "presence"})
    yield Variant("  salience head alone", {"head_fusion": "salience"})
    yield Variant("  without joint interaction", {"joint_interaction": False})
    yield Variant("  without joint loss", {"joint_loss_weight": 0.0})
    yield Variant("  gate without context", {"gate_context": False})
    yield Variant("  without gate noise", {"gate_noise": 0.0})
    if model.get("gate_noise", 0.0) == 0:
        yield Variant("  with gate noise", {"gate_noise": 0.5})
    yield Variant("  without balance term", {"gate_balance_weight": 0.0})
    yield Variant("  without gate loss", {"gate_loss_weight": 0.0})
    yield Variant("  without encoder loss", {"encoder_loss_weight": 0.0, "gate_loss_weight": 0.0})
    if model.get("encoder_loss_weight", 0.0) == 0:
        yield Variant("  with encoder loss", {"encoder_loss_weight": 0.2})
    yield Variant("  without encoder dropout", {"encoder_dropout": 0.0})
    yield Variant("  scored the published way (optimistic)", settings={"protocol": "published_style"})
    if settings.align_folds:
        yield Variant("  without alignment of the folds", settings={"align_folds": False})


def planted_share(
    results: CrossValidationResults, data: datasets.Dataset, encoder_names: list[str] | None = None
) -> float | None:
    """Share of clips whose selected encoders are exactly the planted ones, mean over seeds, out of fold.

    Args:
        results: of a cross-validation.
        data: what it was made on.
        encoder_names: the models' encoders, where they are not those of the data in the same order.

    Returns:
        None where the data has no planted truth.
    """
    if "informative" not in data.column_names:
        return None
    row_of = {clip: row for row, clip in enumerate(data["clip"])}
    truth = np.asarray(data["informative"])[[row_of[clip] for clip in results.clips]]
    shares = []
    for seed in results.seeds:
        selected = results.pooled([seed])["selected_encoders"]
        if encoder_names is not None:
            # The planted numbers count the encoders of the data, the selected ones those of the model.
            names = list(blemore.encoder_widths(data))
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
        What `ablation.json` holds: `settings`; `rows`, one per variant: `name`, the metrics' mean and std over seeds
        for both decodings (`expected_score`, `thresholds`), the seed `ensemble`, the negative log-likelihood (`loss`),
        `planted` (see [`planted_share`]) and `seconds`; and, on the built-in data, `adaptation` (see
        [`compare_adaptations`]).

    Raises:
        ValueError: `only` asks for rows that do not exist, or another setting or the data is not usable.
    """
    accelerator = Accelerator()
    data = load_data(settings.data, settings)
    base = model_config(data, settings)
    chosen = _chosen_variants(settings, base)
    adapts = settings.data == SYNTHETIC and (not settings.only or "adaptation" in settings.only)
    if not chosen and not adapts:
        names = [variant.name.strip() for variant in variants(settings, list(base.encoders))]
        raise ValueError(f"only {settings.only} asks for no row; the rows are {', '.join(names)}")
    labelled_rows(FeatureStore(data, base, settings.align_folds, progress=False), settings)
    output = Path(settings.output_dir)
    result: dict[str, Any] = {"settings": asdict(settings), "rows": []}
    measured: dict[str, dict[str, Any]] = {}
    if settings.resume and (output / "ablation.json").is_file():
        earlier = read_json(output / "ablation.json")
        check_same_run(asdict(settings), earlier["settings"], settings.free_in_resume, settings.output_dir)
        measured = {row["name"]: row for row in earlier["rows"]}
    for variant in chosen:
        row = measured.get(variant.name) or measure_variant(accelerator, data, settings, variant, output)
        result["rows"].append(row)
        _keep(accelerator, output, result, table_row(row))
    if adapts:
        result["adaptation"] = []
        for row in compare_adaptations(accelerator, settings, data):
            result["adaptation"].append(row)
            _keep(accelerator, output, result, adaptation_row(row))
    accelerator.print(f"\n{markdown(result)}\nWritten to {output / 'ablation.md'} and {output / 'ablation.json'}")
    return result


def _chosen_variants(settings: AblationSettings, base: RankAwareFusionConfig) -> list[Variant]:
    """The rows that `settings.only` asks for, without those that would change nothing."""
    chosen = []
    for variant in variants(settings, list(base.encoders)):
        if settings.only and not variant.name.strip().startswith(tuple(settings.only)):
            continue
        changes = {key: value for key, value in variant.model.items() if settings.model.get(key) != value}
        unchanged = all(getattr(base, key) == value for key, value in changes.items()) and not variant.settings
        if not (variant.name.startswith("  ") and unchanged):
            chosen.append(variant)
    return chosen


def measure_variant(
    accelerator: Accelerator, data: datasets.Dataset, settings: AblationSettings, variant: Variant, output: Path
) -> dict[str, Any]:
    """Cross-validates one row of a table.

    Args:
        accelerator: of the run.
        data: all clips.
        settings: of the run.
        variant: what is changed in them.
        output: folder for checkpoints on the way.

    Returns:
        `name`; mean and std over seeds of the metrics for both decodings (`expected_score`, `thresholds`); of the seed
        `ensemble`; the negative log-likelihood (`loss`); `planted` (see [`planted_share`]); `seconds`.
    """
    start = time.perf_counter()
    own = replace(
        settings,
        model={**settings.model, **variant.model},
        encoders=list(variant.encoders) if variant.encoders else settings.encoders,
        encoder_options={
            name: options
            for name, options in settings.encoder_options.items()
            if variant.encoders is None or name in variant.encoders
        },
        **variant.settings,
    )
    store = FeatureStore(data, model_config(data, own), own.align_folds, progress=False)
    checkpoints = output / "checkpoints"
    results, _ = cross_validate(
        accelerator,
        store.config,
        store,
        own,
        checkpoints / variant.name.strip().replace("/", "_"),
        description=variant.name.strip(),
    )
    if accelerator.is_main_process:
        shutil.rmtree(checkpoints, ignore_errors=True)
    return {
        "name": variant.name,
        "expected_score": spread(results.seed_means("expected_score")),
        "thresholds": spread(results.seed_means("thresholds")),
        "loss": {"mean": float(np.mean(results.losses())), "std": float(np.std(results.losses()))},
        "ensemble": spread(results.ensemble("expected_score")[0]),
        "planted": planted_share(results, data, list(store.config.encoders)),
        "seconds": round(time.perf_counter() - start, 1),
    }


def _keep(accelerator: Accelerator, output: Path, result: dict[str, Any], line: str) -> None:
    """Prints a row that is done and writes the tables so far."""
    if accelerator.is_main_process:
        print(line, flush=True)
        output.mkdir(parents=True, exist_ok=True)
        write_json({output / "ablation.json": result})
        (output / "ablation.md").write_text(markdown(result))


HEADER = ("method", "Score", "presence", "salience", "Score, thresholds", "Score, ensemble", "NLL", "gate = planted")


def table_row(row: dict[str, Any]) -> str:
    """A row as Markdown; mean ± std over seeds of the mean over folds."""
    planted = "" if row["planted"] is None else f"{row['planted']:.3f}"
    cells = [row["name"].replace("  ", "&nbsp;&nbsp;")]
    cells += [plus_minus(row["expected_score"][metric]) for metric in ("score", "acc_presence", "acc_salience")]
    cells += [plus_minus(row["thresholds"]["score"]), f"{row['ensemble']['score']['mean']:.4f}"]
    cells += [plus_minus(row["loss"]), planted]
    return markdown_row(cells)


def compare_adaptations(
    accelerator: Accelerator, settings: AblationSettings, source: datasets.Dataset
) -> Iterator[dict[str, Any]]:
    """What every kind of domain adaptation recovers of a known shift's loss.

    Trained on the source with its labels and on one set of target clips without theirs; scored on further target
    clips, with the shift and, the same clips, without it. The budget is `settings.num_epochs` for every kind; no label
    of the target chooses anything.

    Args:
        accelerator: of this run.
        settings: of the run.
        source: the labelled source.

    Yields:
        One row without adaptation, then one per kind and level: Score on the shifted clips (`score`, per seed), on the
        same clips unshifted (`unshifted`), and `recovered`, the share of the loss without adaptation that the row wins
        back, per seed; empty where nothing was lost.
    """
    seed = settings.synthetic.get("seed", 0)
    target = load_data(SYNTHETIC, settings, domain="target", seed=seed + 1)
    shifted = load_data(SYNTHETIC, settings, domain="target", seed=seed + 2)
    unshifted = load_data(SYNTHETIC, settings, domain="source", seed=seed + 2)
    labels = np.asarray(shifted["labels"], dtype=np.float64)
    lost = unadapted = np.zeros(len(settings.seeds))
    for kind, level in [("none", "fused"), *itertools.product(ADAPTATIONS, settings.adaptation_weights)]:
        weight = settings.adaptation_weights[level].get(kind, 0.0)
        changes = {
            "domain_adaptation": kind,
            "domain_adaptation_level": level,
            "domain_adaptation_weight": weight,
        }
        own = replace(settings, model={**settings.model, **changes})
        config = model_config(source, own)
        data = source if kind == "none" else with_unlabelled(source, target)
        models = train_on_all(
            accelerator, config, FeatureStore(data, config, progress=False), own, settings.num_epochs
        )
        processor = RankAwareFusionProcessor(config.encoders, blend_share=blemore.BLEND_SHARE)
        row: dict[str, Any] = {"kind": kind, "level": level, "weight": weight}
        for name, clips in (("score", shifted), ("unshifted", unshifted)):
            row[name] = [
                measure([found["blend"] for found in predict_blends([(model, processor)], clips)], labels)["score"]
                for model in models
            ]
        if kind == "none":
            unadapted = np.array(row["score"])
            lost = np.array(row["unshifted"]) - unadapted
        row["recovered"] = ((np.array(row["score"]) - unadapted) / lost).tolist() if (lost > 0).all() else []
        yield row


ADAPTATION_HEADER = ("domain adaptation", "of", "weight", "Score, shifted", "Score, same clips unshifted", "recovered")


def adaptation_row(row: dict[str, Any]) -> str:
    """A row as Markdown; mean ± std over seeds."""
    adapted = row["kind"] != "none"
    cells = [row["kind"], row["level"] if adapted else "", f"{row['weight']:g}" if adapted else ""]
    cells += [f"{np.mean(row[name]):.4f} ± {np.std(row[name]):.4f}" for name in ("score", "unshifted")]
    recovered = row["recovered"]
    cells.append(f"{np.mean(recovered):.3f} ± {np.std(recovered):.3f}" if adapted and recovered else "")
    return markdown_row(cells)


def markdown(result: dict[str, Any]) -> str:
    """The tables of [`ablate`] as Markdown."""
    lines = [*markdown_head(HEADER), *map(table_row, result["rows"])]
    if "adaptation" in result:
        lines += ["", *markdown_head(ADAPTATION_HEADER), *map(adaptation_row, result["adaptation"])]
    return "\n".join(lines) + "\n"
